"""Write the help text of a command from the dataclass of its settings.

A string under a field is its help text and names its unit.
"""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING, OmegaConf


def help_text(config_class: type, usage: str) -> str:
    """Return `usage`, then every key with its default, its type and its field's docstring."""
    lines = [inspect.cleandoc(usage), "", "Keys (key=default, or what must be given):", ""]
    for key, default, kind, text in describe_fields(config_class):
        lines.append(f"  {key}={default}")
        lines += textwrap.indent(textwrap.fill(f"{text} [{kind}]", 90), " " * 6).splitlines()
    return "\n".join(lines)


def describe_fields(config_class: type) -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted key, default, type, docstring) of every field, nested ones flattened."""
    defaults = OmegaConf.to_container(OmegaConf.structured(config_class))
    pending: list[tuple[str, type, Any]] = [("", config_class, defaults)]
    while pending:
        prefix, owner, values = pending.pop(0)
        docs, hints = field_docs(owner), typing.get_type_hints(owner)
        for name, value in values.items():
            if dataclasses.is_dataclass(hints[name]):
                pending.append((f"{prefix}{name}.", typing.cast(type, hints[name]), value))
            else:
                yield prefix + name, default_text(value), type_text(hints[name]), docs[name]


def field_docs(config_class: type) -> dict[str, str]:
    """Return the string that follows each field in the class's source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, following in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ast.literal_eval(following.value) if isinstance(following, ast.Expr) else ""
            docs[statement.target.id] = " ".join(str(text).split())
    return docs


def default_text(value: Any) -> str:
    """Write a default as a user would type it; '...' if the key has none."""
    if value == MISSING:
        return "..."
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(str, value)) + "]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value)


def type_text(hint: Any) -> str:
    """Name a type for readers of --help: 'int', 'auto|on|off', 'list of str'."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(type_text, arguments))
    if origin is list:
        return f"list of {type_text(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} x {type_text(arguments[0])}"
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))
