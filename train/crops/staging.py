"""Read the pack from this machine's own disk, as stage= says.

Copying may take longer than ranks wait for one another. So a thread copies, while all ranks compare
at each turn whether they are done. A rank that cannot have a copy reads the shared pack: the bytes
are the same.
"""

import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UserError, named
from common.stop_request import StopRequest
from data_prep.dataset.pack import TrainingPixels, packed_path
from data_prep.dataset.staged_pack import StagingError, stage_pack
from train.config import VARIABLE
from train.ranks.distributed import Ranks

TURN_S = 0.05


@dataclass
class Staging:
    """What came of it on a rank."""

    host: str
    pixels: TrainingPixels | None = None
    path: str = ""
    is_new: bool = False
    """Whether this rank has copied."""
    problem: str = "copying ended with an error of its own"
    """Why there is no copy; '' if there is one."""


def staged_pixels(
    shared: TrainingPixels, stage: str, ranks: Ranks, stop: StopRequest
) -> tuple[TrainingPixels, str]:
    """Return the same pixels from a copy of the pack in the folder `stage`, and a line about it.

    Returns the shared ones where there can be no copy, or as soon as training is to stop.
    Collective.
    """
    if not stage:
        return shared, ""
    start_s, is_over, done = time.monotonic(), threading.Event(), Staging(socket.gethostname())
    thread = threading.Thread(target=attempt, args=(shared, stage, is_over, done), daemon=True)
    thread.start()
    while True:
        signum, is_busy = ranks.max([stop.signum, thread.is_alive()])
        if signum:  # the copy is left where it is: a large file is synced and read for minutes
            is_over.set()
            return shared, ""
        if not is_busy:
            break
        time.sleep(TURN_S)
    told = ranks.gather((done.host, done.path, done.is_new, done.problem))
    return done.pixels or shared, about(stage, told, time.monotonic() - start_s)


def attempt(shared: TrainingPixels, stage: str, is_over: threading.Event, done: Staging) -> None:
    """Have the pack copied, if there is one, and note what came of it."""
    if shared.packed is None:
        done.problem = f"there is no pack to copy; {shared.advice_on_pack()} makes one"
        return
    dataset = shared.dataset
    pack = packed_path(dataset.folder, dataset.description.content_sha256)
    try:
        path, done.is_new = stage_pack(pack, expanded(stage), is_over.is_set)
        pixels = TrainingPixels(dataset, path)
        if pixels.packed is None:
            raise StagingError(f"{path}: is not whole, as {pack}")
        done.pixels, done.path, done.problem = pixels, os.fspath(path), ""
    except (UserError, OSError) as error:
        done.problem = str(error)


def expanded(stage: str) -> Path:
    """Return a folder with this machine's values of variables. Raises StagingError without one."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise StagingError(f"{name} is not set")
        return os.environ[name]

    return Path(VARIABLE.sub(value, stage))


def about(stage: str, told: list[tuple[str, str, bool, str]], taken_s: float) -> str:
    """Say in a line where the pack is read from. `told`: host, path, is new, problem by rank."""
    hosts = dict.fromkeys(host for host, _, _, problem in told if problem)
    if problems := list(dict.fromkeys(problem for *_, problem in told if problem)):
        more = f" (and {len(problems) - 1} other reasons)" if len(problems) > 1 else ""
        return f"stage={stage}: {named(hosts)} read the shared pack: {problems[0]}{more}"
    (_, path, *_), *_ = told
    new = len({host for host, _, is_new, _ in told if is_new})
    how = (
        f"copied on {new} of {len({host for host, *_ in told})} machines" if new else "found there"
    )
    return f"the pack is read from {path} ({how}, {taken_s:.1f} s)"
