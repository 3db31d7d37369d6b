"""A picture of one resolution through a model of another: what was trained at 0.25 um a px."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from torch import Tensor, nn

from train import evaluate, export, predict, show
from train.exchange import exported_model
from train.prediction import predictor
from train.runs.run_folder import LoadedModel, RunFolder

MODEL_MPP, SIDE_UM, RADIUS_UM = 0.25, 60, 2.5
STATE: dict[str, Any] = {"metrics": {}, "step": 1, "epochs": 1}


class DarkDiscs(nn.Module):
    """A 'network' that finds what is dark over 11 px a side: discs of 2.5 um at 0.25 um a px, and
    none at 0.5, where they are 10 px wide."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        core_BCHW = -nn.functional.max_pool2d(image_BCHW[:, :1], 11, stride=1, padding=5)
        return 10 * (0.6 + nn.functional.max_pool2d(core_BCHW, 11, stride=1, padding=5))


def nuclei_um() -> np.ndarray:
    """A disc in each square of 10 um, not on the grid of any px."""
    rng = np.random.default_rng(0)
    places = np.array([(x, y) for x in range(5, SIDE_UM, 10) for y in range(5, SIDE_UM, 10)])
    return places + rng.uniform(-1.5, 1.5, places.shape)


def draw(mpp: float) -> np.ndarray:
    """The specimen at a resolution, smooth as a lens makes it."""
    side = round(SIDE_UM / mpp)
    y_um, x_um = (np.indices((side, side)) + 0.5) * mpp
    image_HWC = np.full((side, side, 3), (225, 205, 215), np.float32)
    for x, y in nuclei_um():
        inside = np.clip((RADIUS_UM - np.hypot(x_um - x, y_um - y)) / mpp + 0.5, 0, 1)[..., None]
        image_HWC += inside * (np.array([90, 60, 110], np.float32) - image_HWC)
    return np.rint(image_HWC).astype(np.uint8)


def save(path: Path, mpp: float, told: float | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = {"resolution": (1e4 / told,) * 2, "resolutionunit": "CENTIMETER"} if told else {}
    tifffile.imwrite(path, draw(mpp), photometric="rgb", tile=(64, 64), **tags)
    return path


def give_mpp(run: Path, mpp: float | None) -> None:
    """Make a run one whose data have a resolution."""
    about = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(about | {"mpp": mpp}))


