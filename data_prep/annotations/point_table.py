"""Read a table of points: one CSV for all fields, in groundTruth/, or in raw= beside the images.

    file,x,y,class
    Case_1-01.tif,10.5,20.5,lymphocyte
    Case_1-02.tif,,,

`file` is an image's name, without a folder, with or without its ending; x and y are px from the
image's corner. A row with only the file means that nothing is in the image; an image without a row
is not annotated, and counts as bad.
"""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from common.command_line import UsageError
from data_prep.annotations.folders import (
    AnnotationNames,
    find_annotation_folder,
    find_image_folder,
)
from data_prep.annotations.shapes import FARTHEST_PX, Shape, ShapeReader, Shapes, point
from data_prep.cases.names import case_of
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

COLUMNS = ("file", "x", "y", "class")
MOST_LISTED = 100  # bad rows; most likely more of them have the same mistake


@dataclass(frozen=True)
class Row:
    """A row of the table, as texts."""

    line: int
    file: str
    x: str
    y: str
    name: str
    problem: str = ""
    """Why the line is not a row; '' if it is."""

    @property
    def is_empty(self) -> bool:
        """Whether it has only the file: nothing is in the image."""
        return not (self.x or self.y or self.name)


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
        for stem in sorted(images, key=natural_key):
            if reason := image_problem(images[stem], stem in rows, path):
                bad += [BadFile(str(image.relative_to(folder)), reason) for image in images[stem]]
                continue
            case = case_of(stem, case_regex)
            fields.append(Field(stem, case, images[stem][0], path, sha256_of(rows[stem])))
        return fields, sorted(bad, key=lambda entry: natural_key(f"{entry.file} {entry.reason}"))

    def parse(self, field: Field) -> Shapes:
        """Read the points of a field."""
        rows = rows_by_stem(field.annotation).get(field.name, [])
        if sha256_of(rows) != field.annotation_sha256:
            raise BadInputError(CHANGED)
        return Shapes([as_shape(row) for row in rows if not row.is_empty])


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
    for row in parse_table(path.read_bytes()):
        rows[stem_of(row.file)].append(row)
    return dict(rows)


def stem_of(file: str) -> str:
    """Return the name of an image's field; keep a folder, so that no image has this name."""
    path = Path(file)  # without ./
    return field_name(path.name) if path.parent == Path() else str(path)


def parse_table(content: bytes) -> list[Row]:
    """Read the lines of a table, bad ones too. Raises BadInputError if it is not a table."""
    try:
        text = content.decode("utf-8-sig")  # spreadsheets begin it with a mark
    except UnicodeDecodeError as error:
        raise BadInputError(f"is not UTF-8: {error}") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        if missing := [name for name in COLUMNS if name not in header]:
            raise BadInputError(
                f"line 1: no column {', '.join(missing)}; expected {','.join(COLUMNS)}, found"
                f" {','.join(header) or 'nothing'}"
            )
    except csv.Error as error:
        raise BadInputError(f"line {reader.reader.line_num}: {error}") from None
    return list(read_rows(reader))


def read_rows(reader: "csv.DictReader[str]") -> Iterator[Row]:
    """Yield the lines below the first; after one that is not CSV, go on with the next."""
    while True:
        try:
            cells = next(reader)
            yield as_row(reader.line_num, cells)
        except StopIteration:
            return
        except csv.Error as error:
            line = reader.reader.line_num
            yield Row(line, "", "", "", "", f"line {line}: {error}")


def as_row(line: int, cells: dict[str, str | None]) -> Row:
    """Make a row; if it has too few or too many cells, note that as its problem."""
    file, x, y, name = ((cells[column] or "").strip() for column in COLUMNS)
    problem = ""
    if not file or None in cells or None in cells.values():
        problem = f"line {line}: expected {','.join(COLUMNS)} as the first line has them"
    return Row(line, file, x, y, name, problem)


def problems(rows: Mapping[str, list[Row]], stems: Collection[str]) -> list[str]:
    """List what is wrong with rows, in the order of their lines; `stems`: names of images."""
    found = []
    for stem, of_stem in rows.items():
        if stem and stem not in stems:
            row, alone = of_stem[0], " (its name alone, no folder)" if "/" in stem else ""
            found.append((row.line, f"line {row.line}: no image '{row.file}'{alone}"))
            continue
        found += [(row.line, reason) for row in of_stem if (reason := problem_of(row))]
    listed, more = sorted(found)[:MOST_LISTED], sorted(found)[MOST_LISTED:]
    reasons = [reason for _, reason in listed]
    return reasons + [f"line {line}: the first of {len(more)} more" for line, _ in more[:1]]


def problem_of(row: Row) -> str:
    """Say why a row cannot be used; '' if it can."""
    if row.problem or row.is_empty:
        return row.problem
    try:
        if not is_point(row):  # first, since making a shape takes ten times as long
            as_shape(row)
    except BadInputError as error:
        return str(error)
    return ""


def is_point(row: Row) -> bool:
    """Return whether as_shape() can make a point of a row."""
    try:
        return bool(row.name) and all(abs(number(text)) < FARTHEST_PX for text in (row.x, row.y))
    except ValueError:
        return False


def as_shape(row: Row) -> Shape:
    """Make the point of a row. Raises BadInputError with its line."""
    where = f"line {row.line} ({row.file})"
    try:
        x, y = number(row.x), number(row.y)
    except ValueError:
        raise BadInputError(f"{where}: x={row.x}, y={row.y}: expected two numbers") from None
    if not row.name:
        raise BadInputError(f"{where}: has no class")
    return point(where, row.name, x, y)


def number(text: str) -> float:
    """Read a number. Raises ValueError, also for Python's own 1_000."""
    if "_" in text:
        raise ValueError
    return float(text)


def sha256_of(rows: Iterable[Row]) -> str:
    """Hash the content of rows without their line numbers."""
    content = [(row.x, row.y, row.name) for row in rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
