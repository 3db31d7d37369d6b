"""Whole command lines that would be accepted in place of a refused one."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from common.command_line import UsageError, UserError
from launch import command_lines
from launch.cluster.profiles import SIGNAL_EARLY_S
from launch.command_lines import PROGRAM, CommandLine, settings_of
from launch.record.events import STAGES
from launch.stages import PATHS, stage_keys

MOST_SHOWN = 2
LEAST_ALIKE = 0.75  # of a key and a flag: by difflib's 0.6, out is like account
KEPT = ("--folds", "--trials")  # without one the command would do something else


def with_accepted(
    error: UsageError,
    argv: Sequence[str],
    keys: Sequence[str],
    check: Callable[[list[str]], object],
) -> UsageError:
    """Return the error with command lines that are accepted instead, each tried with `check`.

    `keys` of a profile are flags, with which a setting may have been confused.
    """
    if f"\n  {PROGRAM}" in str(error):
        return error
    others = tried(candidates(str(error), command_lines.parse(argv), keys), check)
    found = [str(other) for other in islice(others, MOST_SHOWN)]
    if not found:
        return error
    are = "is" if len(found) == 1 else "are"
    return UsageError("\n  ".join([f"{error}; accepted {are}", *found]))


def tried(
    commands: Iterator[CommandLine], check: Callable[[list[str]], object]
) -> Iterator[CommandLine]:
    """Yield the commands that are accepted, each once."""
    known: list[list[str]] = []
    for command in commands:
        if command.words in known:
            continue
        known.append(command.words)
        try:
            check(command.words)
        except UserError:
            continue
        yield command


def candidates(error: str, given: CommandLine, keys: Sequence[str]) -> Iterator[CommandLine]:
    """Yield commands that are a little different, the likeliest first."""
    if "--ranks-per-node" in given.flags and "gpus_per_node" in error:
        yield given.with_flags({"gpus_per_node": 0})
    if error.startswith("no Slurm"):
        yield given.with_flags({"cluster": "local"})
        yield replace(given, flags=given.flags | {"--dry-run": None})
    if "signal_lead_s" in error:
        yield from with_other_times(given)
    for key, typed in given.settings.items():
        if f"no stage knows '{key}'" in error:
            yield from with_known_key(given, key, typed, keys)
    for flag, value in given.flags.items():
        names = flag, flag.removeprefix("--").replace("-", "_")
        if flag in KEPT or not any(name in error for name in names):
            continue
        meant = settings_of([value]) if value and "=" in value else {}  # the flag had no value
        left = given.without(flag)
        yield replace(left, settings=left.settings | meant)
    for key in given.settings:
        if key not in PATHS and f"{key.rpartition('.')[2]}=" in error:
            yield given.without(key)
    for word in given.swept if len(given.swept) > 1 else ():
        if f"--sweep {word.partition('=')[0]}=" in error:
            yield replace(given, swept=tuple(each for each in given.swept if each != word))


def with_other_times(given: CommandLine) -> Iterator[CommandLine]:
    """Yield a command whose signal comes late enough, and one with the time for it."""
    with suppress(ValueError):
        if time_min := given.flags.get("--time-min"):
            left_s = 60 * int(time_min) - SIGNAL_EARLY_S
            yield given.with_flags({"signal_lead_s": left_s // 2})
        if lead_s := given.flags.get("--signal-lead-s"):
            minutes = (int(lead_s) + SIGNAL_EARLY_S) // 60 + 1
            yield given.with_flags({"time_min": minutes})


def with_known_key(
    given: CommandLine, key: str, value: str, keys: Sequence[str]
) -> Iterator[CommandLine]:
    """Yield commands with the settings and flags that an unknown key may mean."""
    left = given.without(key)
    if key in keys:
        yield left.with_flags({key: value})
    if key == "out" and "data" not in left.settings:  # of data_prep, which is data= here
        yield replace(left, settings=left.settings | {"data": value})
    stage, _, rest = key.rpartition(".")
    typed, of_stages = rest if stage in STAGES else key, set().union(*map(stage_keys, STAGES))
    known = difflib.get_close_matches(typed, sorted(of_stages | set(keys)))
    alike = difflib.get_close_matches(typed, keys, cutoff=LEAST_ALIKE)
    for near in (name for name in known if name in of_stages or name in alike):
        if near in keys:
            yield left.with_flags({near: value})
        else:
            yield replace(left, settings=left.settings | {near: value})
