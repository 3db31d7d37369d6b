"""A trial: a mutated input, the real command that reads it, and what is right."""

import dataclasses
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from common import command_line
from tests.fuzz.pictures import Pixels
from tests.fuzz.running import Outcome, run_forked

RIGHT, REFUSED, WRONG = "right", "refused", "silently wrong"
READ_BY_OTHERS = "refused though others read it"  # no failure: a rule may be stricter than theirs
TRACEBACK, MEMORY, TIME = "traceback", "memory", "time"
BAD = (WRONG, TRACEBACK, MEMORY, TIME)
SECRET = "secret-of-the-environment"  # no file of a stranger may read it
ANY_TRACEBACK = re.compile(
    r"Traceback \(most recent|unexpected error in a worker|Fatal Python error|worker process"
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
RADIUS_PX = 5


@dataclass(frozen=True)
class Verdict:
    """What a trial came to, with a line about it."""

    name: str
    about: str = ""


@dataclass(frozen=True)
class Command:
    """A command line; `may_write` are the paths in the trial's folder that it may change."""

    module: str
    arguments: tuple[str, ...]
    may_write: tuple[str, ...] = ("out",)

    def __call__(self) -> int | None:
        """Run it in this process, which it ends."""
        main = importlib.import_module(self.module).main
        command_line.run(main, self.arguments)

    @property
    def typed(self) -> str:
        """What one types for it."""
        name = self.module.removesuffix(".__main__")
        start = "python launch/jobs.py" if name == "launch.jobs" else f"python -m {name}"
        return " ".join(
            [start, *(repr(a) if re.search(r"[^\w=./-]", a) else a for a in self.arguments)]
        )


@dataclass(frozen=True)
class Trial:
    """A command, and a judge for when it ends with 0, which says what came of it."""

    command: Command
    judge: Callable[[Outcome], Verdict]
    about: str
    """What was mutated, and how."""
    goes_on: bool = False
    """Whether the bad file is one of several, so that the command must not end for it."""
    is_read_by_others: Callable[[], bool] = lambda: False
    """Whether several other programs see in the mutated file what it was before."""


def tried(trial: Trial, folder: Path, limit_s: float) -> tuple[Verdict, Outcome]:
    """Run a trial in its folder."""
    before = stamps(folder, trial.command.may_write)
    answer = folder / "log/verdict.json"

    def judge(outcome: Outcome) -> None:
        """Say what came of it, in the command's process: readers may fall over its picture."""
        verdict = trial.judge(outcome) if outcome.code == 0 else Verdict(REFUSED)
        answer.write_text(json.dumps(dataclasses.astuple(verdict)))
        if verdict.name == REFUSED and trial.is_read_by_others():  # over which others may fall
            answer.write_text(json.dumps(dataclasses.astuple(Verdict(READ_BY_OTHERS))))

    outcome = run_forked(trial.command, folder / "log", limit_s, judge)
    if broken := outcome.broken_limit:
        return Verdict(broken, f"{outcome.seconds:.1f} s, {outcome.growth_bytes >> 20} MB"), outcome
    if ANY_TRACEBACK.search(outcome.told) or outcome.code not in (0, 1, 2):
        return Verdict(TRACEBACK, f"exit code {outcome.code}"), outcome
    if found := CONTROL.search(outcome.told):
        return Verdict(WRONG, f"prints the control character {found[0]!r}"), outcome
    if SECRET in outcome.told or any(map(holds_secret, written(folder))):
        return Verdict(WRONG, "tells what the environment holds"), outcome
    if changed := before.items() ^ stamps(folder, trial.command.may_write).items():
        return Verdict(WRONG, f"changed {sorted({name for name, _ in changed})}"), outcome
    if outcome.code and (wrong := wrong_refusal(trial, outcome)):
        return Verdict(WRONG, wrong), outcome
    if not answer.exists():
        return Verdict(WRONG, "the judge fell over"), outcome
    return Verdict(*json.loads(answer.read_text())), outcome


def wrong_refusal(trial: Trial, outcome: Outcome) -> str:
    """Say what is wrong with a command that ended with 1 or 2; '' for nothing."""
    if not outcome.told.strip():
        return f"exit code {outcome.code} without a word"
    return "one bad file ended the whole run" if trial.goes_on else ""


def stamps(folder: Path, may_write: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return size and time of the files that a command is not to change."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        is_free = any(name == free or name.startswith(f"{free}/") for free in (*may_write, "log"))
        if not is_free and path.is_file():
            about = path.stat()
            found[name] = (about.st_size, about.st_mtime_ns)
    return found


def written(folder: Path) -> list[Path]:
    """Return the small files in a trial's folder."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 10**6]


def holds_secret(path: Path) -> bool:
    """Whether a file holds what only the environment should."""
    return SECRET.encode() in path.read_bytes()


def prepared_fields(out: Path) -> dict[str, tuple[Pixels, Pixels]]:
    """Return the image and the mask of every field of a prepared set, unvaried."""
    found = {}
    for line in (out / "manifest.jsonl").read_text().splitlines():
        sample = json.loads(line)
        found[sample["field"]] = tuple(
            np.asarray(PillowImage.open(out / sample[key])) for key in ("image", "mask")
        )
    return found


def skipped(out: Path) -> str:
    """Return what dataset.json says of the files that were left out."""
    return json.dumps(json.loads((out / "dataset.json").read_text())["skipped"])


def preparing(folder: Path, *more: str) -> Command:
    """Return the command that prepares folder/raw, with every field for training."""
    arguments = ("workers=1", "copies=1", "split.val=0", "split.test=0", "format=png")
    paths = (f"raw={folder / 'raw'}", f"out={folder / 'out'}", f"radius_px={RADIUS_PX}")
    return Command("data_prep.__main__", (*paths, *arguments, *more))


def environment() -> None:
    """Set what runs of the fuzzer depend on, before anything large is imported."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.environ.update(one | {"CUDA_VISIBLE_DEVICES": "", "FUZZ_SECRET": SECRET})
