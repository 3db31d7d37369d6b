"""Data of one's own through every command: areas and points of classes of any name."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common import command_line
from data_prep import __main__ as data_prep_main
from data_prep import preview
from data_prep.config import SPLITS, PrepConfig
from data_prep.dataset.manifest import Dataset, read_dataset
from data_prep.dataset.samples import read_points, read_sample
from data_prep.prepare import prepare
from model.precision import choose_precision
from train import __main__ as train_main
from train import evaluate, export, predict
from train.evaluation.summary_text import class_tables
from train.fields import measured_fields
from train.metrics import sensitivity
from train.metrics.detection import find_nuclei, hits
from train.prediction import predictor
from train.prediction.tiles import predict_probability
from train.ranks.distributed import Ranks
from train.runs.history import read_metrics
from train.runs.run_folder import read_run
from train.runs.thresholds import ClassThresholds, OutOfFold, Thresholds, thresholds_of

pytestmark = pytest.mark.usefixtures("warm_workers")

CLASSES = ["lymphocyte", "plasma cell"]
RADIUS_PX = 8
SPLIT = ["split.val_cases=[3]", "split.test_cases=[4,5]"]
TINY = [
    "epochs=6",
    "batch_size=4",
    "microbatches=4",
    "lr=0.02",
    "loader_workers=0",
    "amp=off",
    "crop.size_px=32",
]
TINY += ["model.width=4", "model.depth=1", "tile.size_px=48", "tile.overlap_px=8"]
OCTAGON = RADIUS_PX * np.exp(np.arange(9) * np.pi / 4 * 1j)

NO_FIGURES = "figures=0"
RANKS = Ranks(0, 1, torch.device("cpu"))

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def annotated(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw fields as from QuPath: the first nucleus of each is a point, the others outlines."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("images", "groundTruth"):
        (folder / name).mkdir()
    for path in sorted(raw.glob("*.png")):
        shutil.copy(path, folder / "images")
        width, height = Image.open(path).size
        listed = json.loads(path.with_suffix(".json").read_text())["tumor"]
        places = [(point["x"] * width, point["y"] * height) for point in listed]
        features = [feature("plasma cell", "Point", places[0])]
        for x, y in places[1:]:
            outline = np.stack([x + OCTAGON.real, y + OCTAGON.imag], axis=1)
            inside = np.clip(outline, 0, (width, height)).tolist()
            features.append(feature("lymphocyte", "Polygon", [inside]))
        (folder / f"groundTruth/{path.stem}.geojson").write_text(json.dumps(features))
    return folder


def feature(name: str, kind: str, coordinates: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "annotation", "classification": {"name": name}},
    }


@pytest.fixture(scope="module")
def own(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("own_prepared") / "data"
    given = [f"raw={annotated}", f"out={out}", "annotations=geojson", "labels=per_class"]
    given += [f"classes=[{','.join(CLASSES)}]", f"radius_px={RADIUS_PX}", "format=png", "copies=4"]
    prepare(command_line.load(PrepConfig, [*given, *SPLIT]))
    return read_dataset(out)


@pytest.fixture(scope="module")
def run(own: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own_run") / "run"
    assert train_main.main([f"data={own.folder}", f"run={folder}", *TINY]) == 0
    return folder


@pytest.fixture
def evaluated(run: Path, tmp_path: Path, cli: Callable[..., Any]) -> Run:
    """evaluated("split=val") is the summary.json of `python -m train.evaluate`."""

    def call(*settings: str) -> dict[str, Any]:
        given = [f"run={run}", f"out={tmp_path / 'out'}", "amp=off", *settings]
        outcome = cli(evaluate.main, *given)
        assert outcome.code == 0, outcome.err
        assert (tmp_path / "out/report.html").is_file()
        return json.loads((tmp_path / "out/summary.json").read_text())

    return call


def test_raw_fields_are_evaluated_as_the_prepared_ones(
    evaluated: Run, annotated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of areas nothing is said about discs of other sizes, and none is drawn for it."""
    drawn: list[object] = []
    monkeypatch.setattr(sensitivity, "paint_discs", lambda *given: drawn.append(given))
    prepared, raw = evaluated("figures=1"), evaluated(f"raw={annotated}", "cases=[4,5]", NO_FIGURES)
    assert "sensitivity" not in prepared
    assert not drawn
    for key in ("all_pixels", "per_field", "per_class", "detection"):
        assert raw[key] == prepared[key], key
    assert list(raw["per_class"]) == CLASSES
    assert prepared["detection"]["annotated"] == 3 * 4


