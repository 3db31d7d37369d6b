"""A run is measured on the data it was trained on, or the difference is named."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.dataset.description import Description, Labelling
from data_prep.dataset.manifest import Dataset
from tests.train.conftest import RADIUS_PX, TINY, prepare_here
from train import __main__ as train_main
from train import evaluate, export
from train.runs.same_data import (
    differences,
    is_labelled_alike,
    labelling_differences,
    settings_as_typed,
    unknown_resolution,
)

Cli = Callable[..., Any]
SETTINGS = {
    "seed": 0,
    "copies": 16,
    "classes": ["tumor"],
    "radius_px": 20,
    "labels": "binary",
    "uint16_white": 65535,
    "case_regex": "(?P<case>.+)-x",
    "annotations": "brecahad",
    "pack": False,
    "split": {"val": 0.15, "val_cases": []},
}
CASES = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}


def described(sha256: str = "1" * 64, **settings: Any) -> Description:
    """What dataset.json says of a set that was prepared with these settings."""
    cases, mpp = settings.pop("cases", CASES), settings.pop("told", None)
    given = {**SETTINGS, **settings}
    labels = dict.fromkeys(given["classes"], 255)
    keys = ("radius_px", "uint16_white", "case_regex", "annotations")
    labelling = Labelling(labels, **{key: given[key] for key in keys}, mpp=mpp)
    return Description(labelling, cases, sha256, given)


TRAINED = described()
OTHER = "2" * 64


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (described(), []),
        # settings that changed nothing
        (described(copies=8), []),
        (described(OTHER, copies=8), ["copies: 16 -> 8"]),
        (described(OTHER, classes=["non_tumor", "x"]), ["classes: tumor -> non_tumor, x"]),
        (described(OTHER, seed=1, radius_px=12), ["radius_px: 20 -> 12", "seed: 0 -> 1"]),
        # ready masks are the same content, but a nucleus is another one
        (described(radius_px=12), ["radius_px: 20 -> 12"]),
        (
            described(OTHER, cases={"train": ["a"], "val": ["c"], "test": ["d", "b", "e"]}),
            ["split: b train -> test", "split: e none -> test"],
        ),
        # told by the cases that moved
        (
            described(OTHER, split=SETTINGS["split"] | {"val": 0.2}, cases=CASES | {"test": []}),
            ["split: d test -> none"],
        ),
        (
            described(OTHER),
            ["the images or annotations (content 111111111111 -> 222222222222)"],
        ),
    ],
)
def test_what_differs_is_named(now: Description, expected: list[str]) -> None:
    assert differences(TRAINED, now) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.25, 0.5, ["resolution: 0.25 micrometres per px -> 0.5 micrometres per px"]),
        (0.25, 0.251, []),  # a rounding
        (0.25, None, []),
        (None, 0.5, []),
    ],
)
def test_another_resolution_is_another_labelling(
    before: float | None, after: float | None, expected: list[str]
) -> None:
    trained, now = described(told=before), described(told=after)
    assert differences(trained, now) == expected
    assert labelling_differences(trained, now) == expected
    assert is_labelled_alike(trained, now) == (not expected)


@pytest.mark.parametrize(
    ("before", "after", "is_told"),
    [(0.25, None, True), (None, 0.25, True), (None, None, False), (0.25, 0.5, False)],
)
def test_a_resolution_that_is_not_known_is_told(
    before: float | None, after: float | None, is_told: bool
) -> None:
    notes = unknown_resolution(described(told=before), described(told=after))
    assert [note[:11] for note in notes] == ["not checked"] * is_told


@pytest.mark.parametrize(
    ("settings", "is_alike"),
    [
        ({"copies": 8}, True),
        ({"case_regex": "(?P<case>.)"}, True),
        ({"classes": ["lumen"]}, False),
        ({"radius_px": 12}, False),
        ({"uint16_white": 4095}, False),
        ({"annotations": "csv"}, False),
    ],
)
def test_what_decides_the_truth_must_be_alike(settings: dict[str, Any], is_alike: bool) -> None:
    assert is_labelled_alike(TRAINED, described(OTHER, **settings)) == is_alike


def test_of_two_folds_only_the_labelling_is_told() -> None:
    now = described(OTHER, copies=8, case_regex="(?P<case>x)", classes=["lumen"])
    assert labelling_differences(TRAINED, now) == [
        "classes: tumor -> lumen",
        "case_regex: (?P<case>.+)-x -> (?P<case>x)",
    ]


def test_the_settings_that_prepare_it_as_before_can_be_typed() -> None:
    """All that are not the defaults: those alone that differ would not do."""
    split = {"val": 0.15, "val_cases": ["3"]}
    before = {"annotations": "geojson", "classes": ["a: b", "c d"], "copies": 16, "split": split}
    assert settings_as_typed(before) == (
        """ annotations=geojson 'classes=["a: b",c d]' 'split.val_cases=[3]'"""
    )


# The commands


@pytest.fixture(scope="module")
def annotated(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw fields, with a list of non_tumor too."""
    folder = shutil.copytree(raw, tmp_path_factory.mktemp("two") / "raw")
    for path in folder.glob("*.json"):
        points = json.loads(path.read_text())["tumor"]
        path.write_text(json.dumps({"tumor": points, "non_tumor": points[:1]}))
    return Path(folder)


