"""Folds: dealt by what is annotated, and seen as splits."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from common.command_line import UsageError
from data_prep.__main__ import main as prepare
from data_prep.dataset.description import DATASET, DatasetError, read_description
from data_prep.dataset.folds import Fold, cases_of_fold, deal
from data_prep.dataset.manifest import read_dataset
from tests.processes import prepare_alone

# BreCaHAD's mitoses by case, of 112; the other cases have none
MITOSES = {12: 47, 14: 15, 10: 14, 13: 13, 1: 8, 15: 7, 6: 5, 4: 1, 16: 1, 17: 1}
CONTENTS = {
    f"Case_{case}": {"fields": 4 + case, "mitosis": MITOSES.get(case, 0)} for case in range(1, 18)
}


def test_every_case_is_in_one_fold() -> None:
    for num_folds in (2, 3, 5, 17):
        folds = deal(CONTENTS, num_folds, seed=0)
        assert len(folds) == num_folds
        assert all(folds)
        assert sorted(case for members in folds for case in members) == sorted(CONTENTS)


def test_rare_classes_are_dealt_like_the_fields() -> None:
    """Case 12 alone has 42% of the mitoses: its fold gets hardly any other, each other one some."""
    for seed in range(10):
        folds = deal(CONTENTS, 5, seed)
        mitoses = sorted(sum(CONTENTS[case]["mitosis"] for case in members) for members in folds)
        fields = [sum(CONTENTS[case]["fields"] for case in members) for members in folds]
        assert mitoses[-1] <= 48
        assert mitoses[0] >= 13  # of 16 on average in the four others
        assert max(fields) <= 1.5 * min(fields)


def test_alike_cases_are_dealt_by_the_seed() -> None:
    alike = {f"Case_{number}": {"fields": 3} for number in range(12)}
    first, same, other = (deal(alike, 4, seed) for seed in (0, 0, 1))
    assert first == same != other
    assert [len(members) for members in first] == [3] * 4


def test_each_case_may_be_a_fold() -> None:
    assert deal({"Case_2": {"fields": 1}, "Case_10": {"fields": 2}}, "cases", 0) == [
        ["Case_2"],
        ["Case_10"],
    ]


@pytest.mark.parametrize(
    ("fold", "has_val", "expected"),
    [
        (0, True, {"train": ["c", "d"], "val": ["b"], "test": ["a", "A"]}),
        (2, True, {"train": ["b"], "val": ["a", "A"], "test": ["c", "d"]}),
        (2, False, {"train": ["a", "A", "b"], "val": [], "test": ["c", "d"]}),
        ("all", True, {"train": ["a", "A", "b", "c", "d"], "val": [], "test": []}),
    ],
)
def test_a_fold_is_tested_and_the_next_one_validated(
    fold: int | Literal["all"], has_val: bool, expected: dict[str, list[str]]
) -> None:
    assert cases_of_fold([["a", "A"], ["b"], ["c", "d"]], fold, has_val) == expected


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases: two fields of the first, one of each other."""
    folder = tmp_path_factory.mktemp("raw")
    for number, name in enumerate(("1-01", "1-02", "2-01", "3-01", "4-01", "5-01")):
        image_HWC = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        cv2.imwrite(str(folder / f"Case_{name}.png"), image_HWC)
        (folder / f"Case_{name}.json").write_text('{"tumor": [{"x": 0.5, "y": 0.5}]}')
    return folder


def prepared_into(out: Path, raw: Path, *settings: str) -> Path:
    prepare_alone(f"raw={raw}", f"out={out}", "copies=2", *settings)
    return out


