"""The folder runs/: a new run for each training, and the newest for what comes after."""

import json
import time
from pathlib import Path

from common import command_line
from common.command_line import UsageError, UserError
from train.config import TrainConfig
from train.exchange.config import SAFETENSORS

RUNS = Path("runs")
CONFIG = "config.yaml"  # what makes a folder a run
PROGRESS = "progress.json"  # how far it is


def free_name(parent: Path = RUNS) -> Path:
    """Return a folder that is not there yet, named by date and time."""
    now, number = time.strftime("%Y%m%d-%H%M%S"), 1
    while (folder := parent / (now if number == 1 else f"{now}-{number}")).exists():
        number += 1
    return folder


def new_run(parent: Path = RUNS) -> Path:
    """Make a folder for a run, which is nobody else's, however many start at once."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = free_name(parent)
        try:
            folder.mkdir()
        except FileExistsError:  # another was made meanwhile
            continue
        return folder


def newest_run(parent: Path = RUNS, mark: str = CONFIG) -> Path:
    """Return the run that was begun, or went on, last. Raises UsageError where there is none.

    `mark` is the file that makes a folder a run.
    """
    runs = [folder for folder in parent.glob("*") if (folder / mark).is_file()]
    if not runs:
        raise UsageError(
            f"no run in {parent}/; name one with run=..., or train one: python -m train"
        )
    return max(runs, key=lambda folder: last_change_ns(folder, mark))


def last_change_ns(run: Path, mark: str) -> int:
    """When a run's mark was written; of its configuration, also when it last said how far it is."""
    files = [run / mark, *([run / PROGRESS] if mark == CONFIG else [])]
    return max(file.stat().st_mtime_ns for file in files if file.is_file())


def read_config(run: Path) -> TrainConfig:
    """Read what a run was told. Raises UserError where that cannot be used."""
    file = run / CONFIG
    try:
        return command_line.from_values(TrainConfig, command_line.read_yaml(file))
    except UsageError as error:
        raise UserError(f"{file}: {error}") from None


def named_or_newest(run: str) -> Path:
    """Return the run that is named, or the newest; says which. Raises UsageError."""
    if run:
        return Path(run)
    newest = newest_run()
    print(f"run={newest}, the newest{how_far(newest)}")
    return newest


def check_run(run: str) -> None:
    """Refuse a run that is not there, or none where no run is. Raises UsageError.

    For commands to call before they load torch.
    """
    folder = Path(run) if run else newest_run()
    if folder.is_file() or (folder.suffix == SAFETENSORS and not folder.is_dir()):
        return  # an exported model, which train.exchange reads
    if not (folder / CONFIG).is_file():
        raise UsageError(f"run={folder}: not a run (no {CONFIG}); give the run= of train")


def how_far(run: Path) -> str:
    """Say how far a run's training is where it has not come to its end; '' where it has."""
    try:
        now = json.loads((run / PROGRESS).read_text())
        is_over, of = now["step"] >= now["total_steps"], f"{now['step']} of {now['total_steps']}"
    except (OSError, ValueError, KeyError, TypeError):  # it says nothing
        return ""
    return "" if is_over else f"; its training is at step {of}"