@pytest.fixture(scope="module")
def begun(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `prepared` and a `run` on it."""
    folder = tmp_path_factory.mktemp("begun")
    prepare_here(annotated, folder / "prepared")
    given = [f"data={folder / 'prepared'}", f"run={folder / 'run'}", *TINY, "epochs=1"]
    assert train_main.main(given) == 0
    return folder


@pytest.fixture
def mine(begun: Path, tmp_path: Path) -> Path:
    """The same, to do with as one likes; the run knows where its data are."""
    folder = Path(shutil.copytree(begun, tmp_path / "mine"))
    config = folder / "run/config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(folder)))
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    """What the files below a folder hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_prepared_anew_with_other_classes_is_refused_and_the_report_stays(
    mine: Path, annotated: Path, cli: Cli
) -> None:
    run, data = mine / "run", mine / "prepared"
    assert cli(evaluate.main, f"run={run}").code == 0
    before = contents(run / "evaluation")
    prepare_here(annotated, data, "classes=[non_tumor]")
    outcome = cli(evaluate.main, f"run={run}")
    assert outcome.code == 1
    assert outcome.err == (
        f"error: run={run}: {data} is not the data set that was trained on:\n"
        "  classes: tumor -> non_tumor\n"
        f"Either prepare it as before: python -m data_prep raw=... out={data} copies=4 radius_px=8"
        " format=png 'split.val_cases=[3]' 'split.test_cases=[4,5]'\n"
        "or measure on raw fields: raw=...\n"
        "or measure on another set, labelled as the one trained on: data=...\n"
    )
    assert contents(run / "evaluation") == before

    # naming it does not make it another truth
    assert cli(evaluate.main, f"run={run}", f"data={data}").code == 1
    # nor does exporting the model
    model = mine / "model.safetensors"
    assert cli(export.main, f"run={run}", f"out={model}").code == 0
    outcome = cli(evaluate.main, f"run={model}", f"data={data}")
    assert outcome.code == 1
    assert "\n  classes: tumor -> non_tumor\n" in outcome.err
    assert not (mine / "model_evaluation").exists()
    # and training says the same
    outcome = cli(train_main.main, f"data={data}", f"run={run}", *TINY, "epochs=1")
    assert outcome.code == 2
    assert "data: classes: tumor -> non_tumor" in outcome.err


def test_another_set_labelled_alike_is_measured_where_it_is_named(
    mine: Path, annotated: Path, cli: Cli
) -> None:
    run, data = mine / "run", mine / "prepared"
    prepare_here(annotated, data, "copies=2", "split.val_cases=[2]", "split.test_cases=[1,4,5]")
    refused = cli(evaluate.main, f"run={run}")
    assert refused.code == 1
    for line in (
        "copies: 4 -> 2",
        "split: Case_1 train -> test",
        "split: Case_2 train -> val",
        "split: Case_3 val -> train",
    ):
        assert f"\n  {line}\n" in refused.err
    assert f"or measure on it nevertheless: data={data}\n" in refused.err
    assert not (run / "evaluation").exists()

    outcome = cli(evaluate.main, f"run={run}", f"data={data}", "figures=0")
    assert outcome.code == 0
    summary = json.loads((run / "evaluation/test/summary.json").read_text())
    assert summary["warnings"][0].startswith(
        f"data={data} is not the set that was trained on (copies: 4 -> 2; split: Case_1"
    )
    assert summary["warnings"][1].startswith("trained on: Case_1;")
    assert f"warning: {summary['warnings'][0]}\n" in outcome.out


def test_a_set_that_was_moved_is_the_same(mine: Path, cli: Cli) -> None:
    moved = shutil.move(mine / "prepared", mine / "moved")
    outcome = cli(evaluate.main, f"run={mine / 'run'}", f"data={moved}", "figures=0")
    assert outcome.code == 0
    told = [line for line in outcome.out.splitlines() if line.startswith("warning")]
    assert [line for line in told if "best is step" not in line] == []


def test_each_of_several_runs_is_held_against_its_own_data(
    mine: Path, annotated: Path, own_run: Path, cli: Cli
) -> None:
    prepare_here(annotated, mine / "prepared", f"radius_px={RADIUS_PX + 1}")
    out = mine / "pooled"
    outcome = cli(evaluate.main, f"runs=[{own_run},{mine / 'run'}]", f"out={out}")
    assert outcome.code == 1
    assert f"run={mine / 'run'}" in outcome.err
    assert f"radius_px: {RADIUS_PX} -> {RADIUS_PX + 1}" in outcome.err
    assert not out.exists()


def test_a_run_on_other_images_goes_not_on(prepared: Dataset) -> None:
    description = dataclasses.replace(prepared.description, content_sha256=OTHER)
    (line,) = differences(prepared.description, description)
    assert line.startswith("the images or annotations (content ")
