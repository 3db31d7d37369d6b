"""A run to read from: what it was trained on, with which settings, and its model.

    RUN/config.yaml     the whole resolved configuration
    RUN/dataset.json    the one of the prepared data set
    RUN/init.json       with init= or model.weights=, where its weights come from
                        (train.exchange.origin)
    RUN/checkpoints/    see train.checkpoints.checkpoint_files

A file that train.export wrote is a run with one checkpoint (train.exchange.exported_model).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from common.command_line import UsageError
from common.files import whole_path
from data_prep.dataset.description import DATASET, Description, read_description
from data_prep.images.masks import channel_names, channel_values
from model import build_model
from model.encoder_cache import EncoderSource
from train.checkpoints.checkpoint_files import CheckpointError, complete_sha256, verify
from train.checkpoints.load_checkpoint import load_checkpoint
from train.checkpoints.published import find_checkpoint
from train.checkpoints.state import part_in_use
from train.config import TrainConfig
from train.exchange import exported_model
from train.exchange.origin import Origin, read_beginning, trained_among
from train.ranks.distributed import Ranks
from train.runs.newest import CHECKPOINTS, OTHER_VERSION, check_run, is_exported, read_config
from train.runs.several import NAME


class LoadedModel(NamedTuple):
    """A model and the checkpoint that it is from."""

    model: nn.Module
    """On the rank's device."""
    checkpoint: Path
    """Folder of the checkpoint, or the exported file."""
    state: dict[str, Any]
    """State of the checkpoint, see train.checkpoints.state.Progress."""

    def about_checkpoint(self) -> dict[str, Any]:
        """Say in results which checkpoint this is."""
        sha256 = complete_sha256(self.checkpoint)
        return {"checkpoint": self.checkpoint.name, "checkpoint_sha256": sha256}


@dataclass(frozen=True)
class Run(ABC):
    """A training, as it is on disk."""

    path: Path
    """Its folder, or the exported file."""
    config: TrainConfig
    data: Description
    """The data set that it was trained on, as its fold sees it."""
    origins: Sequence[Origin]
    """The models that its weights come from: that of init=, then the one which that began with, and
    so on."""
    encoder: EncoderSource | None
    """Where the weights are from that its encoder began with, or that of the last origin."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        return self.path.name

    @property
    def members(self) -> "list[Run]":
        """The runs that it is the mean of: itself alone, but for an ensemble."""
        return [self]

    @property
    def class_names(self) -> list[str]:
        """The class of each channel of the logits."""
        return channel_names(self.data.labelling.labels)

    @property
    def label_values(self) -> list[int]:
        """Mask value of each channel of the logits."""
        return channel_values(self.data.labelling.labels.values())

    def as_origin(self, checkpoint: str, step: int, model_sha256: str) -> Origin:
        """Return one of its checkpoints as what another run may begin with."""
        train, val = self.data.cases["train"], self.data.cases["val"]
        name = name_of(self.path)
        regex = self.data.labelling.case_regex
        return Origin(name, checkpoint, step, model_sha256, train, val, regex)

    def trained_among(self, cases: Iterable[str]) -> list[str]:
        """Return those of the cases that its weights have seen: in its own training, or in that of
        a model which they come from."""
        everything = [self.as_origin("", 0, ""), *self.origins]
        return sorted(trained_among(cases, self.data, everything))

    @property
    @abstractmethod
    def description(self) -> Path:
        """File that describes the data set."""

    @property
    @abstractmethod
    def evaluation(self) -> Path:
        """Folder for the results of evaluations."""

    @abstractmethod
    def load_model(self, checkpoint: str, ranks: Ranks) -> LoadedModel:
        """Load the model of a checkpoint: 'best', 'latest' or a step. Collective.

        Raises UserError if there is no such checkpoint, or if it is damaged.
        """


class RunFolder(Run):
    """A run's folder, with checkpoints."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def description(self) -> Path:
        """File that describes the data set."""
        return self.path / DATASET

    @property
    def evaluation(self) -> Path:
        """Folder for the results of evaluations."""
        return self.path / "evaluation"

    def load_model(self, checkpoint: str, ranks: Ranks) -> LoadedModel:
        """See Run."""
        path = ranks.first_does(lambda: self.find_intact(checkpoint))
        model = build_model(self.config.model, len(self.label_values))
        state = load_checkpoint(path, {part_in_use(self.config): model.state_dict()}, ranks)
        return LoadedModel(model.to(ranks.device), path, state)

    def find_intact(self, checkpoint: str) -> Path:
        """Return the folder of a checkpoint. Raises UserError if it is missing or not intact."""
        path = find_checkpoint(self.checkpoints, checkpoint)
        if problem := verify(path):
            raise CheckpointError(f"{path}: {problem}; try checkpoint=latest or a step")
        return path


@dataclass(frozen=True)
class ExportedModel(Run):
    """A checkpoint's model in a file of train.export."""

    number: int | None = None
    """Its number in the file of an ensemble."""

    @property
    def name(self) -> str:
        """The name of the file, with its number."""
        return self.path.name if self.number is None else f"{self.path.name}#{self.number}"

    @property
    def description(self) -> Path:
        """File that describes the data set: this one."""
        return self.path

    @property
    def evaluation(self) -> Path:
        """Folder for the results of evaluations, beside the file."""
        return self.path.with_name(f"{self.path.stem}_evaluation")

    def load_model(self, checkpoint: str, ranks: Ranks) -> LoadedModel:
        """See Run."""
        if checkpoint != "best":
            raise UsageError(
                f"checkpoint={checkpoint}: {self.path} is an exported model and holds one only"
            )
        model = build_model(self.config.model, len(self.label_values))
        load = partial(exported_model.load_weights, self.path, model, self.number)
        state, *_ = ranks.all_do(load)
        return LoadedModel(model.to(ranks.device), self.path.with_name(self.name), state)


def read_run(path: Path) -> Run:
    """Read a run's folder or an exported model. Raises UserError if it is neither, or several."""
    if is_exported(path):
        about = exported_model.read(path)
        return ExportedModel(path, about.config, about.data, about.origins, about.encoder)
    return read_run_folder(path)


def read_run_folder(path: Path) -> RunFolder:
    """Read a run's folder. Raises UserError if it is none."""
    if is_exported(path):
        raise UsageError(f"run={path}: an exported model, not a run with checkpoints")
    check_run(str(path))
    config, data = read_config(path), read_description(path / DATASET, OTHER_VERSION)
    began = read_beginning(path, config)
    data = data.of_fold(config.fold, str(path / DATASET))
    return RunFolder(path, config, data, began.origins, began.encoder)


def name_of(path: Path) -> str:
    """Return the name of a run, with that of its folder if it is one of several there."""
    whole = whole_path(path)
    return "/".join(whole.parts[-2:]) if NAME.fullmatch(whole.name) else whole.name
