"""Finding the fields of a raw folder: every layout, and what is no pair."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.command_line import UsageError
from data_prep.config import PrepConfig
from data_prep.raw import BadFile, Field, find_fields

CASE_REGEX = PrepConfig().case_regex
SUFFIXES = (".json",)


def touch(raw: Path, *names: str) -> Path:
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"")
    return raw


def find(raw: Path) -> tuple[list[str], list[BadFile]]:
    fields, bad = find_fields(raw, CASE_REGEX, SUFFIXES)
    return [field.name for field in fields], bad


class TestFindFields:
    def test_brecahads_own_layout(self, tmp_path: Path) -> None:
        raw = touch(tmp_path, "images/Case_1-01.tif", "groundTruth/Case_1-01.json")
        (field,), bad = find_fields(raw, CASE_REGEX, SUFFIXES)
        assert bad == []
        assert field == Field(
            "Case_1-01",
            "Case_1",
            raw / "images/Case_1-01.tif",
            raw / "groundTruth/Case_1-01.json",
        )

    def test_all_in_one_folder(self, tmp_path: Path) -> None:
        raw = touch(tmp_path, "Case_1-01.tif", "Case_1-01.json", "Case_2-05.json", "Case_2-05.tif")
        assert find(raw) == (["Case_1-01", "Case_2-05"], [])

    @pytest.mark.parametrize("suffix", [".tif", ".tiff", ".TIF", ".png", ".jpg", ".jpeg", ".JPG"])
    def test_every_kind_of_image(self, tmp_path: Path, suffix: str) -> None:
        raw = touch(tmp_path, f"images/Case_1-01{suffix}", "groundTruth/Case_1-01.json")
        assert find(raw) == (["Case_1-01"], [])

    def test_hidden_and_other_files_are_passed_over(self, tmp_path: Path) -> None:
        """macOS leaves ._NAME beside NAME on foreign disks."""
        raw = touch(tmp_path, "a-1.tif", "a-1.json", "._a-1.tif", "README.md", "a-1.txt")
        assert find(raw) == (["a-1"], [])

    def test_fields_come_in_natural_order(self, tmp_path: Path) -> None:
        names = ["Case_2-01", "Case_10-02", "Case_10-1", "Case_1-01", "a5²"]
        raw = touch(tmp_path, *(f"{name}{end}" for name in names for end in (".tif", ".json")))
        expected = ["Case_1-01", "Case_2-01", "Case_10-1", "Case_10-02", "a5²"]
        assert find(raw) == (expected, [])

    @pytest.mark.parametrize(
        ("files", "bad"),
        [
            (["images/b-1.tif"], {"images/b-1.tif": "groundTruth/b-1.json is not there"}),
            (["groundTruth/b-1.json"], {"groundTruth/b-1.json": "images/b-1.tif is not there"}),
            (
                ["images/b-1.tif", "images/b-1.png", "groundTruth/b-1.json"],
                dict.fromkeys(
                    ["images/b-1.tif", "images/b-1.png", "groundTruth/b-1.json"],
                    "two fields of one name: b-1.png, b-1.tif",
                ),
            ),
            (
                ["images/b-1.tif", "groundTruth/b-1.json", "groundTruth/b-1.JSON"],
                dict.fromkeys(
                    ["images/b-1.tif", "groundTruth/b-1.json", "groundTruth/b-1.JSON"],
                    "two annotations of one field: b-1.JSON, b-1.json",
                ),
            ),
        ],
    )
    def test_what_is_no_pair_is_bad_and_the_rest_is_found(
        self, tmp_path: Path, files: list[str], bad: dict[str, str]
    ) -> None:
        raw = touch(tmp_path, "images/a-1.tif", "groundTruth/a-1.json", *files)
        names, found_bad = find(raw)
        assert names == ["a-1"]
        assert {entry.file for entry in found_bad} == set(bad)
        assert all(bad[entry.file] in entry.reason for entry in found_bad), found_bad

    def test_an_annotation_has_one_of_the_endings(self, tmp_path: Path) -> None:
        raw = touch(tmp_path, "images/a-1.tif", "groundTruth/a-1.geojson", "groundTruth/a-1.json")
        fields, bad = find_fields(raw, CASE_REGEX, (".geojson",))
        assert ([field.annotation.name for field in fields], bad) == (["a-1.geojson"], [])
        _, bad = find_fields(raw, CASE_REGEX, (".csv",))
        assert [entry.reason for entry in bad] == [
            "has no annotation: groundTruth/a-1.csv is not there"
        ]

    def test_an_annotation_may_be_called_as_predictions_are(self, tmp_path: Path) -> None:
        """b has an annotation of both names; c_nuclei is an image of its own; e has no image."""
        names = ["images/a.tif", "images/b.tif", "images/c.tif", "images/c_nuclei.tif"]
        names += [f"groundTruth/{name}.json" for name in ("a_nuclei", "b", "b_nuclei", "c")]
        raw = touch(tmp_path, *names, "groundTruth/c_nuclei.json", "groundTruth/e_nuclei.json")
        fields, bad = find_fields(raw, CASE_REGEX, SUFFIXES, "_nuclei")
        assert {field.name: field.annotation.name for field in fields} == {
            "a": "a_nuclei.json",
            "c": "c.json",
            "c_nuclei": "c_nuclei.json",
        }
        both = "two annotations of one field: b.json, b_nuclei.json; keep one"
        assert bad == [
            BadFile("images/b.tif", both),
            BadFile("groundTruth/b.json", both),
            BadFile("groundTruth/b_nuclei.json", both),
            BadFile(
                "groundTruth/e_nuclei.json",
                "has no image: images/e.tif or images/e_nuclei.tif is not there",
            ),
        ]

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"^raw=.*none: no such folder$"):
            find(tmp_path / "none")

    def test_a_folder_without_images_says_what_is_expected(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no images found; expected images/Case_\*\.tif"):
            find(tmp_path)

    def test_a_folder_one_too_high_is_told_the_right_one(self, tmp_path: Path) -> None:
        touch(tmp_path, "BreCaHAD/images/a.tif", "BreCaHAD/groundTruth/a.json")
        with pytest.raises(UsageError, match=r"did you mean raw=.*BreCaHAD\?$"):
            find(tmp_path)


def test_raw_folders_of_the_fixture_are_read(raw_folder: Callable[..., Path]) -> None:
    """The fixture that other tests build on is BreCaHAD's layout indeed."""
    assert find(raw_folder({"2": 1, "1": 2})) == (["Case_1-01", "Case_1-02", "Case_2-01"], [])
