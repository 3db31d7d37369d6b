"""Read files that may come from elsewhere: of a limited size, checked against a schema.

A schema is a type: a dataclass, whose fields are the keys, or a type such as dict[str, int].
Numbers are finite, and a text is not taken for a number. pydantic checks it; this module imports it
late, since it takes a while.
"""

import dataclasses
import hashlib
import json
import math
import os
import stat
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, get_type_hints

from common.command_line import UserError, printable
from common.files import UNPRINTABLE

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

Schema = TypeVar("Schema")

MOST_BYTES = 10**7  # of a file of settings, counts and the like
MOST_LINES_BYTES = 10**8  # of a file of JSON lines that is read at once
MOST_LINE_BYTES = 10**6  # of a line of a file that is read line by line
MOST_SHOWN = 60  # characters of a value in a message


def read_small(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file. Raises OSError, or ValueError if it is no file or larger than `most_bytes`."""
    with open_regular(path) as file:
        if (num_bytes := os.fstat(file.fileno()).st_size) > most_bytes:
            raise ValueError(f"{num_bytes} bytes long; expected at most {most_bytes}")
        return file.read(num_bytes)


def read_small_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file of any length, each with its end. Raises OSError, or ValueError if
    it is no file, or has a line of more than MOST_LINE_BYTES."""
    with open_regular(path) as file:
        while line := file.readline(MOST_LINE_BYTES + 1):
            if len(line) > MOST_LINE_BYTES:
                raise ValueError(f"a line is longer than {MOST_LINE_BYTES} bytes")
            yield line


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read. Raises OSError, or ValueError if it is no file."""
    with open(path, "rb", opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a file")
        yield file


def without_waiting(path: str, flags: int) -> int:
    """Open a file; do not wait for a writer where it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_checked(path: Path, schema: type[Schema]) -> Schema:
    """Read a JSON file. Raises OSError, or ValueError that says in a line what is wrong."""
    return validated(schema, read_small(path))


def validated(schema: type[Schema], content: bytes | str) -> Schema:
    """Return JSON as what its schema says. Raises ValueError that names the first wrong key.

    Every field of a dataclass must be there; other keys are passed over.
    """
    return checked(schema, parsed(content))


def checked(schema: type[Schema], value: Any) -> Schema:
    """Return a parsed value as what its schema says. Raises ValueError as `validated`."""
    from pydantic import ValidationError

    try:
        found = adapter(typing.cast(Any, schema)).validate_python(value, strict=True)
    except ValidationError as error:
        raise ValueError(in_a_line(error)) from None
    return as_dataclass(schema, found)


def parsed(content: bytes | str) -> Any:
    """Parse JSON. Raises ValueError."""
    try:
        return json.loads(content, parse_constant=refuse_constant, parse_float=finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def finite(text: str) -> float:
    """Read a number of JSON. Raises ValueError for 1e400, which json takes for infinity."""
    if math.isinf(number := float(text)):
        raise ValueError(f"{text:.20} is no number that a computer holds")
    return number


def refuse_constant(name: str) -> None:
    """Refuse NaN and infinity, which Python's json takes. Raises ValueError."""
    raise ValueError(f"{name} is no JSON")


@cache
def adapter(schema: Any) -> "TypeAdapter[Any]":
    """Return what checks against a schema; for a dataclass, a model with its fields."""
    from pydantic import ConfigDict, TypeAdapter, create_model

    finite = ConfigDict(allow_inf_nan=False)

    def model(kind: Any) -> Any:
        if not dataclasses.is_dataclass(kind):
            return kind
        fields: Any = {name: (model(hint), ...) for name, hint in get_type_hints(kind).items()}
        return create_model("Keys", __config__=finite, **fields)

    is_model = dataclasses.is_dataclass(schema)
    return TypeAdapter(model(schema), config=None if is_model else finite)


def as_dataclass(schema: Any, model: Any) -> Any:
    """Return a model as the dataclass that is its schema, and any other value as it is."""
    if not dataclasses.is_dataclass(schema):
        return model
    values, make = vars(model), typing.cast(Any, schema)
    for name, kind in nested(make).items():
        values[name] = as_dataclass(kind, values[name])
    return make(**values)


@cache
def nested(schema: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are dataclasses, with their types."""
    hints = get_type_hints(schema)
    return {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}


def in_a_line(error: "ValidationError") -> str:
    """Say what is wrong first: 'split.val: expected a valid list, found 7'."""
    first = error.errors(include_url=False)[0]
    key = "".join(f"{part}." for part in first["loc"]).removesuffix(".")
    where = f"{printable(key)}: " if key else ""
    if first["type"] == "missing":
        return f"{where}is missing"
    expected = str(first["msg"]).replace("Input should be", "expected")
    return f"{where}{expected}, found {short(first['input'])}"


def short(value: object) -> str:
    """Shorten a value for a message."""
    text = ascii(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def json_sha256(content: Mapping[str, Any]) -> str:
    """Hash JSON; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def require_printable(value: Any, where: str = "") -> None:
    """Raise ValueError for a control character in a text, a key or an entry of a value."""
    if isinstance(value, str) and UNPRINTABLE.search(value):
        raise ValueError(f"{where}: {short(value)} holds a control character")
    if isinstance(value, dict):
        for key, entry in value.items():
            require_printable(key, where)
            require_printable(entry, f"{where}.{key}".removeprefix("."))
    if isinstance(value, list):
        for entry in value:
            require_printable(entry, where)


def read_lines(path: Path, schema: type[Schema]) -> list[Schema]:
    """Read the complete lines of a JSON lines file that others may be writing to.

    Returns [] if there is nothing of its name. Raises UserError that names a line of another shape.
    """
    return [entry for _, entry in numbered_lines(path, schema)]


def numbered_lines(path: Path, schema: type[Schema]) -> Iterator[tuple[str, Schema]]:
    """Yield each complete line of a JSON lines file, as it is and as what its schema says."""
    try:
        content = read_small(path, MOST_LINES_BYTES) if os.path.lexists(path) else b""
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            value = parsed(line)
        except ValueError:
            continue  # being written, or cut short by a kill
        try:
            yield line.decode(), checked(schema, value)
        except ValueError as error:
            raise UserError(
                f"{path}: line {number}: {error}; not as this version writes it: move the file"
                " away",
                can_heal=False,
            ) from None
