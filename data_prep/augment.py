"""Variants of a field: one named transform each, with parameters drawn from a seed.

A transform moves image and mask together: the image linearly interpolated, the mask by nearest
neighbour, so that it holds no value that it did not hold before. What comes in from outside the
field is the field mirrored, never black.

    elastic     Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801: uniform noise, Gaussian-smoothed
    gaussian    the same with normal noise and a much wider Gaussian: whole regions shift
    barrel      r -> r (1 + k r^2 + k r^4), k > 0; pincushion the same with k < 0
"""

import math
import os
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

import seeds
from data_prep.config import FLIPS, AugmentConfig, DisplacementConfig, LensConfig
from data_prep.images import Image, Mask

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network

ORIGINAL = "original"


@dataclass(frozen=True)
class Variant:
    """One variant of a field: `transform` with the parameters drawn from `seed`."""

    index: int
    transform: str
    seed: int
    parameters: dict[str, float]


def plan_variants(field: str, copies: int, config: AugmentConfig, seed: int) -> list[Variant]:
    """Variant 0, the original, and copies - 1 others that go through the transforms in turn.

    A flip draws nothing, so it is used once; the others come again with new draws.
    """
    variants = [Variant(0, ORIGINAL, 0, {})]
    names = list(config.transforms)
    while len(variants) < copies:
        for name in names[: copies - len(variants)]:
            variant_seed = seeds.derive_seed(seed, "augment", field, len(variants))
            parameters = draw_parameters(name, config, variant_seed)
            variants.append(Variant(len(variants), name, variant_seed, parameters))
        names = [name for name in config.transforms if name not in FLIPS]
    return variants


def draw_parameters(name: str, config: AugmentConfig, seed: int) -> dict[str, float]:
    """The drawn numbers of a transform; displacements are drawn from the seed when applied."""
    rng = np.random.default_rng(seed)
    if name == "rotation":
        return {"angle_deg": rng.uniform(-config.rotation.max_deg, config.rotation.max_deg)}
    if name in ("elastic", "gaussian"):
        displacement: DisplacementConfig = getattr(config, name)
        return {"rms_px": displacement.rms_px, "sigma_px": displacement.sigma_px}
    if name in ("barrel", "pincushion"):
        lens: LensConfig = getattr(config, name)
        k = rng.uniform(lens.min_k, lens.max_k)
        return {"k": k if name == "barrel" else -k}
    if name == "scale":
        low, high = math.log(config.scale.min), math.log(config.scale.max)
        return {"factor": math.exp(rng.uniform(low, high))}
    return {}


def apply_variant(image_HWC: Image, mask_HW: Mask, variant: Variant) -> tuple[Image, Mask]:
    """Image and mask moved by one variant; the same sizes and types come back."""
    if variant.transform == ORIGINAL:
        return image_HWC, mask_HW
    if variant.transform == "gaussian":
        rng = np.random.default_rng(variant.seed)
        offset_HW2 = smooth_displacement(mask_HW.shape, rng=rng, **variant.parameters)
        return displace(image_HWC, mask_HW, offset_HW2)
    return apply_albumentations(image_HWC, mask_HW, variant)


def apply_albumentations(image_HWC: Image, mask_HW: Mask, variant: Variant) -> tuple[Image, Mask]:
    """The transforms that albumentations has, with the parameters already drawn."""
    # Imported here: it takes seconds, and a run that finds nothing to redo needs none of it.
    import albumentations

    drawn = variant.parameters
    mirror = {"border_mode": cv2.BORDER_REFLECT_101, "p": 1.0}
    match variant.transform:
        case "horizontal_flip":
            transform = albumentations.HorizontalFlip(p=1.0)
        case "vertical_flip":
            transform = albumentations.VerticalFlip(p=1.0)
        case "rotation":
            transform = albumentations.Rotate(limit=(drawn["angle_deg"],) * 2, **mirror)
        case "elastic":
            # uniform noise on [-1, 1] blurred by sigma has this standard deviation
            noise_std = 1 / (math.sqrt(3) * 2 * math.sqrt(math.pi) * drawn["sigma_px"])
            transform = albumentations.ElasticTransform(
                alpha=drawn["rms_px"] / noise_std,
                sigma=drawn["sigma_px"],
                noise_distribution="uniform",
                **mirror,
            )
        case "barrel" | "pincushion":
            transform = albumentations.OpticalDistortion(
                distort_limit=(drawn["k"],) * 2, mode="camera", **mirror
            )
        case "scale":
            transform = albumentations.Affine(scale=(drawn["factor"],) * 2, **mirror)
    compose = albumentations.Compose([transform], seed=variant.seed)
    moved = compose(image=image_HWC, mask=mask_HW)
    return np.ascontiguousarray(moved["image"]), np.ascontiguousarray(moved["mask"])


def smooth_displacement(
    shape_HW: tuple[int, int], rms_px: float, sigma_px: float, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """HW2 float32, px: normal noise smoothed by a Gaussian, with the given root mean square.

    It is drawn on a lattice four points a sigma, where it is as smooth, and enlarged: 100 times
    faster than a Gaussian as wide as the field needs at full size.
    """
    step_px = max(1, round(sigma_px / 4))
    sigma = sigma_px / step_px
    margin = math.ceil(3 * sigma) + 1  # so that the blur sees noise beyond the border as well
    size = [math.ceil(extent / step_px) + 2 * margin for extent in shape_HW]
    noise = rng.standard_normal((*size, 2), dtype=np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma)
    blurred *= rms_px * 2 * math.sqrt(math.pi) * sigma  # undo the blur's loss of spread
    lattice = blurred[margin - 1 : 1 - margin, margin - 1 : 1 - margin]
    large = cv2.resize(lattice, None, fx=step_px, fy=step_px, interpolation=cv2.INTER_CUBIC)
    return large[step_px:, step_px:][: shape_HW[0], : shape_HW[1]]


def displace(
    image_HWC: Image, mask_HW: Mask, offset_HW2: npt.NDArray[np.float32]
) -> tuple[Image, Mask]:
    """Fetch every pixel from where its offset (x, y), in px, points."""
    height_px, width_px = mask_HW.shape
    x_HW = offset_HW2[..., 0] + np.arange(width_px, dtype=np.float32)
    y_HW = offset_HW2[..., 1] + np.arange(height_px, dtype=np.float32)[:, None]
    mirror: dict[str, Any] = {"borderMode": cv2.BORDER_REFLECT_101}
    image = cv2.remap(image_HWC, x_HW, y_HW, cv2.INTER_LINEAR, **mirror)
    mask = cv2.remap(mask_HW, x_HW, y_HW, cv2.INTER_NEAREST, **mirror)
    return image, mask
