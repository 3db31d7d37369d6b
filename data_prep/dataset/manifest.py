"""Read and write the description of a prepared data set: manifest.jsonl and dataset.json.

manifest.jsonl has one line per sample (`Sample`); dataset.json has counts, classes, split and
configuration, and is written last: a folder without it is not a whole data set.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from common.command_line import UsageError, UserError
from common.files import holds, is_inside, is_plain
from common.ownership import Item
from common.schema import (
    checked,
    read_small,
    read_small_lines,
    require_printable,
    short,
    validated,
)
from data_prep.cases.names import check_regex
from data_prep.config import (
    LARGEST_MPP,
    MARGIN_PX,
    MAX_CLASSES,
    OBJECT_TYPES,
    SMALLEST_MPP,
    SPLITS,
    PrepConfig,
)
from data_prep.dataset.folds import Fold, cases_of_fold, check_fold

FORMAT = 5
KIND = "dataset"  # private folder of the record
MANIFEST = "manifest.jsonl"
DATASET = "dataset.json"
MOST_BYTES = 10**8  # of dataset.json: some four million cases
AGAIN = "; run data_prep again"  # how to repair a damaged set
ELSEWHERE = "prepare the data again with data_prep, into another out="
NAMES = ("id", "case", "field")  # values that become names of files
FILES = ("image", "mask", "points")  # files of a sample: each has a path, a size and a hash


class DatasetError(UserError):
    """A folder that is not a whole prepared data set."""


@dataclass(frozen=True)
class Sample:
    """One prepared image with its mask."""

    id: str
    case: str
    field: str
    variant: int
    """0 is the original, others are augmented."""
    transform: str
    parameters: dict[str, float]
    """The transform's random parameters, in the units that their names end in."""
    seed: int
    split: str
    image: str
    """Path of the image from the data set's folder."""
    mask: str
    """Path of the mask from the data set's folder."""
    points: str
    """Path of the points, a JSON like BreCaHAD's, from the data set's folder."""
    height_px: int
    width_px: int
    foreground_px: int
    """Number of mask pixels that are not background."""
    nuclei: dict[str, int]
    """Class -> number of annotated nuclei, points or areas, in the file of points."""
    image_bytes: int
    mask_bytes: int
    points_bytes: int
    image_sha256: str
    mask_sha256: str
    points_sha256: str


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

    def __post_init__(self) -> None:
        check_regex(self.case_regex)
        if self.mpp is not None and not SMALLEST_MPP <= self.mpp <= LARGEST_MPP:
            raise ValueError(f"mpp {short(self.mpp)} is no resolution")
        require_printable(self.labels, "labels")
        wrong = [value for value in self.labels.values() if not 1 <= value <= MAX_CLASSES]
        if wrong or not self.labels:
            raise ValueError(f"labels: {short(self.labels)}; expected 1 to {MAX_CLASSES} for each")
        if not 1 <= self.radius_px <= MARGIN_PX:
            raise ValueError(f"radius_px: {short(self.radius_px)}; expected 1 to {MARGIN_PX}")
        if self.uint16_white < 1:
            raise ValueError(f"uint16_white: {short(self.uint16_white)}; expected at least 1")
        formats = get_args(get_type_hints(PrepConfig)["annotations"])
        if self.annotations not in formats:
            raise ValueError(
                f"annotations: {short(self.annotations)}; expected one of {', '.join(formats)}"
            )


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

    def of_fold(self, fold: Fold, data: str = "the data set") -> "Description":
        """Return it as a fold sees it: `cases` are those of the fold's splits.

        Raises UsageError, which names the set as `data`, for a fold that it does not have.
        """
        check_fold(self.folds, fold, data)
        if fold == "none":
            return self
        has_val = bool(self.settings["split"]["val"])
        return replace(self, cases=cases_of_fold(self.folds, fold, has_val))


@dataclass(frozen=True)
class DatasetFile:
    """The schema of dataset.json, as far as it is read; folds may be missing."""

    labels: dict[str, int]
    split: dict[str, list[str]]
    mpp: float | None
    config: dict[str, Any]
    content_sha256: str


