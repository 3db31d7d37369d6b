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
    """Pass items on, showing progress: a bar on a terminal, a line every `every_s` in a log where
    there is any.

    Each item is worth `count(item)` of the `total` units, of which `done` were there before.
    """
    if sys.stderr.isatty():
        prefixed = total >= 10**6  # 340M instead of 340123456
        with tqdm(total=total, initial=done, desc=label, unit=unit, unit_scale=prefixed) as bar:
            for item in items:
                yield item
                bar.update(count(item))
        return
    due, told = time.monotonic() + every_s, done
    for item in items:
        yield item
        done += count(item)
        if done != told and time.monotonic() >= due:
            told = done
            print(f"{label}: {done} of {total} {unit}s", file=sys.stderr, flush=True)
            due = time.monotonic() + every_s
