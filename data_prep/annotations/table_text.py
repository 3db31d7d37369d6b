"""Read the lines of a table of points as spreadsheets write them: separators, marks, empty rows."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from data_prep.annotations.findings import shown
from data_prep.raw import BadInputError

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

COLUMNS = ("file", "x", "y", "class")
SEPARATORS = ",;\t"
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MARKED = re.compile(r"[+-]?\d*([.,])\d*([eE][+-]?\d+)?", re.ASCII)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)  # or thousandths
UNGROUPED = re.compile(r"[+-]?\d{4,}", re.ASCII)  # so no number has a mark between thousands


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


@dataclass(frozen=True)
class Layout:
    """What the first line of a table says of the others."""

    separator: str
    columns: dict[str, int]
    """Column -> its position."""
    num_cells: int


def parse_table(content: bytes) -> list[Row]:
    """Read the lines of a table, bad ones too. Raises BadInputError if it is not a table."""
    text = decode(content)
    reader, layout = open_table(text)
    rows = list(read_rows(reader, layout))
    return rows if layout.separator == "," else with_points(rows)


def decode(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 with its mark, as spreadsheets write them. Raises BadInputError."""
    is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        known = "UTF-16" if is_utf_16 else "UTF-8 (it may be Latin-1 or Windows-1252)"
        raise BadInputError(f"line {line}: is not {known}; save it as 'CSV UTF-8'") from None
    if "\0" in text[:100]:
        raise BadInputError("line 1: is not UTF-8 (it may be UTF-16); save it as 'CSV UTF-8'")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def open_table(text: str) -> "tuple[CsvReader, Layout]":
    """Return a CSV reader that has read the line of the columns, and what this line says.

    Raises BadInputError unless exactly one separator makes this line hold the columns.
    """
    found, errors, headers = [], [], []
    for separator in SEPARATORS:
        reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
        try:
            header = next((row for row in reader if not is_blank(row) and not is_hint(row)), [])
        except csv.Error as error:
            errors.append(f"line {reader.line_num}: {error}")
            continue
        names = [name.strip().casefold() for name in header]
        headers.append((sum(name in names for name in COLUMNS), len(names), reader.line_num, names))
        if set(COLUMNS) <= set(names):
            found.append((reader, separator, names))
    if len(found) == 1:
        reader, separator, names = found[0]
        if twice := [name for name in COLUMNS if names.count(name) > 1]:
            raise BadInputError(f"line {reader.line_num}: column {twice[0]} is there twice")
        columns = {name: names.index(name) for name in COLUMNS}
        return reader, Layout(separator, columns, len(names))
    if errors:
        raise BadInputError(errors[0])
    _, _, line, names = max(headers)
    missing = ", ".join(name for name in COLUMNS if name not in names)
    listed = ",".join(map(shown, names))[:200] or "nothing"
    raise BadInputError(
        f"line {max(line, 1)}: no column {missing}; expected {','.join(COLUMNS)} with commas,"
        f" semicolons or tabs between them, found {listed}"
    )


def is_blank(cells: Sequence[str]) -> bool:
    """Whether a row has nothing but separators, as spreadsheets write empty ones."""
    return not any(cell.strip() for cell in cells)


def is_hint(cells: Sequence[str]) -> bool:
    """Whether a row is the line sep=; which tells Excel the separator."""
    return cells[0].strip().casefold().startswith("sep=")


def read_rows(reader: "CsvReader", layout: Layout) -> Iterator[Row]:
    """Yield the lines below the first; after one that is not CSV, go on with the next."""
    while True:
        try:
            cells = next(reader)
            if not is_blank(cells):
                yield as_row(reader.line_num, cells, layout)
        except StopIteration:
            return
        except csv.Error as error:
            line = reader.line_num
            yield Row(line, "", "", "", "", f"line {line}: {error}")


def as_row(line: int, cells: Sequence[str], layout: Layout) -> Row:
    """Make a row; if it has too few or too many cells, note that as its problem."""
    columns, excess = layout.columns, cells[layout.num_cells :]
    is_row = len(cells) > max(columns.values()) and is_blank(excess)
    if not is_row or not cells[columns["file"]].strip():
        problem = f"line {line}: expected {','.join(COLUMNS)} as the first line has them"
        return Row(line, "", "", "", "", problem)
    file, x, y, name = (cells[columns[column]].strip() for column in COLUMNS)
    return Row(line, file, x, y, name)


def with_points(rows: list[Row]) -> list[Row]:
    """Put a decimal point for a decimal comma. Raises BadInputError if a mark may be either."""
    marked: dict[str, list[tuple[int, str]]] = {".": [], ",": []}
    are_grouped = True  # so far, numbers may have a mark between thousands
    for row in rows:
        for text in (row.x, row.y):
            if match := MARKED.fullmatch(text):
                marked[match[1]].append((row.line, text))
                are_grouped = are_grouped and THOUSANDS.fullmatch(text) is not None
            elif UNGROUPED.fullmatch(text):
                are_grouped = False
    if all(marked.values()):
        listed = " and ".join(f"line {line} has {text}" for [(line, text), *_] in marked.values())
        raise BadInputError(
            f"{listed}: write all numbers with a decimal point, or all with a comma"
        )
    numbers = marked["."] or marked[","]
    if numbers and are_grouped:
        (line, text), *_ = numbers
        other = re.sub("[.,]", "", text)
        raise BadInputError(
            f"line {line}: {text} may be {other} or {text}0, like every number here: write one of"
            " these instead"
        )
    if not marked[","]:
        return rows
    return [replace(row, x=with_point(row.x), y=with_point(row.y)) for row in rows]


def with_point(text: str) -> str:
    """Put a decimal point for a decimal comma; leave what is not a number as it is written."""
    return text.replace(",", ".") if MARKED.fullmatch(text) else text
