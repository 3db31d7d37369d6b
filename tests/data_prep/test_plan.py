"""What a share of a preparation is: which fields it has, and which files it reads."""

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from common.command_line import UsageError
from data_prep import plan
from data_prep.config import PrepConfig, SplitConfig
from data_prep.plan import FieldTile, find_fields, make_plan, take_share
from data_prep.raw import Field

SPLITS = {"a": "train", "b": "val", "c": "train", "d": "test"}


def fields_of(cases: str) -> list[FieldTile]:
    """A field of each case that is named, in this order."""
    paths = Path("image.tif"), Path("annotation.json")
    return [(Field(f"{case}-{number}", case, *paths), None) for number, case in enumerate(cases)]


def shares(cases: str, num_shares: int, copies: int) -> list[str]:
    """The cases of the fields of each share."""
    of_each = []
    for k in range(1, num_shares + 1):
        config = PrepConfig(raw="raw", out="out", copies=copies, share=f"{k}/{num_shares}")
        chosen = take_share(fields_of(cases), SPLITS, config)
        of_each.append("".join(field.case for field, _ in chosen))
    return of_each


@pytest.mark.parametrize(
    ("cases", "num_shares", "copies", "expected"),
    [
        ("aaaa", 2, 16, ["aa", "aa"]),
        ("aaaa", 1, 16, ["aaaa"]),
        ("abcd", 4, 1, ["a", "b", "c", "d"]),
        # 4 + 6 x 1 + 2 x 4 = 18 copies, so 9 each: 4 + 5 and 1 + 8
        ("abbbbbbcc", 2, 4, ["abbbbb", "bcc"]),
        # 16, 1, 1, 16: of 34 copies two middles lie in either half
        ("abdc", 2, 16, ["ab", "dc"]),
        # 20 copies each; the first half's end, 20, is the middle of the third field
        ("aaaaa", 2, 8, ["aa", "aaa"]),
        # middles 1/4 and 3/4: the second and the fourth of five fifths
        ("aa", 5, 16, ["", "a", "", "a", ""]),
    ],
)
def test_shares_are_runs_of_parts_with_about_as_many_copies(
    cases: str, num_shares: int, copies: int, expected: list[str]
) -> None:
    assert shares(cases, num_shares, copies) == expected


def test_every_part_is_in_one_share_and_none_has_far_more_than_another() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        cases = "".join(rng.choice(list("abcd"), rng.integers(1, 60)))
        num_shares, copies = (int(number) for number in rng.integers(1, 20, 2))
        found = shares(cases, num_shares, copies)
        assert "".join(found) == cases
        loads = [sum(copies if case in "ac" else 1 for case in share) for share in found]
        assert max(loads) <= sum(loads) / num_shares + copies


def test_a_field_whose_name_would_not_be_read_again_is_bad(tmp_path: Path) -> None:
    for name in ("a-1", "b\n-1"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((9, 9), np.uint8))
        (tmp_path / f"{name}.json").write_text('{"tumor": []}')
    fields, bad = find_fields(PrepConfig(raw=str(tmp_path), out="out"))
    assert [field.name for field in fields] == ["a-1"]
    assert [(entry.file, "control characters" in entry.reason) for entry in bad] == [
        ("b\n-1.tif", True)
    ]


def test_a_share_reads_the_slides_of_its_own_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a-1", "b-1", "c-1", "d-1"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((256, 512), np.uint8))
        (tmp_path / f"{name}.json").write_text('{"tumor": [{"x": 0.5, "y": 0.5}]}')
    read = []
    file_sha256 = plan.file_sha256
    monkeypatch.setattr(
        plan, "file_sha256", lambda path: (read.append(path.name), file_sha256(path))[1]
    )
    config = PrepConfig(
        raw=str(tmp_path),
        out=str(tmp_path / "out"),
        tile_px=64,
        copies=2,
        share="2/2",
        split=SplitConfig(val=0, test=0),
        workers=1,
    )
    tasks = make_plan(config, *find_fields(config)).tasks
    assert [task.field.name for task in tasks] == ["c-1"] * 32 + ["d-1"] * 32
    assert sorted(read) == ["c-1.json", "c-1.tif", "d-1.json", "d-1.tif"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds something that is not a prepared data set"),
        ("{", "holds something that is not a prepared data set"),
        ('{"format": "\\u001b[2J"}', r"format '\x1b[2J'; this one writes 6"),
        (
            '{"format": 2}',
            "was prepared by another version of data_prep (format 2; this one writes",
        ),
        ('{"format": 6}', "holds a prepared data set without .eosin/"),
    ],
)
def test_a_folder_that_was_not_begun_by_this_version_is_refused_and_left(
    content: str | None, words: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    if content is not None:
        (out / "dataset.json").write_text(content)
    before = sorted(out.rglob("*"))
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        plan.make_folders(out, tmp_path / "raw")
    assert str(caught.value).endswith("; name another")
    assert sorted(out.rglob("*")) == before
