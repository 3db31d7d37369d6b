"""All that a run must not lose: model, optimizer, scaler and how far it is."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.checkpoints.load_checkpoint import load_checkpoint
from train.checkpoints.published import newest_intact, set_pointer, step_name
from train.checkpoints.upkeep import clean_up_after_kills, rename_newer_damaged
from train.ranks.distributed import Ranks


@dataclass
class Progress:
    """How far a run is: all of the state that is no tensor.

    There are no random states: every draw is made from a seed over what it is for, so the
    configuration's seed and the step are all there is to know.
    """

    step: int = 0
    """Optimizer steps done."""
    epochs: int = 0
    """Epochs done, their validation included."""
    best_dice: float = -1.0
    """Best validation Dice so far; -1 before the first one."""
    best_step: int = -1
    """The step of the best validation; of the last epoch's end where there is no validation split,
    or nothing is annotated in it."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the gradient scaler; empty without fp16."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """The last validation's metrics; None where nothing is annotated."""


@dataclass
class State:
    """The same on every rank; saved and restored together."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    """It has a state for every parameter from the start."""
    scaler: torch.amp.GradScaler
    progress: Progress

    def tensors(self) -> dict[str, dict[str, Any]]:
        """The model's and the optimizer's tensors, under the names of the parameters."""
        optimizer = {
            name: self.optimizer.state[parameter]
            for name, parameter in self.model.named_parameters()
        }
        return {"model": self.model.state_dict(), "optimizer": optimizer}

    def snapshot(self) -> dict[str, Any]:
        """All that is no tensor, as JSON, as it is now."""
        self.progress.scaler = self.scaler.state_dict()
        return dataclasses.asdict(self.progress)

    def restore(self, folder: Path, ranks: Ranks) -> list[str]:
        """Take up the newest intact checkpoint, if there is one; returns what to tell. Collective.

        1. Rank 0 clears away what killed saves left, looks from the newest to the oldest, and sets
           damaged ones aside.
        2. All ranks load what it found: none looks for itself, for a shared file system may show
           them different things.
        3. Without any checkpoint the state stays as built, at step 0.
        """
        path, passed_over = ranks.first_does(lambda: look_for_checkpoint(folder))
        notes = [f"passed over {reason}" for reason in passed_over]
        if path is None:
            return notes
        tensors = self.tensors()
        self.progress = Progress(**load_checkpoint(path, tensors, ranks))
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = tensors["optimizer"][name]
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        ranks.first_does(lambda: point(folder, path, self.snapshot()))
        return [*notes, f"resumed from {path.name} (step {self.progress.step})"]


def look_for_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """(the newest intact one, why newer ones were passed over)."""
    clean_up_after_kills(folder)
    path, passed_over = newest_intact(folder)
    if path:
        rename_newer_damaged(path)
    return path, passed_over


def point(folder: Path, path: Path, progress: dict[str, Any]) -> None:
    """Let `latest` name the checkpoint that holds this progress, and `best` the best so far.

    On saving, and on restoring too: a kill may have come between a checkpoint and its name.
    """
    set_pointer(folder, "latest", path)
    best = folder / step_name(progress["best_step"])
    if best.is_dir():
        set_pointer(folder, "best", best)
