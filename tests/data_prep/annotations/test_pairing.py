"""Finding the fields of a raw folder: every layout, and what is no pair."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.command_line import UsageError
from data_prep.annotations.folders import AnnotationNames
from data_prep.annotations.pairing import find_fields
from data_prep.config import PrepConfig
from data_prep.raw import BadFile, Field

CASE_REGEX = PrepConfig().case_regex
JSON = AnnotationNames((".json",))


def touch(raw: Path, *names: str) -> Path:
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"")
    return raw


def find(raw: Path) -> tuple[list[str], list[BadFile]]:
    fields, bad = find_fields(raw, CASE_REGEX, JSON)
    return [field.name for field in fields], bad


class TestFindFields:
    def test_brecahads_own_layout(self, tmp_path: Path) -> None:
        raw = touch(tmp_path, "images/Case_1-01.tif", "groundTruth/Case_1-01.json")
        (field,), bad = find_fields(raw, CASE_REGEX, JSON)
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
        fields, bad = find_fields(raw, CASE_REGEX, AnnotationNames((".geojson",)))
        assert ([field.annotation.name for field in fields], bad) == (["a-1.geojson"], [])

    def test_an_annotation_may_be_called_as_predictions_are(self, tmp_path: Path) -> None:
        """b has an annotation of both names; c_nuclei is an image of its own; e has no image."""
        names = ["images/a.tif", "images/b.tif", "images/c.tif", "images/c_nuclei.tif"]
        names += [f"groundTruth/{name}.json" for name in ("a_nuclei", "b", "b_nuclei", "c")]
        raw = touch(tmp_path, *names, "groundTruth/c_nuclei.json", "groundTruth/e_nuclei.json")
        fields, bad = find_fields(raw, CASE_REGEX, AnnotationNames((".json",), ("nuclei",)))
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
        with pytest.raises(
            UsageError, match=r"no images found; it holds nothing; expected images/"
        ):
            find(tmp_path)

    def test_a_folder_one_too_high_is_told_the_right_one(self, tmp_path: Path) -> None:
        touch(tmp_path, "BreCaHAD/images/a.tif", "BreCaHAD/groundTruth/a.json")
        with pytest.raises(UsageError, match=r"did you mean raw=.*BreCaHAD\?$"):
            find(tmp_path)


class TestNames:
    """Names that people give to the two files of a field."""

    @pytest.mark.parametrize(
        ("image", "annotation"),
        [
            ("images/a-1.tif", "groundTruth/a-1.tif.json"),
            ("images/a-1.ome.tif", "groundTruth/a-1.json"),
            ("images/a-1.ome.tif", "groundTruth/a-1.ome.json"),
            ("images/a-1.ome.tif", "groundTruth/a-1.ome.tif.json"),
            ("images/a-1.png", "groundTruth/a-1.tif.json"),  # converted since
            ("images/a-1 .tif", "groundTruth/a-1.json"),
            ("Images/a-1.tif", "annotations/a-1.JSON"),
            ("imgs/a-1.tif", "ground_truth/a-1.json"),
            ("images/a-1.tif", "images/a-1.json"),
            ("images/a-1.tif", "a-1.json"),
            ("a-1.tif", "Labels/a-1.json"),
        ],
    )
    def test_a_pair_is_found(self, tmp_path: Path, image: str, annotation: str) -> None:
        raw = touch(tmp_path, image, annotation)
        (field,), bad = find_fields(raw, CASE_REGEX, JSON)
        assert bad == []
        assert field == Field("a-1", "a", raw / image, raw / annotation)

    def test_names_are_compared_in_one_form_and_files_opened_by_their_own(
        self, tmp_path: Path
    ) -> None:
        """macOS writes an accent as a character of its own."""
        raw = touch(tmp_path, "images/Rene\u0301-1.tif", "groundTruth/Ren\u00e9-1.json")
        (field,), bad = find_fields(raw, CASE_REGEX, JSON)
        assert bad == []
        assert (field.name, field.case) == ("Ren\u00e9-1", "Ren\u00e9")
        assert field.image.is_file()
        assert field.annotation.is_file()

    def test_two_files_of_one_name_in_two_forms_are_one_field_twice(self, tmp_path: Path) -> None:
        images = ["images/Rene\u0301-1.tif", "images/Ren\u00e9-1.tif"]
        raw = touch(tmp_path, *images, "groundTruth/Ren\u00e9-1.json")
        fields, bad = find_fields(raw, CASE_REGEX, JSON)
        assert fields == []
        assert len(bad) == 3
        assert all("which Unicode writes in two ways; keep one" in each.reason for each in bad)

    @pytest.mark.parametrize(
        ("annotations", "words"),
        [
            (
                ["a-1_gt.json", "a-2_gt.json", "b-1_gt.json"],
                "3 annotations are called NAME_gt.json (a-1_gt.json, a-2_gt.json, ...)",
            ),
            (["points of a-1.json"], "1 annotation is called points of NAME.json (points of"),
            (
                ["x.json", "y.json"],
                "2 annotations in groundTruth/, such as x.json, and 3 images, such as a-1.tif, but"
                " no two of one name",
            ),
            (
                ["a-1_gt.json", "x.json"],
                "2 annotations in groundTruth/, such as a-1_gt.json, and 3 images, such as a-1.tif",
            ),
        ],
    )
    def test_where_nothing_pairs_one_line_says_why(
        self, tmp_path: Path, annotations: list[str], words: str
    ) -> None:
        images = ["images/a-1.tif", "images/a-2.tif", "images/b-1.tif"]
        raw = touch(tmp_path, *images, *(f"groundTruth/{name}" for name in annotations))
        with pytest.raises(UsageError) as caught:
            find(raw)
        message = str(caught.value)
        assert words in message
        assert message.endswith("; expected NAME.json for an image NAME.tif")
        assert "\n" not in message

    def test_annotations_that_are_not_there_are_one_line_too(self, tmp_path: Path) -> None:
        raw = touch(tmp_path, "images/a-1.tif", "annotations/a-1.geojson", "masks/a-1.png", "b.txt")
        with pytest.raises(UsageError) as caught:
            find(raw)
        assert str(caught.value) == (
            f"raw={raw}: 1 image in images/, but no annotation (.json); it holds annotations/"
            " (1 .geojson), images/ (1 .tif), masks/ (1 .png), 1 .txt; expected, for a-1.tif,"
            " groundTruth/a-1.json"
        )

    def test_a_folder_of_the_wanted_format_is_taken_and_two_are_refused(
        self, tmp_path: Path
    ) -> None:
        raw = touch(tmp_path, "images/a-1.tif", "masks/a-1.png", "annotations/a-1.json")
        (field,), _ = find_fields(raw, CASE_REGEX, JSON)
        assert field.annotation == raw / "annotations/a-1.json"
        touch(tmp_path, "labels/a-1.json")
        with pytest.raises(UsageError, match=r"annotations in annotations/ and in labels/; move"):
            find(raw)

    def test_images_in_two_folders_are_refused(self, tmp_path: Path) -> None:
        raw = touch(tmp_path, "imgs/a-1.tif", "tiles/a-1.tif", "groundTruth/a-1.json")
        with pytest.raises(UsageError, match=r"images in imgs/ and in tiles/; move away"):
            find(raw)

    def test_a_picture_beside_brecahads_folders_is_passed_over(self, tmp_path: Path) -> None:
        raw = touch(tmp_path, "images/a-1.tif", "groundTruth/a-1.json", "overview.png")
        assert find(raw) == (["a-1"], [])


def test_raw_folders_of_the_fixture_are_read(raw_folder: Callable[..., Path]) -> None:
    """The fixture that other tests build on is BreCaHAD's layout indeed."""
    assert find(raw_folder({"2": 1, "1": 2})) == (["Case_1-01", "Case_1-02", "Case_2-01"], [])