@dataclass(frozen=True)
class Dataset:
    """A whole prepared data set on disk."""

    folder: Path
    samples: list[Sample]
    description: Description

    def split(self, name: str, originals_only: bool = False) -> list[Sample]:
        """Return the samples of a split, in the manifest's order."""
        return [
            sample
            for sample in self.samples
            if sample.split == name and (sample.variant == 0 or not originals_only)
        ]

    @property
    def packed_samples(self) -> list[Sample]:
        """The samples that a pack holds: whichever may be trained on, in the manifest's order."""
        return self.samples if self.description.folds else self.split("train")

    def of_fold(self, fold: Fold) -> "Dataset":
        """Return it as a fold sees it, see Description. Raises UsageError."""
        description = self.description.of_fold(fold, f"data={self.folder}")
        split_of = {case: split for split, cases in description.cases.items() for case in cases}
        samples = [replace(each, split=split_of[each.case]) for each in self.samples]
        return replace(self, samples=samples, description=description)


def write_dataset(folder: Path, samples: Sequence[Sample], about: Mapping[str, Any]) -> str:
    """Write manifest.jsonl, then dataset.json from `about`; return the content hash.

    Raises UserError if another file has one of these names.
    """
    manifest = "".join(json.dumps(vars(sample)) + "\n" for sample in samples).encode()
    content_sha256 = hashlib.sha256(manifest).hexdigest()
    content = {
        "format": FORMAT,
        "counts": count_samples(samples),
        **about,
        "content_sha256": content_sha256,
    }
    files = {MANIFEST: manifest, DATASET: (json.dumps(content, indent=2) + "\n").encode()}
    about_files = {"content_sha256": content_sha256}
    with item_of(folder) as item:
        is_done = item.read().about == about_files  # it was not killed before its end
        if not is_done or not all(holds(folder / name, files[name]) for name in files):
            for name, encoded in files.items():
                item.write(name, encoded)
            item.publish(about_files)
    return content_sha256


def item_of(folder: Path) -> Item:
    """Return the item with the files that make a folder a data set."""
    return Item(folder, KIND, "dataset")


def unpublish(folder: Path) -> None:
    """Remove dataset.json before the first file changes. Raises UserError if it is not ours."""
    item_of(folder).remove_file(DATASET)


def count_samples(samples: Iterable[Sample]) -> dict[str, dict[str, Any]]:
    """Count the cases, fields and samples of each split, and its nuclei of each class."""
    counts = {}
    for split in ("train", "val", "test"):
        members = [sample for sample in samples if sample.split == split]
        counts[split] = {
            "cases": len({sample.case for sample in members}),
            "fields": len({sample.field for sample in members}),
            "samples": len(members),
            "nuclei": count_nuclei(members),
        }
    return counts


def count_nuclei(samples: Iterable[Sample]) -> dict[str, int]:
    """Count the annotated nuclei of each class in the original fields among these samples."""
    counts: dict[str, int] = {}
    for sample in samples:
        if sample.variant == 0:
            for name, number in sample.nuclei.items():
                counts[name] = counts.get(name, 0) + number
    return counts


def read_dataset(folder: Path) -> Dataset:
    """Read a prepared data set.

    Raises UsageError if the folder is missing, DatasetError if it is not a whole data set, or was
    changed.
    """
    if not folder.is_dir():
        raise UsageError(
            f"data={folder}: no such folder; python -m data_prep out={folder} prepares one",
            can_heal=True,  # a mount may be missing on one node
        )
    if not (folder / DATASET).is_file():
        if (folder / "groundTruth").is_dir():
            raise DatasetError(
                f"data={folder}: raw fields; prepare them first, as with python -m data_prep"
                f" raw={folder} out=prepared",
                can_heal=False,
            )
        raise DatasetError(
            f"data={folder}: no {DATASET}: not a prepared data set, or its preparation did not"
            f" end; run python -m data_prep raw=... out={folder}"
        )
    description = read_description(folder / DATASET)
    samples, sha256 = read_samples(folder / MANIFEST)
    if sha256 != description.content_sha256:
        raise DatasetError(
            f"{folder / MANIFEST}: not the one that {DATASET} was written with{AGAIN}",
            can_heal=False,
        )
    check_cases(folder, samples, description)
    return Dataset(folder, samples, description)


