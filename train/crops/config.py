"""The settings of training crops: crop.KEY of `python -m train`."""

from dataclasses import dataclass

LARGEST_SCALE = 4.0  # from a slide's x40 to its x10; memory grows with its square


@dataclass(frozen=True)
class CropConfig:
    """Random crops of the training images; their random numbers come from (seed, epoch, index)."""

    size_px: int = 256
    """Side of the square crop, in px."""
    per_sample: int = 1
    """Crops taken of each training image in an epoch."""
    flip: bool = True
    """Mirror left-right and top-bottom, each with probability 1/2."""
    rotation_deg: float = 180.0
    """Largest rotation in degrees, either way, up to 180; 0 for none."""
    scale: float = 1.2
    """Largest enlargement, and the inverse the largest shrinking (a factor, up to 4); 1 for
    none."""
    stain: float = 0.1
    """Largest relative change of each stain's amount (hematoxylin, eosin, residual); 0 for none."""
    stain_shift: float = 0.02
    """Largest shift of each stain's optical density, also where there is no stain; 0 for none."""
    brightness: float = 0.1
    """Largest relative change of brightness; 0 for none."""
    pipeline: str = ""
    """A YAML file of a pipeline of albumentations, which comes after all these
    (docs/augmentation.md); its content is recorded. Empty for none."""
    centred: float = 0.0
    """Fraction of crops, 0 to 1, that are placed around an annotated nucleus, whichever image it is
    in. First its class is drawn, each as likely as any other, then one of that class's nuclei in
    the training cases; it lies anywhere in the central half of the crop."""

    def __post_init__(self) -> None:
        if self.size_px < 16 or self.per_sample < 1:
            raise ValueError(
                f"crop.size_px={self.size_px} must be at least 16,"
                f" crop.per_sample={self.per_sample} at least 1"
            )
        if not 0 <= self.rotation_deg <= 180:
            raise ValueError(f"crop.rotation_deg={self.rotation_deg}: 0 (none) to 180 (any)")
        if not 1 <= self.scale <= LARGEST_SCALE:
            raise ValueError(f"crop.scale={self.scale}: 1 (none) to {LARGEST_SCALE:g}")
        if not 0 <= self.centred <= 1:
            raise ValueError(f"crop.centred={self.centred}: 0 (none) to 1 (all crops)")
        for key in ("stain", "stain_shift", "brightness"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"crop.{key}={getattr(self, key)}: 0 to below 1")
