"""The run folder: what a run was told and trained on, and its model.

RUN/config.yaml     the whole resolved configuration
RUN/dataset.json    that of the prepared data set
RUN/checkpoints/    see train.checkpoints.checkpoint_files

A file that train.export wrote stands for a run with one checkpoint (train.exchange.exported_model).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from common.command_line import UsageError
from data_prep.dataset.manifest import DATASET, Description, read_description
from data_prep.images.masks import channel_values
from model import build_model
from train.checkpoints.checkpoint_files import CheckpointError, verify
from train.checkpoints.load_checkpoint import load_checkpoint
from train.checkpoints.published import find_checkpoint
from train.config import TrainConfig
from train.exchange import exported_model
from train.exchange.config import SAFETENSORS
from train.ranks.distributed import Ranks
from train.runs.newest import check_run, read_config

CHECKPOINTS = "checkpoints"
OTHER_VERSION = "use the version of Eosin that trained the run, or train it again into another run="


@dataclass(frozen=True)
class Run:
    """A run as it stands on disk."""

    folder: Path
    """Or the file of an exported model."""
    config: TrainConfig
    data: Description
    """What it was trained on."""

    @property
    def label_values(self) -> list[int]:
        """Mask value of each channel of the logits."""
        return channel_values(self.data.labelling.labels.values())

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are. Raises UsageError for an exported model."""
        if self.is_exported:
            raise UsageError(f"run={self.folder}: an exported model, not a run with checkpoints")
        return self.folder / CHECKPOINTS

    @property
    def is_exported(self) -> bool:
        """Whether it is a file of train.export."""
        return self.folder.is_file()

    @property
    def description(self) -> Path:
        """The file that says what it was trained on."""
        return self.folder if self.is_exported else self.folder / DATASET

    @property
    def evaluation(self) -> Path:
        """Where results on it go; beside the file of an exported model."""
        if self.is_exported:
            return self.folder.with_name(f"{self.folder.stem}_evaluation")
        return self.folder / "evaluation"


def read_run(folder: Path) -> Run:
    """Read a run folder or an exported model. Raises UserError where it is neither."""
    if folder.is_file() or (folder.suffix == SAFETENSORS and not folder.is_dir()):
        about = exported_model.read(folder)
        return Run(folder, about.config, about.data)
    check_run(str(folder))
    return Run(folder, read_config(folder), read_description(folder / DATASET, OTHER_VERSION))


def load_model(run: Run, name: str, ranks: Ranks) -> tuple[nn.Module, Path, dict[str, Any]]:
    """The model of a checkpoint ('best', 'latest', a step), its folder and its state.

    Raises UserError where the checkpoint is not there or not intact.
    """
    if run.is_exported:
        return load_exported(run, name, ranks)
    path = ranks.first_does(lambda: find_intact(run, name))
    model = build_model(run.config.model, len(run.label_values))
    state = load_checkpoint(path, {"model": model.state_dict()}, ranks)
    return model.to(ranks.device), path, state


def find_intact(run: Run, name: str) -> Path:
    """The folder of a checkpoint. Raises UserError where it is not there or not intact."""
    path = find_checkpoint(run.checkpoints, name)
    if problem := verify(path):
        raise CheckpointError(f"{path}: {problem}; try checkpoint=latest or a step")
    return path


def load_exported(run: Run, name: str, ranks: Ranks) -> tuple[nn.Module, Path, dict[str, Any]]:
    """The model of an exported file, that file and its checkpoint's state."""
    if name != "best":
        raise UsageError(f"checkpoint={name}: {run.folder} is an exported model and holds one only")
    model = build_model(run.config.model, len(run.label_values))
    state, *_ = ranks.all_do(lambda: exported_model.load_weights(run.folder, model))
    return model.to(ranks.device), run.folder, state
