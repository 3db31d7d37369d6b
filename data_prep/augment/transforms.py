"""The named transforms, each one of albumentations.

    flips, rotation, scale    its own; rotation turns counterclockwise, both about the centre
    elastic     Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801: noise smoothed by a Gaussian
    gaussian    the same with a much wider Gaussian: whole regions shift
    barrel      r -> r (1 + k r^2 + k r^4), k > 0; pincushion the same with k < 0; r in field sides

The last four are written here: albumentations' own elastic transform takes 8 to 25 times as long,
its lens twice, and both take seconds for points. No other module imports albumentations, which
takes half a second.
"""

import math
import os
import sys
from typing import Any

# Else its import asks the network for a newer release
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Else it imports torch for its ToTensorV2: a second and 300 MB in each worker
sys.modules.setdefault("albumentations.pytorch", None)  # type: ignore[arg-type]

import albumentations as albumentations  # `as`: pipeline.py takes it from here
import cv2
import numpy as np
from albumentations.augmentations.geometric.functional import (
    generate_reflected_keypoints,
    shift_keypoints,
)
from albumentations.core.type_definitions import Targets

from data_prep.augment.lattice import Floats, Lattice, LatticeMap
from data_prep.augment.variants import Border, Variant
from data_prep.config import MARGIN_PX

LATTICE_ERROR_PX = 0.06  # RMS, of straight lines between nodes where a random displacement bends

BORDERS = {  # cv2's border mode, and the value of an image beyond it; a mask is background there
    "mirror": (cv2.BORDER_REFLECT, 0),
    "white": (cv2.BORDER_CONSTANT, 255),
    "black": (cv2.BORDER_CONSTANT, 0),
}


def pipeline_of(variant: Variant, border: Border) -> albumentations.Compose:
    """The transform of a variant, for `image`, `mask` and `keypoints` (x, y, ...).

    Keypoints are in px from the centre of the first pixel. They come back wherever they come to
    lie, outside as well, and in mirrored borders again.
    """
    keypoints = albumentations.KeypointParams("xy", remove_invisible=False)
    transform = transform_of(variant, border)
    return albumentations.Compose([transform], keypoint_params=keypoints, seed=variant.seed)


def transform_of(variant: Variant, border: Border) -> albumentations.DualTransform:
    """Build the transform of a variant with its parameters; only noise is left to be drawn."""
    drawn, (mode, fill) = variant.parameters, BORDERS[border]
    match variant.transform:
        case "horizontal_flip":
            return albumentations.HorizontalFlip(p=1)
        case "vertical_flip":
            return albumentations.VerticalFlip(p=1)
        case "rotation":
            angles = (drawn["angle_deg"],) * 2
            return Affine(rotate=angles, border_mode=mode, fill=fill, p=1)
        case "scale":
            factors = (drawn["factor"],) * 2
            return Affine(scale=factors, border_mode=mode, fill=fill, p=1)
        case "barrel" | "pincushion":
            return Lens(mode, fill, **drawn)
        case "elastic" | "gaussian":
            return SmoothNoise(mode, fill, **drawn)
    raise ValueError(f"no transform is named {variant.transform}")


HALF_PX = np.array([0.5, 0.5, 0])


class Affine(albumentations.Affine):  # type: ignore[misc]
    """albumentations' own, with mirrored keypoints where the image shows them.

    It mirrors keypoints as if they were counted from the corner of the first pixel.
    """

    def apply_to_keypoints(self, keypoints: Any, matrix: Any, **params: Any) -> Any:
        """Move keypoints and their mirror images: counted from the corner meanwhile."""
        from_corner = matrix.copy()
        from_corner[:2, 2] += (1 - matrix[:2, :2].sum(axis=1)) / 2
        shifted = shift_keypoints(keypoints, HALF_PX)
        return shift_keypoints(super().apply_to_keypoints(shifted, from_corner, **params), -HALF_PX)


