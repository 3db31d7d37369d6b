"""Read dataset.json: how a set was prepared, and which cases are in its splits or folds."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from common.command_line import UserError
from common.schema import checked, read_small, require_printable, short, validated
from data_prep.cases.names import check_regex
from data_prep.config import (
    IGNORE_LABEL,
    LARGEST_MPP,
    MARGIN_PX,
    MAX_CLASSES,
    OBJECT_TYPES,
    SMALLEST_MPP,
    SPLITS,
    PrepConfig,
    SplitConfig,
    check_ignore_value,
)
from data_prep.dataset.folds import Fold, cases_of_fold, check_fold
from data_prep.images.stains import Stains, reference_of

FORMAT = 6
DATASET = "dataset.json"
MOST_BYTES = 10**8  # of dataset.json: some four million cases
AGAIN = "; run data_prep again"  # how to repair a damaged set
ELSEWHERE = "prepare the data again with data_prep, into another out="


class DatasetError(UserError):
    """A folder that is not a whole prepared data set."""


@dataclass(frozen=True)
class Labelling:
    """How a data set's fields were read and its masks painted, to treat raw fields the same way."""

    labels: dict[str, int]
    """Class -> mask value."""
    radius_px: int
    uint16_white: int
    case_regex: str
    annotations: str = "brecahad"
    """The format of the annotations, a key of formats.READERS."""
    object_types: list[str] = field(default_factory=lambda: list(OBJECT_TYPES))
    """Types of QuPath's objects that count."""
    empty: Literal["refuse", "accept"] = field(default="refuse", compare=False)
    """What an annotation without objects is; not a part of what a mask means."""
    mpp: float | None = None
    """Resolution of the fields, in micrometres per px; None if it is not known."""
    ignore_value: int | Literal["none"] = "none"
    """The value of pixels in masks that are ignored."""
    ignore_px: int = 0
    """Width of the ring around each disc that is ignored."""
    stain_norm: Literal["none", "macenko"] = "none"
    stain_reference: str = ""
    """The numbers of the stains that fields are given, as stains.parse reads them."""

    def __post_init__(self) -> None:
        check_regex(self.case_regex)
        if self.mpp is not None and not SMALLEST_MPP <= self.mpp <= LARGEST_MPP:
            raise ValueError(f"mpp {short(self.mpp)} is no resolution")
        require_printable(self.labels, "labels")
        values = {*self.labels.values()}
        if not values or not values <= {*range(1, 256)} - {IGNORE_LABEL}:
            raise ValueError(
                f"labels: {short(self.labels)}; expected 1 to {MAX_CLASSES}, or 255, for each"
            )
        if not 1 <= self.radius_px <= MARGIN_PX:
            raise ValueError(f"radius_px: {short(self.radius_px)}; expected 1 to {MARGIN_PX}")
        if self.annotations == "masks":
            check_ignore_value(self.ignore_value, [*self.labels], is_binary=len(values) == 1)
        if not 0 <= self.ignore_px <= MARGIN_PX - self.radius_px:
            most = MARGIN_PX - self.radius_px
            raise ValueError(f"ignore_px: {short(self.ignore_px)}; expected 0 to {most}")
        if self.uint16_white < 1:
            raise ValueError(f"uint16_white: {short(self.uint16_white)}; expected at least 1")
        try:
            reference_of(self.stain_norm, self.stain_reference)
        except ValueError as error:
            raise ValueError(f"stain_reference: {error}") from None
        formats = get_args(get_type_hints(PrepConfig)["annotations"])
        if self.annotations not in formats:
            raise ValueError(
                f"annotations: {short(self.annotations)}; expected one of {', '.join(formats)}"
            )

    @property
    def stains(self) -> Stains | None:
        """The stains that fields are given; None if they keep their own."""
        return reference_of(self.stain_norm, self.stain_reference)


