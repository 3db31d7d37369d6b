"""The run folder: what a run was told and trained on, and its model.

RUN/config.yaml     the whole resolved configuration
RUN/dataset.json    that of the prepared data set
RUN/checkpoints/    see train.checkpoints.checkpoint_files

A file that train.export wrote stands for a run with one checkpoint (train.exchange.exported_model).
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import command_line
from common.command_line import UsageError, UserError
from common.files import holds
from common.ownership import PRIVATE, Item
from data_prep.dataset.manifest import DATASET, Dataset, Description, read_description
from data_prep.images.masks import channel_values
from model import build_model
from model.precision import choose_precision
from train.checkpoints.checkpoint_files import CheckpointError, verify
from train.checkpoints.digests import json_sha256
from train.checkpoints.load_checkpoint import load_checkpoint
from train.checkpoints.published import find_checkpoint, published_checkpoints
from train.config import FIXED_KEYS, HARMLESS_KEYS, TrainConfig
from train.exchange import exported_model
from train.exchange.config import SAFETENSORS
from train.metrics.scores import DEFAULT_THRESHOLD, EMPTY
from train.ranks.distributed import Ranks
from train.ranks.lock import LOCK
from train.runs.newest import CONFIG, check_run, read_config
from train.runs.same_data import differences, flat

CHECKPOINTS = "checkpoints"
PIXEL_THRESHOLD, NUCLEI_THRESHOLD = "val/threshold", "val/nuclei_threshold"  # of a state's metrics
CHOSEN_ON = {
    "val": "chosen on val",
    "given": "given",
    "default": "default, no validation",
    "empty_val": f"default, {EMPTY} in val",
}
"""What a threshold was chosen on, as summary.json has it -> in words."""
# What may be there before config.yaml: launch/submit.py's, and what a killed start left
PLACED_BEFORE = {"launch", "prepared", PRIVATE, DATASET, LOCK}
KIND = "run"  # private folder of the record
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


def open_run(
    config: TrainConfig, dataset: Dataset, device: torch.device
) -> tuple[TrainConfig, list[str]]:
    """Make the run folder, or check that a run that is there is the same run.

    Returns the configuration with precision and layout resolved ('auto' asks the hardware once,
    when the run begins, for another answer after a restart elsewhere would change the mathematics),
    and what has changed since the last start. Raises UserError where the configuration or the data
    set is another one.
    """
    folder = Path(config.run)
    changes: list[str] = []
    if (folder / CONFIG).is_file() and (folder / DATASET).is_file():
        run = read_run(folder)
        config = resolve_auto(config, run.config.amp, run.config.memory_format)
        changes = check_same_run(run, config, dataset)
    elif folder.is_dir() and has_other_content(folder):
        raise UsageError(f"run={folder}: holds something that is not a run; name another folder")
    precision = choose_precision(device, config.amp, config.memory_format)
    config = resolve_auto(config, precision.amp, precision.layout)
    absolute = dataclasses.replace(config, data=str(dataset.folder.resolve()))
    keep(folder, (dataset.folder / DATASET).read_bytes(), command_line.as_yaml(absolute).encode())
    return config, changes


def keep(folder: Path, dataset: bytes, config: bytes) -> None:
    """Write what the run is told and trained on, where it is not there. Raises UserError where a
    file is in the way that training did not write, or that was changed since."""
    files = {DATASET: dataset, CONFIG: config}  # config.yaml last: what has it is a run
    if all(holds(folder / name, content) for name, content in files.items()):
        return
    with Item(folder, KIND, KIND) as item:
        item.check(files, "name another run=")
        for name, content in files.items():
            item.write(name, content)
        item.publish(durably=True)


@contextmanager
def io_errors_explained(folder: Path) -> Iterator[None]:
    """A full disk and its like, wherever a run meets them."""
    try:
        yield
    except OSError as error:
        saved = published_checkpoints(folder / CHECKPOINTS)
        raise UserError(
            f"run={folder}: {error.strerror or error}; mend that and run the same command again"
            + (": the last checkpoint is whole" if saved else "")
        ) from None


def resolve_auto(config: TrainConfig, amp: str, memory_format: str) -> TrainConfig:
    """The configuration with 'auto' replaced."""
    resolved: dict[str, Any] = {}
    if config.amp == "auto":
        resolved["amp"] = amp
    if config.memory_format == "auto":
        resolved["memory_format"] = memory_format
    return dataclasses.replace(config, **resolved)


def has_other_content(folder: Path) -> bool:
    """Whether a folder without config.yaml holds what no run puts there."""
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
    return bool(names - PLACED_BEFORE)


def check_same_run(run: Run, config: TrainConfig, dataset: Dataset) -> list[str]:
    """What differs from what the run began with, a line a key.

    Raises UserError for other data, and for other mathematics: any at all with resume=same, what
    the state cannot follow with resume=override.
    """
    before, now = (flat_settings(settings) for settings in (run.config, config))
    changed = {key: f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]}
    fixed = [line for key, line in changed.items() if key.startswith(FIXED_KEYS)]
    fixed += [f"data: {line}" for line in differences(run.data, dataset.description)]
    free = [line for key, line in changed.items() if line not in fixed and key not in HARMLESS_KEYS]
    begun = f"run={run.folder} was begun with other settings"
    anew = "another run= to start anew"
    if not published_checkpoints(run.checkpoints):
        anew += " (nothing is saved in this one: it can be removed)"
    if fixed:
        raise UserError(f"{begun} ({'; '.join(fixed + free)}); give those it has, or {anew}")
    if free and config.resume == "same":
        raise UserError(
            f"{begun} ({'; '.join(free)}); give those it has, or resume=override to go on with"
            f" the new ones, or {anew}"
        )
    untold = {"run", "resume"}
    if Path(before["data"]).resolve() == Path(now["data"]).resolve():  # it is kept absolute
        untold.add("data")
    told = [line for key, line in changed.items() if key not in untold]
    return [f"changed {line}{' (overridden)' if line in free else ''}" for line in told]


def config_sha256(config: TrainConfig) -> str:
    """A hash of all settings that touch what is computed."""
    settings = flat_settings(config)
    kept = {key: value for key, value in settings.items() if key not in HARMLESS_KEYS}
    return json_sha256(kept)


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value."""
    return flat(dataclasses.asdict(config))


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


