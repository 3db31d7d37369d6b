"""Read and write the description of a prepared data set: manifest.jsonl and dataset.json.

manifest.jsonl has one line per sample (`Sample`); dataset.json has counts, classes, split and
configuration, and is written last: a folder without it is not a whole data set.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.command_line import UsageError
from common.files import holds, is_inside, is_plain
from common.ownership import Item
from common.schema import read_small, read_small_lines, short, validated
from data_prep.config import SPLITS
from data_prep.dataset.description import (
    AGAIN,
    DATASET,
    FORMAT,
    MOST_BYTES,
    DatasetError,
    Description,
    read_description,
)
from data_prep.dataset.folds import Fold

KIND = "dataset"  # private folder of the record
MANIFEST = "manifest.jsonl"
NAMES = ("id", "case", "field")  # values that become names of files
FILES = ("image", "mask", "points")  # files of a sample: each has a path, a size and a hash


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
    """Number of mask pixels that are of a class."""
    ignored_px: int
    """Number of mask pixels that no loss and no metric counts."""
    nuclei: dict[str, int]
    """Class -> number of annotated nuclei, points or areas, in the file of points."""
    image_bytes: int
    mask_bytes: int
    points_bytes: int
    image_sha256: str
    mask_sha256: str
    points_sha256: str


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
        description = self.description.of_fold(fold, f"data={self.folder}", self.folder)
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
