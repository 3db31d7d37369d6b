"""Put values from files and command lines into a dataclass of settings, with OmegaConf.

A frozen dataclass declares the keys: its fields, and for a group of keys a nested dataclass.
`${...}` in a value is plain text. OmegaConf would resolve it, so every value passes through
`as_text_only` first.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.help_text import type_text

Config = TypeVar("Config")

OF_ONE = {"takes_one": True}
"""The metadata of a field of texts that may be typed without brackets if it is one: runs=CV."""


def with_values(
    merged: Any, config_class: type, values: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """Set the values of a file; also return an error for each wrong key."""
    typed = {key: as_text_only(as_number(config_class, key, values[key])) for key in values}
    with suppress(OmegaConfBaseException, TypeError):
        return OmegaConf.merge(merged, typed), []
    wrong = []
    for key, value in typed.items():  # a merge takes milliseconds, so only to find what is wrong
        try:
            merged = OmegaConf.merge(merged, {key: value})
        except (OmegaConfBaseException, TypeError) as error:
            within = (getattr(error, "full_key", None) or key).partition("[")[0]
            wrong.append(f"{within}: {explain(config_class, within, error, key)}")
    return merged, wrong


def explain(config_class: type, key: str, error: Exception, given: str = "") -> str:
    """Say why omegaconf refuses a key: it is unknown, or takes other values.

    `given`: the key as a file has it; '' on a command line.
    """
    group, dot, rest = given.partition(".")
    if dot:
        return f"in a file, write a group's keys below it, as in '{group}: {{{rest}: ...}}'"
    hint = field_type(config_class, key)
    if dataclasses.is_dataclass(hint):
        names = ", ".join(f"{key}.{field.name}" for field in dataclasses.fields(hint))
        return f"a group of keys: {names}"
    if hint is not None:
        return f"expected {in_words(hint)}"
    unknown = one_line(error) if isinstance(error, OmegaConfBaseException) else ""
    return unknown if unknown.startswith("no key") else f"no key '{key}'; --help lists every key."


def one_line(error: OmegaConfBaseException) -> str:
    """Shorten omegaconf's message: drop what describes its own objects."""
    message = str(error.msg or error).splitlines()[0]
    return re.sub(r"Key ('.*?') not in '\w+'\.?", r"no key \1; --help lists every key.", message)


def in_words(hint: Any) -> str:
    """Describe the values of a type: 'a whole number', 'one of auto, on, off'."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is tuple:
        return f"a list of {len(arguments)}, each {in_words(arguments[0])}"
    if origin is list:
        return "a list like " + ("[1,2.5]" if arguments[0] is float else "[a,b]")
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, type_text(hint))


def as_number(config_class: type, key: str, value: Any) -> Any:
    """Make a text a number if a key takes a number or a word: omegaconf would keep the text.

    It also knows no '.inf', which is how YAML writes infinity.
    """
    hint = field_type(config_class, key)
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, str) and int in kinds and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    if isinstance(value, str) and float in kinds:
        with suppress(ValueError):
            return float(value.replace(".inf", "inf"))
    return value


def field_type(config_class: type, key: str) -> Any:
    """Return the annotation of a dotted key, or None for an unknown key."""
    hint: Any = config_class
    for name in key.split("."):
        if not dataclasses.is_dataclass(hint):
            return None
        hint = typing.get_type_hints(hint).get(name)
    return hint


def takes_one(config_class: type, key: str) -> bool:
    """Return whether a list may be typed without brackets where it has one entry, see OF_ONE."""
    fields = dataclasses.fields(config_class)
    return any(field.name == key and field.metadata.get("takes_one") for field in fields)


def build(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """Make a dataclass, with nested ones, from values that have their types."""
    hints = typing.get_type_hints(config_class)
    built: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            built[name] = build(typing.cast(type[Any], hints[name]), value)
        else:
            plain = map_texts(value, lambda text: text.replace("$\0", "$").replace("?\0", "?"))
            built[name] = tuple(plain) if typing.get_origin(hints[name]) is tuple else plain
    return config_class(**built)


def as_text_only(value: Any) -> Any:
    """Mark '$' and '?' so that OmegaConf sees no expression ('${') and no missing value ('???').

    `build` removes the marks. OmegaConf's own escape does not work: it resolves an escaped text
    twice where a list or a group is expected.
    """
    return map_texts(value, lambda text: text.replace("$", "$\0").replace("?", "?\0"))


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Change every text in a value, in lists and mappings too, but no keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_texts(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(entry, change) for entry in value]
    return value
