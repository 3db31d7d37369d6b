"""The settings of `python -m train.export`: every key, its unit and its default."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from common.settings import OF_ONE

KIND = "export"  # private folder of the record
SAFETENSORS, ONNX = ".safetensors", ".onnx"  # endings of exported files


@dataclass(frozen=True)
class ExportConfig:
    """Every setting of `python -m train.export`."""

    run: str = ""
    """Folder of the run, or an exported model.safetensors, or a folder of folds (CV/fold-0, ...),
    which become one file; the newest in runs/ if empty."""
    runs: list[str] = field(default_factory=list, metadata=OF_ONE)
    """Several runs in place of run=, which become one file with all of them: its probability is
    the mean of theirs. Also patterns, as CV/fold-*."""
    out: str = MISSING
    """File to write, .safetensors or .onnx. It may replace an earlier export, but no other file.
    Its folder is made if it is not there."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    check: str = ""
    """With .onnx: an image on which the file must agree with the model to 1e-4 in probability;
    random images are always tried."""

    def __post_init__(self) -> None:
        if self.run and self.runs:
            raise ValueError("run=... and runs=[...] exclude each other; give one")
        kinds = (SAFETENSORS, ONNX)
        if Path(self.out).suffix not in kinds:
            raise ValueError(f"out={self.out}: must end in {' or '.join(kinds)}")
        if self.check and Path(self.out).suffix != ONNX:
            raise ValueError(f"check={self.check}: only for out=*{ONNX}")
