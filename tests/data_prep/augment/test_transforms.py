"""Each named transform beside its formula, SciPy, or albumentations' own operation."""

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from data_prep.augment.transforms import Displacement, pipeline_of
from data_prep.augment.variants import Border, Variant
from data_prep.config import TRANSFORMS

STRONG: dict[str, dict[str, float]] = {
    "horizontal_flip": {},
    "vertical_flip": {},
    "rotation": {"angle_deg": 35.0},
    "elastic": {"rms_px": 3.0, "sigma_px": 10.0},
    "gaussian": {"rms_px": 8.0, "sigma_px": 50.0},
    "barrel": {"k": 0.35},
    "pincushion": {"k": -0.35},
    "scale": {"factor": 0.7},
}
BENT = ["elastic", "gaussian", "barrel", "pincushion"]


def pipeline(name: str, seed: int = 3, border: Border = "mirror", **given: float) -> Any:
    return pipeline_of(Variant(1, name, seed, given or STRONG[name]), border)


def lattice_map(name: str, height: int, width: int, seed: int = 3, **given: float) -> Any:
    (transform,) = pipeline(name, seed, **given).transforms
    assert isinstance(transform, Displacement)
    return transform.map_of(height, width)


def ramps(height: int, width: int) -> np.ndarray:
    """HW3 float32: x, y and 0."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.dstack([x, y, np.zeros_like(x)])


def formula(name: str, drawn: dict[str, float], height: int, width: int) -> np.ndarray:
    """HW2: where each pixel comes from, worked out in float64."""
    size, middle = np.array([width, height]), np.array([width - 1, height - 1]) / 2
    offset = ramps(height, width)[..., :2].astype(float) - middle
    if name == "horizontal_flip":
        return middle + offset * [-1, 1]
    if name == "vertical_flip":
        return middle + offset * [1, -1]
    if name == "rotation":  # counterclockwise, y pointing down
        turned = (offset[..., 0] - 1j * offset[..., 1]) * np.exp(
            -1j * math.radians(drawn["angle_deg"])
        )
        return middle + np.stack([turned.real, -turned.imag], axis=-1)
    if name == "scale":
        return middle + offset / drawn["factor"]
    squared = np.square(offset / size).sum(axis=-1, keepdims=True)
    return middle + offset * (1 + drawn["k"] * squared + drawn["k"] * squared**2)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if "k" in STRONG[name]])
@pytest.mark.parametrize("size", [(1024, 1360), (333, 257)])
def test_the_strongest_lens_is_its_formula_to_a_twentieth_of_a_px(
    name: str, size: tuple[int, int]
) -> None:
    error_px = lattice_map(name, *size).at_pixels() - formula(name, STRONG[name], *size)
    assert np.linalg.norm(error_px, axis=-1).max() < 0.05


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in BENT[:2]])
def test_pixels_come_from_where_the_formula_says(name: str) -> None:
    """Of ramps, whose values tell the position; OpenCV rounds to 1/32 px, lenses are near."""
    height, width = 300, 401
    expected = formula(name, STRONG[name], height, width)
    seen = pipeline(name)(image=ramps(height, width))["image"][..., :2]
    inside = np.all((expected > 1) & (expected < [width - 2, height - 2]), axis=-1)
    assert inside.mean() > 0.4
    assert np.abs(seen - expected)[inside].max() < 0.08


@pytest.mark.parametrize("name", BENT)
def test_pixels_are_interpolated_once_and_mirrored_at_the_border(name: str) -> None:
    """On noise, which a second interpolation would smooth, beside SciPy's."""
    noise = np.random.default_rng(0).integers(0, 256, (250, 331, 3), np.uint8)
    seen = pipeline(name)(image=noise)["image"]
    # the same draw: a new pipeline has the same seed
    x, y = np.moveaxis(lattice_map(name, 250, 331).at_pixels().astype(float), -1, 0)
    for channel in range(3):
        expected = ndimage.map_coordinates(
            noise[..., channel].astype(float), (y, x), order=1, mode="reflect"
        )
        assert np.abs(seen[..., channel] - expected).mean() < 1.5
        assert np.abs(seen[..., channel] - expected).max() < 16


@pytest.mark.parametrize(("rms", "sigma"), [(3.0, 10.0), (8.0, 50.0), (8.0, 20.0), (1.0, 5.0)])
def test_a_random_displacement_is_smooth_between_the_nodes(rms: float, sigma: float) -> None:
    """Beside the cubic spline through the same nodes: 0.1 px RMS."""
    given = lattice_map("elastic", 300, 403, rms_px=rms, sigma_px=sigma)
    lattice = given.lattice
    position = ramps(300, 403)[..., :2].astype(float)
    node = (position - lattice.nodes()[0, 0]) / lattice.step_px
    spline = [
        ndimage.map_coordinates(along.astype(float), (node[..., 1], node[..., 0]), order=3)
        for along in np.moveaxis(given.displacement_KL2, -1, 0)
    ]
    error_px = position + np.stack(spline, axis=-1) - given.at_pixels()
    assert np.sqrt(np.mean(np.square(error_px))) < 0.1
    assert lattice.step_px > 1, "every pixel is a node: that is not fast"