@pytest.fixture(scope="module")
def sets(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By how it was split: a set of three folds, of a fold for each case, and of none."""
    folder = tmp_path_factory.mktemp("sets")
    words = {"3": ["split.folds=3"], "cases": ["split.folds=cases"], "none": []}
    return {name: prepared_into(folder / name, raw, *given) for name, given in words.items()}


def test_a_set_is_prepared_once_and_dealt_anew_without_work(
    raw: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(sets["3"], tmp_path / "set"))
    data = read_dataset(out)
    assert {sample.variant for sample in data.samples} == {0, 1}
    assert len(data.samples) == 12
    capsys.readouterr()
    assert prepare([f"raw={raw}", f"out={out}", "copies=2", "split.folds=cases"]) == 0
    dealt = read_dataset(out).description.folds
    told = capsys.readouterr().out
    assert dealt == [[f"Case_{number}"] for number in range(1, 6)]
    assert "kept as they were: 6 fields" in told
    assert told.splitlines()[:2] == ["12 samples, 6 fields, 5 cases in 5 folds", "fold 0: Case_1"]
    assert "fold 4: Case_5" in told


def test_a_view_splits_samples_by_their_cases(sets: dict[str, Path]) -> None:
    whole = read_dataset(sets["cases"])
    view = whole.of_fold(1)
    assert {sample.case for sample in view.split("test")} == {"Case_2"}
    assert {sample.case for sample in view.split("val")} == {"Case_3"}
    assert {sample.case for sample in view.split("train")} == {"Case_1", "Case_4", "Case_5"}
    assert len(view.split("train")) == 2 * 4  # fields of these cases, and a copy of each
    assert len(view.split("test", originals_only=True)) == 1
    assert [sample.id for sample in view.samples] == [sample.id for sample in whole.samples]
    everything = view.of_fold("all")
    assert len(everything.split("train")) == 12
    assert everything.description.cases["test"] == []


@pytest.mark.parametrize(
    ("name", "fold", "message"),
    [
        ("3", 3, r"fold=3: data=.* has 3 folds: fold=0 to fold=2 .*, or fold=all"),
        ("3", "none", r"dealt to 3 folds; choose one: fold=0 to fold=2"),
        (
            "none",
            0,
            r"fold=0: data=.* has no folds; .*data_prep raw=\.\.\. out=/.*split.folds=5",
        ),
        ("none", "all", r"fold=all: data=.* has no folds"),
    ],
)
def test_a_fold_that_is_not_there_is_refused(
    sets: dict[str, Path], name: str, fold: Fold, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_dataset(sets[name]).of_fold(fold)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([["Case_1"], ["Case_1", "Case_2"]], "each case once"),
        ([["Case_9"]], "each case once"),
        ([[]], "each case once"),
        ("all", "valid list"),
        ([["Case_1"], ["Case_2"], ["Case_3", "Case_4"]], "Case_5' is in no fold"),
        ([["Case_1", "Case_2", "Case_3"], ["Case_4", "Case_5"]], r"folds: 2; .*at least 3 .*0.15"),
    ],
)
def test_folds_of_strangers_are_checked(
    sets: dict[str, Path], tmp_path: Path, folds: object, message: str
) -> None:
    data = Path(shutil.copytree(sets["3"], tmp_path / "set"))
    about = json.loads((data / DATASET).read_text())
    (data / DATASET).write_text(json.dumps(about | {"folds": folds}))
    with pytest.raises(DatasetError, match=message):
        read_dataset(data)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (7, "config.split: expected a valid dictionary"),
        ({}, "val: is missing"),
        ({"val": True}, "val: expected a valid number"),
        ({"val": "0"}, "val: expected a valid number"),
        ({"val": -1}, "split.val=-1"),
        ({"val": 10**400}, "val"),
    ],
)
def test_folds_need_to_know_whether_one_of_them_validates(
    sets: dict[str, Path], tmp_path: Path, split: object, message: str
) -> None:
    about = json.loads((sets["3"] / DATASET).read_text())
    (tmp_path / DATASET).write_text(
        json.dumps(about | {"config": about["config"] | {"split": split}})
    )
    with pytest.raises(DatasetError, match=message):
        read_description(tmp_path / DATASET)


def test_the_command_that_deals_a_set_to_folds_is_accepted(
    raw: Path, sets: dict[str, Path], tmp_path: Path
) -> None:
    """Its name needs quotes; with the settings of the set, which the words ask to repeat."""
    out = Path(shutil.copytree(sets["none"], tmp_path / "my set"))
    with pytest.raises(UsageError) as refused:
        read_dataset(out).of_fold(0)
    command = shlex.split(str(refused.value).partition("as they were: ")[2])
    assert command == ["python", "-m", "data_prep", "raw=...", f"out={out}", "split.folds=5"]
    prepare_alone(f"raw={raw}", *command[4:], "copies=2")
    assert len(read_dataset(out).of_fold(0).description.folds) == 5


def test_cases_without_usable_fields_make_no_folds(raw: Path, tmp_path: Path) -> None:
    """Of three cases one cannot be read; the other two are too few for test, val and train."""
    for case in ("2-01", "3-01", "4-01"):
        shutil.copy(raw / f"Case_{case}.json", tmp_path)
        shutil.copy(raw / f"Case_{case}.png", tmp_path)
    (tmp_path / "Case_4-01.png").write_bytes(b"no image")
    given = [f"raw={tmp_path}", f"out={tmp_path / 'set'}", "copies=1", "on_error=skip"]
    with pytest.raises(UsageError, match="there are only 2 cases, and 3 folds are needed"):
        prepare([*given, "split.folds=cases"])
