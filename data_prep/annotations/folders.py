"""Find the folders of the images and of the annotations in a raw folder, by their usual names.

BreCaHAD's are images/ and groundTruth/. Where another choice is possible, it is refused.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UsageError, counted
from data_prep.config import BRECAHAD
from data_prep.raw import IMAGE_SUFFIXES, by_name, field_name, list_files

IMAGE_FOLDERS = {"images", "image", "imgs", "img", "tiles", "patches"}
ANNOTATION_FOLDERS = {
    *("groundtruth", "gt", "annotations", "annotation", "masks", "mask", "labels", "label")
}
SEPARATOR = "[-_. ]"
MOST_FOLDERS = 8  # named in a message


class NoAnnotationsError(UsageError):
    """There are images, but no annotation of the wanted format."""


@dataclass(frozen=True)
class AnnotationNames:
    """How the annotations of a format are called."""

    suffixes: Sequence[str]
    """Endings in lower case, the usual one first."""
    words: Sequence[str] = ()
    """Words that may follow the image's name, the usual one first: NAME_mask.png."""
    table: str = ""
    """The usual name of the file, where one annotates all images; else ''."""

    @property
    def are_images(self) -> bool:
        """Whether the ending alone does not tell an annotation from an image."""
        return not set(self.suffixes).isdisjoint(IMAGE_SUFFIXES)

    def candidates(self, name: str) -> list[str]:
        """Return the names of the images that an annotation called `name` may be of."""
        found = (
            re.fullmatch(rf"(?i:(.+?){SEPARATOR}{re.escape(word)})", name) for word in self.words
        )
        return [name, *(field_name(match[1]) for match in found if match)]

    def expected(self, name: str) -> str:
        """Return the usual names of an image's annotation."""
        if self.table:
            return self.table
        words = [f" or {name}_{word}{self.suffixes[0]}" for word in self.words[:1]]
        return "".join([f"{name}{self.suffixes[0]}", *words])


def find_image_folder(raw: Path) -> Path:
    """Return the folder of the images. Raises UsageError unless there is exactly one."""
    if not raw.is_dir():
        raise UsageError(f"raw={raw}: no such folder{ways_to_data(raw)}", can_heal=True)  # a mount
    found = [folder for folder in (raw, *called(raw, IMAGE_FOLDERS)) if holds_images(folder)]
    if raw / "images" in found and called(raw, ANNOTATION_FOLDERS):
        found = [folder for folder in found if folder != raw]  # an overview, or a sketch
    if not found:
        raise UsageError(
            f"raw={raw}: no images found; it holds {contents(raw)}; expected images/NAME.tif with"
            f" groundTruth/, or all in this folder{nested_hint(raw)}",
            can_heal=not any(raw.iterdir()),  # a mount leaves an empty folder where it is missing
        )
    return the_only(found, raw, "images")


def find_annotation_folder(raw: Path, image_folder: Path, names: AnnotationNames) -> Path:
    """Return the folder of the annotations. Raises UsageError unless there is exactly one."""
    own = [
        folder
        for folder in called(raw, ANNOTATION_FOLDERS)
        if annotations_in(folder, image_folder, names)
    ]
    beside = [
        folder
        for folder in dict.fromkeys([image_folder, raw])
        if annotations_in(folder, image_folder, names)
    ]
    if image_folder == raw:
        own, beside = own + beside, []
    if found := own or beside[:1]:
        return the_only(found, raw, "annotations")
    images = list_files(image_folder, IMAGE_SUFFIXES)
    where = relative(image_folder, raw)
    endings = " or ".join(names.suffixes)
    raise NoAnnotationsError(
        f"raw={raw}: {counted(len(images), 'image')} in {where}, but no annotation ({endings});"
        f" it holds {contents(raw)}; expected, for {images[0].name},"
        f" groundTruth/{names.expected(next(iter(by_name(images[:1]))))}"
        f"{nested_hint(raw)}"
    )


def annotations_in(folder: Path, image_folder: Path, names: AnnotationNames) -> list[Path]:
    """List the annotations in a folder.

    Beside images, a mask counts only if it is called after another file: NAME_mask.png.
    """
    found = list_files(folder, names.suffixes)
    if not names.are_images or not has_images(folder, image_folder):
        return found
    known = by_name(list_files(folder, IMAGE_SUFFIXES))
    of_file = {path: name for name, paths in known.items() for path in paths}
    return [
        path for path in found if any(name in known for name in names.candidates(of_file[path])[1:])
    ]


def has_images(folder: Path, image_folder: Path) -> bool:
    """Return whether pictures in a folder may be images, not only masks."""
    return folder in (image_folder, image_folder.parent)


def called(raw: Path, names: Collection[str]) -> list[Path]:
    """Return the folders in `raw` with one of these names, written in any way: ground_truth."""
    return sorted(
        folder
        for folder in raw.iterdir()
        if folder.is_dir() and re.sub(r"[-_ ]", "", folder.name).lower() in names
    )


def holds_images(folder: Path) -> bool:
    """Return whether an image lies in a folder."""
    return bool(list_files(folder, IMAGE_SUFFIXES))


def the_only(found: Sequence[Path], raw: Path, what: str) -> Path:
    """Return the only folder. Raises UsageError that names them, if there are several."""
    if len(found) > 1:
        folders = " and in ".join(relative(folder, raw) for folder in found)
        raise UsageError(f"raw={raw}: {what} in {folders}; move away those that are not meant")
    return found[0]


def relative(folder: Path, raw: Path) -> str:
    """Name a folder in `raw`, or `raw` itself."""
    return f"{folder.relative_to(raw)}/" if folder != raw else "this folder"


def contents(raw: Path) -> str:
    """Say what a folder holds: 'images/ (16 .png), annotations/ (empty) and 3 .txt'."""
    folders = sorted(
        path for path in raw.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    listed = [f"{folder.name}/ ({kinds(folder) or 'no files'})" for folder in folders]
    if more := len(listed) - MOST_FOLDERS:
        listed[MOST_FOLDERS:] = [counted(more, "more folder")] if more > 0 else []
    return ", ".join([*listed, kinds(raw)] if kinds(raw) else listed) or "nothing"


def kinds(folder: Path) -> str:
    """Count the files of a folder by their endings; '' if there are none."""
    counts = Counter(path.suffix.lower() or "without ending" for path in list_files(folder))
    return ", ".join(f"{number} {ending}" for ending, number in counts.most_common(4))


def ways_to_data(raw: Path) -> str:
    """Name the commands that put data into the default folder."""
    if raw.resolve() != Path(BRECAHAD).resolve():
        return ""
    return (
        "; python -m data_prep.fetch downloads BreCaHAD there, python -m data_prep.synthetic"
        f" out={BRECAHAD} makes a synthetic data set instead"
    )


def nested_hint(raw: Path) -> str:
    """Suggest the folder below or above if it has the layout."""
    likely = [folder.parent for folder in sorted(raw.glob("*/images")) if folder.is_dir()]
    above = raw.parent
    if raw in called(above, IMAGE_FOLDERS | ANNOTATION_FOLDERS) and all(
        called(above, kind) for kind in (IMAGE_FOLDERS, ANNOTATION_FOLDERS)
    ):
        likely.append(above)
    return f"; did you mean raw={likely[0]}?" if likely else ""
