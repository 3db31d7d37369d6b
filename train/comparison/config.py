"""The settings of `python -m train.compare`: every key, its unit and its default."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from common.settings import OF_ONE
from data_prep.config import SPLITS


@dataclass(frozen=True)
class CompareConfig:
    """Every setting of `python -m train.compare`."""

    runs: list[str] = field(default=MISSING, metadata=OF_ONE)
    """Folders to compare: runs, folders of folds, sweeps, which stand for their trials, and
    patterns such as SWEEP/trial-*."""
    out: str = ""
    """Folder for compare.html (a page that needs no other file) and compare.json. Empty: the table
    is only printed."""
    split: str = "test"
    """The split whose evaluations are compared, as given to train.evaluate: train, val or test."""
    raw: str = ""
    """The raw folder whose evaluations are compared in place of a split's, as given to
    train.evaluate."""
    cases: list[str] = field(default_factory=list)
    """The cases that these evaluations were restricted to, as given to train.evaluate."""
    seed: int = 0
    """Seed of the resamples of cases from which the interval of a difference comes."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split}: must be one of {', '.join(SPLITS)}")
        if not self.runs:
            raise ValueError("runs=[]: name runs, or a folder of runs, as in runs=[runs/a,runs/b]")

    @property
    def subject(self) -> str:
        """The name of the folder of these evaluations in RUN/evaluation."""
        about = Path(self.raw).resolve().name if self.raw else self.split
        return "-".join([about, *self.cases])
