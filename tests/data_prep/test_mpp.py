"""Fields of several resolutions become one data set of one resolution, with their annotations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from common import command_line
from common.command_line import UsageError
from data_prep import __main__ as data_prep_main
from data_prep import prepare
from data_prep.config import PrepConfig
from data_prep.dataset.manifest import Dataset, read_dataset
from data_prep.image_files.open_image import read_image
from tests.processes import map_here

WIDTH_UM, HEIGHT_UM = 40, 25
NUCLEI_UM = [(8.0, 6.0), (20.3, 15.1), (31.7, 8.4)]
RADIUS_UM = 2.0


def draw(folder: Path, name: str, annotations: str, mpp: float, told: float | None) -> None:
    """The same specimen at a resolution, annotated in px of this picture."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "groundTruth").mkdir(exist_ok=True)
    height, width = round(HEIGHT_UM / mpp), round(WIDTH_UM / mpp)
    y_um, x_um = (np.indices((height, width)) + 0.5) * mpp
    mask_HW = np.zeros((height, width), np.uint8)
    for x, y in NUCLEI_UM:
        mask_HW[np.hypot(x_um - x, y_um - y) < RADIUS_UM] = 1
    image_HWC = np.where(mask_HW[..., None] > 0, (120, 60, 90), (230, 210, 220)).astype(np.uint8)
    image_HWC[0, 0] = [*name.encode()][5:8]  # no two cases have one picture
    tags = {"resolution": (1e4 / told,) * 2, "resolutionunit": "CENTIMETER"} if told else {}
    tifffile.imwrite(folder / f"images/{name}.tif", image_HWC, photometric="rgb", **tags)
    truth = folder / "groundTruth"
    points = [(x / mpp, y / mpp) for x, y in NUCLEI_UM]
    if annotations == "masks":
        cv2.imwrite(str(truth / f"{name}.png"), mask_HW)
    elif annotations == "csv":
        table = truth / "points.csv"
        lines = [table.read_text() if table.exists() else "file,x,y,class\n"]
        table.write_text("".join(lines + [f"{name}.tif,{x},{y},tumor\n" for x, y in points]))
    elif annotations == "geojson":
        (truth / f"{name}.geojson").write_text(json.dumps(polygons(points, RADIUS_UM / mpp)))
    else:
        listed = [{"x": x / width, "y": y / height} for x, y in points]
        (truth / f"{name}.json").write_text(json.dumps({"tumor": listed}))


def polygons(centres: list[tuple[float, float]], radius: float) -> dict[str, Any]:
    """Circles of 60 corners, as QuPath writes them."""
    turns = np.linspace(0, 2 * np.pi, 60)
    rings = [
        np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], 1).tolist()
        for x, y in centres
    ]
    about = {"classification": {"name": "tumor"}}
    return {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": about, "geometry": geometry}
            for geometry in ({"type": "Polygon", "coordinates": [ring]} for ring in rings)
        ],
    }