def test_a_raw_folder_without_the_classes_is_refused(
    run: Path, annotated: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Else a class that is called otherwise there would be missed everywhere, in silence."""
    folder = Path(shutil.copytree(annotated, tmp_path / "other"))
    for path in (folder / "groundTruth").iterdir():
        path.write_text(path.read_text().replace("plasma cell", "Plasma cell"))
    outcome = cli(evaluate.main, f"run={run}", f"raw={folder}")
    assert outcome.code == 2
    assert "classes: no 'plasma cell' anywhere in" in outcome.err
    assert "there are: Plasma cell, lymphocyte" in outcome.err


def test_annotations_of_another_format_are_told_which_is_expected(
    run: Path, raw: Path, cli: Callable[..., Any]
) -> None:
    """BreCaHAD's JSON ends as GeoJSON may, so only its content is wrong."""
    outcome = cli(evaluate.main, f"run={run}", f"raw={raw}", "cases=[4]")
    assert outcome.code == 1
    assert f"{raw / 'Case_4-01.json'}: invalid GeoJSON" in outcome.err
    assert outcome.err.endswith(
        f"; expected annotations=geojson (.geojson or .json), the format of the training data in"
        f" {run}/dataset.json\n"
    )


def test_an_exported_model_knows_the_format(
    run: Path, annotated: Path, evaluated: Run, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    model = tmp_path / "model.safetensors"
    assert cli(export.main, f"run={run}", f"out={model}").code == 0
    given = [f"raw={annotated}", "cases=[4,5]", NO_FIGURES]
    assert evaluated(f"run={model}", *given)["all_pixels"] == evaluated(*given)["all_pixels"]


# Ready masks


@pytest.fixture(scope="module")
def masked(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw fields with masks: two squares of 16 px of the first class, one of the second."""
    folder = tmp_path_factory.mktemp("masked")
    label_HW = np.zeros((64, 96), np.uint8)
    label_HW[8:24, 8:24] = label_HW[40:56, 60:76] = 1
    label_HW[8:24, 70:86] = 2
    for name in ("images", "groundTruth"):
        (folder / name).mkdir()
    for path in raw.glob("*.png"):
        shutil.copy(path, folder / "images")
        Image.fromarray(label_HW).save(folder / "groundTruth" / path.name)
    return folder


@pytest.fixture(scope="module")
def run_on_masks(masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked_run")
    given = [f"raw={masked}", f"out={folder / 'data'}", "annotations=masks", "labels=per_class"]
    given += [f"classes=[{','.join(CLASSES)}]", f"radius_px={RADIUS_PX}", "format=png", "copies=4"]
    prepare(command_line.load(PrepConfig, [*given, *SPLIT]))
    given = [f"data={folder / 'data'}", f"run={folder / 'run'}", *TINY, "epochs=1"]
    assert train_main.main(given) == 0
    return folder / "run"


def halves(model: object, image_HWC: np.ndarray, *settings: object) -> np.ndarray:
    """A 'network' that is sure of the first class on the left, and of the second on the right."""
    probability_CHW = np.full((2, *image_HWC.shape[:2]), 0.1, np.float32)
    probability_CHW[0, :, :48] = probability_CHW[1, :, 48:] = 0.9
    return probability_CHW


def test_fields_with_masks_are_evaluated_as_the_prepared_ones(
    evaluated: Run, run_on_masks: Path, masked: Path
) -> None:
    prepared = evaluated(f"run={run_on_masks}", NO_FIGURES)
    raw = evaluated(f"run={run_on_masks}", f"raw={masked}", "cases=[4,5]", NO_FIGURES)
    for key in ("all_pixels", "per_field", "per_class", "detection"):
        assert raw[key] == prepared[key], key


def test_what_is_counted_in_masks_is_what_one_counts(
    evaluated: Run, run_on_masks: Path, masked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 6144 px a field half are predicted a class; right are 256 of 512, and all 256."""
    monkeypatch.setattr(measured_fields, "predict_probability", halves)
    given = [f"run={run_on_masks}", f"raw={masked}", "cases=[4,5]", "threshold=0.5", NO_FIGURES]
    summary = evaluated(*given)
    first, second = (summary["per_class"][name] for name in CLASSES)
    assert first["dice"] == pytest.approx(2 * 256 / (3072 + 512))
    assert (first["precision"], first["recall"]) == pytest.approx((256 / 3072, 1 / 2))
    assert second["dice"] == pytest.approx(2 * 256 / (3072 + 256))
    assert (second["precision"], second["recall"]) == pytest.approx((256 / 3072, 1))
    assert summary["all_pixels"]["dice"] == pytest.approx(2 * 512 / (6144 + 768))
    of_classes = summary["detection"]["per_class"]
    assert [of_classes[name]["annotated"] for name in CLASSES] == [3 * 2, 3 * 1]
    assert "sensitivity" not in summary


def test_masks_measure_a_run_that_was_trained_on_outlines(
    evaluated: Run, masked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their values are the run's classes in order: figures as of a run that was trained on them."""
    monkeypatch.setattr(measured_fields, "predict_probability", halves)
    given = [f"raw={masked}", "annotations=masks", "cases=[4,5]", "threshold=0.5", "figures=1"]
    summary = evaluated(*given)
    first, second = (summary["per_class"][name] for name in CLASSES)
    assert first["dice"] == pytest.approx(2 * 256 / (3072 + 512))
    assert second["dice"] == pytest.approx(2 * 256 / (3072 + 256))
    assert "sensitivity" not in summary
    (warning,) = [line for line in summary["warnings"] if "shapes" in line]
    assert warning == (
        "the truth is areas as drawn (annotations=masks); the run was trained on areas as drawn,"
        " and discs of radius_px=8 about points (annotations=geojson). Figures of pixels compare"
        " the two shapes; those of nuclei show better what is found"
    )


def test_discs_about_points_measure_it_too_at_other_radii(
    evaluated: Run, annotated: Path, tmp_path: Path
) -> None:
    folder, lines = tmp_path / "table", ["file,x,y,class"]
    folder.mkdir()
    for path in sorted((annotated / "images").glob("Case_4-*")):
        shutil.copy(path, folder)
        lines += [f"{path.name},{20 + 40 * n},30,{name}" for n, name in enumerate(CLASSES)]
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    summary = evaluated(f"raw={folder}", "annotations=csv", NO_FIGURES)
    by_radius = {row["radius_px"]: row["dice"] for row in summary["sensitivity"]}
    assert by_radius[RADIUS_PX] == pytest.approx(summary["all_pixels"]["dice"])
    assert "discs of radius_px=8 about points (annotations=csv)" in "".join(summary["warnings"])


def test_each_class_has_thresholds_of_its_own(
    run: Path,
    own: Dataset,
    evaluated: Run,
    annotated: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
) -> None:
    """Those best on val, each found here by trying; figures, masks and files have them."""
    metrics, on_val, on_test = read_metrics(run)[-1], *(counted(run, own, s) for s in SPLITS[1:])
    pixels, nuclei = (
        {name: metrics[f"val/{key}/{name}"] for name in CLASSES}
        for key in ("threshold", "nuclei_threshold")
    )
    summary = evaluated("checkpoint=latest", NO_FIGURES)
    assert summary["threshold"] == {"value": pixels, "chosen_on": "val"}
    assert summary["detection"]["threshold"] == nuclei
    figures = summary["per_class"], summary["detection"]["per_class"]
    for used, val, test, found, key in zip(
        (pixels, nuclei), on_val, on_test, figures, ("dice", "f1"), strict=True
    ):
        assert len({*used.values()}) == 2, "or classes could be exchanged"
        for name, threshold in used.items():
            assert val[name][threshold] == max(val[name].values()), (key, name)
            assert found[name][key] == pytest.approx(test[name][threshold]), (key, name)

    model, field = tmp_path / "model.safetensors", annotated / "images/Case_4-01.png"
    assert cli(export.main, f"run={run}", "checkpoint=latest", f"out={model}").code == 0
    outcome = cli(predict.main, f"run={model}", f"input={field}", f"out={tmp_path / 'predicted'}")
    words = ", ".join(f"{name} {value:g}" for name, value in pixels.items())
    assert f"threshold of pixels {words}, of nuclei" in outcome.out
    settings = json.loads((tmp_path / "predicted/Case_4-01_settings.json").read_text())
    assert (settings["threshold"], settings["nuclei_threshold"]) == (pixels, nuclei)


ByThreshold = dict[str, dict[float, float]]


def counted(run: Path, data: Dataset, split: str) -> tuple[ByThreshold, ByThreshold]:
    """Dice and F1 of each class at each threshold, by their definition."""
    read = read_run(run)
    model = read.load_model("latest", RANKS).model.eval()
    precision = choose_precision(torch.device("cpu"), "off", read.config.memory_format)
    steps = [number / 100 for number in range(1, 100)]
    pixels, nuclei = np.zeros((2, len(CLASSES), len(steps), 2))  # twice the hits, and all there are
    for sample in data.split(split, originals_only=True):
        image_HWC, mask_HW = read_sample(data.folder, sample)
        points = read_points(data.folder, sample, read.data.labelling.labels)
        probability_CHW = predict_probability(model, image_HWC, read.config.tile, precision)
        for channel, (name, value) in enumerate(zip(CLASSES, read.label_values, strict=True)):
            probability_HW, truth_HW = probability_CHW[channel], mask_HW == value
            for number, step in enumerate(steps):
                predicted_HW = probability_HW > step
                both = 2 * (predicted_HW & truth_HW).sum()
                pixels[channel, number] += both, predicted_HW.sum() + truth_HW.sum()
                centres = find_nuclei(probability_HW, RADIUS_PX, step).centres_N2
                found = hits(centres, points[name], RADIUS_PX).sum()
                nuclei[channel, number] += 2 * found, len(centres) + len(points[name])
    by_threshold = (
        {
            name: dict(zip(steps, of_class[:, 0] / of_class[:, 1], strict=True))
            for name, of_class in zip(CLASSES, each, strict=True)
        }
        for each in (pixels, nuclei)
    )
    return next(by_threshold), next(by_threshold)


def test_thresholds_keep_their_classes_whatever_their_order_in_a_file(
    run: Path, annotated: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Of an ensemble of two, and of its file."""
    other, model = tmp_path / "other", tmp_path / "both.safetensors"
    shutil.copytree(run, other)
    given = [f"input={annotated / 'images/Case_4-01.png'}", "min_tissue=0"]
    assert cli(export.main, f"runs=[{run},{other}]", f"out={model}").code == 0
    expected = read_run(run)
    kept = thresholds_of(expected.load_model("best", RANKS).state, CLASSES)
    words = Thresholds(*(replace(each, chosen_on="members") for each in (kept.pixels, kept.nuclei)))
    for each in (kept.pixels, kept.nuclei):
        assert len({*each.values}) == 2, "or classes could be exchanged"
    for source in (f"runs=[{run},{other}]", f"run={model}"):
        outcome = cli(predict.main, source, *given, f"out={tmp_path / source[-9:-5]}")
        assert words.in_words(CLASSES) in outcome.out
    listed = {"plasma cell": 0.7, "lymphocyte": 0.2}
    assert OutOfFold({}, listed, 0.4, tta=False).thresholds(CLASSES) == Thresholds(
        ClassThresholds((0.2, 0.7), "out of fold"), ClassThresholds((0.4, 0.4), "out of fold")
    )


def test_nuclei_of_each_class_are_those_above_its_threshold(
    run: Path, annotated: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """In predicted files: of a class whose threshold no score reaches there is none."""
    changed = Path(shutil.copytree(run, tmp_path / "run"))
    model, field = tmp_path / "model.safetensors", annotated / "images/Case_4-01.png"
    assert cli(export.main, f"run={changed}", f"out={model}").code == 0
    for rare in CLASSES:
        held = ClassThresholds(tuple(0.999 if name == rare else 0.01 for name in CLASSES), "given")
        loaded = Thresholds(held, held)
        out = tmp_path / rare
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predictor, "thresholds_of", lambda *_, used=loaded, **__: used)
            assert cli(predict.main, f"run={model}", f"input={field}", f"out={out}").code == 0
        found = {entry["class"] for entry in nuclei(out / "Case_4-01_nuclei.geojson")}
        assert found == {*CLASSES} - {rare}


def test_a_format_that_cannot_name_the_classes_is_refused(
    run: Path, raw: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli(evaluate.main, f"run={run}", f"raw={raw}", "annotations=brecahad")
    assert outcome.code == 2
    assert outcome.err.startswith(
        "error: annotations=brecahad: cannot name what the run learned, lymphocyte, plasma cell:"
        " classes: unknown 'lymphocyte'; known: mitosis,"
    )


def test_the_console_has_a_table_of_pixels_and_one_of_nuclei_with_a_line_for_each_class(
    run_on_masks: Path,
    masked: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The figures that test_what_is_counted_in_masks_is_what_one_counts works out."""
    monkeypatch.setattr(measured_fields, "predict_probability", halves)
    given = [f"run={run_on_masks}", f"raw={masked}", "cases=[4]", "threshold=0.5", NO_FIGURES]
    outcome = cli(evaluate.main, *given, f"out={tmp_path / 'out'}")
    lines = [re.split(r" {2,}", line) for line in outcome.out.splitlines()]
    start = lines.index(["pixels", "dice", "iou", "precision", "recall"])
    assert lines[start + 1] == ["lymphocyte", "0.1429", "0.0769", "0.0833", "0.5000"]
    assert lines[start + 2] == ["plasma cell", "0.1538", "0.0833", "0.0833", "1.0000"]
    heads = ["nuclei", "f1", "precision", "recall", "AP", "annotated", "predicted"]
    assert lines[start + 3] == heads
    assert [line[0] for line in lines[start + 4 : start + 6]] == CLASSES
    num_fields = len(list((masked / "images").glob("Case_4-*")))
    annotated = [line[-2] for line in lines[start + 4 : start + 6]]
    assert annotated == [str(2 * num_fields), str(num_fields)]
    assert "all classes together" in outcome.out


def test_a_class_that_is_annotated_nowhere_has_no_scores_in_the_tables() -> None:
    """Neither 0 nor 1; what was found of it is told."""
    scores = dict.fromkeys(("dice", "iou", "precision", "recall", "f1", "average_precision"), 0.5)
    nothing = dict.fromkeys(scores)
    pixels = {"tumor": scores, "lumen": nothing}
    counts = {"annotated": 0, "predicted": 7}
    nuclei = {"tumor": scores | {"annotated": 5, "predicted": 5}, "lumen": nothing | counts}
    lines = class_tables({"per_class": pixels, "detection": {"per_class": nuclei}})
    assert [line.split() for line in lines if line.startswith("lumen")] == [
        ["lumen", "nothing", "annotated"],
        ["lumen", "nothing", "annotated", "0", "7"],
    ]
    alone = {"per_class": {"tumor": scores}, "detection": {"per_class": {"tumor": scores}}}
    assert class_tables(alone) == []


def test_what_predict_writes_for_qupath_data_prep_reads_back(
    run: Path, annotated: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Under the names that it gives: the same nuclei at the same pixels, and those of NAME.json."""
    out, again = tmp_path / "predicted", tmp_path / "again"
    given = [f"run={run}", f"input={annotated / 'images'}", f"out={out}", "threshold=0.2"]
    outcome = cli(predict.main, *given)
    assert outcome.code == 0, outcome.err
    shutil.copytree(annotated / "images", again / "images")
    (again / "groundTruth").mkdir()
    for path in out.glob("*_nuclei.geojson"):
        shutil.copy(path, again / "groundTruth")
    found = {feature["class"] for path in again.rglob("*.geojson") for feature in nuclei(path)}
    settings = [f"raw={again}", f"out={tmp_path / 'data'}", "annotations=geojson", "copies=1"]
    settings += [f"classes=[{','.join(sorted(found))}]", *SPLIT]
    outcome = cli(data_prep_main.main, *settings)
    assert outcome.code == 0, outcome.err
    num_nuclei = 0
    for sample in read_dataset(tmp_path / "data").samples:
        written = pixels((tmp_path / "data" / sample.points).read_text())
        assert written == pixels((out / f"{sample.field}.json").read_text())
        expected = sorted(
            (entry["class"], int(entry["x"]), int(entry["y"]))
            for entry in nuclei(out / f"{sample.field}_nuclei.geojson")
        )
        assert written == expected
        num_nuclei += len(written)
    assert num_nuclei > 20


def nuclei(path: Path) -> list[dict[str, Any]]:
    """Class, x and y of each feature, by plain JSON."""
    return [
        {
            "class": entry["properties"]["classification"]["name"],
            "x": entry["geometry"]["coordinates"][0],
            "y": entry["geometry"]["coordinates"][1],
        }
        for entry in json.loads(path.read_text())["features"]
    ]


def pixels(text: str) -> list[tuple[str, int, int]]:
    """(class, x, y) of every point of a 96 x 64 px field."""
    return sorted(
        (name, int(point["x"] * 96), int(point["y"] * 64))
        for name, listed in json.loads(text).items()
        for point in listed
    )


def test_variants_can_be_looked_at(own: Dataset, tmp_path: Path, cli: Callable[..., Any]) -> None:
    outcome = cli(preview.main, f"data={own.folder}", f"out={tmp_path / 'sheet.png'}")
    assert outcome.code == 0, outcome.err
    assert Image.open(tmp_path / "sheet.png").size[0] > 480
