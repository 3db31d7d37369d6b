"""A command line of submit.py, taken apart as its parser does, to be changed and shown."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from common.command_line import UsageError
from launch.record.events import STAGES
from launch.stages import stage_keys
from launch.sweeps.space import CALL, divided, is_in_brackets

SWEEP = "--sweep"
PROGRAM = "python launch/submit.py"
WITHOUT_VALUE = ("--dry-run",)


@dataclass(frozen=True)
class CommandLine:
    """Flags and settings, each with its value."""

    flags: dict[str, str | None] = field(default_factory=dict)
    """None for a flag that takes no value."""
    settings: dict[str, str] = field(default_factory=dict)
    swept: tuple[str, ...] = ()
    """The words of --sweep."""

    @property
    def words(self) -> list[str]:
        """The arguments, flags before settings, and what is swept last."""
        flags = [word for pair in self.flags.items() for word in pair if word is not None]
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        return flags + settings + ([SWEEP, *self.swept] if self.swept else [])

    def __str__(self) -> str:
        """The whole command, for a shell."""
        return f"{PROGRAM} {shlex.join(self.words)}".rstrip()

    def with_flags(self, changes: Mapping[str, Any]) -> "CommandLine":
        """Return it with keys of a profile as flags."""
        flags: dict[str, str | None] = {flag_of(key): str(value) for key, value in changes.items()}
        return replace(self, flags=self.flags | flags)

    def with_settings(self, given: Sequence[str]) -> "CommandLine":
        """Return it with these key=value settings, and no others."""
        return replace(self, settings=settings_of(given))

    def without(self, name: str) -> "CommandLine":
        """Return it without a flag, or a setting; what is swept is left."""
        flags = {flag: value for flag, value in self.flags.items() if flag != name}
        settings = {key: value for key, value in self.settings.items() if key != name}
        return CommandLine(flags, settings, self.swept)


def flag_of(key: str) -> str:
    """Return the flag for a key of a profile."""
    return f"--{key.replace('_', '-')}"


def settings_of(given: Sequence[str]) -> dict[str, str]:
    """Return key=value settings as key -> value."""
    return {key: value for key, _, value in (setting.partition("=") for setting in given)}


def parse(argv: Sequence[str]) -> CommandLine:
    """Take arguments apart that submit.py's parser accepts: without shortened flags."""
    flags: dict[str, str | None] = {}
    given: list[str] = []
    swept: list[str] = []
    words, is_after_sweep = iter(argv), False
    for word in words:
        if word == "--":
            given += words
        elif not word.startswith("--"):
            (swept if is_after_sweep and is_swept(word) else given).append(word)
        elif word.partition("=")[0] == SWEEP:
            is_after_sweep = "=" not in word
            swept += word.partition("=")[2:] if "=" in word else []
        else:
            is_after_sweep = False
            name, equals, value = word.partition("=")
            flags[name] = None if name in WITHOUT_VALUE else value if equals else next(words, "")
    return CommandLine(flags, settings_of(given), tuple(swept))


def is_swept(word: str) -> bool:
    """Return whether a word after --sweep names several values: with a comma between them, or as a
    distribution. Others are settings of all trials, and so are keys of other stages alone. A key
    that no stage knows is swept, to be refused with what is near."""
    key, _, text = word.partition("=")
    stage, _, rest = key.partition(".")
    key = rest if stage == "train" else key
    is_of_others = stage in STAGES or any(key in stage_keys(other) for other in STAGES)
    if is_of_others and key not in stage_keys("train") and stage != "train":
        return False
    try:
        parts = divided(word, text)
    except UsageError:  # which is told where it is parsed
        return True
    return len(parts) > 1 or bool(CALL.fullmatch(text)) or is_in_brackets(key, text)
