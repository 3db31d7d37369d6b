"""The settings of a model: every key, its unit and its default."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and size of a network."""

    name: Literal["unet"] = "unet"
    """Architecture."""
    width: int = 64
    """Channels of the first level; each level down has twice as many (64 ends at 1024)."""
    depth: int = 4
    """Number of times the resolution is halved."""
    norm: Literal["none", "batch", "group", "instance"] = "batch"
    """Normalisation after each 3x3 convolution; 'none' is the U-Net of 2015 as published."""
    dropout: float = 0.0
    """Fraction of the deepest level's channels dropped in training, 0 to below 1 (no unit)."""
    downsample: int = 1
    """Run the network at 1/downsample of the resolution: pixels go in as blocks of channels
    and logits come out at full size. 2 costs a quarter of the arithmetic."""

    def __post_init__(self) -> None:
        for key, least in (("width", 1), ("depth", 1), ("downsample", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"model.{key}={getattr(self, key)}: must be at least {least}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: 0 to below 1")
        if self.norm == "group" and self.width % 8:
            raise ValueError(f"model.width={self.width}: norm=group needs a multiple of 8")
