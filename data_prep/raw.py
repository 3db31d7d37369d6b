"""Find the fields of a raw folder, each an image with its annotation.

images/Case_<case>-<field>.tif + groundTruth/Case_<case>-<field>.json      or all in one folder
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UsageError, UserError
from data_prep.cases.names import case_of
from data_prep.config import BRECAHAD

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")

CHANGED = "was changed meanwhile; run again"  # the reason for a file that changed between two reads


class BadInputError(ValueError):
    """A file cannot be used; the message gives the reason, without the file's name."""


@dataclass(frozen=True)
class Field:
    """One field of view: its name, its case (patient) and its two files."""

    name: str
    case: str
    image: Path
    annotation: Path
    annotation_sha256: str = ""
    """Hash of this field's annotation, where one file annotates several fields; else ''."""


@dataclass(frozen=True)
class BadFile:
    """A raw file that cannot be used, and why."""

    file: str
    reason: str


class BadInputFilesError(UserError):
    """Raw files that cannot be used, listed with their reasons."""

    def __init__(self, bad: Sequence[BadFile], missed: str = "") -> None:
        """`missed`: what the set lacks without these files; '' if they may be left out."""
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in bad)
        advice = ", or leave them out with on_error=skip"
        if missed:
            advice = f" (others may be bad, too): without them there are {missed}"
        super().__init__(f"{len(bad)} bad file(s):\n{listed}\nCorrect them{advice}")


def find_fields(
    raw: Path, case_regex: str, suffixes: Sequence[str], ending: str = ""
) -> tuple[list[Field], list[BadFile]]:
    """Pair the images and annotations under `raw`.

    Returns usable fields, and the files that are not.
    An annotation has its image's name, or that name and `ending`, and one of the `suffixes`.
    Raises UsageError if `raw` holds no images in either layout.
    """
    image_folder, annotation_folder = raw_folders(raw)
    images = find_images(raw)
    annotations = by_image(files_by_stem(annotation_folder, suffixes), images, ending)
    fields, bad = [], []
    for stem in sorted(images.keys() | annotations.keys(), key=natural_key):
        pair = images.get(stem, []), annotations.get(stem, [])
        expected = annotation_folder / f"{stem}{suffixes[0]}"
        reason = pairing_problem(*pair, expected, image_folder, ending)
        if reason:
            bad += [BadFile(str(path.relative_to(raw)), reason) for path in pair[0] + pair[1]]
        else:
            fields.append(Field(stem, case_of(stem, case_regex), pair[0][0], pair[1][0]))
    if not fields and (hint := nested_hint(raw)):
        raise UsageError(f"raw={raw}: images without an annotation{hint}")
    return fields, bad


def raw_folders(raw: Path) -> tuple[Path, Path]:
    """Return the folders of the images and of the annotations."""
    if not raw.is_dir():
        raise UsageError(f"raw={raw}: no such folder{ways_to_data(raw)}")
    images, annotations = raw / "images", raw / "groundTruth"
    return (images, annotations) if images.is_dir() and annotations.is_dir() else (raw, raw)


def ways_to_data(raw: Path) -> str:
    """Name the commands that put data into the default folder."""
    if raw.resolve() != Path(BRECAHAD).resolve():
        return ""
    return (
        "; python -m data_prep.fetch downloads BreCaHAD there, python -m data_prep.synthetic"
        f" out={BRECAHAD} makes a synthetic data set instead"
    )


def find_images(raw: Path) -> dict[str, list[Path]]:
    """List the images by name without ending; a good name has one image. Raises UsageError."""
    images = files_by_stem(raw_folders(raw)[0], IMAGE_SUFFIXES)
    if not images:
        raise UsageError(
            f"raw={raw}: no images found; expected images/Case_*.tif with groundTruth/Case_*.json,"
            f" or both in this folder{nested_hint(raw)}"
        )
    return images


def nested_hint(raw: Path) -> str:
    """Suggest the folder below or above if it has the layout."""
    likely = [folder.parent for folder in sorted(raw.glob("*/images")) if folder.is_dir()]
    if len(set(raw_folders(raw.parent))) == 2 and raw in raw_folders(raw.parent):
        likely.append(raw.parent)
    return f"; did you mean raw={likely[0]}?" if likely else ""


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """List files with one of the endings, by name without ending; skip hidden files."""
    found = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            found[path.stem].append(path)
    return found


def by_image(
    annotations: Mapping[str, list[Path]], images: Collection[str], ending: str
) -> dict[str, list[Path]]:
    """List annotations by the names of their images.

    NAME + `ending` belongs to NAME if that image exists and none has the whole name.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for stem, paths in annotations.items():
        name = stem.removesuffix(ending)
        found[name if name in images and stem not in images else stem] += paths
    return found


def pairing_problem(
    images: list[Path], annotations: list[Path], expected: Path, image_folder: Path, ending: str
) -> str:
    """Say why these files of one name are not a pair; '' if they are.

    `expected` is the usual path of the annotation; its name may have the `ending` too.
    """
    if len(images) > 1:
        return f"two fields of one name: {', '.join(path.name for path in images)}; keep one"
    if len(annotations) > 1:
        names = ", ".join(path.name for path in annotations)
        return f"two annotations of one field: {names}; keep one"
    if not annotations:
        return f"has no annotation: {expected.parent.name}/{expected.name} is not there"
    if not images:
        stem = annotations[0].stem
        stems = dict.fromkeys([stem.removesuffix(ending), stem])
        files = " or ".join(f"{image_folder.name}/{name}.tif" for name in stems)
        return f"has no image: {files} is not there"
    return ""


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts Case_2 before Case_10."""
    pieces = re.split(r"(\d+)", text)
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces if piece]
