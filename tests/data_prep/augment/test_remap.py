"""Pixels moved by _remap.c: bit for bit OpenCV's, whose own code is what it is held against."""

import math
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
from scipy import ndimage

from data_prep import augment
from data_prep.augment import remap
from data_prep.augment.remap import Map, moved_fast
from data_prep.augment.variants import Annotated, Variant, apply
from data_prep.augment.warp import Border, Bordered

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


def num_nodes(length: int, step: int) -> int:
    """One in each cell and one beyond either side."""
    return math.ceil(length / step) + 2


def random_map(
    pixels: np.ndarray, height: int, width: int, step: int = 8, border_px: int = 0
) -> Map:
    """Places all over a picture as far as they may lie."""
    rng = np.random.default_rng(1)
    down, across = num_nodes(height, step), num_nodes(width, step)
    most = (pixels.shape[1] - 3, pixels.shape[0] - 2)
    nodes = np.stack([rng.uniform(0, end, (down, across)) for end in most], axis=-1)
    nodes[0, :2], nodes[-1, -2:] = [(0, 0), most], [most, (0, 0)]
    return Map((nodes - border_px).astype(np.float32), step, height, width)


def with_opencv(pixels: np.ndarray, sources: Map) -> np.ndarray:
    return cv2.remap(pixels, *sources.rows(0, sources.height_px), cv2.INTER_LINEAR)


@needs_it
@pytest.mark.parametrize("step", [1, 2, 5, 8, 21, 500])
@pytest.mark.parametrize("width", [8, 9, 15, 16, 24, 331])
@pytest.mark.parametrize("size", [(2, 3), (3, 40), (200, 333), (2000, 5)])
def test_it_is_opencvs_remap_to_the_bit(width: int, size: tuple[int, int], step: int) -> None:
    pixels = noise(*size)
    sources = random_map(pixels, 70, width, step)
    moved = np.zeros((70, width, 3), np.uint8)
    assert moved_fast(pixels, 0, sources, moved)
    assert np.array_equal(moved, with_opencv(pixels, sources))


@needs_it
def test_places_halfway_between_two_that_opencv_knows_are_rounded_as_it_does() -> None:
    """OpenCV knows 32 places in a pixel, and takes the even one of two that are equally near."""
    pixels = noise(40, 80)
    x = np.arange(66) / 64 + np.arange(66)
    y = np.arange(66)[:, None] / 64 + np.arange(66)[:, None] / 2
    nodes = np.stack(np.broadcast_arrays(x, y), axis=-1).astype(np.float32)
    sources = Map(nodes, 1, 64, 64)
    moved = np.zeros((64, 64, 3), np.uint8)
    assert moved_fast(pixels, 0, sources, moved)
    assert np.array_equal(moved, with_opencv(pixels, sources))


