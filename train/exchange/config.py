"""The settings of `python -m train.export`: every key, its unit and its default."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

KIND = "export"  # private folder of the record
SAFETENSORS, ONNX = ".safetensors", ".onnx"  # endings of exported files


@dataclass(frozen=True)
class ExportConfig:
    """Every setting of `python -m train.export`."""

    run: str = ""
    """Folder of the run, or an exported model.safetensors; the newest in runs/ if empty."""
    out: str = MISSING
    """File to write, .safetensors or .onnx. It may replace an earlier export, but no other file.
    Its folder is made if it is not there."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    check: str = ""
    """With .onnx: an image on which the file must agree with the model to 1e-4 in probability;
    random images are always tried."""

    def __post_init__(self) -> None:
        kinds = (SAFETENSORS, ONNX)
        if Path(self.out).suffix not in kinds:
            raise ValueError(f"out={self.out}: must end in {' or '.join(kinds)}")
        if self.check and Path(self.out).suffix != ONNX:
            raise ValueError(f"check={self.check}: only for out=*{ONNX}")
