"""Evaluation against numbers counted by hand, on fields whose prediction is known."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from common.command_line import UsageError, UserError
from data_prep.dataset.description import Labelling
from data_prep.dataset.manifest import Dataset
from tests.points import as_points
from tests.train.conftest import prepare_here
from train import evaluate
from train.checkpoints.load_checkpoint import load_all_tensors
from train.checkpoints.save_checkpoint import save_checkpoint
from train.evaluation import run_evaluation
from train.evaluation.config import EvaluateConfig
from train.fields import measured_fields, whole_fields
from train.fields.baselines import otsu_on_hematoxylin
from train.metrics.scores import EMPTY_RULE
from train.ranks.distributed import Ranks

Evaluate = Callable[..., dict[str, Any]]


def left_half(model: object, image_HWC: np.ndarray, *settings: object) -> np.ndarray:
    """A 'network' that is sure of the left half and doubts the right."""
    probability_CHW = np.full((1, *image_HWC.shape[:2]), 0.2, np.float32)
    probability_CHW[..., : image_HWC.shape[1] // 2] = 0.9
    return probability_CHW


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_fields, "predict_probability", left_half)


@pytest.fixture
def evaluated(own_run: Path, tmp_path: Path, cli: Callable[..., Any]) -> Evaluate:
    """evaluated("split=val") is the summary.json of `python -m train.evaluate`."""

    def call(*settings: str, figures: int = 0) -> dict[str, Any]:
        out = tmp_path / "results"
        shutil.rmtree(out, ignore_errors=True)
        given = [f"run={own_run}", f"out={out}", "amp=off", f"figures={figures}", *settings]
        outcome = cli(evaluate.main, *given)
        assert outcome.code == 0, outcome.err
        assert str(out) in outcome.out
        return json.loads((out / "summary.json").read_text())

    return call


@pytest.fixture(scope="module")
def summary(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary.json of the test split by the known network."""
    out = tmp_path_factory.mktemp("evaluated") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured_fields, "predict_probability", left_half)
        assert evaluate.main([f"run={trained}", f"out={out}", "amp=off", "figures=0"]) == 0
    return json.loads((out / "summary.json").read_text())


def truth(dataset: Dataset, field: str) -> np.ndarray:
    """The mask of a field as another reader sees it."""
    with Image.open(next((dataset.folder / "masks").glob(f"{field}_v00_*.png"))) as picture:
        return np.asarray(picture) > 0


def expected_scores(
    truth_HW: np.ndarray, predicted_HW: np.ndarray | None = None
) -> dict[str, float]:
    """Scores by their definitions as sets of pixels."""
    if predicted_HW is None:
        predicted_HW = np.arange(truth_HW.shape[1]) < truth_HW.shape[1] // 2
        predicted_HW = np.broadcast_to(predicted_HW, truth_HW.shape)
    both = (truth_HW & predicted_HW).sum()
    return {
        "accuracy": (truth_HW == predicted_HW).mean(),
        "iou": both / (truth_HW | predicted_HW).sum(),
        "dice": 2 * both / (truth_HW.sum() + predicted_HW.sum()),
        "precision": both / predicted_HW.sum(),
        "recall": both / truth_HW.sum(),
    }


def test_the_summary_is_what_one_counts(summary: dict[str, Any], prepared: Dataset) -> None:
    names = ["Case_4-01", "Case_4-02", "Case_5-01"]
    truths = [truth(prepared, name) for name in names]

    assert summary["num_fields"] == 3
    assert summary["cases"] == ["Case_4", "Case_5"]
    assert [(field["field"], field["case"]) for field in summary["per_field"]] == [
        (name, name[:6]) for name in names
    ]
    each = [expected_scores(mask_HW) for mask_HW in truths]
    for field, expected in zip(summary["per_field"], each, strict=True):
        assert {name: field[name] for name in expected} == pytest.approx(expected)

    # counted as sets of pixels: right, too much, missed, and right to be left out
    left_HW = np.broadcast_to(
        np.arange(truths[0].shape[1]) < truths[0].shape[1] // 2, truths[0].shape
    )
    for field, truth_HW in zip(summary["per_field"], truths, strict=True):
        parts = (truth_HW & left_HW, ~truth_HW & left_HW, truth_HW & ~left_HW, ~truth_HW & ~left_HW)
        assert field["counts"] == {"tumor": [part.sum() for part in parts]}

    # over all pixels: the fields laid one under the other
    assert summary["all_pixels"] == pytest.approx(expected_scores(np.vstack(truths)))
    assert summary["per_class"] == {"tumor": summary["all_pixels"]}
    for name, entry in summary["mean_over_fields"].items():
        values = [scores[name] for scores in each]
        assert entry["mean"] == pytest.approx(np.mean(values))
        # of two cases, three draws in four hold either or both: the ends are the cases' means
        ends = sorted([np.mean(values[:2]), values[2]])
        assert entry["interval"] == pytest.approx(ends)
    assert set(summary["mean_over_fields"]) == set(each[0])


