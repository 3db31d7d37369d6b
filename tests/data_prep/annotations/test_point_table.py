"""The CSV of points: whose rows are whose, and every mistake with its line."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from common.command_line import UsageError
from data_prep.annotations.findings import Findings
from data_prep.annotations.point_table import PointTableReader, parse_table
from data_prep.annotations.table_text import NUMBER
from data_prep.config import PrepConfig
from data_prep.images.tiles import whole
from data_prep.raw import BadFile, BadInputError, Field

READER = PointTableReader()
HEADER = "file,x,y,class"


def write(raw: Path, *rows: str, images: tuple[str, ...] = ("a-1.tif", "b-1.png")) -> Path:
    for name in (*(f"images/{image}" for image in images), "groundTruth/points.csv"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"")
    (raw / "groundTruth/points.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return raw


def find(raw: Path) -> tuple[list[Field], list[BadFile]]:
    return READER.find_fields(raw, PrepConfig().case_regex)


def points(field: Field) -> list[tuple[str, str, list[float]]]:
    return [
        (shape.where, shape.name, shape.rings[0][0].tolist())
        for shape in READER.parse(field).shapes
    ]


def test_rows_belong_to_the_image_that_they_name_with_or_without_its_ending(tmp_path: Path) -> None:
    raw = write(tmp_path, "a-1.tif,10.5,2,tumor", "b-1,3,4,plasma cell", "a-1, 7 ,8 ,lumen")
    (one, other), bad = find(raw)
    assert bad == []
    assert (one.name, one.case, one.image) == ("a-1", "a", raw / "images/a-1.tif")
    assert points(one) == [
        ("line 2 (a-1.tif)", "tumor", [10.5, 2]),
        ("line 4 (a-1)", "lumen", [7, 8]),
    ]
    assert points(other) == [("line 3 (b-1)", "plasma cell", [3, 4])]


def test_a_row_of_nothing_says_that_nothing_is_there(tmp_path: Path) -> None:
    (_, empty), bad = find(write(tmp_path, "a-1,1,1,tumor", "b-1.png,,,"))
    assert bad == []
    assert points(empty) == []


def test_an_image_without_rows_is_not_annotated(tmp_path: Path) -> None:
    (field,), (bad,) = find(write(tmp_path, "a-1,1,1,tumor"))
    assert field.name == "a-1"
    assert bad.file == "images/b-1.png"
    assert bad.reason.startswith(
        "has no row in points.csv (if nothing is in the image, add the row"
    )
    assert bad.reason.endswith("'b-1.png,,,')")


def test_a_row_of_an_image_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    raw = write(tmp_path, "a-1,1,1,tumor", "b-1,1,1,t", "c-1.tif,1,1,tumor", "c-1.tif,2,2,tumor")
    fields, bad = find(raw)
    assert [field.name for field in fields] == ["a-1", "b-1"]
    assert bad == [BadFile("groundTruth/points.csv", "line 4: no image 'c-1.tif'")]


def test_a_row_of_another_folder_is_no_row_of_an_image_here(tmp_path: Path) -> None:
    """Two slides with fields of one name would become one."""
    rows = ["a-1,1,1,tumor", "slide/a-1.tif,2,2,tumor", "./b-1.png,3,3,tumor"]
    (one, other), (bad,) = find(write(tmp_path, *rows))
    assert points(one) == [("line 2 (a-1)", "tumor", [1, 1])]
    assert points(other) == [("line 4 (./b-1.png)", "tumor", [3, 3])]
    assert bad.reason == "line 3: no image 'slide/a-1.tif' (its name alone, no folder)"


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    fields, bad = find(write(tmp_path, "a-1,1,1,t", images=("a-1.tif", "a-1.png")))
    assert fields == []
    assert {entry.file for entry in bad} == {"images/a-1.tif", "images/a-1.png"}
    assert "two fields of one name: a-1.png, a-1.tif" in bad[0].reason


def test_rows_that_changed_since_they_were_found_are_refused(tmp_path: Path) -> None:
    (field, gone), _ = find(write(tmp_path, "a-1,1,1,tumor", "b-1,3,3,tumor"))
    write(tmp_path, "a-1,1,1,tumor", "c-1,3,3,lumen")
    assert len(points(field)) == 1
    with pytest.raises(BadInputError, match="was changed meanwhile; run again"):
        READER.parse(gone)


def test_a_fields_hash_is_of_its_own_rows_wherever_they_stand(tmp_path: Path) -> None:
    def hashes(*rows: str) -> list[str]:
        return [field.annotation_sha256 for field in find(write(tmp_path, *rows))[0]]

    before = hashes("a-1,1,1,tumor", "a-1,2,2,tumor", "b-1,3,3,tumor")
    assert hashes("b-1,3,3,tumor", "a-1,1,1,tumor", "a-1.tif,2,2,tumor") == before
    assert len({*before}) == 2
    changed = hashes("a-1,1,1,tumor", "a-1,2,2,lumen", "b-1,3,3,tumor")
    assert changed[0] != before[0]
    assert changed[1] == before[1]


@pytest.mark.parametrize("names", [[], ["points.csv", "more.csv"]])
def test_there_is_one_table(tmp_path: Path, names: list[str]) -> None:
    raw = write(tmp_path, "a-1,1,1,t")
    (raw / "groundTruth/points.csv").unlink()
    for name in names:
        (raw / "groundTruth" / name).write_text(HEADER)
    found = "expected one .csv in .*groundTruth, found more.csv, points.csv$"
    none = "2 images in images/, but no annotation (.csv); it holds groundTruth/ (no files), "
    expected = "expected, for a-1.tif, groundTruth/points.csv"
    with pytest.raises(UsageError, match=found if names else re.escape(none)) as caught:
        find(raw)
    assert names or expected in str(caught.value)


def test_it_may_lie_beside_the_images(tmp_path: Path) -> None:
    (tmp_path / "a-1.tif").write_bytes(b"")
    (tmp_path / "any.csv").write_text(f"{HEADER}\na-1.tif,1,1,tumor\n")
    (field,), bad = find(tmp_path)
    assert (field.annotation, bad) == (tmp_path / "any.csv", [])


@pytest.mark.parametrize(
    "content",
    [
        "\ufefffile,x,y,class\r\na-1.tif,1,2,tumor\r\n",  # as spreadsheets write it
        'class,file,note,y,x\ntumor,a-1.tif,"all, of it",2,1\n\n',
    ],
)
def test_columns_in_any_order_and_others_beside_them(content: str) -> None:
    (row,) = parse_table(content.encode())
    assert (row.line, row.file, row.x, row.y, row.name) == (2, "a-1.tif", "1", "2", "tumor")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "line 1: no column file, x, y, class; expected file,x,y,class .*, found nothing"),
        (b"file:x:y:class\na:1:1:t", "no column file, x, y, class; .* found file:x:y:class"),
        (b"file;x;y\na;1;1", "line 1: no column class; .* found file,x,y$"),
        (b"file,x,X,y,class\na,1,1,1,t", "line 1: column x is there twice"),
        ("file,x,y,class\nä,1,1,t".encode("latin-1"), r"line 2: is not UTF-8 \(it may be Latin-1"),
        ("file,x,y,class".encode("utf-16-le"), r"line 1: is not UTF-8 \(it may be UTF-16\)"),
        (b"\xff\xfef", "line 1: is not UTF-16"),
        (b"a-1.tif,1,1,tumor\n", "line 1: no column file, x, y, class"),
        (b"file,x,y\na,1,1\n", "line 1: no column class"),
        (b'file,"x"x,y,class\na,1\n', "line 1: ',' expected after '\"'"),
        (b"file,x,y,class\n\xff,1,1,t\n", "is not UTF-8"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        parse_table(content)
    raw = write(tmp_path)
    (raw / "groundTruth/points.csv").write_bytes(content)
    fields, (bad,) = find(raw)
    assert fields == []
    assert bad.file == "groundTruth/points.csv"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a-1,1,1", "line 3: expected file,x,y,class as the first line has them"),
        ("a-1,1,1,t,u", "line 3: expected file,x,y,class as the first line has them"),
        (",1,1,t", "line 3: expected file,x,y,class as the first line has them"),
        ('a-1,1,"1"0,t', "line 3: ',' expected after '\"'"),
        ('a-1,1,1,"t', "line 3: unexpected end of data"),
    ],
)
def test_a_line_that_is_no_row_may_be_any_fields(tmp_path: Path, row: str, reason: str) -> None:
    raw = write(tmp_path, "a-1,1,1,t")
    (raw / "groundTruth/points.csv").write_text(f"{HEADER}\na-1,1,1,t\n{row}")
    assert find(raw) == ([], [BadFile("groundTruth/points.csv", reason)])


def test_every_bad_row_is_told_in_the_order_of_the_lines(tmp_path: Path) -> None:
    rows = [
        "a-1,1,1,t",
        "b-1,one,1,t",
        'a-1,1,"1"0,t',
        "b-1,1,1",
        "a-1,2,2 px,t",
        "c-1,,,",
        "b-1,3,3,t",
    ]
    rows += ["a-1,1.5.5,0,t"]
    no_rows = ["a-1,1"]
    values = [
        "line 3 (b-1): x=one, y=1: expected two numbers",
        "line 6 (a-1): x=2, y=2 px: expected two numbers",
        "line 7: no image 'c-1'",
        "line 9 (a-1): x=1.5.5, y=0: expected two numbers",
    ]
    fields, bad = find(write(tmp_path, *rows, *no_rows))
    expected = "expected file,x,y,class as the first line has them"
    assert fields == []
    assert [entry.reason for entry in bad] == [
        values[0],
        "line 4: ',' expected after '\"'",
        f"line 5: {expected}",
        *values[1:],
        f"line 10: {expected}",
    ]
    fields, bad = find(write(tmp_path, rows[0], rows[1], "a-1,,,", "a-1,,,", *rows[4:]))
    assert [field.name for field in fields] == ["a-1", "b-1"], "a field's rows are its own"
    assert [entry.reason for entry in bad] == values


def test_of_very_many_bad_rows_the_first_are_told(tmp_path: Path) -> None:
    _, bad = find(write(tmp_path, *["a-1,1,one,t"] * 103, "b-1,,,"))
    assert len(bad) == 101
    assert bad[99].reason == "line 101 (a-1): x=1, y=one: expected two numbers"
    assert bad[100].reason == "line 102: the first of 3 more"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("b-1,one,1,tumor", r"line 3 \(b-1\): x=one, y=1: expected two numbers"),
        ("b-1,1_0,1,tumor", r"line 3 \(b-1\): x=1_0, y=1: expected two numbers"),
        ("b-1,1,,tumor", r"line 3 \(b-1\): x=1, y=: expected two numbers"),
        ("b-1,nan,1,tumor", r"line 3 \(b-1\): a coordinate is not a position"),
        ("b-1,1,inf,tumor", r"line 3 \(b-1\): a coordinate is not a position"),
        ("b-1,1,1,", r"line 3 \(b-1\): has no class"),
    ],
)
def test_a_wrong_row_is_its_fields_and_no_others(tmp_path: Path, row: str, reason: str) -> None:
    (good, bad), (told,) = find(write(tmp_path, "a-1,1,1,tumor", row))
    assert len(points(good)) == 1
    with pytest.raises(BadInputError, match=reason) as caught:
        READER.parse(bad)
    assert str(caught.value) == told.reason, "two reasons would be told as two"


def test_whatever_bytes_there_are_the_reason_is_said() -> None:
    rng = np.random.default_rng(0)
    text = (HEADER + '\na-1,1,1,tumor\n"b,1",2,2,"x"\n').encode()
    num_refused = num_bad = 0
    for _ in range(500):
        damaged = bytearray(text)
        for place in rng.integers(len(text), size=2):
            damaged[place] = rng.integers(256)
        try:
            num_bad += any(row.problem for row in parse_table(bytes(damaged)))
        except BadInputError:
            num_refused += 1
    assert 100 < num_refused < 500 - num_bad
    assert num_bad > 20


def rows_of(text: str, encoding: str = "utf-8") -> list[tuple[str, str, str, str]]:
    return [(row.file, row.x, row.y, row.name) for row in parse_table(text.encode(encoding))]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file;x;y;class\r\na-1.tif;10,5;20;tumor\r\n;;;\r\n", "utf-8-sig"),  # Excel in Europe
        ("file\tx\ty\tclass\r\na-1.tif\t10,5\t20\ttumor\r\n", "utf-16"),  # its Unicode text
        ("FILE , X,Y,Class,,\r\na-1.tif,10.5,20,tumor,,\r\n,,,,,\r\n , ,,\r\n", "utf-8"),
        ("file,x,y,class\ra-1.tif,10.5,20,tumor\r", "utf-8"),  # an old Mac's
        ('sep=;\n\n"file";"x";"y";"class"\n"a-1.tif";"10.5";"20";"tumor"\n', "utf-8"),
        ("file;x;y;class\na-1.tif;10.5;20;tumor;;\n", "utf-8"),
    ],
)
def test_tables_as_spreadsheets_write_them(text: str, encoding: str) -> None:
    assert rows_of(text, encoding) == [("a-1.tif", "10.5", "20", "tumor")]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["a;10,5;20.5;t"],
            r"line 2 has 20\.5 and line 2 has 10,5: write all",
        ),
        (["a;10,5;1;t", "a;1;1;t", "a;2.25;3;t"], r"line 4 has 2\.25 and line 2 has 10,5"),
        (
            ["a;1,234;20;t", "a;20;5,678;t"],
            "line 2: 1,234 may be 1234 or 1,2340, like every",
        ),
        (["a;1.234;20;t"], r"line 2: 1\.234 may be 1234 or 1\.2340"),
    ],
)
def test_numbers_that_may_be_two_are_named(lines: list[str], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        rows_of("\n".join(["file;x;y;class", *lines]))


@pytest.mark.parametrize("other", ["1500", "0,125", "1024,125", "7,5", "7,1250"])
def test_one_number_that_has_no_thousands_shows_what_the_mark_is(other: str) -> None:
    ((_, x, y, _),) = rows_of(f"file;x;y;class\na;12,345;{other};t")
    assert (float(x), float(y)) == (12.345, float(other.replace(",", ".")))


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("1.234,5", "; marks between thousands are not read"),
        ("1 234,5", "; marks between thousands are not read"),
        ("1'234", "; marks between thousands are not read"),
        ("10px", ""),
    ],
)
def test_marks_between_thousands_are_refused(tmp_path: Path, cell: str, hint: str) -> None:
    raw = write(tmp_path)
    table = f"file;x;y;class\na-1;{cell};1;t\nb-1;1;1;t\n"
    (raw / "groundTruth/points.csv").write_text(table)
    _, (bad,) = find(raw)
    assert bad.reason == f"line 2 (a-1): x={cell}, y=1: expected two numbers{hint}"


def test_a_decimal_comma_between_commas_is_refused(tmp_path: Path) -> None:
    _, (bad,) = find(write(tmp_path, 'a-1,"10,5",1,t', "b-1,1,1,t"))
    assert bad.reason.endswith(
        "; a decimal comma is read where cells are separated by semicolons or tabs"
    )


def test_a_fields_hash_does_not_depend_on_the_spreadsheet(tmp_path: Path) -> None:
    def hashes(text: str, encoding: str) -> list[str]:
        (raw / "groundTruth/points.csv").write_bytes(text.encode(encoding))
        return [field.annotation_sha256 for field in find(raw)[0]]

    raw = write(tmp_path)
    american = hashes("file,x,y,class\na-1,10.50,2,t\nb-1,,,\n", "utf-8")
    european = hashes("File;X;Y;Class\r\n;;;\r\na-1;10,5;2,0;t\r\nb-1;;;\r\n", "utf-16")
    assert american == european


def test_rows_that_cannot_be_used_are_passed_over_and_counted(tmp_path: Path) -> None:
    """As objects of other formats; a field with no other rows is refused."""
    rows = ["a-1,1,1,t", "a-1,1,1,t", "a-1,2,2,", "a-1,,3,t", "a-1,NaN,3,t", "a-1,4,4,a\x1b[2J"]
    (field, _), bad = find(write(tmp_path, *rows, "b-1,,,"))
    assert bad == []
    parsed = READER.parse(field)
    assert READER.findings(parsed, whole(10, 10)) == Findings(
        classes={"t": 1},
        passed_over={
            "without a class": 1,
            "without a position": 1,
            "a coordinate is not a position in any image": 1,
            "class with unprintable characters": 1,
        },
        duplicates=1,
    )
    _, (told,) = find(write(tmp_path, *rows[2:], "b-1,,,"))
    assert told.reason == "line 2 (a-1): has no class (and no other object can be used)"


def test_a_name_in_a_table_cannot_control_the_terminal(tmp_path: Path) -> None:
    _, bad = find(write(tmp_path, "a-1,1,1,t", "b-1,,,", "c\x1b[2J,x\x1b,1,t"))
    assert all(entry.reason.isprintable() for entry in bad)


@pytest.mark.parametrize("cell", ["1" * 100_000 + "x", "." + "1" * 100_000 + "x", "1" * 100_000])
def test_a_long_number_takes_no_long_time(cell: str) -> None:
    start = time.perf_counter()
    assert bool(NUMBER.fullmatch(cell)) == cell.isdecimal()
    assert time.perf_counter() - start < 5