class Displacement(albumentations.DualTransform):  # type: ignore[misc]
    """Fetch each pixel from elsewhere: by a displacement that is smooth, so a lattice has it."""

    _targets = (Targets.IMAGE, Targets.MASK, Targets.KEYPOINTS)

    def __init__(self, border_mode: int, fill: int) -> None:
        super().__init__(p=1)
        self.border_mode, self.fill = border_mode, fill

    def map_of(self, height_px: int, width_px: int) -> LatticeMap:
        """The map for a picture of this size."""
        raise NotImplementedError

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """What the image, mask and keypoints are moved by."""
        lattice_map = self.map_of(*params["shape"][:2])
        return {"lattice_map": lattice_map, "sources_HW2": lattice_map.at_pixels()}

    def apply(self, img: Any, sources_HW2: Floats, **params: Any) -> Any:
        """Interpolate the image once."""
        fill = (self.fill,) * 4
        return cv2.remap(img, sources_HW2, None, cv2.INTER_LINEAR, None, self.border_mode, fill)

    def apply_to_mask(self, mask: Any, sources_HW2: Floats, **params: Any) -> Any:
        """Take each pixel of the mask from the nearest one."""
        return cv2.remap(mask, sources_HW2, None, cv2.INTER_NEAREST, None, self.border_mode)

    def apply_to_keypoints(self, keypoints: Any, lattice_map: LatticeMap, **params: Any) -> Any:
        """Move keypoints and their mirror images, as far as the map reaches."""
        if self.border_mode == cv2.BORDER_REFLECT:
            grid = {"grid_shape": (3, 3), "original_position": (1, 1)}
            shifted = shift_keypoints(keypoints, HALF_PX)  # it counts from the corner
            mirrored = generate_reflected_keypoints(shifted, grid, params["shape"], True)
            keypoints = shift_keypoints(mirrored, -HALF_PX)
        reach_px, size = lattice_map.reach_px + MARGIN_PX, np.array(params["shape"][1::-1])
        is_in_reach = (keypoints[:, :2] > -reach_px) & (keypoints[:, :2] < size + reach_px)
        moved = keypoints[is_in_reach.all(axis=1)]
        moved[:, :2], is_found = lattice_map.inverse(moved[:, :2].astype(np.float64))
        return moved[is_found]


class Lens(Displacement):
    """What is seen at r was at r (1 + k r^2 + k r^4); x in field widths, y in field heights."""

    def __init__(self, border_mode: int, fill: int, k: float) -> None:
        super().__init__(border_mode, fill)
        self.k = k

    def map_of(self, height_px: int, width_px: int) -> LatticeMap:
        """Follow the formula up to r = 1, and keep its value there beyond.

        Else the margin of a small field would come from far away. The lattice is within 0.05 px of
        the strongest lens, whose second derivative falls with the sides.
        """
        step_px = max(1, math.isqrt(min(height_px, width_px)) // 4)
        lattice = Lattice(height_px, width_px, step_px)
        size = np.array([width_px, height_px])
        from_centre_KL2 = lattice.nodes() - (size - 1) / 2
        squared_KL1 = np.square(from_centre_KL2 / size).sum(axis=-1, keepdims=True).clip(max=1)
        stretch_KL1 = self.k * squared_KL1 * (1 + squared_KL1)
        return LatticeMap(lattice, (from_centre_KL2 * stretch_KL1).astype(np.float32))


class SmoothNoise(Displacement):
    """Noise smoothed by a Gaussian of sigma_px, with a root mean square of rms_px along each axis.

    The noise is uniform: what a Gaussian makes of it is as good as normal.
    """

    def __init__(self, border_mode: int, fill: int, rms_px: float, sigma_px: float) -> None:
        super().__init__(border_mode, fill)
        self.rms_px, self.sigma_px = rms_px, sigma_px

    def map_of(self, height_px: int, width_px: int) -> LatticeMap:
        """By noise from the transform's own generator.

        OpenCV smooths whole numbers of 16 bit to the same bits on every processor, and floats not.
        """
        lattice = Lattice(height_px, width_px, self.step_px)
        sigma = self.sigma_px / self.step_px
        more = math.ceil(3 * sigma) + 1  # what the Gaussian sees beyond the nodes
        down, across = lattice.nodes().shape[:2]
        shape = down + 2 * more, across + 2 * more, 2
        noise = self.random_generator.integers(0, 2**16, shape, np.uint16)
        smooth = cv2.GaussianBlur(noise, (0, 0), sigma)[more:-more, more:-more]
        rms = 2**16 / math.sqrt(12) / (2 * math.sqrt(math.pi) * sigma)  # what the Gaussian leaves
        centred = smooth - np.float32((2**16 - 1) / 2)
        return LatticeMap(lattice, centred * np.float32(self.rms_px / rms))

    @property
    def step_px(self) -> int:
        """The widest lattice that is within LATTICE_ERROR_PX of the displacement.

        Between nodes h apart a curve is h^2 / 8 times its second derivative from straight; that of
        the displacement is sqrt(3) / 2 rms / sigma^2.
        """
        step_px = self.sigma_px * math.sqrt(16 * LATTICE_ERROR_PX / (math.sqrt(3) * self.rms_px))
        return max(1, int(min(step_px, self.sigma_px / 2)))