@pytest.mark.usefixtures("known")
def test_the_summary_says_what_was_measured_and_how(evaluated: Evaluate, own_run: Path) -> None:
    summary = evaluated("checkpoint=latest", "threshold=0.5")
    assert summary["run"] == own_run.name
    assert (summary["checkpoint"], summary["step"], summary["epoch"]) == ("step_00000008", 8, 2)
    assert summary["data"] == {"split": "test"}
    assert summary["threshold"] == {"value": 0.5, "chosen_on": "given"}
    assert summary["empty_rule"] == EMPTY_RULE
    assert summary["bootstrap"] == {"over": "cases", "resamples": 2000, "confidence": 0.95}
    assert summary["warnings"] == []


def test_a_raw_folder_gives_what_its_split_gives(evaluated: Evaluate, raw: Path) -> None:
    """The network itself, on images that were prepared without loss."""
    of_split = evaluated("split=test")
    of_raw = evaluated(f"raw={raw}", "cases=[4,5]")
    assert of_raw.pop("data") == {"raw": raw.name}
    assert of_split.pop("data") == {"split": "test"}
    assert of_raw == of_split
    assert 0 < of_raw["all_pixels"]["dice"] < 1


@pytest.mark.usefixtures("known")
def test_augmented_copies_do_not_count(evaluated: Evaluate, prepared: Dataset) -> None:
    assert len(prepared.split("train")) == 16
    summary = evaluated("split=train")
    assert [field["field"] for field in summary["per_field"]] == [
        "Case_1-01",
        "Case_1-02",
        "Case_2-01",
        "Case_2-02",
    ]


@pytest.mark.usefixtures("known")
def test_cases_that_training_or_validation_saw_are_warned_of(
    evaluated: Evaluate, raw: Path
) -> None:
    warnings = evaluated(f"raw={raw}", "cases=[2,3,4]")["warnings"]
    of_training, of_validation, doubt = warnings
    assert doubt.startswith("best is step 4, of Dice 0.0000")
    assert of_training.startswith("trained on: Case_2;")
    assert of_validation.startswith(
        "checkpoint and thresholds were chosen on: Case_3; test on other cases"
    )


