"""Open a run's folder for training: make it, or check that settings and data are still the same."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from common import command_line
from common.command_line import UsageError, UserError
from common.files import holds
from common.ownership import PRIVATE, Item
from data_prep.dataset.description import DATASET
from data_prep.dataset.manifest import Dataset
from model.precision import choose_precision
from train.checkpoints.published import published_checkpoints
from train.config import AUTO, TrainConfig, with_pipeline_read, with_whole_paths
from train.exchange.origin import INIT
from train.ranks.lock import LOCK
from train.runs.newest import CHECKPOINTS, CONFIG
from train.runs.same_run import check_same_run, resolve_auto
from train.runs.warm_start import begin

# What may be in the folder before config.yaml: from launch/submit.py, or from a killed start
ALLOWED_BEFORE = {"launch", "prepared", PRIVATE, DATASET, INIT, LOCK}
KIND = "run"  # private folder of the record


def open_run(
    config: TrainConfig, dataset: Dataset, device: torch.device
) -> tuple[TrainConfig, list[str]]:
    """Make the run's folder, or check that settings and data fit the run in it.

    Returns the configuration with the content of crop.pipeline, and with precision and layout for
    'auto'; and a line for each setting that has changed since the last start. 'auto' asks the
    hardware only when the run starts: another answer after a restart on other hardware would change
    the results. Raises UserError if settings or data do not fit, and for weights (init=) that the
    run may not begin with.
    """
    folder, pipeline = Path(config.run), config.crop.pipeline
    config = with_whole_paths(with_pipeline_read(config))
    changes: list[str] = []
    if (folder / CONFIG).is_file() and (folder / DATASET).is_file():
        config, changes = check_same_run(config, dataset.description, pipeline)
    elif folder.is_dir() and has_other_content(folder):
        raise UsageError(f"run={folder}: holds files that are not a run's; name another folder")
    precision = choose_precision(device, config.amp, config.memory_format)
    config = resolve_auto(config, precision.amp, precision.layout, config.epochs)
    if config.schedule_epochs == config.epochs:
        # config.yaml may be the config= of another run, whose schedule is to follow its epochs
        config = dataclasses.replace(config, schedule_epochs=AUTO)
    init, told = begin(config, dataset.description)
    absolute = dataclasses.replace(config, data=str(dataset.folder.resolve()))
    files = {DATASET: (dataset.folder / DATASET).read_bytes(), **init}
    write_settings(folder, files | {CONFIG: command_line.as_yaml(absolute).encode()})
    return config, [*changes, *told]


def write_settings(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files about data and settings, if they are missing or different.

    The last of them is config.yaml: with it, the folder is a run. Raises UserError if training did
    not write the files there, or if they were changed since.
    """
    if all(holds(folder / name, content) for name, content in files.items()):
        return
    with Item(folder, KIND, KIND) as item:
        item.check(files, "name another run=")
        for name, content in files.items():
            item.write(name, content)
        item.publish(durably=True)


def has_other_content(folder: Path) -> bool:
    """Whether a folder without config.yaml holds files that are not a run's."""
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
    return bool(names - ALLOWED_BEFORE)


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
