"""What a sweep varies: the words KEY=VALUES after --sweep.

lr=1e-4,1e-3                   choices; a comma within brackets or quotes does not divide them
lr=log(1e-4,1e-2)              a number between two, each power of ten as likely
loss.dice_weight=uniform(0,2)  a number between two, each as likely
model.width=int(8,32,8)        a whole number: 8, 16, 24 or 32
model.width=intlog(8,64)       a whole number, each power of two as likely
"""

import difflib
import itertools
import math
import re
import shlex
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import command_line
from common.command_line import UsageError, split_argument
from common.files import whole_path
from common.settings import field_type
from model.encoder_cache import names_file
from train.config import HARMLESS_KEYS, PRESETS, TrainConfig

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

EXAMPLES = {
    "uniform": "loss.dice_weight=uniform(0,2)",
    "log": "lr=log(1e-4,1e-2)",
    "int": "model.width=int(8,32,8)",
    "intlog": "model.width=intlog(8,64)",
}
CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\((.*)\)\s*")
PATHS = ("crop.pipeline", "init", "model.weights")  # jobs run in another folder
CLOSING = {"(": ")", "[": "]", "{": "}"}
BETWEEN = 0.3819660112501051  # no end of a range, and no whole number in most


@dataclass(frozen=True)
class Choices:
    """Values as they were typed."""

    values: tuple[str, ...]

    def suggest(self, trial: "BaseTrial", key: str) -> str:
        """Have a trial choose one."""
        return str(trial.suggest_categorical(key, list(self.values)))

    def tried(self) -> tuple[str, ...]:
        """Return values that a training must accept: all."""
        return self.values


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`."""

    low: float
    high: float
    is_log: bool

    def suggest(self, trial: "BaseTrial", key: str) -> str:
        """Have a trial draw one; the text gives the same bits when it is read."""
        return repr(float(trial.suggest_float(key, self.low, self.high, log=self.is_log)))

    def tried(self) -> tuple[str, ...]:
        """Return values that a training must accept: the ends, and a broken number between."""
        between = self.low + (self.high - self.low) * BETWEEN
        return repr(self.low), repr(self.high), repr(between)


@dataclass(frozen=True)
class WholeNumbers:
    """Every `step`-th whole number from `low` to `high`."""

    low: int
    high: int
    step: int
    is_log: bool

    def suggest(self, trial: "BaseTrial", key: str) -> str:
        """Have a trial draw one."""
        step = {} if self.is_log else {"step": self.step}
        return str(trial.suggest_int(key, self.low, self.high, log=self.is_log, **step))

    def tried(self) -> tuple[str, ...]:
        """Return values that a training must accept: the ends."""
        return str(self.low), str(self.high)


Values = Choices | Numbers | WholeNumbers


@dataclass(frozen=True)
class Space:
    """The values of each key, in the order in which they were given."""

    values: dict[str, Values]

    @property
    def is_grid(self) -> bool:
        """Whether all are choices."""
        return all(isinstance(values, Choices) for values in self.values.values())

    def grid(self) -> list[dict[str, str]]:
        """Return the settings of every trial, the last key changing first. Only of a grid."""
        choices = [values.tried() for values in self.values.values()]
        return [
            dict(zip(self.values, chosen, strict=True)) for chosen in itertools.product(*choices)
        ]

    def first(self) -> dict[str, str]:
        """Return the first value of each key: settings that one training could have."""
        return {key: values.tried()[0] for key, values in self.values.items()}

    def tried(self) -> list[dict[str, str]]:
        """Return settings that a training must accept: each value beside the first ones of the
        other keys."""
        others = (
            self.first() | {key: value}
            for key, values in self.values.items()
            for value in values.tried()[1:]
        )
        return [self.first(), *others]

    def words(self, given: Sequence[str]) -> list[str]:
        """Return the words that were `given` for it, with the whole paths of files."""
        found = []
        for (key, values), word in zip(self.values.items(), given, strict=True):
            is_files = key in PATHS and isinstance(values, Choices)
            found.append(f"{key}={','.join(values.tried())}" if is_files else word)
        return found

    def suggest(self, trial: "BaseTrial") -> dict[str, str]:
        """Return the settings that a trial of Optuna's draws."""
        return {key: values.suggest(trial, key) for key, values in self.values.items()}


def parse(words: Sequence[str], settings: Sequence[str] = ()) -> Space:
    """Parse the words after --sweep. `settings`: what else training is given.

    Raises UsageError for what training would refuse, and for a key that cannot be compared.
    """
    space = read(words)
    for key in space.values:
        check_key(key, settings)
    check_values(space, settings)
    return space


def read(words: Sequence[str]) -> Space:
    """Read the words after --sweep, whatever training makes of them. Raises UsageError."""
    if not words:
        raise UsageError(f"--sweep needs KEY=VALUES, as in {examples()}")
    found: dict[str, Values] = {}
    for word in words:
        key, text = split_argument(word)
        key = key.removeprefix("train.")
        if key in found:
            raise UsageError(f"--sweep {key}=: given twice; put all its values into one")
        found[key] = values_of(key, text)
    return Space(found)


def check_key(key: str, settings: Sequence[str]) -> None:
    """Raise UsageError for a key whose values are no trials of one sweep."""
    why = ""
    if key == "fold":
        why = "every setting is to be tried on the same folds: give --folds beside --sweep"
    elif key in ("data", "run", "config"):
        why = "trials share it; give it without --sweep"
    elif key in HARMLESS_KEYS and key != "preset":
        why = "it changes no result, so there is nothing to compare; give it without --sweep"
    elif any(setting.startswith(f"{key}=") for setting in settings):
        why = "given without --sweep too; leave one of them out"
    if why:
        raise UsageError(f"--sweep {key}=: {why}")


def check_values(space: Space, settings: Sequence[str]) -> None:
    """Raise UsageError for values that training would refuse beside the first ones of other keys,
    and for a key that it does not know."""
    for tried in space.tried():
        given = [*settings, *(f"{key}={value}" for key, value in tried.items())]
        try:
            command_line.load(TrainConfig, given, preset_folder=PRESETS)
        except UsageError as error:
            raise UsageError(f"--sweep: {error}") from None


def values_of(key: str, text: str) -> Values:
    """Parse the values of a key. Raises UsageError."""
    parts = divided(f"--sweep {key}={text}", text)
    if len(parts) == 1 and is_in_brackets(key, text):
        bare = shlex.quote(f"{key}={text.strip()[1:-1]}")
        raise UsageError(f"--sweep {key}={text}: give its values without brackets: --sweep {bare}")
    calls = [match for part in parts if (match := CALL.fullmatch(part))]
    if not calls:
        return choices(key, parts)
    if len(parts) > 1:
        raise UsageError(f"--sweep {key}={text}: give a distribution alone, as in {examples()}")
    return distribution(key, calls[0][1], calls[0][2])


def is_in_brackets(key: str, text: str) -> bool:
    """Return whether a text is a list, for a key that takes none."""
    is_list = text.strip().startswith("[") and text.strip().endswith("]")
    return is_list and typing.get_origin(field_type(TrainConfig, key)) not in (list, tuple)


def choices(key: str, parts: Sequence[str]) -> Choices:
    """Return choices; those of files as whole paths. Raises UsageError for one that comes twice."""
    same: dict[object, str] = {}
    for part in parts:
        number = number_in(part)
        if (as_compared := part if number is None else number) in same:
            raise UsageError(
                f"--sweep {key}={','.join(parts)}: {same[as_compared]} and {part} are the same"
                " value; leave one out"
            )
        same[as_compared] = part
    if key in PATHS:
        return Choices(tuple(map(with_whole_path, parts)))
    return Choices(tuple(parts))


def with_whole_path(value: str) -> str:
    """Return the whole path of a file that one of PATHS names; what names none as it is."""
    return str(whole_path(value)) if value and names_file(value) else value


def distribution(key: str, name: str, inner: str) -> Values:
    """Return a distribution by its name and what is in its brackets. Raises UsageError."""
    where = f"--sweep {key}={name}({inner})"
    if name not in EXAMPLES:
        near = difflib.get_close_matches(name, EXAMPLES)
        hint = f"did you mean {near[0]}? There" if near else "there"
        raise UsageError(f"{where}: no distribution '{name}'; {hint} are {examples()}")
    texts = [text.strip() for text in inner.split(",")]
    numbers = [number_in(text) for text in texts]
    is_whole, is_log = name.startswith("int"), name.endswith("log")
    if not 2 <= len(texts) <= (3 if name == "int" else 2):
        third = ", and perhaps a step" if name == "int" else ""
        raise UsageError(f"{where}: takes the lowest and the highest value{third}")
    for text, number in zip(texts, numbers, strict=True):
        if number is None or not math.isfinite(number):
            raise UsageError(f"{where}: {text or 'nothing'} is not a number")
        if is_whole and not re.fullmatch(r"[+-]?\d+", text):
            raise UsageError(f"{where}: {text} is not a whole number")
    low, high = float(numbers[0] or 0), float(numbers[1] or 0)
    if low >= high:
        raise UsageError(f"{where}: {texts[0]} must be below {texts[1]}")
    if is_log and low <= 0:
        raise UsageError(f"{where}: a logarithm needs numbers above 0")
    if not is_whole:
        return Numbers(low, high, is_log)
    step = int(texts[2]) if len(texts) == 3 else 1
    if step < 1 or (int(high) - int(low)) % step:
        raise UsageError(f"{where}: no number of steps of {step} from {texts[0]} to {texts[1]}")
    return WholeNumbers(int(texts[0]), int(texts[1]), step, is_log)


def divided(where: str, text: str) -> list[str]:
    """Divide a text at the commas that are in no brackets and no quotes. Raises UsageError for
    brackets or quotes without their other half."""
    parts, waiting, quote = [""], [], ""
    for number, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (not parts[-1] or text[number - 1] in "[, "):
            quote = letter
        elif letter in CLOSING:
            waiting.append(CLOSING[letter])
        elif letter in CLOSING.values() and (not waiting or waiting.pop() != letter):
            raise UsageError(f"{where}: a '{letter}' that nothing opens")
        if letter == "," and not waiting and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    if missing := quote or "".join(waiting):
        raise UsageError(f"{where}: a '{missing[-1]}' is missing at the end")
    return [part.strip() for part in parts]


def number_in(text: str) -> float | None:
    """Return the number that a text is, None if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def examples() -> str:
    """List an example of each distribution, and one of choices."""
    return ", ".join(f"'{example}'" for example in ("lr=1e-4,1e-3", *EXAMPLES.values()))
