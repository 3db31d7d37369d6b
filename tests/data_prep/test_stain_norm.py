"""Stain normalisation by the command line: what is prepared, recorded and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from data_prep import __main__ as data_prep_main
from data_prep import prepare
from data_prep.dataset.manifest import read_dataset
from data_prep.dataset.samples import read_image
from data_prep.images.macenko import Conversion, estimate
from data_prep.images.stains import PUBLISHED, Stains
from tests.data_prep.images.stained import ONE, OTHER, STRONGEST, draw, half_pale
from tests.processes import map_here

HEIGHT, WIDTH = 300, 400
GLASS = "Case_3-01"
FIELDS = {"Case_1-01": ONE, "Case_2-01": OTHER, GLASS: None}
PUBLISHED_TEXT = "hematoxylin 0.5626 0.7201 0.4062 eosin 0.2159 0.8012 0.5581 maxima 1.9705 1.0308"
Prepare = Callable[..., Any]


def picture(name: str) -> np.ndarray:
    stains = FIELDS[name]
    if stains is None:
        return np.full((HEIGHT, WIDTH, 3), (250, 244, 250), np.uint8)
    return draw(stains, HEIGHT, WIDTH, seed=len(stains.text()))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in FIELDS:
        tifffile.imwrite(folder / f"{name}.tif", picture(name), photometric="rgb")
        points = {"tumor": [{"x": 0.1, "y": 0.1}, {"x": 0.8, "y": 0.7}]}
        (folder / f"{name}.json").write_text(json.dumps(points))
    return folder


@pytest.fixture
def run(raw: Path, tmp_path: Path, cli: Callable[..., Any]) -> Prepare:
    """run("stain_norm=macenko", out="a") is the outcome of the command."""

    def call(*settings: str, out: str = "out") -> Any:
        given = [f"raw={raw}", f"out={tmp_path / out}", "copies=1", "format=png", "radius_px=4"]
        given += ["split.train_cases=[1]", "split.val_cases=[2]", "split.test_cases=[3]"]
        return cli(data_prep_main.main, *given, *settings)

    return call


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare without other processes."""
    monkeypatch.setattr(prepare, "map_tasks", map_here)


def images(out: Path) -> dict[str, np.ndarray]:
    dataset = read_dataset(out)
    return {sample.id: read_image(out, sample) for sample in dataset.samples}


def expected(name: str, reference: Stains) -> np.ndarray:
    image_HWC = picture(name)
    if FIELDS[name] is None:
        return image_HWC
    return Conversion(estimate(image_HWC.reshape(-1, 3)), reference)(image_HWC)


