"""List the annotation formats, and check that classes occur somewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.command_line import UsageError
from data_prep.annotations.brecahad import BreCaHADReader
from data_prep.annotations.mask_images import MaskImageReader
from data_prep.annotations.point_table import PointTableReader
from data_prep.annotations.qupath import QuPathReader
from data_prep.annotations.reader import AnnotationReader
from data_prep.raw import BadInputError, Field

READERS: dict[str, AnnotationReader[Any]] = {
    "brecahad": BreCaHADReader(),
    "geojson": QuPathReader(),
    "csv": PointTableReader(),
    "masks": MaskImageReader(),
}
"""Value of annotations= -> its reader."""


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
        listed = ", ".join(sorted(found)) or "none"
        raise UsageError(f"classes: no {named} anywhere in {raw}; there are: {listed}")