def choose_threshold(
    given: str, state: dict[str, Any], name: str = PIXEL_THRESHOLD
) -> tuple[float, str]:
    """The probability above which a pixel (or a nucleus) counts, and what it was chosen on.

    `given`, or with auto the one that was best on the validation split ('val') when the checkpoint
    of this state was saved; else the default, see CHOSEN_ON.
    """
    return stored_threshold(state, name) if given == "auto" else (float(given), "given")


def stored_threshold(state: dict[str, Any], name: str) -> tuple[float, str]:
    """A threshold among a checkpoint's validation metrics, or the default; and which."""
    metrics = state["metrics"]
    if metrics.get(name) is not None:
        return metrics[name], "val"
    return DEFAULT_THRESHOLD, "empty_val" if name in metrics else "default"


def thresholds_text(pixels: float, chosen_on: str, nuclei: float, nuclei_chosen_on: str) -> str:
    """Say two thresholds, and what each was chosen on (a key of CHOSEN_ON)."""
    if chosen_on == nuclei_chosen_on:
        both = CHOSEN_ON[chosen_on]
        return f"threshold of pixels {pixels:g}, of nuclei {nuclei:g} (both {both})"
    return (
        f"threshold of pixels {pixels:g} ({CHOSEN_ON[chosen_on]}), of nuclei {nuclei:g}"
        f" ({CHOSEN_ON[nuclei_chosen_on]})"
    )


def load_exported(run: Run, name: str, ranks: Ranks) -> tuple[nn.Module, Path, dict[str, Any]]:
    """The model of an exported file, that file and its checkpoint's state."""
    if name != "best":
        raise UsageError(f"checkpoint={name}: {run.folder} is an exported model and holds one only")
    model = build_model(run.config.model, len(run.label_values))
    state, *_ = ranks.all_do(lambda: exported_model.load_weights(run.folder, model))
    return model.to(ranks.device), run.folder, state
