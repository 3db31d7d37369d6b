"""Read YAML of settings as texts, lists and mappings, and write it.

YAML's own types would turn run=001 into 1 and amp=off into False. Aliases and deep nesting are
refused, since with them a short file can fill any memory.
"""

import math
from typing import Any

import yaml

MAX_DEPTH = 20  # of nested lists and mappings; no configuration needs more than 4


class PlainLoader(yaml.BaseLoader):
    """Reads every value as text; refuses aliases and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one node. Raises YAMLError for an alias or deep nesting."""
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"*{alias.anchor} is an alias, which settings cannot have; write the value"
                " out, or put text that begins with * into quotes",
                problem_mark=alias.start_mark,
            )
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"lists or mappings are nested more than {MAX_DEPTH} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class PlainDumper(yaml.SafeDumper):
    """Writes text so that it is read back the same, with line breaks of all kinds."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quote text in which PyYAML would fold line breaks other than newlines."""
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
        )

    def represent_number(self, number: float) -> yaml.ScalarNode:
        """Write infinity as our commands take it; YAML's .inf would be read as a text."""
        if number == math.inf:
            return self.represent_scalar("tag:yaml.org,2002:str", "inf")
        return self.represent_float(number)


PlainDumper.add_representer(str, PlainDumper.represent_text)
PlainDumper.add_representer(float, PlainDumper.represent_number)


def parse(text: str) -> Any:
    """Return a text, a list or a mapping. Raises YAMLError."""
    return yaml.load(text, PlainLoader)


def dump(values: Any) -> str:
    """Write texts, numbers, lists and mappings as YAML; `parse` returns the same texts."""
    return yaml.dump(values, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
