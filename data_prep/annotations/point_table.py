"""Read a table of points: one CSV for all fields, in groundTruth/, or in raw= beside the images.

    file,x,y,class
    Case_1-01.tif,10.5,20.5,lymphocyte
    Case_1-02.tif,,,

`file` is an image's name, without a folder, with or without its ending; x and y are px from the
image's corner. A row with only the file means that nothing is in the image; an image without a row
is not annotated, and counts as bad.

Cells are separated by commas, semicolons or tabs, as the first line shows; without commas between
the cells, numbers may have a decimal comma. What two readings would take for two numbers is
refused.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from common.command_line import UsageError, printable
from data_prep.annotations.findings import UnusableError, shown
from data_prep.annotations.folders import (
    AnnotationNames,
    find_annotation_folder,
    find_image_folder,
)
from data_prep.annotations.json_text import read_content
from data_prep.annotations.reader import Rules
from data_prep.annotations.shapes import (
    FARTHEST_PX,
    Collector,
    Shape,
    ShapeReader,
    Shapes,
    point,
)
from data_prep.annotations.table_text import NUMBER, Row, parse_table
from data_prep.cases.names import find_cases
from data_prep.raw import (
    CHANGED,
    IMAGE_SUFFIXES,
    BadFile,
    BadInputError,
    Field,
    by_name,
    field_name,
    list_files,
    natural_key,
    several_of_one_name,
)

GROUPED = re.compile(r"[+-]?\d{1,3}([.,'\s\u2019]\d{3})+([.,]\d*)?")
MISSING = ("", "nan", "na", "n/a", "null", "none", "inf", "-inf", "+inf", "infinity", "-infinity")
MOST_LISTED = 100  # bad rows; most likely more of them have the same mistake


class PointTableReader(ShapeReader):
    """Reads the CSV."""

    suffixes = (".csv",)

    def find_fields(self, folder: Path, case_regex: str) -> tuple[list[Field], list[BadFile]]:
        """Return usable fields, and what is bad: images without rows, rows without an image.

        Names every bad row, in the order of the lines. A line that is not a row may belong to any
        field, so then no field is usable.
        """
        image_folder = find_image_folder(folder)
        images = by_name(list_files(image_folder, IMAGE_SUFFIXES))
        path = the_table(folder, image_folder)
        named = str(path.relative_to(folder))
        try:
            rows = rows_by_stem(path)
        except (BadInputError, OSError) as error:
            return [], [BadFile(named, str(error))]
        fields, bad = [], [BadFile(named, reason) for reason in problems(rows, images.keys())]
        if any(row.problem for of_stem in rows.values() for row in of_stem):
            return [], bad
        cases = find_cases([*images], case_regex)
        for stem in sorted(images, key=natural_key):
            if reason := image_problem(images[stem], stem in rows, path):
                bad += [BadFile(str(image.relative_to(folder)), reason) for image in images[stem]]
                continue
            annotation = path, sha256_of(rows[stem])
            fields.append(Field(stem, cases[stem], images[stem][0], *annotation))
        return fields, sorted(bad, key=lambda entry: natural_key(f"{entry.file} {entry.reason}"))

    def parse(self, field: Field) -> Shapes:
        """Read the points of a field."""
        rows = rows_by_stem(field.annotation).get(field.name, [])
        if sha256_of(rows) != field.annotation_sha256:
            raise BadInputError(CHANGED)
        return shapes_of(rows)


def the_table(folder: Path, image_folder: Path) -> Path:
    """Find the CSV of a raw folder. Raises UsageError unless there is exactly one."""
    names = AnnotationNames(PointTableReader.suffixes, table="points.csv")
    tables = find_annotation_folder(folder, image_folder, names)
    paths = list_files(tables, names.suffixes)
    if len(paths) > 1:
        listed = ", ".join(path.name for path in paths)
        raise UsageError(f"raw={folder}: expected one .csv in {tables}, found {listed}")
    return paths[0]


def image_problem(images: list[Path], is_in_table: bool, table: Path) -> str:
    """Say why an image is not a field; '' if it is."""
    if len(images) > 1:
        return several_of_one_name(images)
    if not is_in_table:
        return (
            f"has no row in {table.name} (if nothing is in the image, add the row"
            f" '{images[0].name},,,')"
        )
    return ""


def rows_by_stem(path: Path) -> dict[str, list[Row]]:
    """Return the rows by their image's name without ending. Raises BadInputError, OSError."""
    about = path.stat()
    return cached_rows(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=1)
