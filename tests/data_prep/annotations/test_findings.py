"""What annotations hold beside what is learned: added up, kept in dataset.json, and said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from common.command_line import UsageError
from data_prep import __main__ as data_prep_main
from data_prep.annotations.findings import Findings, add_up, is_alike, summary, warnings
from data_prep.config import PrepConfig, SplitConfig
from data_prep.dataset.description import Labelling
from data_prep.dataset.manifest import read_dataset
from data_prep.prepare import prepare
from data_prep.raw import BadInputFilesError
from train.fields.whole_fields import notes_on_raw, raw_fields

pytestmark = pytest.mark.usefixtures("warm_workers")


def feature(name: str, x: float, y: float, side: float = 0, **properties: Any) -> dict[str, Any]:
    """A square, or a point."""
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    area = {"type": "Polygon", "coordinates": [ring]}
    return {
        "type": "Feature",
        "geometry": area if side else {"type": "Point", "coordinates": [x, y]},
        "properties": {"classification": {"name": name}, "objectType": "detection", **properties},
    }


LINE = {
    "type": "Feature",
    "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
    "properties": {"classification": {"name": "Ruler"}},
}
NO_SPLIT = SplitConfig(val=0, test=0)
REGION = feature("Tumor", 4, 4, 70, objectType="annotation")
CONTENT: dict[str, list[Any]] = {
    "a-1": [
        feature("Tumor", 20, 20, 8),
        feature("tumor", 50, 50),
        feature("Tumor", 99, 9, 8),
        LINE,
    ],
    "b-1": [REGION, feature("Tumor", 20, 20, 8), feature("Tumor", 20, 20, 8), feature("Fat", 9, 9)],
}
FINDINGS = Findings(
    classes={"Fat": 1, "Tumor": 4, "tumor": 1},
    passed_over={"geometry is LineString": 1},
    clipped=1,
    duplicates=1,
    holding={"Tumor": 1},
)


def write(raw: Path, content: dict[str, list[Any]], ending: str = "geojson") -> Path:
    for folder in ("images", "groundTruth"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for seed, (name, features) in enumerate(content.items()):
        pixels = np.random.default_rng(seed).integers(0, 200, (80, 100, 3), np.uint8)
        tifffile.imwrite(raw / f"images/{name}.tif", pixels, photometric="rgb")
        (raw / f"groundTruth/{name}.{ending}").write_text(json.dumps(features))
    return raw


def arguments(raw: Path, out: Path, *others: str) -> list[str]:
    given = [f"raw={raw}", f"out={out}", "annotations=geojson", "classes=[Tumor]", "copies=1"]
    return [*given, "split.val=0", "split.test=0", "workers=1", *others]


def found_in(out: Path) -> Findings:
    return Findings(**json.loads((out / "dataset.json").read_text())["findings"])


def points(out: Path, name: str) -> list[tuple[int, int]]:
    """The pixels of the nuclei of a field."""
    (sample,) = [sample for sample in read_dataset(out).samples if sample.field == name]
    listed = json.loads((out / sample.points).read_text())["Tumor"]
    return [(int(point["x"] * 100), int(point["y"] * 80)) for point in listed]


def test_they_are_kept_in_dataset_json_and_said(tmp_path: Path, cli: Callable[..., Any]) -> None:
    raw, out = write(tmp_path / "raw", CONTENT), tmp_path / "out"
    outcome = cli(data_prep_main.main, *arguments(raw, out))
    assert outcome.code == 0
    assert found_in(out) == FINDINGS
    assert "\nnot learned: Fat 1, tumor 1\npassed over: 1 (geometry is LineString)\n" in outcome.out
    assert "\ncounted once: 1 object annotated again\n" in outcome.out
    assert "\ncut at the border of the image: 1 outline\n" in outcome.out
    assert "warning: classes: 'tumor' (1 object) is not learned, since only 'Tumor'" in outcome.err
    assert "warning: 1 area of Tumor holds others of the same class" in outcome.err
    assert "object_types=[detection,cell] leaves them out" in outcome.err
    again = cli(data_prep_main.main, *arguments(raw, out))
    assert "kept as they were: 2 fields" in again.out
    assert again.err == outcome.err
    assert found_in(out) == FINDINGS


def test_the_tiles_of_an_image_count_once_and_shares_join(tmp_path: Path) -> None:
    raw, out = write(tmp_path / "raw", CONTENT), tmp_path / "out"
    given: dict[str, Any] = {"raw": str(raw), "out": str(out), "annotations": "geojson"}
    given |= {"classes": ["Tumor"], "copies": 1, "workers": 1, "tile_px": 64, "case_regex": "each"}
    for share in ("1/3", "2/3", "3/3", ""):
        prepare(PrepConfig(**given, share=share, split=NO_SPLIT))
    assert len(read_dataset(out).samples) == 8
    assert found_in(out) == FINDINGS


def test_a_bad_field_is_not_counted(tmp_path: Path, cli: Callable[..., Any]) -> None:
    raw, out = write(tmp_path / "raw", {**CONTENT, "c-1": [feature("x", 500, 9)]}), tmp_path / "out"
    assert cli(data_prep_main.main, *arguments(raw, out, "on_error=skip")).code == 0
    assert found_in(out) == FINDINGS


def test_of_regions_and_cells_the_cells_can_be_taken(
    tmp_path: Path, cli: Callable[..., Any]
) -> None:
    raw, out = write(tmp_path / "raw", CONTENT), tmp_path / "out"
    outcome = cli(data_prep_main.main, *arguments(raw, out, "object_types=[detection,cell]"))
    assert "holds others" not in outcome.err
    assert points(out, "b-1") == [(24, 24)]
    assert found_in(out).holding == {}
    labelling = read_dataset(out).description.labelling
    assert labelling.object_types == ["detection", "cell"]
    fields = raw_fields(raw, labelling, out)
    assert [len(field.read()[2][0]) for field in fields] == [2, 1], "evaluation reads alike"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("object_types=[cells]", "object_types=[cells]: name some of annotation, detection, cell"),
        ("object_types=[]", "object_types=[]: name some of annotation"),
        ("annotations=csv object_types=[cell]", "only annotations=geojson has types of objects"),
    ],
)
def test_other_types_are_refused(given: str, reason: str, cli: Callable[..., Any]) -> None:
    outcome = cli(data_prep_main.main, "annotations=geojson", *given.split())
    assert outcome.code == 2
    assert reason in outcome.err


@pytest.mark.parametrize("ending", ["geojson", "json"])
def test_a_file_that_annotates_nothing_is_refused_unless_it_may(
    ending: str, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    content: dict[str, Any] = {"a-1": [feature("tumor", 50, 50)], "b-1": []}
    given = ["classes=[tumor]"]
    if ending == "json":
        lists = [[{"x": 0.5, "y": 0.5}], []]
        content = {name: {"tumor": found} for name, found in zip(content, lists, strict=True)}
        given.append("annotations=brecahad")
    raw, out = write(tmp_path / "raw", content, ending), tmp_path / "out"
    outcome = cli(data_prep_main.main, *arguments(raw, out, *given))
    assert outcome.code == 1
    assert f"groundTruth/b-1.{ending}: annotates nothing: " in outcome.err
    assert "empty=accept takes it to say that nothing is there" in outcome.err
    assert cli(data_prep_main.main, *arguments(raw, out, *given, "empty=accept")).code == 0
    dataset = read_dataset(out)
    assert [sample.foreground_px > 0 for sample in dataset.samples] == [True, False]
    labelling = dataset.description.labelling
    fields = raw_fields(raw, labelling, out)
    notes = notes_on_raw(fields, labelling, 0)
    assert not any(note.startswith("annotations") for note in notes)
    assert [bool(field.read()[1].any()) for field in fields] == [True, False]
    assert cli(data_prep_main.main, *arguments(raw, out, *given)).code == 1, "kept fields too"


def test_evaluation_of_raw_fields_says_what_is_not_in_the_truth(tmp_path: Path) -> None:
    """Not that Fat is there, which the run never learned."""
    raw = write(tmp_path / "raw", CONTENT)
    labelling = Labelling({"Tumor": 255}, 4, 65535, "each", "geojson")
    notes = notes_on_raw(raw_fields(raw, labelling, None), labelling, 0)
    assert notes[:3] == [
        "annotations: passed over: 1 (geometry is LineString); counted once: 1 object annotated"
        " again; cut at the border of the image: 1 outline",
        "classes: 'tumor' (1 object) is not learned, since only 'Tumor' (4 objects) is; give them"
        " one name in the annotations, or list all in classes=",
        "1 area of Tumor holds others of the same class, and all are learned; if they are regions"
        " around cells, object_types=[detection,cell] leaves them out",
    ]


def test_empty_is_not_a_part_of_what_a_mask_means() -> None:
    """A model may be measured on data that have empty fields, too; not on other objects."""
    one, other = (Labelling({"t": 1}, 9, 9, "each", empty=empty) for empty in ("refuse", "accept"))
    assert one == other
    assert one != Labelling({"t": 1}, 9, 9, "each", object_types=["cell"])


def test_a_class_that_is_missing_for_its_spelling_is_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", {"a-1": [feature("Tumor ", 9, 9)]})
    config = PrepConfig(
        raw=str(raw), out=str(tmp_path / "out"), annotations="geojson", classes=["tumor"]
    )
    expected = (
        "there are: 'Tumor '; 'Tumor ' is written otherwise than 'tumor': give it in classes="
    )
    with pytest.raises(UsageError, match=expected):
        prepare(config)


def test_one_bad_object_does_not_hide_that_a_file_is_anothers(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", {"a-1": [LINE, feature("Tumor", 9, 9), feature("Tumor", 9, 99)]})
    config = PrepConfig(
        raw=str(raw), out=str(tmp_path / "out"), annotations="geojson", classes=["Tumor"],
        split=NO_SPLIT,
    )  # fmt: skip
    with pytest.raises(BadInputFilesError, match=r"features\[2\]: y = 99 is outside the image"):
        prepare(config)


@pytest.mark.parametrize(
    ("name", "other", "are_alike"),
    [
        ("Tumor", "tumor", True),
        ("Tumor", "Tumor ", True),
        ("Immune cells", "Immune  cells", True),
        ("Immune cells", "Immune\u00a0cells", True),
        ("Immune cells", "immunecells", True),
        ("Zelle \u00e4", "Zelle a\u0308", True),  # NFC and NFD
        ("Tumor", "\uff34umor", True),  # NFKC: a full-width letter
        ("stra\u00dfe", "STRASSE", True),
        ("Tumor", "Tumor", False),
        ("Tumor", "Tumour", False),
        ("Tumor", "non_Tumor", False),
    ],
)
def test_names_that_differ_only_in_case_blanks_or_form(
    name: str, other: str, are_alike: bool
) -> None:
    assert is_alike(name, other) == is_alike(other, name) == are_alike


def test_names_that_look_the_same_are_told_apart() -> None:
    (warning,) = warnings(
        Findings({"Zelle \u00e4": 2, "Zelle a\u0308": 3}), ["Zelle \u00e4"], "csv"
    )
    assert warning.startswith(
        r"classes: 'Zelle a\u0308' (3 objects) is not learned, since only 'Zelle \xe4' (2 objects)"
    )
    (warning,) = warnings(Findings({"a\u00a0b": 1}), ["a b"], "csv")
    assert r"'a\xa0b' (1 object) is not learned, since only 'a b' (0 objects) is" in warning


def test_classes_that_are_all_learned_are_no_mistake() -> None:
    assert warnings(Findings({"Tumor": 2, "tumor": 3}), ["Tumor", "tumor"], "csv") == []


def test_very_many_names_are_shortened() -> None:
    lines = summary(Findings({f"c{number:02}": number for number in range(1, 20)}), ["c19"])
    assert lines == [
        "not learned: c18 18, c17 17, c16 16, c15 15, c14 14, c13 13, c12 12, c11 11, c10 10, c09 9"
        " and 8 more"
    ]


def test_findings_add_up() -> None:
    one = Findings({"b": 1, "a": 2}, {"x": 1}, 1, 2, {"a": 1})
    other = Findings({"c": 5, "a": 1}, {"x": 2, "w": 1}, 3, 4)
    assert add_up([one, other]) == Findings(
        {"a": 3, "b": 1, "c": 5}, {"w": 1, "x": 3}, 4, 6, {"a": 1}
    )
    assert list(add_up([one, other]).classes) == ["a", "b", "c"]
    assert add_up([]) == Findings()
