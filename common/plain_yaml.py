"""YAML of settings, read as texts, lists and mappings, and written.

YAML's own types would turn run=001 into 1 and amp=off into False. What a short file can blow up is
not taken: aliases, which can stand for more than any memory holds, and deep nesting.
"""

from typing import Any

import yaml

MAX_DEPTH = 20  # of lists and mappings in each other; no configuration needs more than 4


class PlainLoader(yaml.BaseLoader):
    """Reads every value as text, and refuses aliases and what is nested too deep."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one node. Raises YAMLError for what is not taken."""
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
    """Writes text so that it is read back the same, line breaks of all kinds too."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Between double quotes where PyYAML would fold what is no newline."""
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
        )


PlainDumper.add_representer(str, PlainDumper.represent_text)


def parse(text: str) -> Any:
    """A text, a list or a mapping. Raises YAMLError."""
    return yaml.load(text, PlainLoader)


def dump(values: Any) -> str:
    """YAML of texts, numbers, lists and mappings; `parse` gives the texts back as they were."""
    return yaml.dump(values, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
