"""16-bit images that their header does not tell the white of: what does not fit is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from data_prep import __main__ as data_prep_main
from data_prep import prepare
from data_prep.dataset.white import doubts_about_white
from tests.processes import map_here

Prepare = Callable[..., list[str]]


@pytest.fixture
def prepare_pictures(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Prepare:
    """prepare_pictures({"a.tif": picture}, ...) returns the warnings about uint16_white."""
    monkeypatch.setattr(prepare, "map_tasks", map_here)
    raw = tmp_path / "raw"

    def run(pictures: dict[str, np.ndarray], *settings: str) -> list[str]:
        raw.mkdir(exist_ok=True)
        for name, picture in pictures.items():
            path = raw / name
            if path.suffix == ".png":
                path.write_bytes(imagecodecs.png_encode(picture))
            else:
                alpha = {"extrasamples": ["unassalpha"]} if picture.shape[-1] == 4 else {}
                tifffile.imwrite(path, picture, photometric="rgb", **alpha)
            path.with_suffix(".json").write_text(json.dumps({"tumor": [{"x": 0.5, "y": 0.5}]}))
        given = [f"raw={raw}", f"out={tmp_path / 'out'}", "copies=1", "radius_px=3"]
        given += ["split.val=0", "split.test=0", "case_regex=each"]
        outcome = cli(data_prep_main.main, *given, *settings)
        assert outcome.code == 0, outcome.err
        return [line for line in outcome.err.splitlines() if "uint16_white" in line]

    return run


def picture(largest: int, dtype: Any = np.uint16, samples: int = 3) -> np.ndarray:
    """A dark picture of which one px has the largest value."""
    pixels = np.random.default_rng(largest).integers(0, largest // 2, (80, 120, samples), dtype)
    pixels[70, 110] = largest
    return pixels


DARK = (
    "warning: no value is above 4095 in 2 16-bit images, though uint16_white=65535, so they are"
    " read as dark as 6.2% of white; give uint16_white=4095 if the camera has 12 bits: a.tif, b.png"
)


@pytest.mark.parametrize("settings", [[], ["tile_px=64", "min_tissue=0"], ["mpp=0.5"]])
def test_values_of_12_bits_are_told_with_what_to_type(
    prepare_pictures: Prepare, settings: list[str]
) -> None:
    """Whole, in tiles of which only one has the largest value, and again from the records."""
    pictures = {"a.tif": picture(4095), "b.png": picture(2100), "c.tif": picture(255, np.uint8)}
    assert prepare_pictures(pictures, *settings) == [DARK]
    assert prepare_pictures({}, *settings) == [DARK], "nothing is read a second time"
    assert prepare_pictures({}, "uint16_white=4095", *settings) == []


def test_of_alpha_nothing_is_concluded(prepare_pictures: Prepare) -> None:
    pixels = picture(1000, samples=4)
    pixels[..., 3] = 65535
    (line,) = prepare_pictures({"a.tif": pixels})
    assert "no value is above 1023" in line


def test_a_bright_px_in_any_tile_is_enough(prepare_pictures: Prepare) -> None:
    assert prepare_pictures({"a.tif": picture(40000)}, "tile_px=64", "min_tissue=0") == []


def test_one_white_cannot_fit_cameras_of_12_and_16_bits(prepare_pictures: Prepare) -> None:
    pictures = {"a.tif": picture(4000), "b.tif": picture(65535)}
    (line,) = prepare_pictures(pictures)
    assert line.endswith("of white; multiply their values by 16 before: a.tif")
    (line,) = prepare_pictures({}, "uint16_white=4095")
    assert line == (
        "warning: 1 16-bit image with values up to 65535, above uint16_white=4095, which are all"
        " read as white; give uint16_white=65535: b.tif"
    )


def test_whoever_cannot_set_it_is_told_to_scale() -> None:
    (line,) = doubts_about_white({"a": 4000, "b": 0}, 65535, may_set=False)
    assert "multiply their values by 16 before: a" in line
    (line,) = doubts_about_white({"a": 4096}, 4095, may_set=False)
    assert "scale their values to 4095 before: a" in line
