"""Find runs in the folder runs/: a free name for a new run, and the newest run."""

import json
import time
from pathlib import Path

from common import command_line
from common.command_line import UsageError, UserError
from train.config import TrainConfig
from train.exchange.config import SAFETENSORS

RUNS = Path("runs")
CONFIG = "config.yaml"  # a folder with this file is a run
OTHER_VERSION = "use the version of Eosin that trained the run, or train it again into another run="
PROGRESS = "progress.json"  # how far the run is


def free_name(parent: Path = RUNS) -> Path:
    """Return a folder that does not exist yet, named by date and time."""
    now, number = time.strftime("%Y%m%d-%H%M%S"), 1
    while (folder := parent / (now if number == 1 else f"{now}-{number}")).exists():
        number += 1
    return folder


def new_run(parent: Path = RUNS) -> Path:
    """Make a new folder for a run. Runs that start at the same time get different folders."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = free_name(parent)
        try:
            folder.mkdir()
        except FileExistsError:  # another run has made it meanwhile
            continue
        return folder


def newest_run(parent: Path = RUNS, mark: str = CONFIG) -> Path:
    """Return the run that was started or resumed last. Raises UsageError if there is none.

    `mark` is the file by which a folder is known as a run.
    """
    runs = [folder for folder in parent.glob("*") if (folder / mark).is_file()]
    if not runs:
        raise UsageError(
            f"no run in {parent}/; name one with run=..., or train one: python -m train"
        )
    return max(runs, key=lambda folder: last_change_ns(folder, mark))


def last_change_ns(run: Path, mark: str) -> int:
    """Return when the mark of a run was written; for CONFIG also PROGRESS counts."""
    files = [run / mark, *([run / PROGRESS] if mark == CONFIG else [])]
    return max(file.stat().st_mtime_ns for file in files if file.is_file())


def read_config(run: Path) -> TrainConfig:
    """Read the settings of a run. Raises UserError if they cannot be used."""
    file = run / CONFIG
    try:
        return command_line.from_values(TrainConfig, command_line.read_yaml(file))
    except UsageError as error:
        way_out = f"if another version wrote it, {OTHER_VERSION}"
        raise UserError(f"{file}: {error}\n{way_out}") from None


def named_or_newest(run: str) -> Path:
    """Return the run with this name, or for '' the newest one, which is printed.

    Raises UsageError if there is none.
    """
    if run:
        return Path(run)
    newest = newest_run()
    print(f"run={newest}, the newest{how_far(newest)}")
    return newest


def check_run(run: str) -> None:
    """Raise UsageError if there is no such run, or for '' no run at all.

    Commands call this before they load torch.
    """
    folder = Path(run) if run else newest_run()
    if not is_exported(folder) and not (folder / CONFIG).is_file():
        raise UsageError(f"run={folder}: not a run (no {CONFIG}); give the run= of train")


def is_exported(run: Path) -> bool:
    """Whether a run is to be read as an exported model, by train.exchange."""
    return run.is_file() or (run.suffix == SAFETENSORS and not run.is_dir())


def how_far(run: Path) -> str:
    """Say how far an unfinished training is; '' for a finished one."""
    try:
        now = json.loads((run / PROGRESS).read_text())
        if now["is_finished"]:
            return ""
        return f"; its training is at step {now['step']} of {now['total_steps']}"
    except (OSError, ValueError, KeyError, TypeError):  # missing, or damaged
        return ""
