"""Open a run's folder for training: make it, or check that the settings and data are the same."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common import command_line
from common.command_line import UsageError, UserError
from common.files import holds
from common.ownership import PRIVATE, Item
from data_prep.dataset.manifest import DATASET, Dataset
from model.precision import choose_precision
from train.checkpoints.digests import json_sha256
from train.checkpoints.published import published_checkpoints
from train.config import FIXED_KEYS, HARMLESS_KEYS, TrainConfig
from train.ranks.lock import LOCK
from train.runs.newest import CONFIG
from train.runs.run_folder import CHECKPOINTS, RunFolder, read_run_folder
from train.runs.same_data import differences, flat

# What may be there before config.yaml: launch/submit.py's, and what a killed start left
PLACED_BEFORE = {"launch", "prepared", PRIVATE, DATASET, LOCK}
KIND = "run"  # private folder of the record


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
        run = read_run_folder(folder)
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


def check_same_run(run: RunFolder, config: TrainConfig, dataset: Dataset) -> list[str]:
    """What differs from what the run began with, a line a key.

    Raises UserError for other data, and for other mathematics: any at all with resume=same, what
    the state cannot follow with resume=override.
    """
    before, now = (flat_settings(settings) for settings in (run.config, config))
    changed = {key: f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]}
    fixed = [line for key, line in changed.items() if key.startswith(FIXED_KEYS)]
    fixed += [f"data: {line}" for line in differences(run.data, dataset.description)]
    free = [line for key, line in changed.items() if line not in fixed and key not in HARMLESS_KEYS]
    begun = f"run={run.path} was begun with other settings"
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