@pytest.fixture
def run(own_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run at 0.25 um a px with this network."""
    give_mpp(own_run, MODEL_MPP)
    loaded = LoadedModel(DarkDiscs(), Path("step_1"), STATE)
    monkeypatch.setattr(RunFolder, "load_model", lambda *given: loaded)
    return own_run


@pytest.fixture
def predicted(run: Path, tmp_path: Path, cli: Callable[..., Any]) -> Callable[..., Any]:
    """predicted(image, "mpp=0.5", out="out") is what the command says."""

    def call(image: Path, *settings: str, out: str = "out") -> Any:
        given = [f"run={run}", f"input={image}", f"out={tmp_path / out}", "threshold=0.5"]
        outcome = cli(predict.main, *given, "min_tissue=0", *settings)
        assert (outcome.code, outcome.err) == (0, "")
        return outcome

    return call


def results(out: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, probability, and nuclei in px from the corner."""
    features = json.loads((out / f"{name}_nuclei.geojson").read_text())["features"]
    points = [feature["geometry"]["coordinates"] for feature in features]
    mask_HW = tifffile.imread(out / f"{name}_mask.tif") > 0
    return mask_HW, tifffile.imread(out / f"{name}_probability.tif"), np.array(points)


def dice(one_HW: np.ndarray, other_HW: np.ndarray) -> float:
    return 2 * (one_HW & other_HW).sum() / (one_HW.sum() + other_HW.sum())


def all_found(points: np.ndarray, mpp: float) -> bool:
    """Whether each disc has one nucleus, within a px."""
    apart = np.linalg.norm(points[:, None] - nuclei_um() / mpp, axis=-1)
    return len(points) == len(nuclei_um()) and bool((apart.min(axis=0) < 1).all())


def test_a_x20_picture_through_a_x40_model(tmp_path: Path, predicted: Callable[..., Any]) -> None:
    """With its tags, as the x40 picture shows it; without, nothing is found, and that is told."""
    predicted(save(tmp_path / "x40.tif", 0.25, told=0.25))
    x40_HW, _, x40_points = results(tmp_path / "out", "x40")
    assert all_found(x40_points, 0.25)
    expected_HW = cv2.resize(x40_HW.astype(np.float32), (120, 120), interpolation=cv2.INTER_AREA)

    outcome = predicted(save(tmp_path / "x20.tif", 0.5, told=0.5))
    assert outcome.out.startswith(
        "rescaled to the model's 0.25 micrometres per px: 1 image, by 2\n"
    )
    mask_HW, probability_HW, points = results(tmp_path / "out", "x20")
    assert mask_HW.shape == probability_HW.shape == (120, 120)
    assert Image.open(tmp_path / "out" / "x20_overlay.png").size == (120, 120)
    assert dice(mask_HW, expected_HW > 0.5) > 0.95
    assert all_found(points, 0.5)
    listed = json.loads((tmp_path / "out" / "x20.json").read_text())["tumor"]
    of_size = np.array([(point["x"] * 120, point["y"] * 120) for point in listed])
    assert np.abs(of_size - points).max() < 0.01

    outcome = predicted(save(tmp_path / "untold.tif", 0.5, told=None))
    assert outcome.out.startswith(
        "resolution of 1 image is not known (model: 0.25 micrometres per px): untold.tif;"
    )
    assert "mpp=" in outcome.out
    assert not results(tmp_path / "out", "untold")[0].any()
    outcome = predicted(tmp_path / "untold.tif", "mpp=0.5")
    assert outcome.out.startswith("rescaled to the model's")
    assert np.array_equal(results(tmp_path / "out", "untold")[0], mask_HW)


def test_results_tell_the_resolution_of_their_input(
    tmp_path: Path, predicted: Callable[..., Any]
) -> None:
    predicted(save(tmp_path / "x20.tif", 0.5, told=0.5))
    predicted(save(tmp_path / "untold.tif", 0.25, told=None))
    out = tmp_path / "out"
    settings = json.loads((out / "x20_settings.json").read_text())
    assert [settings[key] for key in ("mpp", "model_mpp", "rescaled_by")] == [0.5, 0.25, 2.0]
    for kind in ("mask", "probability"):
        with Image.open(out / f"x20_{kind}.tif") as image:
            assert (image.tag_v2[282], image.tag_v2[283], image.tag_v2[296]) == (20_000, 20_000, 3)
            pixels = ET.fromstring(image.tag_v2[270]).find(".//{*}Pixels")
        assert pixels is not None
        assert [pixels.get(f"PhysicalSize{axis}") for axis in "XY"] == ["0.5", "0.5"]
        with Image.open(out / f"untold_{kind}.tif") as image:
            assert "PhysicalSize" not in image.tag_v2[270]
            assert image.tag_v2.get(296) in (None, 1)
    settings = json.loads((out / "untold_settings.json").read_text())
    assert [settings[key] for key in ("mpp", "rescaled_by")] == [None, 1.0]


def test_by_bands_it_is_the_same(
    tmp_path: Path, predicted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coarser and a finer image, each in one band and in one a row of tiles."""
    for name, mpp in (("coarse", 0.5), ("fine", 0.18)):
        save(tmp_path / f"in/{name}.tif", mpp, told=mpp)
    outcome = predicted(tmp_path / "in", out="whole")
    assert "2 images, by 0.72 to 2\n" in outcome.out
    monkeypatch.setattr(predictor, "BAND_PX", 1)
    monkeypatch.setattr("train.prediction.pyramid.TILE_PX", 64)
    monkeypatch.setattr("data_prep.images.rescaling.BLOCK_PX", 32)
    predicted(tmp_path / "in", out="parts")
    for name, mpp in (("coarse", 0.5), ("fine", 0.18)):
        whole, parts = (results(tmp_path / out, name) for out in ("whole", "parts"))
        assert dice(whole[0], parts[0]) > 0.99
        assert np.abs(whole[1].astype(int) - parts[1]).max() <= 3
        assert all_found(parts[2], mpp)


def test_a_model_without_resolution_is_told_of_once(
    tmp_path: Path, run: Path, predicted: Callable[..., Any]
) -> None:
    give_mpp(run, None)
    outcome = predicted(save(tmp_path / "x20.tif", 0.5, told=0.5))
    assert outcome.out.count("the resolution of the model's training data is not known") == 1
    assert "1 image: 0.5 micrometres" in outcome.out
    outcome = predicted(save(tmp_path / "untold.tif", 0.5, told=None))
    assert outcome.out.startswith("predicted 1 of 1 images")


def test_an_image_that_is_far_too_coarse_is_left_out(
    tmp_path: Path, run: Path, cli: Callable[..., Any]
) -> None:
    image = save(tmp_path / "x2.tif", 5.0, told=5.0)
    outcome = cli(predict.main, f"run={run}", f"input={image}", f"out={tmp_path / 'out'}")
    assert outcome.code == 1
    assert "x2.tif: has 5 micrometres per px" in outcome.err


def write_raw(folder: Path, told: float | None) -> Path:
    """Two cases at 0.5 um a px, annotated."""
    for case in "12":
        save(folder / f"Case_{case}-01.tif", 0.5, told)
        points = [{"x": x / SIDE_UM, "y": y / SIDE_UM} for x, y in nuclei_um()]
        (folder / f"Case_{case}-01.json").write_text(json.dumps({"tumor": points}))
    return folder


def test_raw_fields_are_measured_at_the_models_resolution(
    tmp_path: Path, run: Path, cli: Callable[..., Any]
) -> None:
    """All 36 nuclei of each field are found with tags, or mpp=; without them none is."""
    told, untold = (write_raw(tmp_path / str(mpp), mpp) for mpp in (0.5, None))
    words = {"told": "rescaled to the model's 0.25", "given": "rescaled to the model's 0.25"}
    words["untold"] = "resolution of 2 images is not known (model: 0.25"
    found = {}
    ways = {"told": (told, []), "given": (untold, ["mpp=0.5"]), "untold": (untold, [])}
    for name, (raw, given) in ways.items():
        out = tmp_path / f"out_{name}"
        outcome = cli(evaluate.main, f"run={run}", f"raw={raw}", f"out={out}", "figures=0", *given)
        assert outcome.code == 0, outcome.err
        summary = json.loads((out / "summary.json").read_text())
        assert any(words[name] in warning for warning in summary["warnings"])
        found[name] = summary["detection"]["recall"]
    assert found == {"told": 1.0, "given": 1.0, "untold": 0.0}


def test_an_exported_model_and_show_tell_the_resolution(
    own_run: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    give_mpp(own_run, MODEL_MPP)
    out = tmp_path / "model.safetensors"
    assert cli(export.main, f"run={own_run}", f"out={out}").code == 0
    assert exported_model.read(out).data.labelling.mpp == MODEL_MPP
    assert "resolution    0.25 micrometres per px" in cli(show.main, f"run={own_run}").out
    give_mpp(own_run, None)
    assert "resolution    not known" in cli(show.main, f"run={own_run}").out


@pytest.mark.parametrize("mpp", ["0.001", "20", "nan"])
def test_what_no_microscope_has_is_refused(
    mpp: str, tmp_path: Path, own_run: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli(predict.main, f"run={own_run}", f"input={tmp_path}", "out=x", f"mpp={mpp}")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "from 0.01 to 10 micrometres per px" in outcome.err


def test_mpp_of_evaluation_is_for_raw_fields(own_run: Path, cli: Callable[..., Any]) -> None:
    outcome = cli(evaluate.main, f"run={own_run}", "mpp=0.25")
    assert outcome.code == 2
    assert "mpp=0.25: only with raw=" in outcome.err