@pytest.mark.parametrize(
    ("name", "rms", "sigma", "number"),
    [("elastic", 3.0, 10.0, 8), ("gaussian", 8.0, 50.0, 40), ("elastic", 2.0, 1.0, 2)],
)
def test_a_displacement_has_its_root_mean_square_and_smoothness(
    name: str, rms: float, sigma: float, number: int
) -> None:
    """Of noise smoothed by a Gaussian the autocorrelation is exp(-lag^2 / (4 sigma^2))."""
    drawn = {"rms_px": rms, "sigma_px": sigma}
    maps = [lattice_map(name, 301, 403, seed, **drawn) for seed in range(number)]
    fields = [of.displacement_KL2 for of in maps]
    square = np.mean(np.square(fields), axis=(0, 1, 2))
    assert np.sqrt(square) == pytest.approx([rms, rms], rel=0.1)  # along x, and along y
    lag = max(1, round(sigma / maps[0].lattice.step_px))
    expected = math.exp(-((lag * maps[0].lattice.step_px) ** 2) / (4 * sigma**2))
    for across in (fields, [field.swapaxes(0, 1) for field in fields]):
        product = np.mean([field[:, lag:] * field[:, :-lag] for field in across])
        assert product / square.mean() == pytest.approx(expected, abs=0.08)
    x, y = (np.ravel([field[..., axis] for field in fields]) for axis in (0, 1))
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.15, "both axes move alike"


@pytest.mark.parametrize("k", [0.35, -0.35])
def test_a_lens_is_albumentations_own(k: float) -> None:
    """Within 0.15 px; OpenCV's lens, which theirs is, takes the middle of the result at (W - 1) / 2
    and that of the source at W / 2, half a px away, which ours leaves out."""
    import albumentations

    theirs = albumentations.OpticalDistortion(distort_limit=(k, k), mode="camera", p=1)
    seen = theirs(image=ramps(400, 500))["image"][..., :2]
    ours = lattice_map("barrel", 400, 500, k=k).at_pixels() + 0.5
    inside = np.all((ours > 1) & (ours < [498, 398]), axis=-1)
    assert inside.mean() > 0.4
    assert np.abs(seen - ours)[inside].max() < 0.15


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_comes_in_from_outside(name: str) -> None:
    """The field mirrored, or one colour in the image and background in the mask."""
    grey = {"image": np.full((120, 160, 3), 90, np.uint8), "mask": np.full((120, 160), 7, np.uint8)}
    for border, beyond in (("mirror", 90), ("white", 255), ("black", 0)):
        moved = pipeline(name, border=border)(**grey)
        image = moved["image"].astype(int)
        assert set(np.unique(moved["mask"])) <= {7, 7 if border == "mirror" else 0}
        assert np.all((image >= min(90, beyond)) & (image <= max(90, beyond)))
        if name in ("rotation", "scale") and border != "mirror":
            assert (image[0, 0].tolist(), moved["mask"][0, 0]) == ([beyond] * 3, 0)


DIGESTS = """
import hashlib, sys
import numpy as np
from data_prep.augment.moving import Annotated, apply
from data_prep.augment.variants import plan_variants
from data_prep.config import AugmentConfig

rng = np.random.default_rng(0)
image_HWC = rng.integers(0, 256, (200, 300, 3), np.uint8)
points = {"tumor": 200 * rng.random((50, 2))}
variants = plan_variants("a-1", 9, AugmentConfig(), 0)
for variant, of in zip(variants, apply(Annotated(image_HWC, points), variants, "mirror")):
    content = of.image_HWC.tobytes() + of.points["tumor"].tobytes()
    print(variant.transform, hashlib.sha256(content).hexdigest())
print("torch", "torch" in sys.modules)
"""


def test_variants_are_the_same_on_a_processor_that_can_do_less() -> None:
    """Nodes of one cluster differ: OpenCV and NumPy choose their code by what a processor can.

    Nor does albumentations load torch into every worker.
    """

    def digests(**without: str) -> str:
        command, env = [sys.executable, "-c", DIGESTS], os.environ | without
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return ended.stdout

    expected = digests()
    assert len(expected.splitlines()) == 10
    assert expected.endswith("torch False\n")
    less = {
        "OPENCV_CPU_DISABLE": "AVX2,FMA3,AVX",
        "OPENCV_IPP": "sse42",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-AVX2,-FMA4",  # sin and cos
    }
    assert digests(**less) == expected
