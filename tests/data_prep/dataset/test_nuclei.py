"""How many nuclei are annotated: counted in every format, printed, and warned of where none are."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep import prepare
from data_prep.__main__ import main
from data_prep.dataset.manifest import Sample, read_dataset
from data_prep.dataset.nuclei import by_split, table, warnings
from tests.data_prep.dataset.test_manifest import make_sample

WIDTH, HEIGHT = 80, 64


def sample(case: str, split: str, variant: int = 0, **nuclei: int) -> Sample:
    return make_sample(f"{case}-01", split, variant, nuclei=nuclei)


THREE_SPLITS = [
    sample("Case_1", "train", tumor=3, mitosis=1),
    sample("Case_1", "train", variant=1, tumor=2, mitosis=1),
    sample("Case_10", "train", tumor=4, mitosis=2),
    sample("Case_2", "val", tumor=5, mitosis=0),
    sample("Case_3", "test", tumor=0, mitosis=0),
]


def test_original_fields_are_counted_and_no_copies() -> None:
    assert by_split(THREE_SPLITS) == {
        "train": {"tumor": 7, "mitosis": 3},
        "val": {"tumor": 5, "mitosis": 0},
        "test": {"tumor": 0, "mitosis": 0},
    }


def test_the_table_has_a_line_for_each_class() -> None:
    rows = [line.split() for line in table(by_split(THREE_SPLITS))]
    assert rows == [
        ["nuclei", "train", "val", "test"],
        ["tumor", "7", "5", "0"],
        ["mitosis", "3", "0", "0"],
    ]


def test_a_class_cannot_tell_the_terminal_what_to_do() -> None:
    hostile = "\x1b[2J"
    samples = [sample("a", "train", **{hostile: 1}), sample("b", "test", **{hostile: 0})]
    lines = [*table(by_split(samples)), *warnings(samples)]
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_a_split_without_a_class_is_warned_of_with_the_cases_that_hold_it() -> None:
    assert warnings(THREE_SPLITS) == [
        "no tumor in test: it cannot be measured there; name cases with split.test_cases=..."
        " (tumor is in Case_1, Case_2, Case_10)",
        "no mitosis in val and test: it cannot be measured there; name cases with"
        " split.val_cases=... and split.test_cases=... (mitosis is in Case_1, Case_10)",
    ]


@pytest.mark.parametrize(
    ("samples", "folds", "expected"),
    [
        ([sample("a", "train", tumor=1), sample("b", "test", tumor=1)], [], []),
        # a split that is not there lacks nothing
        ([sample("a", "train", tumor=1)], [], []),
        (
            [sample("a", "train", tumor=0), sample("b", "test", tumor=0)],
            [],
            ["no tumor in any field: it can be neither learned nor measured"],
        ),
        (
            [sample("a", "train", tumor=0), sample("b", "val", tumor=1)],
            [],
            [
                "no tumor in train: it cannot be learned there; name cases with"
                " split.val_cases=... and split.test_cases=... (tumor is in b)"
            ],
        ),
        (
            [sample("a", "train", tumor=1), sample("b", "test", tumor=0)],
            [["a"], ["b"]],
            ["no tumor in fold 1: only all folds together measure it (tumor is in a)"],
        ),
    ],
)
def test_what_is_said_follows_from_where_it_is(
    samples: list[Sample], folds: list[list[str]], expected: list[str]
) -> None:
    assert warnings(samples, folds) == expected


# The same nuclei in every format: two of a in Case_1, none in Case_2 and Case_3; one of b in each


def write_brecahad(folder: Path, name: str, has_a: bool) -> None:
    points = {"mitosis": [{"x": 0.2, "y": 0.2}, {"x": 0.7, "y": 0.3}] if has_a else []}
    points["tumor"] = [{"x": 0.5, "y": 0.8}]
    (folder / f"{name}.json").write_text(json.dumps(points))


def write_geojson(folder: Path, name: str, has_a: bool) -> None:
    """A point and a polygon of a; a polygon of b."""
    square = [[30.0, 5.0], [40.0, 5.0], [40.0, 15.0], [30.0, 15.0], [30.0, 5.0]]
    low = [[x, y + 40.0] for x, y in square]
    shapes: list[tuple[str, str, Any]] = [("tumor", "Polygon", [low])]
    if has_a:
        shapes += [("mitosis", "Point", [9.5, 9.5]), ("mitosis", "Polygon", [square])]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": kind, "coordinates": coordinates},
            "properties": {"classification": {"name": label}},
        }
        for label, kind, coordinates in shapes
    ]
    (folder / f"{name}.geojson").write_text(json.dumps(features))


def write_csv(folder: Path, name: str, has_a: bool) -> None:
    rows = [f"{name},20,20,mitosis", f"{name},60,20,mitosis"] if has_a else []
    table = folder / "all.csv"
    before = table.read_text() if table.is_file() else "file,x,y,class\n"
    table.write_text(before + "\n".join([*rows, f"{name},40,50,tumor"]) + "\n")


def write_masks(folder: Path, name: str, has_a: bool) -> None:
    """Two areas of a that touch nowhere; one of b, of two squares that meet at a corner."""
    values_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    values_HW[40:45, 40:45] = values_HW[45:50, 45:50] = 2
    if has_a:
        values_HW[5:15, 5:15] = values_HW[5:15, 16:26] = 1
    Image.fromarray(values_HW).save(folder / f"{name}.png")


WRITERS: dict[str, Callable[[Path, str, bool], None]] = {
    "brecahad": write_brecahad,
    "geojson": write_geojson,
    "csv": write_csv,
    "masks": write_masks,
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take seconds to start."""

    def map_here(
        function: Callable[[Any], Any], tasks: list[Any], workers: int, name: Any
    ) -> Iterator[tuple[int, Any]]:
        return enumerate(map(function, tasks))

    monkeypatch.setattr(prepare, "map_tasks", map_here)


