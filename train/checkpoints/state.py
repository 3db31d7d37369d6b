"""The state that checkpoints hold: model, its average, optimizer, gradient scaler and progress."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.checkpoints.progress import Progress
from train.checkpoints.published import newest_intact, set_pointer, step_name
from train.checkpoints.upkeep import clean_up_after_kills, rename_newer_damaged
from train.config import TrainConfig
from train.ranks.distributed import Ranks

MODEL, AVERAGED = "model", "averaged"  # parts of a checkpoint's tensors


def part_in_use(config: TrainConfig) -> str:
    """Return the part of a checkpoint's tensors that is the model of a run to everything but its
    own training: the average with ema=, else the weights."""
    return AVERAGED if config.ema else MODEL


@dataclass
class State:
    """Everything that is saved and restored together. It is the same on every rank."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    """It holds a state for every parameter, also before the first step."""
    scaler: torch.amp.GradScaler
    progress: Progress
    averaged: nn.Module | None = None
    """With ema=, the average of the model over the steps."""

    @property
    def model_in_use(self) -> nn.Module:
        """The model that is validated: as `part_in_use` says."""
        return self.model if self.averaged is None else self.averaged

    def tensors(self) -> dict[str, dict[str, Any]]:
        """Return the tensors of the model, its average and the optimizer, by names of
        parameters."""
        optimizer = {
            name: self.optimizer.state[parameter]
            for name, parameter in self.model.named_parameters()
        }
        averaged = {} if self.averaged is None else {AVERAGED: self.averaged.state_dict()}
        return {MODEL: self.model.state_dict(), "optimizer": optimizer, **averaged}

    def snapshot(self) -> dict[str, Any]:
        """Return everything that is not a tensor, as it is now, as JSON."""
        self.progress.scaler = self.scaler.state_dict()
        return dataclasses.asdict(self.progress)

    def restore(self, folder: Path, ranks: Ranks) -> list[str]:
        """Load the newest intact checkpoint, if there is one; returns notes for the user.

        1. Rank 0 removes what killed saves left, looks for an intact checkpoint from the newest to
           the oldest, and renames damaged ones.
        2. All ranks load the checkpoint that rank 0 found: a shared file system may show other
           ranks other files.
        3. Without any checkpoint the state stays as built, at step 0.

        Collective. Raises CheckpointError if there are checkpoints but none is intact.
        """
        path, passed_over = ranks.first_does(lambda: look_for_checkpoint(folder))
        notes = [f"passed over {reason}" for reason in passed_over]
        if path is None:
            return notes
        from train.checkpoints.load_checkpoint import load_checkpoint  # here: it takes a second

        tensors = self.tensors()
        self.progress = Progress(**load_checkpoint(path, tensors, ranks))
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = tensors["optimizer"][name]
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        ranks.first_does(lambda: set_pointers(folder, path, self.snapshot()))
        return [*notes, f"resumed from {path.name} (step {self.progress.step})"]


def look_for_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Clean up, and return the newest intact checkpoint and the reasons against newer ones."""
    clean_up_after_kills(folder)
    path, passed_over = newest_intact(folder)
    if path:
        rename_newer_damaged(path)
    return path, passed_over


def set_pointers(folder: Path, path: Path, progress: dict[str, Any]) -> None:
    """Make `latest` name the checkpoint of this progress, and `best` the best one so far.

    Called after a save, and after loading too: a kill may have prevented it after the save.
    """
    set_pointer(folder, "latest", path)
    best = folder / step_name(progress["best_step"])
    if best.is_dir():
        set_pointer(folder, "best", best)
