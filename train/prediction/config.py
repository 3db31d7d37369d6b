"""What `python -m train.predict` can be told: every key, its unit and its default."""

from dataclasses import dataclass
from typing import Literal

from omegaconf import MISSING

from train.config import check_threshold


@dataclass(frozen=True)
class PredictConfig:
    """Everything `python -m train.predict` can be told."""

    run: str = ""
    """Folder of the run, or a model.safetensors that train.export wrote; the newest in runs/ where
    empty."""
    input: str = MISSING
    """An image, or a folder of images (.tif, .png, .jpg)."""
    out: str = MISSING
    """Folder of the results; made if it is not there."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    threshold: str = "auto"
    """Probability above which a pixel counts as predicted, and a nucleus as found, 0 to 1;
    auto: the best of each on the validation split, as the checkpoint has them; 0.5 where there was
    none."""
    tta: bool = False
    """Average over the eight flips and quarter turns of each tile: eight times the work."""
    tiles_at_once: int = 0
    """Tiles that go through the network at once, as many as fit into memory; 0: the run's
    tile.batch."""
    min_tissue: float = 0.01
    """Share of a tile that must be tissue: one with less is glass, gets a probability of 0 and is
    not computed. A pyramid is judged by a smaller level, and its glass not even read. 0 computes
    all."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto asks the hardware, as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.tiles_at_once < 0:
            raise ValueError(f"tiles_at_once={self.tiles_at_once}: 1 or more, or 0 for the run's")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue={self.min_tissue}: from 0 to 1")