@pytest.mark.parametrize("annotations", WRITERS)
def test_every_format_is_counted_and_what_a_split_lacks_is_said(
    annotations: str, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for folder in ("images", "groundTruth"):
        (raw / folder).mkdir(parents=True)
    for case in (1, 2, 3):
        name = f"Case_{case}-01"
        Image.new("RGB", (WIDTH, HEIGHT), (200, 120, 50 * case)).save(raw / f"images/{name}.png")
        WRITERS[annotations](raw / "groundTruth", name, case == 1)
    out.mkdir()  # else workers are made ready
    given = [f"raw={raw}", f"out={out}", f"annotations={annotations}", "classes=[mitosis,tumor]"]
    given += ["labels=per_class", "radius_px=3", "copies=3", "format=png"]
    outcome = cli(main, *given, "split.val_cases=[2]", "split.test_cases=[3]")
    assert outcome.code == 0, outcome.err
    as_one = "these are learned as one class; labels=per_class keeps them apart\n"
    assert as_one not in outcome.out
    binary = [*given, "labels=binary", f"out={tmp_path / 'binary'}"]
    (tmp_path / "binary").mkdir()
    assert as_one in cli(main, *binary, "split.val_cases=[2]", "split.test_cases=[3]").out

    samples = read_dataset(out).samples
    originals = {each.case: each.nuclei for each in samples if each.variant == 0}
    assert originals == {
        "Case_1": {"mitosis": 2, "tumor": 1},
        "Case_2": {"mitosis": 0, "tumor": 1},
        "Case_3": {"mitosis": 0, "tumor": 1},
    }
    for each in samples:
        listed = json.loads((out / each.points).read_text())
        assert each.nuclei == {name: len(listed[name]) for name in ("mitosis", "tumor")}
    counts = json.loads((out / "dataset.json").read_text())["counts"]
    assert [counts[split]["nuclei"]["mitosis"] for split in ("train", "val", "test")] == [2, 0, 0]
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["nuclei", "train", "val", "test"] in lines
    assert ["mitosis", "2", "0", "0"] in lines
    assert ["tumor", "1", "1", "1"] in lines
    assert outcome.err == (
        "warning: no mitosis in val and test: it cannot be measured there; name cases with"
        " split.val_cases=... and split.test_cases=... (mitosis is in Case_1)\n"
    )
