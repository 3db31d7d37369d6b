"""Count what files of annotations hold beside what is learned, and say it after a preparation."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from common.command_line import MOST_NAMED, counted
from data_prep.config import is_ignored
from data_prep.raw import BadInputError


class UnusableError(BadInputError):
    """An object cannot be used. The others of its file can, so it is passed over and counted."""

    def __init__(self, where: str, reason: str, detail: str = "") -> None:
        """`reason`: what all such objects are counted under; `detail`: what to say of this one."""
        super().__init__(f"{where}: {detail or reason}")
        self.reason = reason


@dataclass(frozen=True)
class Findings:
    """What a file of annotations holds, or several files together."""

    classes: dict[str, int] = field(default_factory=dict)
    """Class -> number of its objects, each counted once, also of classes that are not learned."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Reason -> number of objects, or parts of one, that could not be used."""
    clipped: int = 0
    """Outlines that reached over the border of their image, and were cut there."""
    duplicates: int = 0
    """Objects left out because another has the same class and the same geometry."""
    holding: dict[str, int] = field(default_factory=dict)
    """Class -> number of its areas that hold the middle of another object of the class, which is
    not larger."""
    untested: int = 0
    """Areas that were not tested for that, since their outlines have too many corners."""


def add_up(findings: Iterable[Findings]) -> Findings:
    """Sum up the findings of several files; names and reasons come in the order of the alphabet."""
    listed = list(findings)
    return Findings(
        summed(entry.classes for entry in listed),
        summed(entry.passed_over for entry in listed),
        sum(entry.clipped for entry in listed),
        sum(entry.duplicates for entry in listed),
        summed(entry.holding for entry in listed),
        sum(entry.untested for entry in listed),
    )


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum up counts, sorted by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def summary(findings: Findings, classes: Sequence[str]) -> list[str]:
    """Say in at most six lines what is not learned; `classes` are those that are."""
    others = {name: n for name, n in findings.classes.items() if name not in classes}
    ignored = {name: others.pop(name) for name in [*filter(is_ignored, others)]}
    lines = []
    if ignored:
        lines.append(f"annotated to be ignored: {listed_counts(ignored)}")
    if others:
        lines.append(f"not learned: {listed_counts(others)}")
    if findings.passed_over:
        lines.append(f"passed over: {listed_counts(findings.passed_over, '{1} ({0})')}")
    if findings.duplicates:
        lines.append(f"counted once: {counted(findings.duplicates, 'object')} annotated again")
    if findings.clipped:
        outlines = counted(findings.clipped, "outline")
        lines.append(f"cut at the border of the image: {outlines}")
    if findings.untested:
        areas = counted(findings.untested, "area")
        lines.append(f"not tested for holding others (too many corners): {areas}")
    return lines


def listed_counts(counts: Mapping[str, int], form: str = "{0} {1}") -> str:
    """Write names with their counts, the largest count first."""
    largest = sorted(counts, key=lambda name: (-counts[name], name))
    listed = [form.format(shown(name), counts[name]) for name in largest[:MOST_NAMED]]
    more = len(largest) - MOST_NAMED
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")


def shown(name: str) -> str:
    """Quote a name whose blanks would not be seen, or that is not printable."""
    is_clear = name.isprintable() and name == " ".join(name.split()) and name
    return name if is_clear else ascii(name)


def warnings(findings: Findings, classes: Sequence[str], annotations: str) -> list[str]:
    """Return a line for each class that is most likely not what it was meant to be.

    These are classes that others differ from in nothing but their spelling, and areas around
    objects of their own class.
    """
    lines = []
    for name in classes:
        alike = [other for other in findings.classes if is_alike(other, name)]
        if others := [other for other in alike if other not in classes]:
            found = " and ".join(
                f"{quoted(other, name)} ({counted(findings.classes[other], 'object')})"
                for other in others
            )
            learned = counted(findings.classes.get(name, 0), "object")
            lines.append(
                f"classes: {found} {'is' if len(others) == 1 else 'are'} not learned, since only"
                f" {quoted(name, *others)} ({learned}) is; give them one name in the annotations,"
                " or list all in classes="
            )
        if holding := findings.holding.get(name):
            lines.append(
                f"{counted(holding, 'area')} of {shown(name)} {'holds' if holding == 1 else 'hold'}"
                " others of the same class, and all are learned" + way_out(annotations)
            )
    return lines


def way_out(annotations: str) -> str:
    """Say how to leave out regions that are drawn around the objects of their class."""
    if annotations != "geojson":
        return ""
    return "; if they are regions around cells, object_types=[detection,cell] leaves them out"


def is_alike(name: str, other: str) -> bool:
    """Whether two different names differ only in letter case, blanks or Unicode form."""
    return name != other and plain(name) == plain(other)


def plain(name: str) -> str:
    """Return a name without what is easily overlooked."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(folded.split())


def quoted(name: str, *others: str) -> str:
    """Quote a name, so that it looks unlike the others."""
    form = unicodedata.normalize("NFC", name)
    looks_the_same = any(unicodedata.normalize("NFC", other) == form for other in others)
    return ascii(name) if looks_the_same else repr(name)