@pytest.mark.usefixtures("known")
def test_raw_fields_with_values_of_12_bits_are_warned_of(
    evaluated: Evaluate, raw: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    for name in ("Case_4-01", "Case_5-01"):
        shutil.copy(raw / f"{name}.json", folder)
        shutil.copy(raw / f"{name}.png", folder)
    of_8_bits = cv2.imread(str(raw / "Case_5-01.png"))
    cv2.imwrite(str(folder / "Case_5-01.png"), of_8_bits.astype(np.uint16) * 16)
    warnings = evaluated(f"raw={folder}")["warnings"]
    (warning,) = [line for line in warnings if "uint16_white" in line]
    assert warning.startswith("no value is above 4095 in 1 16-bit image, though uint16_white=65535")
    assert warning.endswith("multiply their values by 16 before: Case_5-01")


@pytest.mark.usefixtures("known")
def test_raw_names_that_tell_no_case_are_warned_of(
    evaluated: Evaluate, raw: Path, tmp_path: Path
) -> None:
    """Two fields of patient 9 and one of case 4: intervals take the former for two cases."""
    names = {"Case_4-01": "Case_4-01", "Case_4-02": "patient9_a", "Case_5-01": "patient9_b"}
    folder = tmp_path / "others"
    folder.mkdir()
    for old, new in names.items():
        for ending in (".png", ".json"):
            shutil.copy(raw / f"{old}{ending}", folder / f"{new}{ending}")
    summary = evaluated(f"raw={folder}")
    assert summary["cases"] == ["Case_4", "patient9_a", "patient9_b"]
    (warning,) = [line for line in summary["warnings"] if "case_regex" in line]
    assert warning == (
        "2 of 3 names do not match case_regex (patient9_a, patient9_b) of the training data:"
        " intervals over cases count each such field as a case of its own, also where several are"
        " of one patient"
    )


@pytest.mark.usefixtures("known")
def test_raw_fields_of_data_whose_fields_were_cases_each_are_too(
    evaluated: Evaluate, own_run: Path, raw: Path
) -> None:
    path = own_run / "dataset.json"
    about = json.loads(path.read_text())
    about["config"]["case_regex"] = "each"
    path.write_text(json.dumps(about))
    summary = evaluated(f"raw={raw}", "cases=[Case_4-01,Case_4-02]")
    assert summary["cases"] == ["Case_4-01", "Case_4-02"]


def test_otsu_stands_beside_the_model(summary: dict[str, Any], raw: Path) -> None:
    """Blue discs on a pale ground are easy for it: nearly all that is annotated, and no more."""
    baseline = summary["baselines"]["otsu_hematoxylin"]
    assert baseline["all_pixels"]["dice"] > 0.9
    assert baseline["mean_over_fields"]["dice"]["mean"] > 0.9
    image_HWC = cv2.imread(str(raw / "Case_4-01.png"), cv2.IMREAD_COLOR_RGB)
    assert otsu_on_hematoxylin(image_HWC).shape == image_HWC.shape[:2]


def test_all_foreground_stands_beside_the_model_too(
    summary: dict[str, Any], prepared: Dataset
) -> None:
    names = ("Case_4-01", "Case_4-02", "Case_5-01")
    truths = np.vstack([truth(prepared, name) for name in names])
    scores = summary["baselines"]["all_foreground"]["all_pixels"]
    assert scores == pytest.approx(expected_scores(truths, np.ones_like(truths)))


def test_dice_is_told_for_discs_of_other_radii(summary: dict[str, Any]) -> None:
    """The discs of 8 px are those of the masks."""
    by_radius = {row["radius_px"]: row["dice"] for row in summary["sensitivity"]}
    assert list(by_radius) == [4, 6, 8, 10, 12]
    assert by_radius[8] == pytest.approx(summary["all_pixels"]["dice"])
    # half the field is predicted, so the larger the discs the more of it is right
    assert list(by_radius.values()) == sorted(by_radius.values())


@pytest.mark.usefixtures("known")
def test_pictures_that_were_trained_on_under_other_names_are_warned_of(
    evaluated: Evaluate, raw: Path, tmp_path: Path
) -> None:
    """A training field flipped and compressed, and one field annotated twice."""
    folder = tmp_path / "new"
    folder.mkdir()
    copy = cv2.imread(str(raw / "Case_1-01.png"))[:, ::-1]
    cv2.imwrite(str(folder / "Case_8-01.jpg"), copy, [cv2.IMWRITE_JPEG_QUALITY, 70])
    shutil.copy(raw / "Case_1-01.json", folder / "Case_8-01.json")
    for name in ("Case_9-01", "Case_9-02"):
        shutil.copy(raw / "Case_4-01.png", folder / f"{name}.png")
        shutil.copy(raw / "Case_4-01.json", folder / f"{name}.json")
    summary = evaluated(f"raw={folder}")
    _, warning = summary["warnings"]  # the first doubts the best
    assert "Case_8-01 like Case_1-01" in warning
    assert "Case_9" not in warning
    assert summary["agreement"] == [{"fields": ["Case_9-01", "Case_9-02"], "dice": 1.0}]
    assert summary["near_duplicates"]["num_training_fields"] == 4


def test_another_case_is_refused_with_those_there_are(
    own_run: Path, raw: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli(evaluate.main, f"run={own_run}", f"raw={raw}", "cases=[4,9]")
    assert outcome.code == 2
    assert outcome.err == (
        "error: cases: no Case_9; there are: Case_1, Case_2, Case_3, Case_4, Case_5\n"
    )


def test_a_split_without_fields_is_refused_with_those_there_are(
    own_run: Path, raw: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    data = prepare_here(raw, tmp_path / "data", "split.val_cases=[]", "split.val=0")
    outcome = cli(evaluate.main, f"run={own_run}", f"data={data.folder}", "split=val")
    assert outcome.code == 2
    assert outcome.err == "error: split=val: the data set has no such fields, but train, test\n"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["split=testing"], ["split=testing", "train, val, test"]),
        (["threshold=1"], ["threshold=1", "auto"]),
        (["threshold=best"], ["threshold=best", "auto"]),
        (["match_radius_px=-1"], ["match_radius_px=-1"]),
        (["annotations=csv"], ["annotations=csv", "raw="]),
        (["raw=x", "annotations=xml"], ["annotations=xml", "geojson"]),
        (["figures=-1"], ["figures=-1", "at least 0"]),
        (["runs=[a,b]"], ["run=... and runs=[...] exclude each other"]),
        (["raw=nowhere"], ["nowhere"]),
        (["checkpoint=7"], ["checkpoint=7", "step_00000008"]),
        (["data=nowhere"], ["data=nowhere"]),
        (["amp=fp8"], ["amp=fp8", "bf16"]),
        (["device=gpu"], ["device=gpu", "cuda"]),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_line(
    settings: list[str], words: list[str], own_run: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli(evaluate.main, f"run={own_run}", *settings)
    assert outcome.code in (1, 2)
    assert all(word in outcome.err for word in words), outcome.err
    assert outcome.err.count("\n") == 1
    assert not (own_run / "evaluation").exists()


def test_a_damaged_checkpoint_is_not_evaluated(own_run: Path, cli: Callable[..., Any]) -> None:
    best = own_run / "checkpoints" / (own_run / "checkpoints" / "best").read_text().strip()
    with (best / "__0_0.distcp").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\x00\xff")
    outcome = cli(evaluate.main, f"run={own_run}")
    assert outcome.code == 1
    assert "__0_0.distcp is damaged" in outcome.err


@pytest.mark.parametrize("key", ["run", "raw", "checkpoint"])
def test_what_every_rank_would_find_wrong_is_found_by_one(
    key: str, own_run: Path, tmp_path: Path, ranks: Callable[..., Ranks]
) -> None:
    """And marked as every rank's error, so that one says it (command_line.run)."""
    given = {"run": own_run, "out": tmp_path / "out"}
    if key == "run":
        given["run"] = tmp_path / "model.safetensors"
        given["run"].write_bytes(b"no model")
    elif key == "raw":
        given["raw"] = tmp_path / "raw"
        given["raw"].mkdir()
        for name in ("Case_1-01.png", "Case_1-01.json", "Case_1-02.png"):
            (given["raw"] / name).write_bytes(b"")
    else:
        for path in (own_run / "checkpoints").glob("step_*/*.distcp"):
            path.write_bytes(b"")
    config = EvaluateConfig(**{name: str(value) for name, value in given.items()})
    with pytest.raises(UserError) as caught:
        run_evaluation.evaluate(config, ranks())
    assert not isinstance(caught.value, UsageError)
    assert caught.value.is_shared


def test_a_bad_raw_field_is_named(
    own_run: Path, raw: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Not left out: a metric over fewer fields than asked for would be another metric."""
    own_raw = shutil.copytree(raw, tmp_path / "raw")
    (own_raw / "Case_4-02.json").write_text("{")
    outcome = cli(evaluate.main, f"run={own_run}", f"raw={own_raw}", "cases=[4]", "figures=0")
    assert outcome.code == 1
    assert "Case_4-02.json: invalid JSON" in outcome.err
    assert not (own_run / "evaluation" / "raw-4" / "summary.json").exists()


def test_raw_fields_of_another_format_are_told_which_is_expected_and_by_what(
    own_run: Path, raw: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("Case_4-01", "Case_5-01"):
        shutil.copy(raw / f"{name}.png", folder)
        (folder / f"{name}.geojson").write_text("[]")
    outcome = cli(evaluate.main, f"run={own_run}", f"raw={folder}")
    assert outcome == (
        2,
        "",
        f"error: raw={folder}: 2 images in this folder, but no annotation (.json); it holds"
        " 2 .geojson, 2 .png; expected, for Case_4-01.png, groundTruth/Case_4-01.json; expected"
        " annotations=brecahad (.json), the format of the training data in"
        f" {own_run}/dataset.json; annotations=geojson finds 2 fields\n",
    )


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ("csv", "no annotation (.csv); it holds"),
        ("masks", "groundTruth/Case_1-01.png or Case_1-01_mask.png; expected annotations=masks"),
    ],
)
def test_so_are_those_that_are_not_even_laid_out_like_it(
    annotations: str, words: str, raw: Path
) -> None:
    labelling = Labelling({"tumor": 255}, 8, 65535, "(?P<case>.+)", annotations)
    with pytest.raises(UsageError, match=re.escape(words.format(raw=raw))) as caught:
        whole_fields.raw_fields(raw, labelling, Path("model.safetensors"))
    told = str(caught.value)
    assert "the format of the training data in model.safetensors" in told
    assert told.endswith(
        "; annotations=brecahad finds 9 fields; annotations=geojson finds 9 fields"
    )


@pytest.fixture
def table(raw: Path, tmp_path: Path) -> Path:
    """The points of the raw fields of cases 4 and 5 as a table, in px, and their images."""
    folder, lines = tmp_path / "table", ["file,x,y,class"]
    folder.mkdir()
    for path in sorted(raw.glob("Case_[45]-*.png")):
        shutil.copy(path, folder)
        with Image.open(path) as picture:
            width_px, height_px = picture.size
        for point in json.loads(path.with_suffix(".json").read_text())["tumor"]:
            x, y = point["x"] * width_px, point["y"] * height_px
            lines.append(f"{path.name},{x!r},{y!r},tumor")
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_same_points_in_another_format_give_the_same_figures(
    evaluated: Evaluate, raw: Path, table: Path
) -> None:
    """Discs as they are trained on, so there is no warning, and Dice for other radii."""
    of_json = evaluated(f"raw={raw}", "cases=[4,5]")
    of_table = evaluated(f"raw={table}", "annotations=csv")
    assert of_table.pop("data") == {"raw": "table", "annotations": "csv"}
    of_json.pop("data")
    assert of_table == of_json
    assert len(of_table["sensitivity"]) == 5


def test_a_format_that_is_named_need_not_be_that_of_the_training_data(
    own_run: Path, table: Path, cli: Callable[..., Any]
) -> None:
    """And what is wrong with it is told of the format that was named."""
    (table / "points.csv").unlink()
    outcome = cli(evaluate.main, f"run={own_run}", f"raw={table}", "annotations=csv")
    assert outcome.code == 2
    assert outcome.err.endswith("expected annotations=csv (.csv), as given\n")


def test_a_class_under_another_name_is_refused_with_both(
    own_run: Path, table: Path, cli: Callable[..., Any]
) -> None:
    path = table / "points.csv"
    path.write_text(path.read_text().replace(",tumor", ",Tumour"))
    outcome = cli(evaluate.main, f"run={own_run}", f"raw={table}", "annotations=csv")
    assert outcome.code == 2
    assert "no 'tumor' anywhere in" in outcome.err
    assert "there are: Tumour; the run learned tumor\n" in outcome.err


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".eosin")


@pytest.mark.parametrize("name", ["summary.json", "Case_4-01_panels.png"])
def test_a_file_of_the_users_stops_it_before_the_work_begins(
    name: str, own_run: Path, tmp_path: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "notes"
    out.mkdir()
    (out / name).write_text("mine")
    monkeypatch.setattr(run_evaluation, "evaluate_run", None)
    outcome = cli(evaluate.main, f"run={own_run}", "cases=[4]", f"out={out}")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        f"error: {out}: 1 file in the way, not written by this command or"
        f" changed since: {name}; move away what is yours and run again, or name another out=\n"
    )
    assert (out / name).read_text() == "mine"


def test_an_evaluation_takes_the_place_of_the_one_before_and_of_nothing_else(
    own_run: Path, tmp_path: Path, cli: Callable
) -> None:
    """Four figures of the first, two of the second; a figure that was changed, and notes, stay."""
    out = tmp_path / "results"
    given = [f"run={own_run}", "cases=[4]", f"out={out}"]
    assert cli(evaluate.main, *given).code == 0
    (out / "notes.txt").write_text("mine")
    (out / "Case_4-02_outcome.png").write_bytes(b"marked")
    assert cli(evaluate.main, *given, "figures=1").code == 0
    assert names(out) == [
        "Case_4-01_outcome.png",
        "Case_4-01_panels.png",
        "Case_4-02_outcome.png",
        "learning_curves.png",
        "notes.txt",
        "report.html",
        "summary.json",
    ]
    outcome = cli(evaluate.main, *given)
    assert outcome.code == 1
    assert "in the way" in outcome.err
    assert ": Case_4-02_outcome.png; move" in outcome.err


def test_a_field_called_as_a_path_is_refused(
    own_run: Path, prepared: Dataset, tmp_path: Path, cli: Callable
) -> None:
    """A stranger's data set, whose hashes are as they should be."""
    data = Path(shutil.copytree(prepared.folder, tmp_path / "data"))
    manifest = (data / "manifest.jsonl").read_text().replace('"Case_4-01"', '"../victim/x"')
    (data / "manifest.jsonl").write_text(manifest)
    about = json.loads((data / "dataset.json").read_text())
    about["content_sha256"] = hashlib.sha256(manifest.encode()).hexdigest()
    (data / "dataset.json").write_text(json.dumps(about))
    (tmp_path / "victim").mkdir()
    outcome = cli(evaluate.main, f"run={own_run}", f"data={data}", f"out={tmp_path / 'out'}")
    assert outcome.code == 1
    assert "field '../victim/x' is not a plain file name" in outcome.err
    assert list((tmp_path / "victim").iterdir()) == []


# Thresholds


def without_thresholds(state: dict[str, Any]) -> None:
    """What a checkpoint has where there was no validation split, or from before."""
    state["metrics"] = {}


def with_thresholds(state: dict[str, Any]) -> None:
    state["metrics"] |= {"val/threshold": 0.95, "val/nuclei_threshold": 0.96}


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("given", "threshold", "chosen_on", "dice_is_0"),
    [("auto", 0.95, "val", True), ("0.5", 0.5, "given", False)],
)
def test_the_threshold_is_the_checkpoints_unless_given(
    given: str,
    threshold: float,
    chosen_on: str,
    dice_is_0: bool,
    evaluated: Evaluate,
    own_run: Path,
    save_again: Callable[..., None],
) -> None:
    """The 'network' is nowhere surer than 0.9; that of nuclei is not given."""
    save_again(own_run, with_thresholds)
    summary = evaluated("checkpoint=latest", f"threshold={given}")
    assert summary["threshold"] == {"value": threshold, "chosen_on": chosen_on}
    assert (summary["all_pixels"]["dice"] == 0) == dice_is_0
    detection = summary["detection"]
    assert (detection["threshold"], detection["threshold_chosen_on"]) == (0.96, "val")
    assert detection["predicted"] == 0


@pytest.fixture
def save_again() -> Callable[..., None]:
    """save_again(run, change) saves the latest checkpoint with its state changed."""

    def save(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
        folder = run / "checkpoints"
        path = folder / "step_00000008"
        tensors = load_all_tensors(path)
        state = json.loads((path / "state.json").read_text())
        change(state)
        save_checkpoint(folder, 8, tensors, state, "0" * 64, Ranks(0, 1, torch.device("cpu")))

    return save


# Detection


@pytest.fixture
def spots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raw fields of discs of 8 px, and a 'network' that takes their brightness for probability.

    In 6-01 a nucleus is found where it is, one 6 px off, and a weak one where none is; in 7-01 one
    of two is found.
    """
    draw_spots(
        tmp_path / "spots", "Case_6-01", [(20, 20), (60, 40)], {(20, 20): 230, (66, 40): 230}
    )
    add_spot(tmp_path / "spots" / "Case_6-01.png", (84, 14), 180)
    draw_spots(tmp_path / "spots", "Case_7-01", [(30, 30), (70, 30)], {(30, 30): 230})

    def brightness(model: object, image_HWC: np.ndarray, *settings: object) -> np.ndarray:
        return image_HWC[None, ..., 0].astype(np.float32) / 255

    monkeypatch.setattr(measured_fields, "predict_probability", brightness)
    return tmp_path / "spots"


def draw_spots(
    folder: Path,
    name: str,
    annotated: list[tuple[int, int]],
    shown: dict[tuple[int, int], int],
) -> None:
    """A field of 96 x 64 px with discs of a brightness, and points in the middle of pixels."""
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.png"), np.zeros((64, 96, 3), np.uint8))
    for center, brightness in shown.items():
        add_spot(folder / f"{name}.png", center, brightness)
    points = [{"x": (x + 0.5) / 96, "y": (y + 0.5) / 64} for x, y in annotated]
    (folder / f"{name}.json").write_text(json.dumps({"tumor": points}))


def add_spot(path: Path, center: tuple[int, int], brightness: int) -> None:
    picture = cv2.imread(str(path))
    cv2.imwrite(str(path), cv2.circle(picture, center, 8, (brightness,) * 3, cv2.FILLED))


def test_nuclei_are_counted(
    spots: Path, evaluated: Evaluate, own_run: Path, save_again: Callable[..., None]
) -> None:
    """3 hits, 1 false alarm and 1 miss; the false alarm is the least sure."""
    save_again(own_run, without_thresholds)
    summary = evaluated(f"raw={spots}", "checkpoint=latest")
    detection = summary["detection"]
    assert summary["threshold"] == {"value": 0.5, "chosen_on": "default"}
    assert (detection["threshold"], detection["threshold_chosen_on"]) == (0.5, "default")
    assert detection["radius_px"] == 8
    assert (detection["annotated"], detection["predicted"]) == (4, 4)
    figures = ("precision", "recall", "f1", "average_precision")
    assert [detection[name] for name in figures] == pytest.approx([3 / 4] * 4)
    assert detection["per_class"] == {
        "tumor": {name: detection[name] for name in ("annotated", "predicted", *figures)}
    }
    first, second = detection["per_field"]
    assert (first["field"], first["case"], first["predicted"]) == ("Case_6-01", "Case_6", 3)
    assert [first[name] for name in figures] == pytest.approx([2 / 3, 1, 4 / 5, 1])
    assert [second[name] for name in figures] == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert [row["counts"] for row in detection["per_field"]] == [
        {"tumor": [2, 1, 0, 0]},
        {"tumor": [1, 0, 1, 0]},
    ]
    # of two cases, three draws in four hold either or both: the ends are the cases' own figures
    assert detection["interval"]["f1"] == pytest.approx([2 / 3, 4 / 5])
    assert detection["interval"]["recall"] == pytest.approx([1 / 2, 1])
    of_cases = sorted(field["dice"] for field in summary["per_field"])
    assert summary["all_pixels_interval"]["dice"] == pytest.approx(of_cases)
    assert of_cases[0] < summary["all_pixels"]["dice"] < of_cases[1]
    # a lone disc scores 0.865 of its brightness, see test_detection
    curve = detection["curve"]
    pairs = zip(curve["precision"], curve["recall"], strict=True)
    at = dict(zip(curve["threshold"], pairs, strict=True))
    assert len(at) == 99
    assert [at[threshold] for threshold in (0.5, 0.7, 0.9)] == [(3 / 4, 3 / 4), (1, 3 / 4), (0, 0)]


def test_the_radius_of_matching_can_be_given_and_one_case_has_no_interval(
    spots: Path, evaluated: Evaluate, own_run: Path, save_again: Callable[..., None]
) -> None:
    """The nucleus found 6 px off is a false alarm and a miss within 4 px."""
    save_again(own_run, without_thresholds)
    given = (f"raw={spots}", "checkpoint=latest", "cases=[6]", "match_radius_px=4")
    summary = evaluated(*given)
    detection = summary["detection"]
    assert (detection["radius_px"], detection["annotated"], detection["predicted"]) == (4, 2, 3)
    assert (detection["precision"], detection["recall"]) == (pytest.approx(1 / 3), 1 / 2)
    assert set(summary["all_pixels_interval"].values()) == {None}
    assert set(detection["interval"].values()) == {None}
    assert all(entry["interval"] is None for entry in summary["mean_over_fields"].values())


def test_classes_of_one_mask_value_are_one_channel() -> None:
    labelling = Labelling({"tumor": 1, "mitosis": 2, "apoptosis": 1}, 20, 65535, "each")
    points = {"tumor": [(5, 10)], "mitosis": [], "apoptosis": [(9, 0)], "lumen": [(0, 0)]}
    first, second = whole_fields.by_channel(as_points(points), labelling)
    assert first.tolist() == [[5, 10], [9, 0]]
    assert second.shape == (0, 2)


def test_a_missing_or_damaged_file_of_points_is_named(
    own_run: Path, prepared: Dataset, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    data = Path(shutil.copytree(prepared.folder, tmp_path / "data"))
    path = data / "points" / "Case_4-02_v00_original.json"
    for spoil in (lambda: path.write_bytes(b"{"), path.unlink):
        spoil()
        outcome = cli(evaluate.main, f"run={own_run}", f"data={data}", "figures=0")
        assert outcome.code == 1
        assert f"error: {path}: missing or damaged" in outcome.err
        assert "run data_prep again" in outcome.err


# Folds


@pytest.fixture
def other_fold(own_run: Path, prepared: Dataset, tmp_path: Path) -> Path:
    """The same run as if it had tested case 3 and been validated on 4 and 5."""
    run, data = tmp_path / "other", tmp_path / "data"
    shutil.copytree(own_run, run)
    shutil.copytree(prepared.folder, data)
    lines = [json.loads(line) for line in (data / "manifest.jsonl").open()]
    swapped = {"train": "train", "val": "test", "test": "val"}
    for line in lines:
        line["split"] = swapped[line["split"]]
    manifest = "".join(json.dumps(line) + "\n" for line in lines)
    (data / "manifest.jsonl").write_text(manifest)
    about = json.loads((data / "dataset.json").read_text())
    about["split"] = {swapped[name]: cases for name, cases in about["split"].items()}
    about["content_sha256"] = hashlib.sha256(manifest.encode()).hexdigest()
    for folder in (data, run):
        (folder / "dataset.json").write_text(json.dumps(about))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(prepared.folder), str(data)))
    return run


@pytest.mark.usefixtures("known")
def test_folds_are_pooled(
    own_run: Path,
    other_fold: Path,
    evaluated: Evaluate,
    raw: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
) -> None:
    """Each fold as it is by itself; together as one evaluation of all their fields. The thresholds
    of nuclei are others: see test_out_of_fold."""
    at_half = "threshold=0.5"
    first, together = evaluated(at_half), evaluated(f"raw={raw}", "cases=[3,4,5]", at_half)
    out = tmp_path / "pooled"
    given = [f"runs=[{other_fold},{own_run}]", f"out={out}", "amp=off", at_half]
    outcome = cli(evaluate.main, *given)
    assert outcome.code == 0, outcome.err
    pooled = json.loads((out / "summary.json").read_text())
    assert pooled["runs"] == ["other", "own"]
    assert pooled["folds"][0]["cases"] == ["Case_3"]
    other = {"detection", "per_case"}
    assert {key: pooled["folds"][1][key] for key in first.keys() - other} == {
        key: first[key] for key in first.keys() - other
    }
    assert pooled["cases"] == ["Case_3", "Case_4", "Case_5"]
    assert pooled["num_fields"] == 5
    for key in ("all_pixels", "all_pixels_interval", "mean_over_fields", "per_class"):
        assert pooled[key] == together[key]
    assert pooled["baselines"] == together["baselines"]
    assert pooled["sensitivity"] == together["sensitivity"]
    for key in ("annotated", "average_precision", "curve"):
        assert pooled["detection"][key] == together["detection"][key]
    assert "all folds" in outcome.out
    html = (out / "report.html").read_text()
    assert "<h1>Evaluation of other, own</h1>" in html
    assert html.count("Curves: training loss, validation loss") == 2
    for fold in pooled["folds"]:
        assert f"{fold['all_pixels']['dice']:.3f}" in html
        assert fold["model_sha256"] in html
    drawn = sorted(path.name for path in out.glob("*_panels.png"))
    assert drawn == sorted(f"{entry['field']}_panels.png" for entry in pooled["per_field"])


def test_runs_of_other_discs_are_not_pooled(
    own_run: Path, other_fold: Path, raw: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    about = json.loads((other_fold / "dataset.json").read_text())
    about["config"]["radius_px"] = 9
    (other_fold / "dataset.json").write_text(json.dumps(about))
    given = [f"runs=[{own_run},{other_fold}]", f"raw={raw}", f"out={tmp_path / 'pooled'}"]
    outcome = cli(evaluate.main, *given)
    assert outcome.code == 2
    assert "labelled in other ways (radius_px: 9 -> 8)" in outcome.err


def test_pooling_needs_a_folder(own_run: Path, cli: Callable[..., Any]) -> None:
    outcome = cli(evaluate.main, f"runs=[{own_run}]")
    assert outcome.code == 2
    assert "out=" in outcome.err
