"""What `python -m train.export` can be told: every key, its unit and its default."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

SAFETENSORS, ONNX = ".safetensors", ".onnx"  # endings of exported files


@dataclass(frozen=True)
class ExportConfig:
    """Everything `python -m train.export` can be told."""

    run: str = ""
    """Folder of the run, or a model.safetensors of before; the newest in runs/ where empty."""
    out: str = MISSING
    """File to write, .safetensors or .onnx, in place of an earlier export, not of another file; its
    folder is made if it is not there."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    check: str = ""
    """With .onnx: an image on which it must agree with the model as well, to 1e-4 in probability;
    random ones always."""

    def __post_init__(self) -> None:
        kinds = (SAFETENSORS, ONNX)
        if Path(self.out).suffix not in kinds:
            raise ValueError(f"out={self.out}: must end in {' or '.join(kinds)}")
        if self.check and Path(self.out).suffix != ONNX:
            raise ValueError(f"check={self.check}: only for out=*{ONNX}")
