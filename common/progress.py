"""Show how far a command has come. This module imports nothing of the project."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def track(
    items: Iterable[Item],
    *,
    total: int,
    label: str,
    unit: str,
    done: int = 0,
    count: Callable[[Item], int] = lambda item: 1,
    every_s: float = 30.0,
) -> Iterator[Item]:
    """Yield the items and show progress: a bar on a terminal, a line every `every_s` in a log.

    Each item counts `count(item)` of the `total` units; `done` units were finished before. A log
    gets no line without progress since the last one.
    """
    if sys.stderr.isatty():
        prefixed = total >= 10**6  # 340M instead of 340123456
        with tqdm(total=total, initial=done, desc=label, unit=unit, unit_scale=prefixed) as bar:
            for item in items:
                yield item
                bar.update(count(item))
        return
    due, printed = time.monotonic() + every_s, done
    for item in items:
        yield item
        done += count(item)
        if done != printed and time.monotonic() >= due:
            printed = done
            print(f"{label}: {done} of {total} {unit}s", file=sys.stderr, flush=True)
            due = time.monotonic() + every_s
