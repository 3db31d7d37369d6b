"""Predictions of images of any size: the files, what is in them, and images that are none."""

import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn

from common.progress import track
from data_prep import __main__ as data_prep_main
from data_prep.dataset.manifest import read_dataset
from data_prep.image_files.open_image import read_image
from data_prep.images.class_colours import colour_of
from model.precision import choose_precision
from tests.forked_ranks import ForkedRanks
from tests.train import small_bands
from train import predict
from train.config import TrainConfig
from train.fields.measured_fields import FieldResult, prediction_of
from train.fields.whole_fields import FieldContent, WholeField
from train.loop.trainer import Trainer
from train.loop.validation import validation_metrics
from train.metrics.detection import Nuclei
from train.metrics.scores import Score
from train.prediction import predict_images, predictor
from train.prediction.config import PredictConfig
from train.prediction.result_files import ResultFiles, to_mask
from train.prediction.tiles import predict_probability
from train.ranks.distributed import Ranks
from train.runs.run_folder import LoadedModel, RunFolder, read_run

RunPredict = Callable[..., Any]
STATE: dict[str, Any] = {"metrics": {}}  # of a run without validation
ENDINGS = [
    ".json",
    "_mask.png",
    "_mask.tif",
    "_nuclei.geojson",
    "_overlay.png",
    "_probability.tif",
    "_settings.json",
]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images of odd sizes and kinds."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (50, 71, 3), "b.tif": (131, 33, 3), "c.jpg": (1, 1, 3)}.items():
        image = rng.integers(0, 200, shape, dtype=np.uint8)
        if name.endswith("tif"):
            tifffile.imwrite(folder / name, image, photometric="rgb")
        else:
            cv2.imwrite(str(folder / name), image)
    return folder


@pytest.fixture
def run_predict(trained: Path, tmp_path: Path, cli: Callable[..., Any]) -> RunPredict:
    """run_predict(slide, "tta=true", out="other") predicts with the trained run."""

    def run(source: Path, *settings: str, out: str = "out") -> Any:
        given = [f"run={trained}", f"input={source}", f"out={tmp_path / out}"]
        return cli(predict.main, *given, *settings)

    return run


class LackOfRed(nn.Module):
    """A 'network' that finds what is bluish, and counts the tiles that it was given."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.num_tiles, self.fails_at = 0, fails_at

    def forward(self, image_BCHW: Tensor) -> Tensor:
        if self.num_tiles == self.fails_at:
            raise KeyboardInterrupt
        self.num_tiles += len(image_BCHW)
        return 10 * (0.6 - image_BCHW[:, :1])


Network = Callable[..., LackOfRed]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """network() is what predicts from now on, whatever the run."""

    def use(fails_at: int | None = None) -> LackOfRed:
        made = LackOfRed(fails_at)
        loaded = LoadedModel(made, Path("step_1"), STATE)
        monkeypatch.setattr(RunFolder, "load_model", lambda *given: loaded)
        return made

    return use


@pytest.fixture
def bands_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is a large one: a band is one row of tiles."""
    monkeypatch.setattr(predictor, "BAND_PX", 1)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """200 x 330 px: glass, and from x = 140 on bluish discs on pink."""
    image_HWC = np.full((200, 330, 3), 250, np.uint8)
    image_HWC[:, 140:] = (215, 130, 180)
    rng = np.random.default_rng(0)
    for x, y in rng.integers((160, 0), (330, 200), (25, 2)).tolist():
        cv2.circle(image_HWC, (x, y), 8, (70, 50, 120), cv2.FILLED)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, image_HWC, photometric="rgb", tile=(64, 64), compression="zlib")
    return path


