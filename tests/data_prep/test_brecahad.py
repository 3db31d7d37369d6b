"""Finding raw pairs and reading annotations: every layout, every spelling, every mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import UsageError
from data_prep import brecahad
from data_prep.brecahad import BadFile, BadInputError
from data_prep.config import PrepConfig

CASE_REGEX = PrepConfig().case_regex
POINT = {"x": 0.25, "y": 0.75}


def touch(raw: Path, *names: str) -> Path:
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"")
    return raw


def find(raw: Path) -> tuple[list[str], list[BadFile]]:
    fields, bad = brecahad.find_fields(raw, CASE_REGEX)
    return [field.name for field in fields], bad


def parse(content: object) -> brecahad.Points:
    return brecahad.parse_points(json.dumps(content).encode())


class TestFindFields:
    def test_brecahads_own_layout(self, tmp_path: Path) -> None:
        raw = touch(tmp_path, "images/Case_1-01.tif", "groundTruth/Case_1-01.json")
        (field,), bad = brecahad.find_fields(raw, CASE_REGEX)
        assert bad == []
        assert field == brecahad.Field(
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
                    "two fields of one name: b-1.JSON, b-1.json",
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


@pytest.mark.parametrize(
    ("stem", "regex", "case"),
    [
        ("Case_1-01", CASE_REGEX, "Case_1"),
        ("Case_10-7", CASE_REGEX, "Case_10"),
        ("TCGA-AA-0001-12", CASE_REGEX, "TCGA-AA-0001"),
        ("slide", CASE_REGEX, "slide"),  # tells no case: one of its own
        ("Case_1-01b", CASE_REGEX, "Case_1-01b"),
        ("P007_s3", r"P(?P<case>\d+)_s\d", "007"),
        ("slide", r"(?:P(?P<case>\d+)_)?.*", "slide"),  # matches, but without a case
    ],
)
def test_the_case_of_a_field(stem: str, regex: str, case: str) -> None:
    assert brecahad.case_of(stem, regex) == case


class TestParsePoints:
    def test_every_class_with_its_points(self) -> None:
        content = {name: [] for name in brecahad.CLASSES} | {"tumor": [POINT, {"x": 0, "y": 1}]}
        expected = {name: [] for name in brecahad.CLASSES}
        assert parse(content) == expected | {"tumor": [(0.25, 0.75), (0.0, 1.0)]}

    @pytest.mark.parametrize(
        ("official", "usual"), [("tubule", "lumen"), ("non_tubule", "non_lumen")]
    )
    def test_both_spellings_name_one_class(self, official: str, usual: str) -> None:
        assert parse({official: [POINT]}) == parse({usual: [POINT]}) == {usual: [(0.25, 0.75)]}

    def test_the_official_files(self, official_json: list[Path]) -> None:
        for path in official_json:
            plain = json.loads(path.read_text())
            points = brecahad.parse_points(path.read_bytes())
            assert set(points) == set(brecahad.CLASSES)
            assert points == {
                name: [(entry["x"], entry["y"]) for entry in entries]
                for name, entries in plain.items()
            }

    def test_the_sample(self, real_data: Path) -> None:
        fields, bad = brecahad.find_fields(real_data, CASE_REGEX)
        assert bad == []
        assert len(fields) == 16
        assert [field.case for field in fields] == ["Case_1"] + ["Case_10"] * 8 + ["Case_11"] * 7
        tumor = {
            field.name: len(brecahad.parse_points(field.annotation.read_bytes())["tumor"])
            for field in fields
        }
        assert tumor["Case_10-07"] == 245  # the two annotations of one picture, as README.md says
        assert tumor["Case_10-08"] == 155

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "invalid JSON"),
            (b'{"tumor": [{"x": 0.5, "y": 0.', "invalid JSON"),
            (b"\xff\xfe\x00", "invalid JSON"),
            (b"[" * 100_000, "invalid JSON"),
            (b"[]", "expected one object, found list"),
            (b'{"tumour": []}', "unknown class 'tumour'; known: mitosis"),
            (b'{"tumor": {"x": 0.5, "y": 0.5}}', "class 'tumor': expected a list"),
            (b'{"tumor": null}', "class 'tumor': expected a list"),
            (b'{"tumor": [[0.5, 0.5]]}', r"tumor\[0\]: expected \{\"x\""),
            (b'{"tumor": [{"x": 0.5}]}', r"tumor\[0\]: expected \{\"x\""),
            (b'{"tumor": [{"x": 0.5, "y": "0.5"}]}', r"tumor\[0\]\.y: expected a number"),
            (b'{"tumor": [{"x": true, "y": 0.5}]}', r"tumor\[0\]\.x: expected a number"),
            (b'{"tumor": [{"x": null, "y": 0.5}]}', r"tumor\[0\]\.x: expected a number"),
            (
                b'{"tumor": [{"x": 0, "y": 0}, {"x": 1.5, "y": 0}]}',
                r"tumor\[1\]\.x = 1\.5: outside",
            ),
            (b'{"tumor": [{"x": 0.5, "y": -0.001}]}', r"tumor\[0\]\.y = -0\.001: outside"),
            (b'{"tumor": [{"x": 680, "y": 512}]}', r"tumor\[0\]\.x = 680: outside \[0, 1\]"),
            (b'{"tumor": [{"x": NaN, "y": 0.5}]}', r"tumor\[0\]\.x = nan: outside"),
            (b'{"tumor": [{"x": 0.5, "y": Infinity}]}', r"tumor\[0\]\.y = inf: outside"),
            (b'{"tumor": [{"x": 1e999, "y": 0.5}]}', r"tumor\[0\]\.x = inf: outside"),
            (
                b'{"tumor": [{"x": 1' + b"0" * 400 + b', "y": 0.5}]}',
                r"tumor\[0\]\.x = 10+: outside",
            ),
            (b'{"tumor": [], "lumen": []}', "annotates nothing"),
            (b"{}", "annotates nothing"),
            (
                b'{"lumen": [{"x": 0, "y": 0}], "tubule": [{"x": 1, "y": 1}]}',
                "class 'lumen' stands twice",
            ),
            (
                b'{"tumor": [{"x": 0, "y": 0}], "tumor": [{"x": 1, "y": 1}]}',
                "'tumor' stands twice",
            ),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_a_mistake_is_refused_with_its_place(self, content: bytes, reason: str) -> None:
        with pytest.raises(BadInputError, match=reason):
            brecahad.parse_points(content)


class TestClasses:
    def test_classes_are_selected_in_the_order_asked_for(self) -> None:
        points = parse({"tumor": [POINT], "lumen": [], "mitosis": []})
        assert list(brecahad.select_classes(points, ["lumen", "tumor"])) == ["lumen", "tumor"]

    def test_a_class_without_a_list_is_refused(self) -> None:
        with pytest.raises(BadInputError, match="has no list for class 'lumen'"):
            brecahad.select_classes(parse({"tumor": [POINT]}), ["tumor", "lumen"])

    def test_asked_for_classes_take_both_spellings(self) -> None:
        assert brecahad.check_classes(["tubule", "tumor"]) == ["lumen", "tumor"]

    def test_an_unknown_class_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(UsageError, match="unknown 'cancer'; known: mitosis, non_mitosis"):
            brecahad.check_classes(["cancer"])

    def test_one_class_under_two_spellings_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"classes=\[lumen,tubule\]: a class is named twice"):
            brecahad.check_classes(["lumen", "tubule"])


def test_raw_folders_of_the_fixture_are_read(raw_folder: Callable[..., Path]) -> None:
    """The fixture that other tests build on is BreCaHAD's layout indeed."""
    assert find(raw_folder({"2": 1, "1": 2})) == (["Case_1-01", "Case_1-02", "Case_2-01"], [])
