"""Find and read raw pairs in BreCaHAD's layout: an image and a JSON of annotated points a field.

    images/Case_<case>-<field>.tif + groundTruth/Case_<case>-<field>.json      or all in one folder

The JSON is one flat object: a list of {"x", "y"} a class, x over the width and y over the height,
both from 0 to 1.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from command_line import UsageError

CLASSES = (
    "mitosis",
    "non_mitosis",
    "apoptosis",
    "tumor",
    "non_tumor",
    "lumen",
    "non_lumen",
)
SPELLINGS = {"tubule": "lumen", "non_tubule": "non_lumen"}  # BreCaHAD's own README uses these
IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")

Points = dict[str, list[tuple[float, float]]]
"""Class name -> points (x, y), each from 0 to 1."""


class BadInputError(ValueError):
    """A file that cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Field:
    """One field of view: its name, the case (patient) it is from, and its two files."""

    name: str
    case: str
    image: Path
    annotation: Path


@dataclass(frozen=True)
class BadFile:
    """A raw file that cannot be used, and why."""

    file: str
    reason: str


def find_fields(raw: Path, case_regex: str) -> tuple[list[Field], list[BadFile]]:
    """Pair the images and annotations under `raw`; what cannot be paired comes back as bad.

    Raises UsageError where `raw` holds no images in either layout.
    """
    image_folder, annotation_folder = raw_folders(raw)
    images = files_by_stem(image_folder, IMAGE_SUFFIXES)
    annotations = files_by_stem(annotation_folder, (".json",))
    if not images:
        raise UsageError(
            f"raw={raw}: no images found; expected images/Case_*.tif with groundTruth/Case_*.json,"
            f" or both in this folder{nested_hint(raw)}"
        )
    fields, bad = [], []
    for stem in sorted(images.keys() | annotations.keys(), key=natural_key):
        pair = images.get(stem, []), annotations.get(stem, [])
        reason = pairing_problem(*pair, annotation_folder, image_folder)
        if reason:
            bad += [BadFile(str(path.relative_to(raw)), reason) for path in pair[0] + pair[1]]
        else:
            fields.append(Field(stem, case_of(stem, case_regex), pair[0][0], pair[1][0]))
    return fields, bad


def raw_folders(raw: Path) -> tuple[Path, Path]:
    """The folders of the images and of the annotations."""
    if not raw.is_dir():
        raise UsageError(f"raw={raw}: no such folder")
    images, annotations = raw / "images", raw / "groundTruth"
    return (images, annotations) if images.is_dir() and annotations.is_dir() else (raw, raw)


def nested_hint(raw: Path) -> str:
    """Where the layout lies one folder further down, say so."""
    nested = [folder.parent for folder in sorted(raw.glob("*/images")) if folder.is_dir()]
    return f"; did you mean raw={nested[0]}?" if nested else ""


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files with one of the endings, by name without ending; hidden files are passed over."""
    found = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            found[path.stem].append(path)
    return found


def pairing_problem(
    images: list[Path], annotations: list[Path], annotation_folder: Path, image_folder: Path
) -> str:
    """Why these files of one name are not a pair; '' where they are."""
    if len(images) > 1 or len(annotations) > 1:
        names = ", ".join(path.name for path in (images if len(images) > 1 else annotations))
        return f"two fields of one name: {names}; keep one"
    if not annotations:
        return f"has no annotation: {annotation_folder.name}/{images[0].stem}.json is not there"
    if not images:
        return f"has no image: {image_folder.name}/{annotations[0].stem}.tif is not there"
    return ""


def case_of(stem: str, case_regex: str) -> str:
    """The case a field belongs to; a name that tells none is a case of its own."""
    match = re.fullmatch(case_regex, stem)
    return (match["case"] if match else "") or stem


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sorts Case_2 before Case_10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def parse_points(content: bytes) -> Points:
    """Points of every class in an annotation file. Raises BadInputError with the reason."""
    try:
        # json accepts NaN and Infinity; they are refused below with the point's name
        raw = json.loads(content, object_pairs_hook=refuse_repeated)
    except BadInputError:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"invalid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadInputError(f"invalid JSON: expected one object, found {type(raw).__name__}")
    points: Points = {}
    for key, entries in raw.items():
        name = SPELLINGS.get(key, key)
        if name not in CLASSES:
            known = ", ".join([*CLASSES, *SPELLINGS])
            raise BadInputError(f"unknown class '{key}'; known: {known}")
        if name in points:
            raise BadInputError(f"class '{name}' stands twice (as '{key}' too)")
        points[name] = parse_class(key, entries)
    if not any(points.values()):
        raise BadInputError("annotates nothing: every class list is empty")
    return points


def refuse_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; json itself would silently keep the last of two lists of one class."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise BadInputError(f"'{key}' stands twice")
    return dict(pairs)


def parse_class(key: str, entries: object) -> list[tuple[float, float]]:
    """The points of one class."""
    if not isinstance(entries, list):
        raise BadInputError(f"class '{key}': expected a list of points")
    return [parse_point(f"{key}[{index}]", entry) for index, entry in enumerate(entries)]


def parse_point(where: str, entry: object) -> tuple[float, float]:
    """One {"x", "y"} with both coordinates from 0 to 1."""
    if not isinstance(entry, dict) or not {"x", "y"} <= entry.keys():
        raise BadInputError(f'{where}: expected {{"x": .., "y": ..}}')
    for axis in ("x", "y"):
        value = entry[axis]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInputError(f"{where}.{axis}: expected a number, found {value!r}")
        if not 0 <= value <= 1:  # NaN too
            raise BadInputError(f"{where}.{axis} = {value}: outside [0, 1]")
    return float(entry["x"]), float(entry["y"])


def select_classes(points: Points, classes: Iterable[str]) -> Points:
    """The points of the asked classes, in that order. Raises BadInputError where one is missing."""
    for name in classes:
        if name not in points:
            raise BadInputError(f"has no list for class '{name}' (an empty one is [])")
    return {name: points[name] for name in classes}


def check_classes(classes: Sequence[str]) -> list[str]:
    """The classes under their usual spelling. Raises UsageError for one that does not exist."""
    names = [SPELLINGS.get(name, name) for name in classes]
    for name in names:
        if name not in CLASSES:
            raise UsageError(f"classes: unknown '{name}'; known: {', '.join(CLASSES)}")
    if len(set(names)) < len(names):
        raise UsageError(f"classes=[{','.join(classes)}]: a class is named twice")
    return names
