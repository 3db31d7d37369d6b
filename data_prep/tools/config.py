"""The settings of data_prep.preview and data_prep.synthetic: every key, its unit and default."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from data_prep.config import PREPARED

SUFFIXES = (".jpg", ".png")  # of contact sheets


@dataclass(frozen=True)
class PreviewConfig:
    """Every setting of `python -m data_prep.preview`."""

    data: str = PREPARED
    """Folder of the prepared data set."""
    out: str = MISSING
    """The picture to write, .jpg or .png; replaces an earlier sheet, but no other file."""
    field: str = ""
    """Name of the field; if empty, the first training field."""
    columns: int = 4
    """Number of variants side by side."""
    width_px: int = 480
    """Width of one variant in the picture, in px."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix not in SUFFIXES:
            raise ValueError(f"out={self.out}: name a {' or '.join(SUFFIXES)} file")
        if self.columns < 1 or self.width_px < 16:
            raise ValueError(
                f"columns={self.columns} must be at least 1, width_px={self.width_px} at least 16"
            )


@dataclass(frozen=True)
class SyntheticConfig:
    """Every setting of `python -m data_prep.synthetic`."""

    out: str = MISSING
    """Folder of the new data set: new, empty, or written by this command before."""
    cases: int = 6
    """Number of cases (patients); they differ in staining, blur and tissue."""
    fields: int = 4
    """Number of fields of view per case, 1 to 99."""
    width_px: int = 1360
    """Width of a field in px."""
    height_px: int = 1024
    """Height of a field in px."""
    seed: int = 0
    """Seed of every random draw; the same seed gives the same bytes."""

    def __post_init__(self) -> None:
        sides = {"width_px": (192, 8192), "height_px": (192, 8192)}
        ranges = {"cases": (1, 9999), "fields": (1, 99), **sides, "seed": (0, 2**32 - 1)}
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"{key}={getattr(self, key)}: from {low} to {high}")