@dataclass(frozen=True)
class Description:
    """The content of dataset.json."""

    labelling: Labelling
    cases: dict[str, list[str]]
    """Split -> its cases."""
    content_sha256: str
    settings: dict[str, Any]
    """The settings of data_prep, without where and how fast it was prepared."""
    folds: list[list[str]] = field(default_factory=list)
    """The cases of each fold; none where the cases are split once and for all."""

    def of_fold(
        self, fold: Fold, data: str = "the data set", folder: Path | None = None
    ) -> "Description":
        """Return it as a fold sees it: `cases` are those of the fold's splits.

        Raises UsageError for a fold that it does not have: `data` names the set there, `folder` is
        where it was prepared.
        """
        check_fold(self.folds, fold, data, folder)
        if fold == "none":
            return self
        has_val = bool(self.settings["split"]["val"])
        return replace(self, cases=cases_of_fold(self.folds, fold, has_val))


@dataclass(frozen=True)
class ValSettings:
    """The schema of config.split in a set with folds, as far as it is read."""

    val: float


@dataclass(frozen=True)
class DatasetFile:
    """The schema of dataset.json, as far as it is read; folds may be missing."""

    labels: dict[str, int]
    split: dict[str, list[str]]
    mpp: float | None
    config: dict[str, Any]
    content_sha256: str


def format_of(folder: Path) -> object:
    """Return the format of a folder's dataset.json; None if it cannot be read."""
    try:
        return validated(dict[str, Any], read_small(folder / DATASET, MOST_BYTES)).get("format")
    except (OSError, ValueError):
        return None


def read_description(path: Path, way_out: str = ELSEWHERE) -> Description:
    """Read a dataset.json. Raises DatasetError if it is missing, damaged, or of another format.

    `way_out`: advice about another format.
    """
    try:
        content = read_small(path, MOST_BYTES)
        found = validated(dict[str, Any], content).get("format")
        if found != FORMAT:
            raise DatasetError(
                f"{path}: format {short(found)}; this version reads {FORMAT}: {way_out}",
                can_heal=False,
            )
        about = validated(DatasetFile, content)
        labelling = labelling_of(about.labels, about.config, about.mpp)
        require_printable(about.config, "config")
        require_printable(about.split, "split")
        check_splits(about.split)
        checked(dict[str, dict[str, Any]], {"config.split": about.config.get("split", {})})
        folds = read_folds(content, about)
        return Description(labelling, about.split, about.content_sha256, about.config, folds)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: missing or damaged: {error}{AGAIN}") from None


def check_splits(cases: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless these are the cases of all three splits, each in one of them."""
    if cases.keys() != set(SPLITS):
        raise ValueError(f"split: {short([*cases])}; expected {', '.join(SPLITS)}")
    listed = [case for split in SPLITS for case in cases[split]]
    if len(set(listed)) < len(listed):
        twice = next(case for case, times in Counter(listed).items() if times > 1)
        raise ValueError(f"split: {short(twice)} is listed twice")


def read_folds(content: bytes, about: DatasetFile) -> list[list[str]]:
    """Return the folds in a dataset.json, [] for none. Raises ValueError for what are no folds."""
    folds = checked(list[list[str]], validated(dict[str, Any], content).get("folds", []))
    if not folds:
        return []
    dealt = [case for members in folds for case in members]
    is_once = len(set(dealt)) == len(dealt) and {*dealt} <= {*about.split["train"]}
    if not (all(folds) and is_once):
        raise ValueError("folds: not each a list of cases of the train split, each case once")
    val = checked(ValSettings, about.config.get("split", {})).val
    least = SplitConfig(val=val, test=0).least_folds
    if len(folds) < least:
        raise ValueError(f"folds: {len(folds)}; expected at least {least} with split.val={val}")
    return folds


def labelling_of(
    labels: Mapping[str, int], settings: Mapping[str, Any], mpp: float | None
) -> Labelling:
    """Return how fields were read, from the settings of data_prep. Raises ValueError."""
    return validated(Labelling, json.dumps({**settings, "labels": labels, "mpp": mpp}))
