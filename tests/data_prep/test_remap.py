"""Pixels moved by _remap.c: bit for bit OpenCV's, whose own code is what it is held against."""

import runpy
import shutil
import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import data_prep
from data_prep import remap
from data_prep.augment import Annotated, Variant, apply
from data_prep.remap import Map, moved_fast

CPUINFO = Path("/proc/cpuinfo")
HAS_AVX2 = CPUINFO.exists() and " avx2 " in CPUINFO.read_text()

needs_it = pytest.mark.skipif(
    remap._remap is None, reason="_remap.c is not built: no compiler, or no AVX2"
)


@pytest.mark.skipif(not HAS_AVX2, reason="_remap.c is for x86-64 processors with AVX2")
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").exists(), reason="no headers of Python"
)
def test_it_is_built_wherever_it_can_be() -> None:
    assert remap._remap is not None, "install the project anew: pip install -e '.[dev]'"


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_map(pixels: np.ndarray, height: int, width: int, known: int) -> Map:
    """Places all over a picture as far as they may lie, on known rows and between."""
    rng = np.random.default_rng(1)
    most = (pixels.shape[1] - 3, pixels.shape[0] - 2)
    x, y = (rng.uniform(0, end, (known, width)).astype(np.float32) for end in most)
    for places, end in ((x, most[0]), (y, most[1])):
        places[0, :2], places[-1, -2:] = (0, end), (end, 0)
    above = np.sort(rng.integers(0, known - 1, height)).astype(np.int32)
    share = rng.choice([0, 0.5, 1, *rng.random(5)], height).astype(np.float32)
    return Map(x, y, above, share)


def with_opencv(pixels: np.ndarray, sources: Map) -> np.ndarray:
    x, y = sources.strip(slice(None))
    return cv2.remap(pixels, x, y, cv2.INTER_LINEAR)


