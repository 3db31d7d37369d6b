"""List the annotation formats, and check that classes occur somewhere."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from common.command_line import UsageError, UserError, counted
from data_prep.annotations.brecahad import BreCaHADReader
from data_prep.annotations.findings import is_alike, quoted, shown
from data_prep.annotations.mask_images import MaskImageReader
from data_prep.annotations.point_table import PointTableReader
from data_prep.annotations.qupath import QuPathReader
from data_prep.annotations.reader import AnnotationReader, Rules
from data_prep.raw import BadInputError, Field

READERS: dict[str, AnnotationReader[Any]] = {
    "brecahad": BreCaHADReader(),
    "geojson": QuPathReader(),
    "csv": PointTableReader(),
    "masks": MaskImageReader(),
}
"""Value of annotations= -> its reader, with the default rules."""


class Reading(Protocol):
    """Settings that say how annotations are read."""

    @property
    def annotations(self) -> str: ...  # noqa: D102
    @property
    def object_types(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def empty(self) -> Literal["refuse", "accept"]: ...  # noqa: D102
    @property
    def ignore_value(self) -> int | Literal["none"]: ...  # noqa: D102


def reader_of(reading: Reading) -> AnnotationReader[Any]:
    """Return the reader of a format, with the rules that settings or a labelling give."""
    rules = Rules(tuple(reading.object_types), reading.empty, reading.ignore_value)
    return replace(READERS[reading.annotations], rules=rules)


def other_formats(raw: Path, case_regex: str) -> str:
    """Name the formats in which a raw folder is annotated, where it is not in the wanted one."""
    finds = []
    for name, reader in READERS.items():
        try:
            fields, _ = reader.find_fields(raw, case_regex)
        except UserError:
            continue
        if fields:
            finds.append(f"; annotations={name} finds {counted(len(fields), 'field')}")
    return "".join(finds)


def check_occurring(
    reader: AnnotationReader[Any], fields: Sequence[Field], classes: Sequence[str], raw: Path
) -> None:
    """Raise UsageError for a class that is in no field: most likely it is misspelt.

    Stops reading once every class was found. Reads nothing if every file must list its classes.
    """
    if reader.lists_classes:
        return
    missing, found, num_bad = set(classes), set[str](), 0
    for field in fields:
        try:
            found |= set(reader.classes_in(reader.parse(field), classes))
        except (BadInputError, OSError):  # preparing it reports the error
            num_bad += 1
        missing -= found
        if not missing:
            return
    if missing and (found or not num_bad) and fields:
        named = ", ".join(f"'{name}'" for name in classes if name in missing)
        listed = ", ".join(map(shown, sorted(found))) or "none"
        alike = "".join(
            f"; {quoted(other, name)} is written otherwise than {quoted(name, other)}:"
            " give it in classes= as it is written"
            for name in classes
            for other in sorted(found)
            if name in missing and is_alike(other, name)
        )
        raise UsageError(f"classes: no {named} anywhere in {raw}; there are: {listed}{alike}")
