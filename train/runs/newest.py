"""Find runs in the folder runs/: a free name for a new run, and the newest run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import command_line
from common.command_line import UsageError, UserError, named
from common.schema import read_checked, require_printable
from train.checkpoints.published import find_checkpoint
from train.config import TrainConfig
from train.exchange.config import SAFETENSORS
from train.runs.several import all_members, members_of

RUNS = Path("runs")
LAST_TIME_S = 10**11  # later times have no date
CONFIG = "config.yaml"  # a folder with this file is a run
OTHER_VERSION = "use the version of Eosin that trained the run, or train it again into another run="
CHECKPOINTS = "checkpoints"  # folder in a run
PROGRESS = "progress.json"  # how far the run is


@dataclass(frozen=True)
class ProgressNow:
    """The schema of progress.json."""

    step: int
    total_steps: int
    epoch: int
    is_finished: bool
    time_s: float

    def __post_init__(self) -> None:
        check_time(self.time_s)


def check_time(time_s: float) -> None:
    """Raise ValueError for a time without a date."""
    if not 0 <= time_s < LAST_TIME_S:
        raise ValueError(f"time_s: {time_s:g} is no time")


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
        values = command_line.read_yaml(file)
        require_printable(values)  # a name with a NUL is no path, others control a terminal
        return command_line.from_values(TrainConfig, values)
    except (UsageError, ValueError) as error:
        way_out = f"if another version wrote it, {OTHER_VERSION}"
        raise UserError(f"{file}: {error}\n{way_out}", can_heal=False) from None


def named_or_newest(run: str) -> Path:
    """Return the run with this name, or for '' the newest one, which is printed.

    Raises UsageError if there is none.
    """
    if run:
        return Path(run)
    newest = newest_run()
    print(f"run={newest}, the newest{how_far(newest)}")
    return newest


def check_run(run: str, checkpoint: str = "") -> None:
    """Raise UsageError if there is no such run, or for '' no run at all, or no such checkpoint.

    Commands call this before they load torch.
    """
    folder = Path(run) if run else newest_run()
    if is_exported(folder):
        check_exported(folder, checkpoint)
    elif folds := members_of(folder):
        listed = named(path.name for path in folds)
        raise UsageError(f"run={folder}: a folder of folds; name one of its runs: {listed}")
    elif not (folder / CONFIG).is_file():
        raise UsageError(
            f"run={folder}: not a run (no {CONFIG}); give the run= of train",
            can_heal=True,  # a mount may be missing on one node
        )
    elif checkpoint:
        find_checkpoint(folder / CHECKPOINTS, checkpoint)


def check_runs(run: str, runs: Sequence[str], checkpoint: str) -> list[Path]:
    """Return the runs that `run` or `runs` name: one, the folds of a folder, or several.

    Raises UsageError if one of them is missing, or has no such checkpoint. Commands call this
    before they load torch.
    """
    folder = Path(run) if run or runs else newest_run()
    found = all_members(runs) if runs else members_of(folder) or [folder]
    for path in found:
        check_run(str(path), checkpoint)
    return found


def check_exported(file: Path, checkpoint: str) -> None:
    """Raise UsageError for a file that is missing, and for a checkpoint that it cannot hold."""
    if file.suffix != SAFETENSORS or not file.is_file():
        raise UsageError(f"run={file}: neither a run nor a {SAFETENSORS} file of train.export")
    if checkpoint not in ("", "best"):
        raise UsageError(f"checkpoint={checkpoint}: {file} is an exported model and holds one only")


def is_exported(run: Path) -> bool:
    """Whether a run is to be read as an exported model, by train.exchange."""
    return run.is_file() or (run.suffix == SAFETENSORS and not run.is_dir())


def how_far(run: Path) -> str:
    """Say how far an unfinished training is; '' for a finished one."""
    try:
        now = read_checked(run / PROGRESS, ProgressNow)
    except (OSError, ValueError):  # missing, or damaged
        return ""
    return "" if now.is_finished else f"; its training is at step {now.step} of {now.total_steps}"