@pytest.fixture
def prepare_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """prepare_here("mpp=0.25") is what `python -m data_prep` makes of raw/."""
    monkeypatch.setattr(prepare, "map_tasks", map_here)

    def run(*settings: str) -> Dataset:
        given = [f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", "copies=1", "format=png"]
        given += ["radius_px=8", "split.val=0", "split.test=0", *settings]
        prepare.prepare(command_line.load(PrepConfig, given))
        return read_dataset(tmp_path / "out")

    return run


def points_of(dataset: Dataset, name: str) -> np.ndarray:
    """The points of a field in px from its corner, sorted."""
    (sample,) = [sample for sample in dataset.samples if sample.field == name]
    listed = json.loads((dataset.folder / sample.points).read_text())["tumor"]
    points = [(point["x"] * sample.width_px, point["y"] * sample.height_px) for point in listed]
    return np.array(sorted(points))


def pictures_of(dataset: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of a field, through another reader."""
    (sample,) = [sample for sample in dataset.samples if sample.field == name]
    files = (dataset.folder / path for path in (sample.image, sample.mask))
    image_HWC, mask_HW = (np.asarray(Image.open(file)) for file in files)
    return image_HWC, mask_HW > 0


@pytest.mark.parametrize("annotations", ["brecahad", "csv", "geojson", "masks"])
def test_fields_of_two_resolutions_become_of_one(
    annotations: str, tmp_path: Path, prepare_here: Callable[..., Dataset]
) -> None:
    """At 0.25 um a px, 40 x 25 um are 160 x 100 px, and a radius of 2 um is 8 px."""
    for name, mpp in (("Case_1-01", 0.5), ("Case_2-01", 0.25), ("Case_3-01", 0.2)):
        draw(tmp_path / "raw", name, annotations, mpp, told=mpp)
    dataset = prepare_here("mpp=0.25", f"annotations={annotations}")
    expected_HW = np.zeros((100, 160), bool)
    y, x = np.indices(expected_HW.shape) + 0.5
    for x_um, y_um in NUCLEI_UM:
        expected_HW |= np.hypot(x - x_um / 0.25, y - y_um / 0.25) < 8
    for name in ("Case_1-01", "Case_2-01", "Case_3-01"):
        image_HWC, mask_HW = pictures_of(dataset, name)
        assert image_HWC.shape == (100, 160, 3)
        assert np.abs(points_of(dataset, name) - np.array(NUCLEI_UM) / 0.25).max() <= 1, name
        for found_HW in (mask_HW, image_HWC[..., 0] < 175):
            dice = 2 * (found_HW & expected_HW).sum() / (found_HW.sum() + expected_HW.sum())
            assert dice > 0.93, name
    about = json.loads((dataset.folder / "dataset.json").read_text())
    assert (about["mpp"], about["num_images_with_mpp"]) == (0.25, 3)
    assert dataset.description.labelling.mpp == 0.25


@pytest.mark.parametrize("mpp", [0.125, 0.5, 1.0])
def test_objects_are_held_against_the_border_of_the_file(
    mpp: float, tmp_path: Path, prepare_here: Callable[..., Dataset]
) -> None:
    """A nucleus in the lower right corner, half outside: cut there, at whatever resolution."""
    draw(tmp_path / "raw", "Case_1-01", "geojson", 0.25, told=0.25)
    features = polygons([(155, 95), (160, 50)], 4.0)
    (tmp_path / "raw/groundTruth/Case_1-01.geojson").write_text(json.dumps(features))
    dataset = prepare_here(f"mpp={mpp}", "annotations=geojson")
    about = json.loads((dataset.folder / "dataset.json").read_text())
    assert about["findings"]["clipped"] == 1
    assert len(points_of(dataset, "Case_1-01")) == 2


def test_a_rescaled_image_in_tiles_is_the_rescaled_image(
    tmp_path: Path, prepare_here: Callable[..., Dataset]
) -> None:
    """160 x 100 px in tiles of 64: those at the corners, and their points."""
    draw(tmp_path / "raw", "Case_1-01", "geojson", 0.5, told=0.5)
    whole = prepare_here("mpp=0.25", "annotations=geojson")
    image_HWC, mask_HW = pictures_of(whole, "Case_1-01")
    tiled = prepare_here("mpp=0.25", "annotations=geojson", "tile_px=64", "min_tissue=0")
    names = [sample.field for sample in tiled.samples]
    assert len(names) == 6
    for name in names:
        x, y = (int(part[1:]) for part in name.split("_")[-2:])
        tile_HWC, tile_mask_HW = pictures_of(tiled, name)
        assert np.array_equal(tile_HWC, image_HWC[y : y + 64, x : x + 64])
        assert np.array_equal(tile_mask_HW, mask_HW[y : y + 64, x : x + 64])


def test_several_resolutions_without_mpp_are_refused_with_what_to_type(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    for case, mpp in (("1", 0.5), ("2", 0.25), ("3", 0.25)):
        draw(tmp_path / "raw", f"Case_{case}-01", "brecahad", mpp, told=mpp)
    outcome = cli(data_prep_main.main, f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}")
    assert outcome.code == 2
    for words in ("0.25 (2 images), 0.5 (1 image)", "Give mpp=0.25,"):
        assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_resolution_is_that_of_the_data_set(
    tmp_path: Path, prepare_here: Callable[..., Dataset]
) -> None:
    """Of images that are not rescaled, and differ by a rounding."""
    for case, told in (("1", 0.25), ("2", 0.252), ("3", 0.2495)):
        draw(tmp_path / "raw", f"Case_{case}-01", "brecahad", 0.25, told)
    assert prepare_here().description.labelling.mpp == pytest.approx(0.25)


def test_what_is_not_known_is_told(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "map_tasks", map_here)
    for case, told in (("1", 0.5), ("2", None), ("3", None)):
        draw(tmp_path / "raw", f"Case_{case}-01", "brecahad", 0.5, told)
    out, given = tmp_path / "out", [f"raw={tmp_path / 'raw'}", "copies=1"]
    outcome = cli(data_prep_main.main, *given, f"out={out}")
    assert "resolution: 1 of 3 images tell theirs (0.5 micrometres per px)" in outcome.out
    assert json.loads((out / "dataset.json").read_text())["mpp"] is None
    outcome = cli(data_prep_main.main, *given, f"out={out}", "mpp=0.25")
    assert outcome.out.startswith(
        "rescaled to mpp=0.25: 1 image, by 2\n"
        "resolution of 2 images is not known: taken to be mpp=0.25\n"
    )
    sizes = {sample.field: sample.width_px for sample in read_dataset(out).samples}
    assert sizes == {"Case_1-01": 160, "Case_2-01": 80, "Case_3-01": 80}
    assert json.loads((out / "dataset.json").read_text())["num_images_with_mpp"] == 1


def test_a_field_whose_px_are_not_square_is_a_bad_one(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "map_tasks", map_here)
    for case in "123":
        draw(tmp_path / "raw", f"Case_{case}-01", "brecahad", 0.5, told=0.5)
    bad = tmp_path / "raw/images/Case_2-01.tif"
    tags = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(bad, read_image(bad), photometric="rgb", **tags)
    outcome = cli(data_prep_main.main, f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}")
    assert outcome.code == 1
    assert "images/Case_2-01.tif: its tags say that a px is 0.25 x 0.5" in outcome.err


@pytest.mark.parametrize("mpp", ["-1", "0.001", "20", "nan"])
def test_what_no_microscope_has_is_refused(mpp: str) -> None:
    with pytest.raises(UsageError, match=r"mpp=.*from 0.01 to 10 micrometres per px, or 0"):
        command_line.load(PrepConfig, [f"mpp={mpp}"])
