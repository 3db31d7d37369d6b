"""Open a run's folder for training: make it, or check that settings and data are still the same."""

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
from common.schema import json_sha256
from data_prep.dataset.manifest import DATASET, Dataset
from model.precision import choose_precision
from train.checkpoints.published import published_checkpoints
from train.config import FIXED_KEYS, HARMLESS_KEYS, TrainConfig, with_pipeline_read
from train.ranks.lock import LOCK
from train.runs.newest import CHECKPOINTS, CONFIG
from train.runs.run_folder import RunFolder, read_run_folder
from train.runs.same_data import differences, flat

# What may be in the folder before config.yaml: from launch/submit.py, or from a killed start
ALLOWED_BEFORE = {"launch", "prepared", PRIVATE, DATASET, LOCK}
KIND = "run"  # private folder of the record


def open_run(
    config: TrainConfig, dataset: Dataset, device: torch.device
) -> tuple[TrainConfig, list[str]]:
    """Make the run's folder, or check that settings and data fit the run in it.

    Returns the configuration with the content of crop.pipeline, and with precision and layout for
    'auto'; and a line for each setting that has changed since the last start. 'auto' asks the
    hardware only when the run starts: another answer after a restart on other hardware would change
    the results. Raises UserError if settings or data do not fit.
    """
    folder, pipeline = Path(config.run), config.crop.pipeline
    config = with_pipeline_read(config)
    changes: list[str] = []
    if (folder / CONFIG).is_file() and (folder / DATASET).is_file():
        run = read_run_folder(folder)
        config = resolve_auto(config, run.config.amp, run.config.memory_format)
        changes = check_same_run(run, config, dataset, pipeline)
    elif folder.is_dir() and has_other_content(folder):
        raise UsageError(f"run={folder}: holds files that are not a run's; name another folder")
    precision = choose_precision(device, config.amp, config.memory_format)
    config = resolve_auto(config, precision.amp, precision.layout)
    absolute = dataclasses.replace(config, data=str(dataset.folder.resolve()))
    description = (dataset.folder / DATASET).read_bytes()
    write_settings(folder, description, command_line.as_yaml(absolute).encode())
    return config, changes


def write_settings(folder: Path, dataset: bytes, config: bytes) -> None:
    """Write the files about data and settings, if they are missing or different.

    Raises UserError if training did not write the files there, or if they were changed since.
    """
    files = {DATASET: dataset, CONFIG: config}  # config.yaml last: with it, the folder is a run
    if all(holds(folder / name, content) for name, content in files.items()):
        return
    with Item(folder, KIND, KIND) as item:
        item.check(files, "name another run=")
        for name, content in files.items():
            item.write(name, content)
        item.publish(durably=True)


def resolve_auto(config: TrainConfig, amp: str, memory_format: str) -> TrainConfig:
    """Replace 'auto' in the configuration."""
    resolved: dict[str, Any] = {}
    if config.amp == "auto":
        resolved["amp"] = amp
    if config.memory_format == "auto":
        resolved["memory_format"] = memory_format
    return dataclasses.replace(config, **resolved)


def has_other_content(folder: Path) -> bool:
    """Whether a folder without config.yaml holds files that are not a run's."""
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
    return bool(names - ALLOWED_BEFORE)


def check_same_run(
    run: RunFolder, config: TrainConfig, dataset: Dataset, pipeline: str
) -> list[str]:
    """Return a line for each setting that differs from those of the run.

    `pipeline`: the file of crop.pipeline, to be named.

    Raises UserError for other data, for settings that the saved state does not fit (FIXED_KEYS),
    and with resume=same for every setting that changes results (all but HARMLESS_KEYS).
    """
    before, now = (flat_settings(settings) for settings in (run.config, config))
    changed = {key: f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]}
    if "crop.pipeline" in changed:
        named = "crop.pipeline" if pipeline.startswith("{") else f"crop.pipeline={pipeline}"
        changed["crop.pipeline"] = f"{named}: not the transforms that the run began with"
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
    silent = {"run", "resume"}
    if Path(before["data"]).resolve() == Path(now["data"]).resolve():  # absolute in one
        silent.add("data")
    lines = [line for key, line in changed.items() if key not in silent]
    return [f"changed {line}{' (overridden)' if line in free else ''}" for line in lines]


def config_sha256(config: TrainConfig) -> str:
    """Hash all settings that can change results."""
    settings = flat_settings(config)
    kept = {key: value for key, value in settings.items() if key not in HARMLESS_KEYS}
    return json_sha256(kept)


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings by dotted key."""
    return flat(dataclasses.asdict(config))


@contextmanager
def io_errors_explained(folder: Path) -> Iterator[None]:
    """Raise UserError for a full disk and other OSErrors, with what to do."""
    try:
        yield
    except OSError as error:
        saved = published_checkpoints(folder / CHECKPOINTS)
        raise UserError(
            f"run={folder}: {error.strerror or error}; mend that and run the same command again"
            + (": the last checkpoint is whole" if saved else "")
        ) from None