@pytest.mark.parametrize("step", [1, 2, 5, 8, 500])
def test_between_nodes_the_map_is_straight(step: int) -> None:
    """Beside SciPy's own interpolation; nodes lie at the centres of cells of `step` pixels."""
    sources = random_map(noise(50, 60), 70, 33, step)
    y, x = (np.mgrid[:70, :33] + 0.5) / step + 0.5  # in nodes: the first is half a cell outside
    for axis, found in enumerate(sources.rows(0, 70)):
        nodes = sources.nodes_KL2[..., axis].astype(float)
        expected = ndimage.map_coordinates(nodes, (y, x), order=1)
        assert np.allclose(found, expected, rtol=0, atol=1e-4)
    some = sources.rows(20, 41)
    assert all(np.array_equal(a[20:41], b) for a, b in zip(sources.rows(0, 70), some, strict=True))


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_NEAREST])
@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize("kind", ["mirror", "white"])
def test_how_wide_a_border_is_drawn_makes_no_difference(
    kind: Border, is_built: bool, interpolation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places are rounded before the border's width is added to them."""
    if not is_built:
        monkeypatch.setattr(remap, "_remap", None)
    picture = Bordered(noise(50, 60), kind)
    sources = random_map(np.zeros((84, 94)), 70, 60, step=3, border_px=17)
    settings = interpolation, picture.mode, picture.fill
    expected = remap.remap(picture.pixels, 0, sources, *settings)
    for border_px in (20, 33, 47):
        picture.draw([border_px])
        moved = remap.remap(*picture.reaching(border_px), sources, *settings)
        assert np.array_equal(moved, expected)
    whole = cv2.remap(picture.pixels, *sources.rows(0, 70), *settings[:1], None, *settings[1:])
    assert np.array_equal(expected, whole), "and it is what OpenCV makes of the picture itself"


def place_outside(nodes_KL2: np.ndarray) -> None:
    nodes_KL2[4, 3, 0] = 58 - 0.99  # eight bytes from there are two more than the row has


def place_below(nodes_KL2: np.ndarray) -> None:
    nodes_KL2[2, 0, 1] = 48.01


def place_left(nodes_KL2: np.ndarray) -> None:
    nodes_KL2[3, 1, 0] = -0.01


def place_above(nodes_KL2: np.ndarray) -> None:
    nodes_KL2[8, -1, 1] = -0.01


def no_number(nodes_KL2: np.ndarray) -> None:
    nodes_KL2[0, 0, 0] = np.nan


@needs_it
@pytest.mark.parametrize("border_px", [0, 7])
@pytest.mark.parametrize("spoil", [place_outside, place_below, place_left, place_above, no_number])
def test_it_never_reads_outside_of_the_picture(
    spoil: Callable[[np.ndarray], None], border_px: int
) -> None:
    """Then it does nothing, and OpenCV draws what lies outside."""
    pixels = noise(50, 60)
    nodes_KL2 = random_map(pixels, 70, 16).nodes_KL2
    moved = np.zeros((70, 16, 3), np.uint8)
    assert moved_fast(pixels, border_px, Map(nodes_KL2 - border_px, 8, 70, 16), moved)
    spoil(nodes_KL2)
    moved[:] = 0
    assert not moved_fast(pixels, border_px, Map(nodes_KL2 - border_px, 8, 70, 16), moved)
    assert not moved.any()


@needs_it
@pytest.mark.parametrize(
    ("size", "width"),
    [((50, 60), 7), ((50, 0), 8), ((50, 2), 8), ((1, 60), 8), ((2, 32_767), 8), ((32_767, 3), 8)],
)
def test_pictures_that_are_too_small_or_too_large_for_it_are_left_to_opencv(
    size: tuple[int, int], width: int
) -> None:
    sources = Map(np.zeros((3, num_nodes(width, 4), 2), np.float32), 4, 4, width)
    guarded = np.full(3 * 4 * width + 64, 77, np.uint8)
    moved = guarded[32:-32].reshape(4, width, 3)
    assert not moved_fast(np.zeros((*size, 3), np.uint8), 0, sources, moved)
    assert np.all(guarded == 77)


@needs_it
@pytest.mark.parametrize("step", [1, 3, 8, 29, 400])
def test_it_writes_nothing_beside_the_picture(step: int) -> None:
    guarded = np.full(3 * 70 * 29 + 64, 77, np.uint8)
    moved = guarded[32:-32].reshape(70, 29, 3)
    pixels = np.zeros((50, 60, 3), np.uint8)
    assert moved_fast(pixels, 0, random_map(pixels, 70, 29, step), moved)
    assert not moved.any()
    assert np.all(guarded[:32] == 77)
    assert np.all(guarded[-32:] == 77)


@needs_it
@pytest.mark.parametrize("border_px", [0, 900])
def test_the_last_corner_of_the_largest_picture(border_px: int) -> None:
    """Its offset does not fit into 31 bit. Most of the picture is never touched."""
    side = 32_766
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[-2:, -3:] = noise(2, 3)
    nodes = np.full((3, 4, 2), (side - 3.25, side - 2.5))
    nodes[:, :2] = side - 3, side - 2
    sources = Map((nodes - border_px).astype(np.float32), 4, 4, 8)
    moved = np.zeros((4, 8, 3), np.uint8)
    assert moved_fast(pixels, border_px, sources, moved)
    assert np.array_equal(moved, with_opencv(pixels, Map(sources.nodes_KL2 + border_px, 4, 4, 8)))
    assert moved[0, 0].tolist() == pixels[-2, -3].tolist()


@needs_it
@pytest.mark.parametrize("wrong", [-1, 32_767])
def test_a_border_that_cannot_be_is_not_used(wrong: int) -> None:
    pixels = noise(50, 60)
    moved = np.zeros((70, 16, 3), np.uint8)
    assert not moved_fast(pixels, wrong, random_map(pixels, 70, 16, border_px=wrong), moved)


@needs_it
@pytest.mark.parametrize("changed", [0, 1, 3, 4, 5, 6, 7])
def test_sizes_that_are_not_those_of_the_arrays_are_refused(changed: int) -> None:
    pixels = noise(50, 60)
    nodes_KL2 = random_map(pixels, 70, 16).nodes_KL2
    moved = np.zeros((70, 16, 3), np.uint8)
    given = [pixels, (50, 60), 0, nodes_KL2, (11, 4), 8, moved, (70, 16)]
    assert remap._remap.bilinear(*given)
    wrong = [pixels[1:], (50, 61), 0, nodes_KL2[1:], (4, 11), 4, moved[1:], (-70, -16)]
    given[changed] = wrong[changed]
    with pytest.raises(ValueError, match="size"):
        remap._remap.bilinear(*given)


@needs_it
@pytest.mark.parametrize("step", [32_767, 2**62, 2**63 - 1])
def test_steps_that_a_row_of_places_is_too_long_for_are_left_to_opencv(step: int) -> None:
    pixels, nodes_KL2 = noise(50, 60), np.zeros((3, 3, 2), np.float32)
    moved = np.zeros((8, 8, 3), np.uint8)
    assert not remap._remap.bilinear(pixels, (50, 60), 0, nodes_KL2, (3, 3), step, moved, (8, 8))


@needs_it
@pytest.mark.parametrize("step", [0, -8])
def test_a_step_of_nothing_is_refused(step: int) -> None:
    pixels, nodes_KL2 = noise(50, 60), np.zeros((2, 2, 2), np.float32)
    moved = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="size"):
        remap._remap.bilinear(pixels, (50, 60), 0, nodes_KL2, (2, 2), step, moved, (8, 8))


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
    earlier = types.ModuleType("data_prep.augment._remap")
    earlier.VERSION = remap.VERSION - 1
    monkeypatch.setitem(sys.modules, "data_prep.augment._remap", earlier)
    monkeypatch.setattr(augment, "_remap", earlier, raising=False)
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