def cached_rows(path: Path, mtime_ns: int, num_bytes: int) -> dict[str, list[Row]]:
    """Read a table once, not again for every field."""
    rows = defaultdict(list)
    for row in parse_table(read_content(path)):
        rows[stem_of(row.file)].append(row)
    return dict(rows)


def stem_of(file: str) -> str:
    """Return the name of an image's field; keep a folder, so that no image has this name."""
    path = Path(file)  # without ./
    return field_name(path.name) if path.parent == Path() else str(path)


def problems(rows: Mapping[str, list[Row]], stems: Collection[str]) -> list[str]:
    """List what is wrong with rows, in the order of their lines; `stems`: names of images."""
    found = []
    for stem, of_stem in rows.items():
        if stem and stem not in stems:
            row, alone = of_stem[0], " (its name alone, no folder)" if "/" in stem else ""
            found.append((row.line, f"line {row.line}: no image '{shown(row.file)}'{alone}"))
            continue
        bad = [(row.line, reason) for row in of_stem if (reason := problem_of(row))]
        found += bad or nothing_usable(of_stem)
    listed, more = sorted(found)[:MOST_LISTED], sorted(found)[MOST_LISTED:]
    reasons = [reason for _, reason in listed]
    return reasons + [f"line {line}: the first of {len(more)} more" for line, _ in more[:1]]


def problem_of(row: Row) -> str:
    """Say why a table with this row cannot be trusted; '' if it can."""
    if row.problem or row.is_empty or is_point(row):  # fast, since most rows are points
        return row.problem
    try:
        as_shape(row)
    except UnusableError:
        return ""
    except BadInputError as error:
        return str(error)
    return ""


def nothing_usable(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """Return the line of a field's first row, and why none of its rows can be used; [] if some
    can."""
    if any(map(is_point, rows)):
        return []
    try:
        shapes_of(rows)
    except BadInputError as error:
        return [(rows[0].line, str(error))]
    return []


def is_point(row: Row) -> bool:
    """Return whether as_shape() can make a point of a row."""
    if not (row.name.isprintable() and row.name):
        return False
    return all(NUMBER.fullmatch(text) and abs(float(text)) < FARTHEST_PX for text in (row.x, row.y))


def shapes_of(rows: Iterable[Row]) -> Shapes:
    """Make the points of a field's rows. Raises BadInputError where the table is not to trust."""
    found = Collector()
    for row in rows:
        if not row.is_empty:
            with found.passing_over():
                found.shapes.append(as_shape(row))
    return found.collected(Rules(empty="accept"), "no row is a point")


def as_shape(row: Row) -> Shape:
    """Make the point of a row.

    Raises UnusableError if it has no class or no position, BadInputError if that is no number.
    """
    where = f"line {row.line} ({shown(row.file)})"
    is_missing = [text.casefold() in MISSING for text in (row.x, row.y)]
    for text, missing in zip((row.x, row.y), is_missing, strict=True):
        if not missing and not NUMBER.fullmatch(text):
            raise BadInputError(f"{where}: {not_two_numbers(row)}")
    if not row.name:
        raise UnusableError(where, "without a class", "has no class")
    if not row.x or not row.y:
        raise UnusableError(where, "without a position", not_two_numbers(row))
    if any(is_missing):
        raise UnusableError(where, "a coordinate is not a position in any image")
    return point(where, row.name, float(row.x), float(row.y))


def not_two_numbers(row: Row) -> str:
    """Say that the coordinates of a row are not numbers, and which ones can be read."""
    hint = ""
    if any(GROUPED.fullmatch(text) for text in (row.x, row.y)):
        hint = "; marks between thousands are not read"
    elif "," in row.x + row.y:
        hint = "; a decimal comma is read where cells are separated by semicolons or tabs"
    return f"x={printable(row.x):.40}, y={printable(row.y):.40}: expected two numbers{hint}"


def sha256_of(rows: Iterable[Row]) -> str:
    """Hash the content of rows, without line numbers and however the numbers are written."""
    content = [(as_written(row.x), as_written(row.y), row.name) for row in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def as_written(text: str) -> str:
    """Return one way of writing a number; another text stays as it is."""
    return repr(float(text)) if NUMBER.fullmatch(text) else text
