"""What a restart takes: from its processes' start to its first step, and from a stop to its end.

    python -m tests.benchmarks.start [--tree DIR]... [--ranks 1,2] [--rounds 5] [key=value ...]

Every tree (this one, and those given: another commit's `git worktree`) begins a run of its own;
then all of them resume theirs, in turn. After the first step each rank gets a SIGTERM. The ranks
are plain processes of one machine; a launcher's own time comes on top.

Printed are medians over the rounds, of rank 0: seconds since the processes were started, and the
seconds of CPU time that this rank took until then, which depend less on how busy the machine is.
"""

import importlib.abc
import importlib.machinery
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# (label, module, function, whether its end counts rather than its beginning), in the usual order
EVENTS = [
    ("modules imported", "train.loop.start", "start", False),
    ("ranks joined, data set read", "train.loop.start", "check_fitting", False),
    ("run opened", "train.loop.start", "open_run", True),
    ("checkpoint verified", "train.checkpoints.state", "load_checkpoint", False),
    ("checkpoint loaded", "train.checkpoints.state", "State.restore", True),
    ("ready to train", "train.loop.trainer", "Trainer.loop", False),
    ("first crops", "train.loop.trainer", "Trainer.next_microbatch", True),
    ("first gradients", "train.loop.batch_step", "BatchStep.compute_gradients", True),
    ("first step", "train.loop.batch_step", "BatchStep.update", True),
]
FIRST_STEP, SAVED, MAIN_ENDED = "first step", "stop saved", "main ended"
AFTER, CPU = "after the stop: ", "CPU seconds until: "
TIMES, SPAWNED = "EOSIN_BENCHMARK_TIMES", "EOSIN_BENCHMARK_SPAWNED"
SMALL = ["preset=demo", "crop.per_sample=8", "epochs=1000", "microbatches=2", "save_every_s=100000"]


class Stopwatch(importlib.abc.MetaPathFinder):
    """Wraps functions of EVENTS when their modules are imported, and notes when they first ran."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def note(self, label: str) -> None:
        """Note the time of an event, the first time that it happens."""
        self.times.setdefault(label, time.monotonic() - float(os.environ[SPAWNED]))
        self.times.setdefault(CPU + label, time.process_time())
        if label == FIRST_STEP and "signal" not in self.times:
            self.times["signal"] = self.times[label]
            os.kill(os.getpid(), signal.SIGTERM)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of EVENTS as Python does, with a loader that wraps its functions."""
        events = [event for event in EVENTS if event[1] == name]
        spec = importlib.machinery.PathFinder.find_spec(name, path) if events else None
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def wrapping(module: ModuleType) -> None:
                execute(module)
                for label, _, function, is_end in events:
                    self.wrap(module, function, label, is_end)
                if name == "train.loop.trainer":
                    self.wrap(module, "Trainer.stop_early", SAVED, is_end=True)

            spec.loader.exec_module = wrapping  # type: ignore[method-assign]
        return spec

    def wrap(self, module: ModuleType, function: str, label: str, is_end: bool) -> None:
        """Replace a function or method by one that notes its beginning or end."""
        *owner_name, name = function.split(".")
        owner: Any = getattr(module, owner_name[0]) if owner_name else module
        if not (original := getattr(owner, name, None)):
            return  # not in this tree

        def noting(*arguments: Any, **named: Any) -> Any:
            if not is_end:
                self.note(label)
            result = original(*arguments, **named)
            if is_end:
                self.note(label)
            return result

        setattr(owner, name, noting)


def rank(arguments: list[str]) -> None:
    """Be `python -m train` of the current folder, and write the times of its events."""
    stopwatch = Stopwatch()
    sys.meta_path.insert(0, stopwatch)
    sys.path[0] = os.getcwd()
    sys.argv = ["train", *arguments]
    try:
        runpy.run_module("train", run_name="__main__", alter_sys=True)
    finally:
        stopwatch.note(MAIN_ENDED)
        Path(os.environ[TIMES]).write_text(json.dumps(stopwatch.times))


def restart(tree: Path, num_ranks: int, arguments: list[str]) -> dict[str, float]:
    """Run `num_ranks` ranks until their stop; returns rank 0's times of EVENTS and of the stop."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        shared = os.environ | together | {"PYTHONPATH": str(tree), SPAWNED: str(time.monotonic())}
        processes = []
        for number in range(num_ranks):
            which = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(num_ranks)}
            times = {TIMES: str(Path(folder) / str(number))}
            command = [sys.executable, str(Path(__file__).resolve()), "--rank", *arguments]
            log = Path(folder, f"log{number}").open("w")  # noqa: SIM115
            processes.append(
                subprocess.Popen(
                    command, cwd=tree, env=shared | which | times, stdout=log, stderr=log
                )
            )
        for process in processes:
            if process.wait() != 75:
                raise SystemExit(Path(folder, "log0").read_text())
        ended = time.monotonic() - float(shared[SPAWNED])
        taken: dict[str, float] = json.loads(Path(folder, "0").read_text())
    for label in (SAVED, MAIN_ENDED):
        taken[AFTER + label] = taken.pop(label) - taken["signal"]
    return taken | {AFTER + "all processes ended": ended - taken.pop("signal")}


def main() -> None:
    """Print a table for each number of ranks."""
    import argparse

    from tests.benchmarks.reproducible import prepare

    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    here = Path(__file__).parents[2]
    parser.add_argument("--tree", action="append", default=[], help="another tree, to be compared")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks (1,2)")
    parser.add_argument("--rounds", type=int, default=5, help="restarts of each tree (5)")
    parser.add_argument("settings", nargs="*", help=f"of the training ({' '.join(SMALL)})")
    options = parser.parse_args()
    trees = [*(Path(tree).resolve() for tree in options.tree), here]
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for number in map(int, options.ranks.split(",")):

            def once(index: int, num_ranks: int = number) -> dict[str, float]:
                run = Path(folder) / f"run-{index}-{num_ranks}"
                given = [f"data={folder}/prepared", f"run={run}", *(options.settings or SMALL)]
                return restart(trees[index], num_ranks, given)

            print_table(number, trees, measured(once, len(trees), options.rounds))


def measured(
    once: Callable[[int], dict[str, float]], num_trees: int, rounds: int
) -> list[list[dict[str, float]]]:
    """Begin a run in each tree, and resume it `rounds` times, in turn; return all restarts."""
    taken: list[list[dict[str, float]]] = [[] for _ in range(num_trees)]
    for turn in range(-1, rounds):
        for index in range(num_trees):
            times = once((index + max(turn, 0)) % num_trees)
            if turn >= 0:
                taken[(index + turn) % num_trees].append(times)
    return taken


def print_table(
    num_ranks: int, trees: Sequence[Path], taken: Sequence[Sequence[dict[str, float]]]
) -> None:
    """Print a row for each event, with the median of each tree."""
    import statistics

    print(f"| {num_ranks} rank(s): s / CPU s | " + " | ".join(tree.name for tree in trees) + " |")
    print("| --- " * (len(trees) + 1) + "|")

    def median(label: str, of_tree: Sequence[dict[str, float]]) -> str:
        """Return the median as text; '' where a tree does not have the event."""
        found = [times[label] for times in of_tree if label in times]
        return f"{statistics.median(found):.2f}" if found else ""

    for label in (label for label in taken[-1][0] if not label.startswith(CPU)):
        medians = [
            " / ".join(filter(None, (median(label, of_tree), median(CPU + label, of_tree))))
            for of_tree in taken
        ]
        print(f"| {label} | " + " | ".join(medians) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2:])
    else:
        main()
