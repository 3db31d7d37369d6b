"""Times several ways to do one thing, in turn and in one process, and prints medians and ratios."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # without torch, a program collects its garbage sooner
    from train.ranks.distributed import Ranks


def under_torchrun(module: str, num_ranks: int, arguments: Sequence[str]) -> None:
    """Run `python -m module arguments` on several ranks of one thread each."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, "-m", *torchrun, "-m", module, *arguments]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def is_rank() -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in os.environ


def interleaved(
    ways: dict[str, Callable[[], float | None]], rounds: int, ranks: "Ranks | None" = None
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round to warm up; the first way shifts.

    A way that knows better what counts returns its seconds itself. Ranks begin and end together.
    """

    def meet() -> None:
        if ranks:
            ranks.max([0])

    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            meet()
            start_s = time.perf_counter()
            counted = ways[name]()
            meet()
            taken = time.perf_counter() - start_s
            if number >= 0:
                seconds[name].append(taken if counted is None else counted)
    return seconds


def compare(seconds: dict[str, list[float]], base: str) -> list[tuple[str, float, float]]:
    """(way, median seconds, median over the rounds of its ratio to `base` in the same round)."""
    return [
        (
            name,
            statistics.median(taken),
            statistics.median(a / b for a, b in zip(taken, seconds[base], strict=True)),
        )
        for name, taken in seconds.items()
    ]