def check_cases(folder: Path, samples: Sequence[Sample], description: Description) -> None:
    """Check that each sample is in the split of its case, and in a fold if there are folds. Raises
    DatasetError."""
    split_of = {case: split for split in SPLITS for case in description.cases.get(split, [])}
    for sample in samples:
        if split_of.get(sample.case) != sample.split:
            raise DatasetError(
                f"{folder / MANIFEST}: {sample.id} of {sample.case} is in {short(sample.split)},"
                f" but {DATASET} has the case in {split_of.get(sample.case)}{AGAIN}"
            )
    dealt = {case for members in description.folds for case in members}
    if dealt and (left := sorted({sample.case for sample in samples} - dealt)):
        raise DatasetError(f"{folder / DATASET}: {short(left[0])} is in no fold{AGAIN}")


def format_of(folder: Path) -> object:
    """Return the format of a folder's dataset.json; None if it cannot be read."""
    try:
        return validated(dict[str, Any], read_small(folder / DATASET, MOST_BYTES)).get("format")
    except (OSError, ValueError):
        return None


def read_samples(path: Path) -> tuple[list[Sample], str]:
    """Read a manifest line by line; return its samples and the hash of its content.

    Raises DatasetError, which names a line that is damaged.
    """
    samples: list[Sample] = []
    sha256 = hashlib.sha256()
    try:
        for line in read_small_lines(path):
            sha256.update(line)
            samples.append(sample_of(path, len(samples) + 1, line))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: missing or damaged: {error}{AGAIN}") from None
    return samples, sha256.hexdigest()


def sample_of(path: Path, number: int, line: bytes) -> Sample:
    """Read the sample of a line. Raises DatasetError that names the line."""
    try:
        sample = validated(Sample, line)
        check_names(sample)
    except ValueError as error:
        raise DatasetError(f"{path}: line {number} is damaged: {error}{AGAIN}") from None
    return sample


def check_names(sample: Sample) -> None:
    """Check that names are no paths: a manifest may come from elsewhere. Raises ValueError."""
    values: dict[str, Any] = vars(sample)
    for name in NAMES:
        if not is_plain(values[name]):
            raise ValueError(f"{name} {short(values[name])} is not a plain file name")
    for name in FILES:
        if not is_inside(values[name]):
            raise ValueError(f"{name} {short(values[name])} is not a path inside the data set")


def check_unchanged(dataset: Dataset) -> None:
    """Raise DatasetError if another data set replaced it since it was read.

    A missing dataset.json proves nothing: it is missing while fields are prepared again, perhaps
    with the same bytes, and samples.check_content refuses other bytes.
    """
    try:
        about = validated(dict[str, Any], read_small(dataset.folder / DATASET, MOST_BYTES))
        if about.get("content_sha256", dataset) == dataset.description.content_sha256:
            return
    except (OSError, ValueError):
        return
    raise DatasetError(
        f"data={dataset.folder}: was prepared anew while a run trained on it; the run's last"
        " checkpoint is from before. Prepare the data as they were, and run the same command again",
        can_heal=False,
    )


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
        folds = read_folds(content, about)
        return Description(labelling, about.split, about.content_sha256, about.config, folds)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: missing or damaged: {error}{AGAIN}") from None


def read_folds(content: bytes, about: DatasetFile) -> list[list[str]]:
    """Return the folds in a dataset.json, [] for none. Raises ValueError for what are no folds."""
    folds = checked(list[list[str]], validated(dict[str, Any], content).get("folds", []))
    dealt = [case for members in folds for case in members]
    is_once = len(set(dealt)) == len(dealt) and {*dealt} <= {*about.split.get("train", [])}
    if not (all(folds) and is_once):
        raise ValueError("folds: not each a list of cases of the train split, each case once")
    if folds and not isinstance(about.config.get("split", {}).get("val"), int | float):
        raise ValueError("config: split.val is missing")
    return folds


def labelling_of(
    labels: Mapping[str, int], settings: Mapping[str, Any], mpp: float | None
) -> Labelling:
    """Return how fields were read, from the settings of data_prep. Raises ValueError."""
    return validated(Labelling, json.dumps({**settings, "labels": labels, "mpp": mpp}))
