"""The settings of `python -m train.predict`: every key, its unit and its default."""

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from common.settings import OF_ONE
from data_prep.config import check_mpp
from train.config import check_threshold


@dataclass(frozen=True)
class PredictConfig:
    """Every setting of `python -m train.predict`."""

    run: str = ""
    """Folder of the run, or a model.safetensors that train.export wrote, or a folder of folds
    (CV/fold-0, ...), which are used as an ensemble; the newest in runs/ where empty."""
    runs: list[str] = field(default_factory=list, metadata=OF_ONE)
    """Several runs in place of run=, used as an ensemble: the mean of their probabilities. Also
    patterns, as CV/fold-*."""
    input: str = MISSING
    """An image, or a folder of images (.tif, .png, .jpg)."""
    out: str = MISSING
    """Folder of the results; made if it is not there."""
    mpp: float = 0.0
    """Resolution of the input where files do not tell it, in micrometres per px; 0 for unknown.
    An image of another resolution than the model's is rescaled for the network; the results are in
    px of the input."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    threshold: str = "auto"
    """Probability above which pixels and nuclei count as predicted, 0 to 1, for all classes. auto:
    the best of each class on the validation split, for pixels and for nuclei, which the checkpoint
    holds; 0.5 where there was none. Of a folder of folds: those that train.evaluate chose out of
    fold; of other ensembles: the median of the members'."""
    tta: bool = False
    """Average over the eight flips and quarter turns of each tile: eight times the work."""
    tiles_at_once: int = 0
    """Tiles that go through the network at once; they must fit into memory. 0: the run's
    tile.batch."""
    min_tissue: float = 0.01
    """Fraction of a tile that must be tissue. A tile with less is glass: its probability is 0, and
    it is not computed. In a pyramid a smaller level decides, and glass is not even read. 0 computes
    every tile."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto asks the hardware, as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.run and self.runs:
            raise ValueError("run=... and runs=[...] exclude each other; give one")
        check_threshold(self.threshold)
        check_mpp(self.mpp)
        if self.tiles_at_once < 0:
            raise ValueError(f"tiles_at_once={self.tiles_at_once}: 1 or more, or 0 for the run's")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue={self.min_tissue}: from 0 to 1")
