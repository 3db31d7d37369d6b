"""--help, from the docstrings of a command's keys."""

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from common.help_text import help_text

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Inner:
    """A nested group."""

    rate: float = 0.5
    """A rate per second."""


@dataclass(frozen=True)
class Settings:
    """All kinds of keys."""

    run: str = MISSING
    """The run's folder."""
    epochs: int = 10
    """How often, and a sentence
    over two lines."""
    names: list[str] = field(default_factory=lambda: ["a", "b"])
    """Some names."""
    amp: Literal["auto", "bf16", "off"] = "auto"
    """A choice."""
    fast: bool | None = None
    """A switch."""
    shape: tuple[int, int] = (2, 3)
    """A height and a width."""
    inner: Inner = field(default_factory=lambda: Inner(rate=0.25))


def test_every_key_stands_with_its_default_its_type_and_its_text() -> None:
    assert help_text(Settings, "How to use it.").splitlines() == [
        "How to use it.",
        "",
        "Keys (key=default, or what must be given):",
        "",
        "  run=...",
        "      The run's folder. [str]",
        "  epochs=10",
        "      How often, and a sentence over two lines. [int]",
        "  names=[a,b]",
        "      Some names. [list of str]",
        "  amp=auto",
        "      A choice. [auto|bf16|off]",
        "  fast=null",
        "      A switch. [bool or null]",
        "  shape=[2,3]",
        "      A height and a width. [2 x int]",
        "  inner.rate=0.25",  # not Inner's own default
        "      A rate per second. [float]",
    ]


def configurations() -> Iterator[ast.ClassDef]:
    """Every class of the product that is named ...Config."""
    for package in ("data_prep", "model", "train", "launch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                    yield node


def test_every_key_of_every_command_has_a_docstring() -> None:
    """It is the key's text in --help; a nested group has its class's docstring."""
    fields = 0
    for config in configurations():
        assert ast.get_docstring(config), config.name
        for statement, following in itertools.pairwise([*config.body, ast.Pass()]):
            if isinstance(statement, ast.AnnAssign):
                group = ast.unparse(statement.annotation).endswith("Config")
                text = getattr(getattr(following, "value", None), "value", "")
                assert group or (isinstance(text, str) and text.strip()), (config.name, following)
                fields += 1
    assert fields > 50