@needs_it
@pytest.mark.parametrize("width", [8, 9, 15, 16, 24, 331])
@pytest.mark.parametrize("size", [(2, 3), (3, 40), (200, 333), (2000, 5)])
def test_it_is_opencvs_remap_to_the_bit(width: int, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    sources = random_map(pixels, 70, width, known=9)
    moved = np.zeros((70, width, 3), np.uint8)
    assert moved_fast(pixels, sources, moved)
    assert np.array_equal(moved, with_opencv(pixels, sources))


@needs_it
def test_places_halfway_between_two_that_opencv_knows_are_rounded_as_it_does() -> None:
    """OpenCV knows 32 places in a pixel, and takes the even one of two that are equally near."""
    pixels = noise(40, 80)
    x = np.arange(64, dtype=np.float32) / 64 + np.arange(64, dtype=np.float32)
    y = np.arange(64, dtype=np.float32)[:, None] / 64 + np.arange(64, dtype=np.float32)[:, None] / 2
    known = np.broadcast_to(x, (64, 64)).copy(), np.broadcast_to(y, (64, 64)).copy()
    sources = Map(*known, np.arange(63, dtype=np.int32), np.zeros(63, np.float32))
    moved = np.zeros((63, 64, 3), np.uint8)
    assert moved_fast(pixels, sources, moved)
    assert np.array_equal(moved, with_opencv(pixels, sources))


def test_between_known_rows_the_map_is_straight() -> None:
    """Beside NumPy's own interpolation."""
    sources = random_map(noise(50, 60), 70, 8, known=9)
    place = sources.above_H + sources.share_H.astype(float)
    for column in range(8):
        for known, found in zip(
            (sources.x_KW, sources.y_KW), sources.strip(slice(None)), strict=True
        ):
            expected = np.interp(place, range(9), known[:, column])
            assert np.allclose(found[:, column], expected, rtol=0, atol=1e-4)


def place_outside(sources: Map) -> None:
    sources.x_KW[4, 3] = 58 - 0.99  # eight bytes from there are two more than the row has


def place_below(sources: Map) -> None:
    sources.y_KW[2, 0] = 48.01


def place_before(sources: Map) -> None:
    sources.y_KW[8, -1] = -0.01


def no_number(sources: Map) -> None:
    sources.x_KW[0, 0] = np.nan


def row_that_is_not_known(sources: Map) -> None:
    sources.above_H[5] = 8


def row_before_the_first(sources: Map) -> None:
    sources.above_H[5] = -1


def share_of_more(sources: Map) -> None:
    sources.share_H[5] = 1.01


@needs_it
@pytest.mark.parametrize(
    "spoil",
    [
        *(place_outside, place_below, place_before, no_number),
        *(row_that_is_not_known, row_before_the_first, share_of_more),
    ],
)
def test_it_never_reads_outside_of_the_picture_or_the_map(spoil: Callable[[Map], None]) -> None:
    """Then it does nothing, and OpenCV draws what lies outside."""
    pixels = noise(50, 60)
    sources = random_map(pixels, 70, 16, known=9)
    spoil(sources)
    moved = np.zeros((70, 16, 3), np.uint8)
    assert not moved_fast(pixels, sources, moved)
    assert not moved.any()


@needs_it
@pytest.mark.parametrize(
    ("size", "width"),
    [((50, 60), 7), ((50, 0), 8), ((50, 2), 8), ((1, 60), 8), ((2, 32_767), 8), ((32_767, 3), 8)],
)
def test_pictures_that_are_too_small_or_too_large_for_it_are_left_to_opencv(
    size: tuple[int, int], width: int
) -> None:
    places = np.zeros((2, width), np.float32)
    sources = Map(places, places, np.zeros(4, np.int32), np.zeros(4, np.float32))
    guarded = np.full(3 * 4 * width + 64, 77, np.uint8)
    moved = guarded[32:-32].reshape(4, width, 3)
    assert not moved_fast(np.zeros((*size, 3), np.uint8), sources, moved)
    assert np.all(guarded == 77)


@needs_it
def test_the_last_corner_of_the_largest_picture() -> None:
    """Its offset does not fit into 31 bit. Most of the picture is never touched."""
    side = 32_766
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[-2:, -3:] = noise(2, 3)
    x = np.full((2, 8), side - 3.25, np.float32)
    y = np.full((2, 8), side - 2.5, np.float32)
    x[:, 0], y[:, 0] = side - 3, side - 2
    sources = Map(np.minimum(x, side - 3), np.minimum(y, side - 2), *above_and_share(4))
    moved = np.zeros((4, 8, 3), np.uint8)
    assert moved_fast(pixels, sources, moved)
    assert np.array_equal(moved, with_opencv(pixels, sources))
    assert moved[0, 0].tolist() == pixels[-2, -3].tolist()


def above_and_share(rows: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(rows, np.int32), np.linspace(0, 1, rows, dtype=np.float32)


@needs_it
@pytest.mark.parametrize("changed", range(9))
def test_sizes_that_are_not_those_of_the_arrays_are_refused(changed: int) -> None:
    pixels = noise(50, 60)
    sources = random_map(pixels, 70, 16, known=9)
    moved = np.zeros((70, 16, 3), np.uint8)
    given = [pixels, (50, 60), sources.x_KW, sources.y_KW, 9, sources.above_H, sources.share_H]
    given += [moved, (70, 16)]
    wrong = [pixels[1:], (50, 61), sources.x_KW[1:], sources.y_KW[1:], 10]
    wrong += [sources.above_H[1:], sources.share_H[1:], moved[1:], (-70, -16)]
    given[changed] = wrong[changed]
    with pytest.raises(ValueError, match="size"):
        remap._remap.bilinear(*given)


@pytest.mark.parametrize("border", ["mirror", "white"])
@pytest.mark.parametrize("size", [(64, 7), (90, 131), (300, 421)])
def test_variants_are_the_same_bytes_without_it(
    border: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of fields that are narrower than it takes, and in borders wider than are drawn."""
    parameters = {
        "rotation": {"angle_deg": 35.0},
        "elastic": {"rms_px": 3.0, "sigma_px": 10.0},
        "gaussian": {"rms_px": 8.0, "sigma_px": 50.0},
        "barrel": {"k": 0.35},
        "scale": {"factor": 0.2},
    }
    variants = [Variant(1, name, 3, drawn) for name, drawn in parameters.items()]

    def moved() -> list[bytes]:
        field = Annotated(noise(*size), {})
        return [variant.image_HWC.tobytes() for variant in apply(field, variants, border)]

    with_it = moved()
    monkeypatch.setattr(remap, "_remap", None)
    assert moved() == with_it


def test_one_of_an_earlier_installation_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = types.ModuleType("data_prep._remap")
    earlier.VERSION = remap.VERSION - 1
    monkeypatch.setitem(sys.modules, "data_prep._remap", earlier)
    monkeypatch.setattr(data_prep, "_remap", earlier, raising=False)
    namespace = runpy.run_path(remap.__file__)
    assert namespace["_remap"] is None


@needs_it
@pytest.mark.parametrize("name", ["rotation", "elastic", "gaussian", "barrel", "scale"])
def test_variants_of_a_field_are_made_by_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {"angle_deg": 90.0, "rms_px": 8.0, "sigma_px": 50.0, "k": 0.5, "factor": 0.45}
    keys = {"rotation": ["angle_deg"], "scale": ["factor"], "barrel": ["k"]}
    parameters = {key: drawn[key] for key in keys.get(name, ["rms_px", "sigma_px"])}

    def refuse(*_: object) -> None:
        raise AssertionError("OpenCV was asked")

    monkeypatch.setattr(cv2, "remap", refuse)
    field, variant = Annotated(noise(512, 680), {}), Variant(1, name, 3, parameters)
    assert len([*apply(field, [variant], "mirror")]) == 1
