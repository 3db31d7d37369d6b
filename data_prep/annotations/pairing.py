"""Find the fields of a raw folder: each image with its annotation.

images/Case_<case>-<field>.tif + groundTruth/Case_<case>-<field>.json      or all in one folder

Folders.py knows other usual names of these folders. Of NAME.tif, the annotation is NAME.json or
NAME.tif.json, or has one of the format's words after NAME, as NAME_mask.png has.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import counted, named
from data_prep.annotations.folders import (
    AnnotationNames,
    NoAnnotationsError,
    annotations_in,
    find_annotation_folder,
    find_image_folder,
    nested_hint,
)
from data_prep.cases.names import find_cases
from data_prep.raw import (
    IMAGE_SUFFIXES,
    BadFile,
    Field,
    by_name,
    list_files,
    natural_key,
    several_of_one_name,
)


@dataclass(frozen=True)
class RawFiles:
    """The images and the annotations of a raw folder, by the names of the images."""

    image_folder: Path
    annotation_folder: Path
    images: dict[str, list[Path]]
    annotations: dict[str, list[Path]]


def find_fields(
    raw: Path, case_regex: str, names: AnnotationNames
) -> tuple[list[Field], list[BadFile]]:
    """Pair the images and annotations under `raw`.

    Returns usable fields, and the files that are not. Raises UsageError as find_files(), and if no
    annotation has the name of an image.
    """
    files = find_files(raw, names)
    images, annotations = files.images, files.annotations
    if images.keys().isdisjoint(annotations):
        raise NoAnnotationsError(f"raw={raw}: {no_pairs(files, names)}{nested_hint(raw)}")
    paired, bad = {}, []
    for name in sorted(images.keys() | annotations.keys(), key=natural_key):
        pair = images.get(name, []), annotations.get(name, [])
        if reason := pairing_problem(name, *pair, files, names):
            bad += [BadFile(str(path.relative_to(raw)), reason) for path in pair[0] + pair[1]]
        else:
            paired[name] = pair[0][0], pair[1][0]
    cases = find_cases([*paired], case_regex)
    return [Field(name, cases[name], *pair) for name, pair in paired.items()], bad


def find_files(raw: Path, names: AnnotationNames) -> RawFiles:
    """Find the images of a raw folder, and the annotations of a format.

    Raises UsageError if it holds none of either, or in several folders.
    """
    image_folder = find_image_folder(raw)
    images = list_files(image_folder, IMAGE_SUFFIXES)
    annotation_folder = find_annotation_folder(raw, image_folder, names)
    annotations = annotations_in(annotation_folder, image_folder, names)
    taken = set(annotations)
    of_name = by_name([path for path in images if path not in taken])
    of_image: dict[str, list[Path]] = defaultdict(list)
    for name, paths in by_name(annotations).items():
        known = [image for image in names.candidates(name) if image in of_name]
        of_image[(known or [name])[0]] += paths
    return RawFiles(image_folder, annotation_folder, of_name, dict(of_image))


def no_pairs(files: RawFiles, names: AnnotationNames) -> str:
    """Say how the annotations are called, none of which has the name of an image."""
    images, annotations = (
        files.images,
        [path for paths in files.annotations.values() for path in paths],
    )
    number = counted(len(annotations), "annotation")
    are = "is" if len(annotations) == 1 else "are"
    expected = f"expected {names.expected('NAME')} for an image NAME.tif"
    if pattern := common_pattern([path.name for path in annotations], images):
        return f"{number} {are} called {pattern} ({named_first(annotations)}); {expected}"
    first = next(iter(images.values()))
    return (
        f"{number} in {files.annotation_folder.name}/, such as {annotations[0].name}, and"
        f" {counted(len(images), 'image')}, such as {first[0].name}, but no two of one name;"
        f" {expected}"
    )


def common_pattern(files: Sequence[str], images: Collection[str]) -> str:
    """Return 'NAME_gt.png' if all files are called so, NAME being an image's; '' otherwise."""
    likely = [image for image in images if image in files[0]]
    if not likely:
        return ""
    before, _, after = files[0].partition(max(likely, key=len))
    inner = [file[len(before) : len(file) - len(after)] for file in files]
    fits = all(
        file == before + name + after and name in images
        for file, name in zip(files, inner, strict=True)
    )
    return f"{before}NAME{after}" if fits else ""


def named_first(files: Sequence[Path]) -> str:
    """Name the first two of some files."""
    return named([path.name for path in files[:2]]) + (", ..." if len(files) > 2 else "")


def pairing_problem(
    name: str,
    images: Sequence[Path],
    annotations: Sequence[Path],
    files: RawFiles,
    names: AnnotationNames,
) -> str:
    """Say why the files of one name are not a pair; '' if they are."""
    if len(images) > 1:
        return several_of_one_name(images)
    if len(annotations) > 1:
        listed = ", ".join(path.name for path in annotations)
        return f"two annotations of one field: {listed}; keep one"
    if not annotations:
        return (
            f"has no annotation: {files.annotation_folder.name}/{name}{names.suffixes[0]} is not"
            " there"
        )
    if not images:
        likely = [f"{files.image_folder.name}/{stem}.tif" for stem in names.candidates(name)[::-1]]
        return f"has no image: {' or '.join(likely)} is not there"
    return ""
