"""The settings of `python -m train.evaluate`: every key, its unit and its default."""

from dataclasses import dataclass, field
from typing import Literal

from common.settings import OF_ONE
from data_prep.config import SPLITS, check_mpp
from train.config import check_threshold


@dataclass(frozen=True)
class EvaluateConfig:
    """Every setting of `python -m train.evaluate`."""

    run: str = ""
    """Folder of the run, or a model.safetensors that train.export wrote, or a folder of folds
    (CV/fold-0, ...); the newest in runs/ where empty."""
    runs: list[str] = field(default_factory=list, metadata=OF_ONE)
    """Several runs in place of run=, also patterns, as CV/fold-*. Runs that test the same
    cases are one ensemble; those that test other cases (folds) are measured on their own, and all
    together. On raw=, all are one ensemble. Needs out=."""
    split: str = "test"
    """Split of the run's prepared data set: train, val or test; only original fields count."""
    raw: str = ""
    """Folder of raw fields (images/ and groundTruth/) to evaluate in place of a split."""
    annotations: Literal["", "brecahad", "geojson", "csv", "masks"] = ""
    """Format of the annotations in raw=; if empty, that of the training data. They must name the
    classes as the run does; the values of masks are 1 for the run's first class, and so on."""
    empty: Literal["", "refuse", "accept"] = ""
    """A file in raw= that lists no object: 'refuse' takes it for a mistake, 'accept' for saying
    that nothing is there; if not given, as for the training data."""
    ignore_value: int | Literal["", "none"] = ""
    """The value of pixels in the masks of raw= that no figure of pixels counts, or none; if not
    given, as for the training data. A nucleus that is found there is no false alarm, but a hit if
    it matches a point."""
    ignore_px: int | Literal[""] = ""
    """Width of a ring around each disc in raw= that no figure of pixels counts, in px; if not
    given, as for the training data. Runs are compared at one width."""
    mpp: float = 0.0
    """Resolution of the fields of raw= that do not tell theirs, in micrometres per px; 0 for
    unknown. Fields of another resolution than the model's are rescaled with their annotations, and
    measured at that of the model."""
    cases: list[str] = field(default_factory=list)
    """Only fields of these cases, as in [10]; empty for all."""
    data: str = ""
    """Folder of the prepared data set, where it was moved after training; or of another data set
    with the same classes, radius_px, uint16_white and annotations as the one trained on."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    threshold: str = "auto"
    """Probability above which a pixel counts as predicted, 0 to 1, for all classes. auto: the best
    of each class on the validation split, which the checkpoint holds, or 0.5 where there was none.
    Of several folds: for each the best on what the others predict of the cases that they test."""
    tta: bool = False
    """Average over the eight flips and quarter turns of each tile: eight times the work."""
    match_radius_px: float = 0.0
    """Largest distance between an annotated point and a nucleus that counts as found, in px of the
    data set's resolution; 0 for the radius of its discs."""
    out: str = ""
    """Folder of the results; RUN/evaluation/<split or name of raw> where empty (also of a
    folder of folds), and MODEL_evaluation/... for an exported model."""
    figures: int = 16
    """Number of fields per run for which figures are drawn; 0 for none, also in the report."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto asks the hardware, as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split}: must be one of {', '.join(SPLITS)}")
        check_threshold(self.threshold)
        check_mpp(self.mpp)
        if self.mpp and not self.raw:
            raise ValueError(f"mpp={self.mpp}: only with raw=, a prepared data set has its own")
        if not self.match_radius_px >= 0:
            raise ValueError(f"match_radius_px={self.match_radius_px}: at least 0")
        if self.annotations and not self.raw:
            raise ValueError(f"annotations={self.annotations}: is the format of raw=...; give both")
        if self.empty and not self.raw:
            raise ValueError(f"empty={self.empty}: is about the files of raw=...; give both")
        for key in ("ignore_value", "ignore_px"):
            if getattr(self, key) != "" and not self.raw:
                raise ValueError(f"{key}={getattr(self, key)}: is about raw=...; give both")
        if self.figures < 0:
            raise ValueError(f"figures={self.figures}: at least 0")
        if self.run and self.runs:
            raise ValueError("run=... and runs=[...] exclude each other; give one")
        if self.runs and not self.out:
            raise ValueError("runs=[...] needs out=..., the folder of the pooled results")
