"""Define what readers of annotations do and return; `formats.READERS` has one for each format.

A file is read in two steps: `parse` returns what the file says, in the file's own units;
`annotation_in` turns that into points in px and a mask, of the whole image or of a tile.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np

from data_prep.annotations import pairing
from data_prep.annotations.findings import Findings
from data_prep.annotations.folders import AnnotationNames
from data_prep.config import IGNORE_LABEL, OBJECT_TYPES
from data_prep.images.arrays import Mask, PointsPx
from data_prep.images.tiles import Tile
from data_prep.raw import BadFile, BadInputError, Field

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Rules:
    """What to take from files of annotations; `PrepConfig` explains the keys."""

    object_types: tuple[str, ...] = OBJECT_TYPES
    empty: Literal["refuse", "accept"] = "refuse"
    ignore_value: int | Literal["none"] = "none"

    def check_empty(self, what: str) -> None:
        """Raise BadInputError for a file that annotates nothing, unless that is an answer."""
        if self.empty == "refuse":
            raise BadInputError(
                f"annotates nothing: {what}; empty=accept takes it to say that nothing is there"
            )


RULES = Rules()


@dataclass(frozen=True)
class Annotation:
    """What is annotated in an image, or in a tile of it.

    Every wanted class has an array of points, which may be empty.
    """

    points: PointsPx
    """Nuclei annotated as points, to be painted as discs, up to MARGIN_PX outside a tile."""
    areas_HW: Mask | None = None
    """The annotated areas, as mask values or IGNORE_LABEL; None if there are none."""
    middles: PointsPx | None = None
    """The middle of each area, with the same classes; None if the format has no areas."""

    @property
    def has_areas(self) -> bool:
        """Whether any pixel is in an area of a class."""
        return self.areas_HW is not None and not np.isin(self.areas_HW, (0, IGNORE_LABEL)).all()

    @property
    def nuclei(self) -> PointsPx:
        """Every annotated point, and the middle of every area."""
        return with_middles(self.points, self.middles)


def with_middles(points: PointsPx, middles: PointsPx | None) -> PointsPx:
    """Join points and the middles of areas, class by class."""
    if middles is None:
        return points
    return {name: np.concatenate([points[name], middles[name]]) for name in points}


@dataclass(frozen=True)
class AnnotationReader(ABC, Generic[Parsed]):
    """Reads the annotations of one format."""

    rules: Rules = RULES
    suffixes: ClassVar[tuple[str, ...]]
    """Endings of its files, in lower case, the usual ending first."""
    words: ClassVar[tuple[str, ...]] = ()
    """Words that may follow the image's name, as in NAME_mask.png, the usual one first."""
    has_areas: ClassVar[bool] = False
    """Whether a file may hold areas, so that a mask is more than discs."""
    lists_classes: ClassVar[bool] = False
    """Whether every file must list every wanted class, even without points."""

    def find_fields(self, folder: Path, case_regex: str) -> tuple[list[Field], list[BadFile]]:
        """Return usable fields, and the files that are not. Raises UsageError as pairing does."""
        return pairing.find_fields(folder, case_regex, AnnotationNames(self.suffixes, self.words))

    def check_classes(self, classes: Sequence[str]) -> list[str]:
        """Return the classes under their usual names. Raises UsageError for an unknown class."""
        return list(classes)

    @abstractmethod
    def parse(self, field: Field) -> Parsed:
        """Read a field's annotation. Raises BadInputError with the reason, or OSError.

        Passes over objects that cannot be used, and counts them.
        """

    @abstractmethod
    def classes_in(self, parsed: Parsed, classes: Sequence[str]) -> Collection[str]:
        """Return the classes that a parsed file holds.

        A format without names of classes returns the `classes` that occur. Raises BadInputError
        for errors that only reading the whole file can find.
        """

    @abstractmethod
    def annotation_in(self, parsed: Parsed, tile: Tile, values: Mapping[str, int]) -> Annotation:
        """Return what a parsed file annotates in a tile of its image, in px of that tile.

        `values`: wanted class -> mask value; later classes lie over earlier ones. Raises
        BadInputError if the file does not fit the image.
        """

    def findings(self, parsed: Parsed, tile: Tile) -> Findings:
        """Count what a parsed file holds for the whole image that a tile is of.

        Raises what annotation_in() raises. A format that has no objects finds nothing.
        """
        return Findings()