def described(out: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((out / "dataset.json").read_text())
    return about


@pytest.mark.usefixtures("here")
def test_every_field_gets_the_published_stains(run: Prepare, tmp_path: Path) -> None:
    """Glass keeps its colours, and is named; also where it was prepared before."""
    for _ in range(2):
        outcome = run("stain_norm=macenko")
        assert outcome.code == 0, outcome.err
        assert (
            "warning: 1 of 3 images keeps its colours, since its stains cannot be estimated:"
            f" {GLASS}.tif (too little tissue)\n"
        ) in outcome.err
    about = described(tmp_path / "out")
    assert about["config"]["stain_norm"] == "macenko"
    assert about["config"]["stain_reference"] == PUBLISHED_TEXT
    assert about["not_normalised"] == {f"{GLASS}.tif": "too little tissue"}
    found = images(tmp_path / "out")
    for name in FIELDS:
        np.testing.assert_array_equal(found[f"{name}_v00_original"], expected(name, PUBLISHED))


@pytest.mark.usefixtures("here")
def test_without_it_fields_keep_their_colours(run: Prepare, tmp_path: Path) -> None:
    outcome = run()
    assert outcome.code == 0
    assert "colours" not in outcome.err
    about = described(tmp_path / "out")
    assert about["not_normalised"] == {}
    assert (about["config"]["stain_norm"], about["config"]["stain_reference"]) == ("none", "")
    for name in FIELDS:
        found = images(tmp_path / "out")[f"{name}_v00_original"]
        np.testing.assert_array_equal(found, picture(name))


@pytest.mark.usefixtures("here")
def test_variants_are_made_of_normalised_fields(run: Prepare, tmp_path: Path) -> None:
    flips = ("copies=2", "augment.transforms=[horizontal_flip]")
    assert run("stain_norm=macenko", *flips).code == 0
    flipped = images(tmp_path / "out")["Case_1-01_v01_horizontal_flip"]
    np.testing.assert_array_equal(flipped[:, ::-1], expected("Case_1-01", PUBLISHED))


@pytest.mark.usefixtures("here")
def test_tiles_have_the_stains_of_the_whole(run: Prepare, tmp_path: Path) -> None:
    """Though those on the left would be estimated otherwise by themselves."""
    assert run("stain_norm=macenko", "tile_px=128").code == 0
    whole = expected("Case_1-01", PUBLISHED)
    found = {name: image for name, image in images(tmp_path / "out").items() if "Case_1-" in name}
    assert len(found) == 12
    for name, image_HWC in found.items():
        left, top = (int(part[1:]) for part in name.split("_")[2:4])
        np.testing.assert_array_equal(image_HWC, whole[top : top + 128, left : left + 128])


@pytest.mark.usefixtures("here")
def test_glass_is_told_by_the_colours_of_the_scan(run: Prepare, raw: Path, tmp_path: Path) -> None:
    """Tiles that are left out do not depend on the reference."""
    for name in FIELDS:
        image_HWC = half_pale(128, 256) if name == "Case_1-01" else picture(name)
        tifffile.imwrite(raw / f"{name}.tif", image_HWC, photometric="rgb")
    (raw / "Case_1-01.json").write_text(json.dumps({"tumor": [{"x": 0.1, "y": 0.1}]}))
    reference = f"stain_reference={STRONGEST.text()}"
    for out, given in (("plain", []), ("normalised", ["stain_norm=macenko", reference])):
        assert run(*given, "tile_px=128", out=out).code == 0
        found = [name for name in images(tmp_path / out) if name.startswith("Case_1")]
        assert found == ["Case_1-01_x0_y0_v00_original"]


@pytest.mark.usefixtures("here")
def test_the_reference_is_an_image_or_the_numbers_of_one(
    run: Prepare, raw: Path, tmp_path: Path
) -> None:
    """The numbers are recorded, so that a copy of them prepares the same set."""
    reference = tmp_path / "reference.png"
    cv2.imwrite(str(reference), draw(OTHER, HEIGHT, WIDTH)[..., ::-1])
    assert run("stain_norm=macenko", f"stain_reference={reference}", out="image").code == 0
    about = described(tmp_path / "image")
    numbers = estimate(draw(OTHER, HEIGHT, WIDTH).reshape(-1, 3))
    assert about["config"]["stain_reference"] == numbers.text()
    found = images(tmp_path / "image")["Case_1-01_v00_original"]
    np.testing.assert_array_equal(found, expected("Case_1-01", numbers))

    reference.unlink()
    assert run("stain_norm=macenko", f"stain_reference={numbers.text()}", out="again").code == 0
    assert described(tmp_path / "again") == about


@pytest.mark.usefixtures("here")
def test_a_field_of_a_case_for_training_may_be_the_reference(
    run: Prepare, raw: Path, tmp_path: Path
) -> None:
    outcome = run("stain_norm=macenko", f"stain_reference={raw}/Case_1-01.tif")
    assert outcome.code == 0, outcome.err
    numbers = estimate(picture("Case_1-01").reshape(-1, 3))
    assert described(tmp_path / "out")["config"]["stain_reference"] == numbers.text()


@pytest.mark.usefixtures("here")
def test_another_reference_prepares_the_fields_again(run: Prepare, tmp_path: Path) -> None:
    kept = "kept as they were: 3 fields"
    assert run("stain_norm=macenko").code == 0
    assert kept in run("stain_norm=macenko").out
    assert kept in run("stain_norm=macenko", f"stain_reference={PUBLISHED_TEXT}").out
    assert kept not in run("stain_norm=macenko", f"stain_reference={OTHER.text()}").out
    found = images(tmp_path / "out")["Case_1-01_v00_original"]
    np.testing.assert_array_equal(found, expected("Case_1-01", OTHER))
    assert kept not in run().out


@pytest.mark.usefixtures("warm_workers")
def test_it_is_the_same_on_any_workers_and_shares(run: Prepare, tmp_path: Path) -> None:
    settings = ("stain_norm=macenko", "tile_px=160")
    assert run(*settings, "workers=1", out="one").code == 0
    for share in ("1/2", "2/2"):
        assert run(*settings, "workers=1", f"share={share}", out="two").code == 0
    outcome = run(*settings, "workers=2", out="two")
    assert "kept as they were: 18 fields" in outcome.out
    assert described(tmp_path / "two") == described(tmp_path / "one")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["stain_norm=reinhard"], ["stain_norm", "macenko"]),
        (["stain_reference=a.png"], ["stain_norm=none", "give stain_norm=macenko too"]),
        (
            ["stain_norm=macenko", "stain_reference=a.png"],
            ["stain_reference='a.png': no such image", f"'stain_reference={PUBLISHED_TEXT}'"],
        ),
        (["stain_norm=macenko", "stain_reference=" + "x" * 5000], ["no such image"]),
        (
            ["stain_norm=macenko", f"stain_reference={PUBLISHED_TEXT} 7"],
            ["stain_reference: expected nothing after the maxima, found '7'"],
        ),
        (
            ["stain_norm=macenko", "stain_reference={raw}/Case_3-01.tif"],
            ["Case_3-01.tif: its stains cannot be estimated: too little tissue; name a field"],
        ),
        (
            ["stain_norm=macenko", "stain_reference={raw}/Case_1-01.json"],
            ["Case_1-01.json: unreadable or cut short"],
        ),
        (
            ["stain_norm=macenko", "stain_reference={raw}/Case_2-01.tif"],
            ["Case_2-01.tif: is of Case_2, and it is in the val split", "for training, as Case_1,"],
        ),
        (
            [
                *("stain_norm=macenko", "stain_reference={raw}/Case_1-01.tif", "split.folds=3"),
                *(f"split.{split}_cases=[]" for split in ("train", "val", "test")),
            ],
            ["Case_1-01.tif: is of Case_1, and every case is tested", "that is none of these"],
        ),
    ],
)
def test_what_cannot_be_a_reference_is_refused(
    run: Prepare, raw: Path, tmp_path: Path, settings: list[str], expected: list[str]
) -> None:
    outcome = run(*(setting.replace("{raw}", str(raw)) for setting in settings))
    assert outcome.code == 2
    assert all(part in outcome.err for part in expected), outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
