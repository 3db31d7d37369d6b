"""The stains of an H&E picture, as numbers that a command line and a data set can hold.

This module imports nothing large: settings and descriptions of data sets are checked with it.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from common.command_line import UsageError, counted, named
from common.schema import short

MACENKO = "macenko"
Numbers = tuple[float, ...]
SIZES = {"hematoxylin": 3, "eosin": 3, "maxima": 2}
LARGEST_MAXIMUM = 10.0
UNIT_TOLERANCE = 0.01
LEAST_ANGLE_DEG = 12.0
"""Between the two stains; closer ones cannot be told apart."""


def as_words(values: Numbers) -> str:
    """Write numbers with a blank between them."""
    return " ".join(map(repr, values))


def angle_deg(one: Numbers, other: Numbers) -> float:
    """Return the angle between two vectors of length 1, in degrees."""
    cosine = sum(a * b for a, b in zip(one, other, strict=True))
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


@dataclass(frozen=True)
class Stains:
    """The two stains of a picture. Optical densities are natural logarithms, ln(255 / value)."""

    hematoxylin: Numbers
    """Its density in red, green and blue, of length 1."""
    eosin: Numbers
    """The same of eosin."""
    maxima: Numbers
    """The 99th percentile of the concentration of hematoxylin, and that of eosin."""

    def __post_init__(self) -> None:
        for name, vector in (("hematoxylin", self.hematoxylin), ("eosin", self.eosin)):
            if not (min(vector) >= 0 and abs(math.hypot(*vector) - 1) <= UNIT_TOLERANCE):  # nor NaN
                raise ValueError(f"{name} {as_words(vector)}: expected from 0 to 1, of length 1")
        if not all(0 < maximum <= LARGEST_MAXIMUM for maximum in self.maxima):
            raise ValueError(
                f"maxima {as_words(self.maxima)}: expected above 0, at most {LARGEST_MAXIMUM:g}"
            )
        if angle_deg(self.hematoxylin, self.eosin) < LEAST_ANGLE_DEG:
            raise ValueError("hematoxylin and eosin are of one colour")

    def text(self) -> str:
        """Write it as `parse` reads it: each name, followed by its numbers."""
        return " ".join(f"{name} {as_words(getattr(self, name))}" for name in SIZES)


PUBLISHED = Stains((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581), (1.9705, 1.0308))
"""The reference of the implementations in use (github.com/mitkovetta/staining-normalization)."""


def parse(text: str) -> Stains:
    """Read what `Stains.text` writes. Raises ValueError."""
    words, found = text.split(), list[Numbers]()
    for name, size in SIZES.items():
        if len(words) <= size or words[0] != name:
            raise ValueError(f"expected '{PUBLISHED.text()}', or other numbers")
        found.append(tuple(map(float, words[1 : size + 1])))
        words = words[size + 1 :]
    if words:
        raise ValueError(f"expected nothing after the maxima, found {short(' '.join(words))}")
    return Stains(*found)


def reference_of(norm: str, reference: str) -> Stains | None:
    """Return the stains that pictures are given, from stain_norm and the numbers in
    stain_reference; None to leave pictures as they are. Raises ValueError."""
    return parse(reference) if norm == MACENKO else None


def check_given(reference: str) -> None:
    """Raise UsageError where stain_reference= is neither an image file nor numbers."""
    if not reference or os.path.isfile(reference):
        return
    if not reference.startswith("hematoxylin "):
        raise UsageError(
            f"stain_reference={short(reference)}: no such image; name a file, or give numbers,"
            f" as in 'stain_reference={PUBLISHED.text()}'"
        )
    try:
        parse(reference)
    except ValueError as error:
        raise UsageError(f"stain_reference: {error}") from None


def notes_on_stains(problems: Mapping[str, str]) -> list[str]:
    """Return a line about images that keep their colours; none where there are no such.

    `problems`: image -> why its stains could not be estimated, '' if they were.
    """
    left = [f"{image} ({problem})" for image, problem in problems.items() if problem]
    if not left:
        return []
    keep, their = ("keeps", "its") if len(left) == 1 else ("keep", "their")
    return [
        f"{len(left)} of {counted(len(problems), 'image')} {keep} {their} colours, since"
        f" {their} stains cannot be estimated: {named(left)}"
    ]