def outputs(out: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, probability and overlay of an image, through other readers."""
    mask_HW = np.asarray(Image.open(out / f"{name}_mask.png"))
    assert np.array_equal(tifffile.imread(out / f"{name}_mask.tif"), mask_HW)
    overlay_HWC = np.asarray(Image.open(out / f"{name}_overlay.png"))
    return mask_HW, tifffile.imread(out / f"{name}_probability.tif"), overlay_HWC


def assert_same_results(one: Path, other: Path) -> None:
    """Two folders have the same files; of TIFs the pixels count, for each has a name of its own."""
    assert names(one) == names(other)
    for name in names(one):
        if name.endswith(".tif"):
            assert np.array_equal(tifffile.imread(one / name), tifffile.imread(other / name)), name
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".eosin")


def points_of(out: Path, name: str) -> list[list[float]]:
    features = json.loads((out / f"{name}_nuclei.geojson").read_text())["features"]
    return [feature["geometry"]["coordinates"] for feature in features]


def test_every_image_gets_all_its_files(
    trained: Path, pictures: Path, tmp_path: Path, run_predict: RunPredict
) -> None:
    """With the probability that evaluation computes, in 255 steps."""
    out, run, threshold = tmp_path / "out", read_run(trained), 0.2
    outcome = run_predict(pictures, f"threshold={threshold}")
    assert (outcome.code, outcome.err) == (0, "")
    assert names(out) == sorted(name + ending for name in "abc" for ending in ENDINGS)
    model, _, _ = run.load_model("best", Ranks(0, 1, torch.device("cpu")))
    model.eval()
    precision = choose_precision(torch.device("cpu"), "auto", run.config.memory_format)
    for path, shape in zip(sorted(pictures.iterdir()), ((50, 71), (131, 33), (1, 1)), strict=True):
        mask_HW, byte_HW, overlay_HWC = outputs(out, path.stem)
        assert mask_HW.shape == byte_HW.shape == overlay_HWC.shape[:2] == shape
        assert byte_HW.dtype == np.uint8
        (expected_HW,) = predict_probability(model, read_image(path), run.config.tile, precision)
        assert np.abs(byte_HW - 255 * expected_HW).max() < 0.51
        clear = np.abs(expected_HW - threshold) > 1e-4
        assert np.array_equal(mask_HW[clear], np.where(expected_HW > threshold, 255, 0)[clear])


def test_the_network_sees_rgb_and_its_outline_is_drawn_on_the_image(
    raw: Path, tmp_path: Path, run_predict: RunPredict, network: Network
) -> None:
    """A single file; the bluish discs are found, as pixels and as nuclei."""
    network()
    field, out = raw / "Case_1-01.png", tmp_path / "out"
    assert run_predict(field, "min_tissue=0", "threshold=0.5").code == 0
    mask_HW, byte_HW, overlay_HWC = outputs(out, "Case_1-01")
    image_HWC = np.asarray(Image.open(field))
    probability_HW = 1 / (1 + np.exp(10 * (image_HWC[..., 0] / 255 - 0.6)))
    assert np.abs(byte_HW - 255 * probability_HW).max() < 0.51
    assert np.array_equal(mask_HW, np.where(image_HWC[..., 0] < 153, 255, 0))
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inside_HW = cv2.erode(np.pad(mask_HW, 1), cross)[1:-1, 1:-1]  # the picture's edge is an edge
    edge_HW = mask_HW > inside_HW
    is_drawn_HW = (overlay_HWC != image_HWC).any(axis=-1)
    near_HW = cv2.dilate(edge_HW.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert (overlay_HWC[edge_HW] == colour_of(0)).all(axis=-1).mean() > 0.9
    found = points_of(out, "Case_1-01")
    for x, y in found:
        assert mask_HW[int(y), int(x)]
        assert (overlay_HWC[int(y), int(x)] == colour_of(0)).all()
        near_HW[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4] = True
    assert found
    assert not is_drawn_HW[~near_HW].any()


@pytest.mark.usefixtures("bands_of_a_row")
def test_an_image_in_parts_gets_the_results_of_the_whole(
    slide: Path,
    tmp_path: Path,
    run_predict: RunPredict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network that looks around itself; with a mask, nuclei and a picture over all seams."""
    monkeypatch.setattr("train.prediction.nuclei.WINDOW_PX", 96)
    monkeypatch.setattr("train.prediction.pyramid.TILE_PX", 64)
    monkeypatch.setattr("train.prediction.pyramid.SMALLEST_PX", 64)
    given = [slide, "tiles_at_once=5", "min_tissue=0", "threshold=0.3"]
    assert run_predict(*given, out="parts").code == 0
    monkeypatch.undo()
    assert run_predict(*given, out="whole").code == 0
    assert len(points_of(tmp_path / "whole", "slide")) > 10
    parts, whole = (outputs(tmp_path / name, "slide") for name in ("parts", "whole"))
    assert (parts[0] != whole[0]).mean() < 1e-4  # where 0.3 lies between two of 65536 steps
    assert np.abs(parts[1].astype(int) - whole[1]).max() <= 1
    one, other = (np.array(points_of(tmp_path / name, "slide")) for name in ("parts", "whole"))
    apart_px = np.abs(one[:, None] - other).max(axis=2)
    assert len(one) == len(other)
    assert apart_px.min(axis=0).max() <= 1
    assert apart_px.min(axis=1).max() <= 1
    with tifffile.TiffFile(tmp_path / "parts" / "slide_probability.tif") as tif:
        assert [level.shape for level in tif.series[0].levels] == [
            (200, 330),
            (100, 165),
            (50, 83),
            (25, 42),
        ]


@pytest.mark.usefixtures("bands_of_a_row")
def test_as_many_tiles_are_computed_as_asked_for(
    slide: Path, tmp_path: Path, run_predict: RunPredict, network: Network
) -> None:
    """Tiles of 48 px that overlap by 8: 5 rows of 9, with tta= eight ways each; of those that begin
    at 0 to 141, three see nothing but glass."""
    everything = network()
    assert run_predict(slide, "min_tissue=0").code == 0
    assert everything.num_tiles == 5 * 9
    augmented = network()
    assert run_predict(slide, "min_tissue=0", "tta=true").code == 0
    assert augmented.num_tiles == 8 * 5 * 9
    tissue = network()
    assert run_predict(slide).code == 0
    assert tissue.num_tiles == 5 * 6
    byte_HW = tifffile.imread(tmp_path / "out" / "slide_probability.tif")
    assert not byte_HW[:, :105].any()
    assert byte_HW[:, 140:].all()


@pytest.mark.usefixtures("bands_of_a_row")
def test_interrupted_it_goes_on_and_done_it_does_nothing(
    slide: Path, tmp_path: Path, run_predict: RunPredict, network: Network
) -> None:
    """Of bands of six tiles, what was done stays done: here the first, then three more."""
    network()
    assert run_predict(slide, out="straight").code == 0
    for fails_at in (7, 23):
        network(fails_at)
        assert run_predict(slide).code == 130
        assert names(tmp_path / "out") == []
    rest = network()
    assert run_predict(slide).code == 0
    assert rest.num_tiles == 30 - 6 - 18
    assert_same_results(tmp_path / "out", tmp_path / "straight")
    nothing = network()
    outcome = run_predict(slide)
    assert f"predicted 1 of 1 images into {tmp_path / 'out'} (1 done before)" in outcome.out
    assert nothing.num_tiles == 0


# What is not ours


def left_out(path: Path, out: Path, name: str) -> str:
    return (
        f"left out {path}: {out}: 1 file in the way, not written by this command or"
        f" changed since: {name}; move away what is yours and run again, or name another out="
    )


def test_folders_called_as_images_are_kept(
    tmp_path: Path, pictures: Path, run_predict: RunPredict
) -> None:
    """ssh.png needs no out/.ssh, and '..tif', whose name without ending is '.', no out/.eosin."""
    source, out = tmp_path / "named", tmp_path / "out"
    source.mkdir()
    for name in ("ssh", "git", "eosin", ".", ".."):
        shutil.copy(pictures / "c.jpg", source / f"{name}.jpg")
    kept = [out / ".ssh" / "id_ed25519", out / ".git" / "HEAD", out / ".git" / "0000.npy"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    outcome = run_predict(source)
    assert (outcome.code, outcome.err) == (0, "")
    assert [path.read_text() for path in kept] == ["mine"] * 3
    assert (out / "ssh_settings.json").is_file()


def test_annotations_are_not_replaced_by_predictions(
    raw: Path, tmp_path: Path, run_predict: RunPredict, network: Network
) -> None:
    """Into their folder; the other image goes on."""
    network()
    out = "groundTruth"
    (tmp_path / out).mkdir()
    source = tmp_path / "in"
    source.mkdir()
    for field in ("Case_4-01", "Case_5-01"):
        shutil.copy(raw / f"{field}.png", source)
    annotation = Path(shutil.copy(raw / "Case_4-01.json", tmp_path / out))
    before = annotation.read_bytes()
    outcome = run_predict(source, out=out)
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        left_out(source / "Case_4-01.png", tmp_path / out, "Case_4-01.json")
    ]
    assert "predicted 1 of 2 images" in outcome.out
    assert annotation.read_bytes() == before
    assert [name for name in names(tmp_path / out) if "Case_4" in name] == ["Case_4-01.json"]


def test_a_corrected_result_is_kept_and_others_are_replaced(
    slide: Path, tmp_path: Path, run_predict: RunPredict, network: Network
) -> None:
    network()
    out = tmp_path / "out"
    assert run_predict(slide).code == 0
    (out / "slide_nuclei.geojson").write_text("corrected")
    outcome = run_predict(slide)
    assert outcome.code == 0
    assert "(1 done before)" in outcome.out
    assert outcome.err == "kept as it was changed: slide_nuclei.geojson\n"
    (out / "slide.json").write_text("corrected too")
    outcome = run_predict(slide)
    assert outcome.code == 0
    assert outcome.err == "kept as they were changed: slide_nuclei.geojson, slide.json\n"
    (out / "slide.json").unlink()
    outcome = run_predict(slide)
    assert outcome.code == 1, "slide.json cannot be made anew without the other"
    assert outcome.err.splitlines() == [left_out(slide, out, "slide_nuclei.geojson")]
    before = {name: (out / name).read_bytes() for name in names(out)}
    outcome = run_predict(slide, "threshold=0.6")
    assert outcome.code == 1
    assert outcome.err.splitlines() == [left_out(slide, out, "slide_nuclei.geojson")]
    assert {name: (out / name).read_bytes() for name in names(out)} == before
    (out / "slide_nuclei.geojson").rename(tmp_path / "mine.geojson")
    assert run_predict(slide, "threshold=0.6").code == 0
    assert json.loads((out / "slide_settings.json").read_text())["threshold"] == 0.6


def test_a_result_corrected_while_others_are_predicted_is_kept(
    slide: Path, tmp_path: Path, run_predict: RunPredict, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_nuclei = ResultFiles.find_nuclei

    def correct_and_find(results: ResultFiles) -> dict[str, Nuclei]:
        (tmp_path / "out" / "slide.json").write_text("mine")
        return find_nuclei(results)

    monkeypatch.setattr(ResultFiles, "find_nuclei", correct_and_find)
    outcome = run_predict(slide)
    assert outcome.code == 1
    assert outcome.err.splitlines() == [left_out(slide, tmp_path / "out", "slide.json")]
    assert names(tmp_path / "out") == ["slide.json"]
    assert (tmp_path / "out" / "slide.json").read_text() == "mine"


def test_a_link_under_a_results_name_is_not_followed(
    slide: Path, tmp_path: Path, run_predict: RunPredict
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out" / "slide.json").symlink_to(tmp_path / "mine")
    assert run_predict(slide).code == 1
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "out" / "slide.json").is_symlink()


# Progress


def test_a_log_tells_of_tiles_and_of_rows_to_the_last(
    pictures: Path, run_predict: RunPredict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 48 px that overlap by 8: 4 of a.png, 4 of b.tif, 1 of c.jpg; and three times as many
    rows as the images have."""
    monkeypatch.setattr(predict_images, "track", partial(track, every_s=0.0))
    lines = run_predict(pictures, "min_tissue=0").err.splitlines()
    assert [line for line in lines if line.startswith("predict")] == [
        f"predict: {done} of 9 tiles" for done in range(1, 10)
    ]
    num_rows = 3 * (50 + 131 + 1)
    assert lines[-1] == f"write: {num_rows} of {num_rows} rows"


def test_a_terminal_gets_a_bar_of_each(
    pictures: Path, run_predict: RunPredict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bars = run_predict(pictures).err
    assert "predict: 100%" in bars
    assert "write: 100%" in bars


def test_rows_are_told_while_the_last_image_is_written(
    slide: Path, run_predict: RunPredict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nuclei, which are written last, wait here until what was written before was told."""
    was_told = threading.Event()
    find_nuclei = ResultFiles.find_nuclei

    def wait_and_find(results: ResultFiles) -> dict[str, Nuclei]:
        assert was_told.wait(30)
        return find_nuclei(results)

    def tell(items: Iterable[Any], *, label: str, count: Callable, **given: object) -> Iterator:
        done = 0
        for item in items:
            yield item
            done += count(item)
            if (label, done) == ("write", 2 * 200):
                was_told.set()

    monkeypatch.setattr(ResultFiles, "find_nuclei", wait_and_find)
    monkeypatch.setattr(predict_images, "track", tell)
    assert run_predict(slide).code == 0


def test_what_was_made_otherwise_is_made_anew(
    slide: Path, run_predict: RunPredict, network: Network
) -> None:
    network()
    assert run_predict(slide).code == 0
    of_setting = network()
    assert run_predict(slide, "threshold=0.6").code == 0
    assert of_setting.num_tiles > 0
    tifffile.imwrite(slide, 255 - tifffile.imread(slide), photometric="rgb")
    of_image = network()
    assert run_predict(slide, "threshold=0.6").code == 0
    assert of_image.num_tiles > 0


def test_a_result_that_was_lost_is_made_again(
    slide: Path, tmp_path: Path, run_predict: RunPredict, network: Network
) -> None:
    network()
    out = tmp_path / "out"
    assert run_predict(slide).code == 0
    before = {name: (out / name).stat().st_size for name in names(out)}
    for ending, is_emptied in ((".json", False), ("_mask.tif", True), ("_settings.json", False)):
        (out / f"slide{ending}").unlink()
        if is_emptied:
            (out / f"slide{ending}").write_bytes(b"")
        outcome = run_predict(slide)
        assert (outcome.code, outcome.err) == (0, "")
        assert "done before" not in outcome.out, ending
        assert {name: (out / name).stat().st_size for name in names(out)} == before


@pytest.mark.usefixtures("bands_of_a_row")
def test_ranks_share_out_every_band_once(
    trained: Path,
    slide: Path,
    pictures: Path,
    tmp_path: Path,
    ranks: Callable[..., Ranks],
    network: Network,
) -> None:
    network()
    (tmp_path / "out").mkdir()
    config = PredictConfig(run=str(trained), input=str(pictures), out=str(tmp_path / "out"))
    run, shares = read_run(trained), []
    for rank in range(3):
        of_rank = predictor.Predictor(config, run, ranks(rank, 3))
        tasks = of_rank.plan([slide, *sorted(pictures.iterdir())]).tasks
        own = of_rank.missing_bands(tasks)
        shares.append([(task.path.name, number) for task, number, _ in own])
    bands = [("slide.tif", n) for n in range(5)] + [("a.png", 0), ("a.png", 1)]
    bands += [("b.tif", n) for n in range(4)] + [("c.jpg", 0)]
    assert sorted(entry for share in shares for entry in share) == sorted(bands)
    assert [len(share) for share in shares] == [5, 4, 3]


def test_two_ranks_write_what_one_writes(
    trained: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of several bands, larger than a picture and mostly glass; and a small one."""
    monkeypatch.setattr(predictor, "BAND_PX", small_bands.BAND_PX)
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for name, height, width in (("large", 4300, 300), ("small", 200, 300)):
        image_HWC = np.full((height, width, 3), 245, np.uint8)
        for x, y in rng.integers(0, 200, (10, 2)).tolist():
            for top in (y, y + height - 200):
                cv2.circle(image_HWC, (x, top), 8, (120, 60, 90), cv2.FILLED)
        tifffile.imwrite(tmp_path / f"in/{name}.tif", image_HWC, photometric="rgb")
    given = [f"run={trained}", f"input={tmp_path / 'in'}", "threshold=0.3"]
    assert cli(predict.main, *given, f"out={tmp_path / '1'}").code == 0
    given.append(f"out={tmp_path / '2'}")
    output = ForkedRanks("tests.train.small_bands", given, 2, tmp_path / "log").finish()
    assert output.count("predicted 2 of 2 images") == 1
    assert_same_results(tmp_path / "1", tmp_path / "2")
    assert "small_mask.png" in names(tmp_path / "1")
    assert "large_mask.png" not in names(tmp_path / "1")
    assert Image.open(tmp_path / "1" / "large_overlay.png").size == (150, 2150)
    ys = [y for _, y in points_of(tmp_path / "1", "large")]
    assert min(ys) < 200
    assert max(ys) > 4100


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
def test_memory_does_not_grow_with_the_area(trained: Path, tmp_path: Path) -> None:
    """3 and 63 MB of pixels; held whole, with what is computed of them, 200 MB more.

    Also of images of one size a later one takes up to 45 MB more, because of freed pieces.
    """
    paths = []
    for height in (1024, 1025, 5 * 4096):
        image_HWC = np.full((height, 1024, 3), 245, np.uint8)
        image_HWC[::1024, :100, :] = (120, 60, 90)
        paths.append(tmp_path / f"{height}.tif")
        tifffile.imwrite(
            paths[-1], image_HWC, photometric="rgb", tile=(512, 512), compression="zlib"
        )
    given = [f"run={trained}", f"out={tmp_path / 'out'}", "threshold=0.3"]
    given += [f"input={path}" for path in paths]
    output = ForkedRanks("tests.train.small_bands", given, 1, tmp_path / "log").finish()
    peak_mib = [int(kib) / 1024 for kib in re.findall(r"peak (\d+)", output)]
    assert peak_mib[2] - peak_mib[1] < 80, peak_mib


@pytest.mark.usefixtures("warm_workers")
def test_predictions_go_back_into_data_prep(
    raw: Path, tmp_path: Path, cli: Callable[..., Any], run_predict: RunPredict
) -> None:
    """Images and predicted annotations as a raw data set: its discs lie at the nuclei."""
    out, again = tmp_path / "out", tmp_path / "again"
    fields = ["Case_4-01", "Case_4-02", "Case_5-01"]
    for folder in ("in", "again/images", "again/groundTruth"):
        (tmp_path / folder).mkdir(parents=True)
    for field in fields:
        shutil.copy(raw / f"{field}.png", tmp_path / "in")
    assert run_predict(tmp_path / "in", "threshold=0.3").code == 0
    for field in fields:
        shutil.copy(raw / f"{field}.png", again / "images")
        shutil.copy(out / f"{field}.json", again / "groundTruth")
    settings = ["radius_px=5", "split.val=0", "split.test=0", "copies=1", "workers=1"]
    prepared = tmp_path / "prepared"
    assert cli(data_prep_main.main, f"raw={again}", f"out={prepared}", *settings).code == 0
    samples = read_dataset(prepared).samples
    assert [sample.field for sample in samples] == fields
    for sample in samples:
        mask_HW = np.asarray(Image.open(prepared / sample.mask))
        points = points_of(out, sample.field)
        assert points
        discs_HW = np.zeros_like(mask_HW)
        for x, y in points:
            cv2.circle(discs_HW, (int(x), int(y)), 5, 255, cv2.FILLED)
        assert np.array_equal(mask_HW, discs_HW)


def test_thresholds_are_the_checkpoints_unless_given(
    tiny: Callable[..., TrainConfig],
    new_trainer: Callable[..., Trainer],
    raw: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of pixels for the mask, that of nuclei for the nuclei."""

    def apart(results: list[FieldResult], classes: list[str]) -> dict[str, Score]:
        """What was found best, which for so small a set may be one number, and other ones."""
        of_both: dict[str, Score] = {"val/threshold": 0.45, "val/nuclei_threshold": 0.55}
        return validation_metrics(results, classes) | of_both

    monkeypatch.setattr("train.loop.validation.validation_metrics", apart)
    assert new_trainer(tiny(tmp_path / "run")).fit() == 0
    field, pixels, nuclei = raw / "Case_4-01.png", 0.45, 0.55

    def run_predict(*settings: object, out: str) -> Any:
        given = [f"run={tmp_path / 'run'}", f"input={field}", f"out={tmp_path / out}"]
        return cli(predict.main, *given, *settings)

    outcome = run_predict(out="auto")
    assert outcome.code == 0
    told = f"threshold of pixels {pixels:g}, of nuclei {nuclei:g} (both chosen on val)"
    assert told in outcome.out
    outcome = run_predict(f"threshold={pixels}", out="pixels")
    assert f"threshold of pixels {pixels:g}, of nuclei {pixels:g} (both given)" in outcome.out
    assert run_predict(f"threshold={nuclei}", out="nuclei").code == 0
    masks = [outputs(tmp_path / out, "Case_4-01")[0] for out in ("auto", "pixels", "nuclei")]
    assert np.array_equal(masks[0], masks[1])
    found = [
        (tmp_path / out / "Case_4-01_nuclei.geojson").read_bytes()
        for out in ("auto", "pixels", "nuclei")
    ]
    assert found[0] == found[2] != found[1]


def test_a_bad_image_is_named_and_the_rest_goes_on(
    pictures: Path, tmp_path: Path, run_predict: RunPredict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of that which is found bad on the way, no row is waited for."""
    monkeypatch.setattr(predict_images, "track", partial(track, every_s=0.0))
    (pictures / "a.png").write_bytes(b"no picture")
    image_HWC = tifffile.imread(pictures / "b.tif")
    tifffile.imwrite(pictures / "b.tif", image_HWC, photometric="rgb", compression="zlib")
    content = (pictures / "b.tif").read_bytes()
    middle = len(content) // 2
    (pictures / "b.tif").write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])
    outcome = run_predict(pictures)
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    num_rows = 3 * (131 + 1)
    assert lines[-3] == f"write: {num_rows} of {num_rows} rows"
    assert [line.split(": ")[0] for line in lines[-2:]] == [
        f"left out {pictures / 'a.png'}",
        f"left out {pictures / 'b.tif'}",
    ]
    assert names(tmp_path / "out") == [f"c{ending}" for ending in ENDINGS]


@pytest.mark.usefixtures("bands_of_a_row")
def test_values_of_12_bits_are_told_for_the_model_takes_them_as_of_16(
    pictures: Path, run_predict: RunPredict
) -> None:
    for name, largest in (("d.tif", 4000), ("e.tif", 50000)):
        pixels = np.full((131, 33, 3), 1000, np.uint16)
        pixels[130, 5] = largest  # in the last band
        tifffile.imwrite(pictures / name, pixels, photometric="rgb")
    told = [line for line in run_predict(pictures).err.splitlines() if "uint16_white" in line]
    assert told == [
        "warning: no value is above 4095 in 1 16-bit image, though uint16_white=65535, so it is"
        " read as dark as 6.2% of white; multiply their values by 16 before: d.tif"
    ]


def test_of_a_folder_only_files_that_may_be_images_are_predicted(
    pictures: Path, tmp_path: Path, run_predict: RunPredict
) -> None:
    """One whose results would have too long names is bad; the others get all theirs."""
    source = tmp_path / "mixed"
    source.mkdir()
    picture = (pictures / "c.jpg").read_bytes()
    for name in ("Re\u0301ne 1 .jpg", "b.JPG.jpg", f"{'x' * 250}.jpg"):
        (source / name).write_bytes(picture)
    for name in ("._b.jpg", "Thumbs.db", ".hidden.jpg"):
        (source / name).write_bytes(b"no picture")
    (source / "B.tif").mkdir()
    (source / "lost.jpg").symlink_to(source / "nowhere.jpg")
    outcome = run_predict(source)
    assert outcome.code == 1
    lines = [line for line in outcome.err.splitlines() if line.startswith("left out ")]
    assert ["lost.jpg: " in lines[0], "at most 200; rename it" in lines[1]] == [True, True]
    assert outcome.out.startswith("predicted 2 of 4 images into ")
    found = [name + ending for name in ("R\u00e9ne 1", "b") for ending in ENDINGS]
    assert names(tmp_path / "out") == sorted(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input": "nowhere"}, ["input=", "no such file or folder"]),
        ({"input": "empty"}, ["input=", "no images", ".tif"]),
        ({"input": "double"}, ["images of one name: a.png, a.tif; keep one"]),
        ({"input": "both"}, ["a.png and a_settings.png would both give a_settings.json; rename"]),
        ({"out": "in"}, ["out=", "in: is the input; name a folder for what is"]),
        ({"out": "in/a.png"}, ["out=", "a.png: is a file; name a folder"]),
        ({"out": "in/a.png/x"}, ["out=", "cannot be made: Not a directory; name a"]),
        ({"run": "nowhere"}, ["run=", "not a run"]),
        ({"threshold": "0"}, ["threshold=0"]),
        ({"min_tissue": "2"}, ["min_tissue=2"]),
        ({"tiles_at_once": "-1"}, ["tiles_at_once=-1"]),
        ({"checkpoint": "9"}, ["checkpoint=9"]),
        ({"amp": "fp8"}, ["amp=fp8", "bf16"]),
        ({"device": "gpu"}, ["device=gpu", "cuda"]),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_a_line(
    given: dict[str, str], words: list[str], pictures: Path, tmp_path: Path, run_predict: RunPredict
) -> None:
    for folder in ("empty", "double", "both"):
        (tmp_path / folder).mkdir()
    for stem in ("a", "a_settings"):
        (tmp_path / "both" / f"{stem}.png").write_bytes(b"")
    for suffix in ("png", "tif"):
        (tmp_path / "double" / f"a.{suffix}").write_bytes(b"")
    settings = [
        f"{key}={tmp_path / value if key in ('input', 'out', 'run') else value}"
        for key, value in given.items()
    ]
    outcome = run_predict(pictures, *settings)  # of a key that is given twice the last counts
    assert outcome.code == 2
    assert all(word in outcome.err for word in words), outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ((0.5, 0.5), [[0, 1, 2, 2]]),
        ((0.3, 0.3), [[1, 1, 2, 2]]),
        ((0.85, 0.85), [[0, 0, 2, 0]]),
        ((0.5, 0.85), [[0, 1, 2, 1]]),
        ((0.65, 0.15), [[2, 1, 2, 2]]),
    ],
)
def test_the_most_probable_of_the_classes_above_their_thresholds_has_the_pixel(
    thresholds: tuple[float, float], expected: list[list[int]]
) -> None:
    probability_CHW = np.array([[[0.4, 0.7, 0.1, 0.6]], [[0.3, 0.2, 0.9, 0.8]]], np.float32)
    mask_HW = to_mask(probability_CHW, [1, 2], thresholds)
    assert (mask_HW.dtype, mask_HW.tolist()) == (np.uint8, expected)
    nothing_HW = np.zeros((1, 4), np.uint8)
    content = FieldContent(np.zeros((1, 4, 3), np.uint8), nothing_HW, [np.zeros((0, 2))] * 2)
    field = WholeField("a-1", "a", lambda: content)
    pictured = prediction_of(0, field, content, probability_CHW, [1, 2])
    assert pictured.predicted_classes(thresholds).tolist() == expected
