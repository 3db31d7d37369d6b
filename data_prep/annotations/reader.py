"""What a reader of annotations is, and what it gives; `formats.READERS` holds one for each format.

A file is read in two steps: `parse` says what is in it, whatever its image; `place` puts that onto
the image, or onto a tile of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from data_prep import raw
from data_prep.images.arrays import Mask
from data_prep.images.tiles import Tile
from data_prep.raw import BadFile, Field, Points

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Annotation:
    """What is annotated in an image, or in a tile of it. Every asked class is among the points, if
    only with none."""

    points: Points
    """Nuclei that are annotated as points, to be drawn as discs; of a tile also those that lie up
    to MARGIN_PX outside."""
    areas_HW: Mask | None = None
    """The mask values of areas as they were drawn; None where there are none."""
    middles: Points | None = None
    """Where there may be areas: the middle of each, under the same classes."""

    @property
    def has_areas(self) -> bool:
        """Whether any pixel is in an area."""
        return self.areas_HW is not None and bool(self.areas_HW.any())

    @property
    def nuclei(self) -> Points:
        """A point for every point and every area."""
        return with_middles(self.points, self.middles)


def with_middles(points: Points, middles: Points | None) -> Points:
    """Points and the middles of areas, class by class."""
    if middles is None:
        return points
    return {name: np.concatenate([points[name], middles[name]]) for name in points}


def inside_only(points: Points) -> Points:
    """The points that are in the picture, its far edges included."""
    return {name: points_N2[are_inside(points_N2)] for name, points_N2 in points.items()}


def outside_only(points: Points) -> Points:
    """The other points, which lie about a tile."""
    return {name: points_N2[~are_inside(points_N2)] for name, points_N2 in points.items()}


def are_inside(points_N2: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(N,): which points are from 0 to 1 along both axes."""
    return np.all((points_N2 >= 0) & (points_N2 <= 1), axis=1)


class Reader(ABC, Generic[Parsed]):
    """Reads the annotations of one format."""

    suffixes: ClassVar[tuple[str, ...]]
    """Endings of its files, in lower case, the usual one first."""
    has_areas: ClassVar[bool] = False
    """Whether it may hold areas, so that a mask is more than discs."""
    lists_classes: ClassVar[bool] = False
    """Whether every file must list every asked class, with no points in it where need be."""

    def find_fields(self, folder: Path, case_regex: str) -> tuple[list[Field], list[BadFile]]:
        """The fields of a raw folder, and what is none. Raises UsageError as raw.find_fields."""
        return raw.find_fields(folder, case_regex, self.suffixes)

    def check_classes(self, classes: Sequence[str]) -> list[str]:
        """The asked classes under their usual names. Raises UsageError for what cannot be one."""
        return list(classes)

    @abstractmethod
    def parse(self, field: Field) -> Parsed:
        """What a field's annotation holds. Raises BadInputError with the reason, or OSError."""

    @abstractmethod
    def classes_in(self, parsed: Parsed, classes: Sequence[str]) -> Collection[str]:
        """The classes that it holds, or those of the asked ones where it has no names.

        Raises BadInputError where only reading it shows that it is bad.
        """

    @abstractmethod
    def place(self, parsed: Parsed, tile: Tile, values: Mapping[str, int]) -> Annotation:
        """That, on a tile (or the whole) of its image; `values`: asked class -> mask value, later
        ones over earlier ones. Raises BadInputError."""
