"""Whole command lines that would be accepted in place of a refused one."""

import difflib
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

from common.command_line import UsageError, UserError
from launch.cluster.profiles import SIGNAL_EARLY_S
from launch.record.events import STAGES
from launch.stages import stage_keys

MOST_SHOWN = 2
PROGRAM = ("python", "launch/submit.py")
Command = tuple[dict[str, str], dict[str, str]]
"""Flags and settings, each with its value; '' for a flag that takes none."""


def with_accepted(
    error: UsageError,
    argv: Sequence[str],
    settings: dict[str, str],
    flags: Sequence[str],
    check: Callable[[list[str]], object],
) -> UsageError:
    """Return the error with command lines that are accepted instead, each tried with `check`.

    `flags` are the flags about a cluster, with which a setting may have been confused.
    """
    if f"\n  {' '.join(PROGRAM)}" in str(error):
        return error
    given = flags_of(argv), settings
    others = accepted(candidates(str(error), given, flags), check)
    found = [shlex.join([*PROGRAM, *other]) for other in islice(others, MOST_SHOWN)]
    if not found:
        return error
    are = "is" if len(found) == 1 else "are"
    return UsageError("\n  ".join([f"{error}; accepted {are}", *found]))


def accepted(
    commands: Iterator[Command], check: Callable[[list[str]], object]
) -> Iterator[list[str]]:
    """Yield the arguments of the commands that are accepted, each once."""
    tried: list[list[str]] = []
    for flags, settings in commands:
        words = [word for flag, value in flags.items() for word in (flag, value) if word]
        argv = words + [f"{key}={value}" for key, value in settings.items()]
        if argv in tried:
            continue
        tried.append(argv)
        try:
            check(argv)
        except UserError:
            continue
        yield argv


def candidates(error: str, given: Command, names: Sequence[str]) -> Iterator[Command]:
    """Yield commands that are a little different, the likeliest first."""
    flags, settings = given
    if "--ranks-per-node" in flags and "gpus_per_node" in error:
        yield flags | {"--gpus-per-node": "0"}, settings
    if error.startswith("no Slurm"):
        yield flags | {"--cluster": "local"}, settings
        yield flags | {"--dry-run": ""}, settings
    if "signal_lead_s" in error:
        yield from with_other_times(given)
    for key, value in settings.items():
        if f"no stage knows '{key}'" in error:
            yield from with_known_key(given, key, value, names)
    for flag in flags:
        if flag.removeprefix("--").replace("-", "_") in error or flag in error:
            yield without(flags, flag), settings
    for key in settings:
        if f"{key.rpartition('.')[2]}=" in error:
            yield flags, without(settings, key)


def with_other_times(given: Command) -> Iterator[Command]:
    """Yield a command whose signal comes late enough, and one with the time for it."""
    flags, settings = given
    with suppress(ValueError):
        if "--time-min" in flags:
            left_s = 60 * int(flags["--time-min"]) - SIGNAL_EARLY_S
            yield flags | {"--signal-lead-s": str(left_s // 2)}, settings
        if "--signal-lead-s" in flags:
            minutes = (int(flags["--signal-lead-s"]) + SIGNAL_EARLY_S) // 60 + 1
            yield flags | {"--time-min": str(minutes)}, settings


def with_known_key(given: Command, key: str, value: str, names: Sequence[str]) -> Iterator[Command]:
    """Yield commands with the keys and flags that an unknown key may mean."""
    flags, settings = given
    if key in names:
        yield flags | {f"--{key.replace('_', '-')}": value}, without(settings, key)
    stage, _, rest = key.rpartition(".")
    known = sorted(set().union(*map(stage_keys, STAGES)) | set(names))
    for near in difflib.get_close_matches(rest if stage in STAGES else key, known):
        if near in names:
            yield flags | {f"--{near.replace('_', '-')}": value}, without(settings, key)
        else:
            yield flags, without(settings, key) | {near: value}


def without(given: dict[str, str], key: str) -> dict[str, str]:
    """Return what was given but for a key."""
    return {name: value for name, value in given.items() if name != key}


def flags_of(argv: Sequence[str]) -> dict[str, str]:
    """Return flag -> its value, '' where it takes none."""
    flags: dict[str, str] = {}
    flag = ""
    for word in argv:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            flags[name] = value
            flag = "" if value or name == "--dry-run" else name
        elif flag:
            flags[flag] = word
            flag = ""
    return flags
