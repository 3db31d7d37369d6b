"""What a checkpoint holds beside tensors: how far the run is. In state.json."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.schema import read_checked
from train.checkpoints.checkpoint_files import STATE, CheckpointError


@dataclass
class Progress:
    """How far a run is: the state that is not in tensors.

    It needs no state of random generators: each random number comes from a seed for its purpose
    (common/seeds.py), made of the configuration's seed and the step.
    """

    step: int = 0
    """Optimizer steps done."""
    epochs: int = 0
    """Epochs done, validation included."""
    best_dice: float = -1.0
    """Best validation Dice so far; -1 before the first validation."""
    best_step: int = -1
    """Step of the best validation. If the validation split has no annotation, or there is no such
    split: step of the last epoch's end."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the gradient scaler; empty without fp16."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """The last validation's metrics; None if nothing is annotated."""

    def note_validation(self, metrics: dict[str, float | None]) -> None:
        """Note the end of an epoch, and whether it is the best; `metrics` are {} where there is no
        validation split."""
        self.epochs += 1
        self.metrics = metrics
        dice = metrics.get("val/dice")
        if dice is None:  # no validation split, or no annotation in it: the newest is the best
            self.best_step = self.step
        elif dice > self.best_dice:
            self.best_dice, self.best_step = dice, self.step

    def has_stopped_improving(self, stop_after: int, steps_per_epoch: int) -> bool:
        """Whether this many epochs in a row were no better than the best; never for 0."""
        best_epoch = max(0, self.best_step) // steps_per_epoch
        return 0 < stop_after <= self.epochs - best_epoch


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of a checkpoint, see Progress. Raises CheckpointError if it cannot be used."""
    try:
        return dataclasses.asdict(read_checked(path / STATE, Progress))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE}: {error}; try another checkpoint") from None
