"""Folds: dealt by what is annotated, and seen as splits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from common.command_line import UsageError
from data_prep.__main__ import main as prepare
from data_prep.dataset.folds import Fold, cases_of_fold, deal
from data_prep.dataset.manifest import DATASET, DatasetError, read_dataset

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


@pytest.fixture
def folded(raw_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """folded("split.folds=3") prepares five cases, and returns the folder of the set."""
    raw = raw_folder({"1": 2, "2": 1, "3": 1, "4": 1, "5": 1}, width_px=64, height_px=48)

    def make(*settings: str) -> Path:
        given = [f"raw={raw}", f"out={tmp_path / 'set'}", "copies=2", "workers=1", *settings]
        assert prepare(given) == 0
        return tmp_path / "set"

    return make


def test_a_set_is_prepared_once_and_dealt_anew_without_work(
    folded: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = read_dataset(folded("split.folds=3"))
    assert {sample.variant for sample in data.samples} == {0, 1}
    assert len(data.samples) == 12
    capsys.readouterr()
    dealt = read_dataset(folded("split.folds=cases")).description.folds
    out = capsys.readouterr().out
    assert dealt == [[f"Case_{number}"] for number in range(1, 6)]
    assert "kept as they were: 6 fields" in out
    assert out.splitlines()[:2] == ["12 samples, 6 fields, 5 cases in 5 folds", "fold 0: Case_1"]
    assert "fold 4: Case_5" in out


def test_a_view_splits_samples_by_their_cases(folded: Callable[..., Path]) -> None:
    whole = read_dataset(folded("split.folds=cases"))
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
    ("settings", "fold", "message"),
    [
        (["split.folds=3"], 3, r"fold=3: data=.* has 3 folds: fold=0 to fold=2 .*, or fold=all"),
        (["split.folds=3"], "none", r"dealt to 3 folds; choose one: fold=0 to fold=2"),
        ([], 0, r"fold=0: data=.* has no folds; .*data_prep raw=\.\.\. out=data=.*split.folds=5"),
        ([], "all", r"fold=all: data=.* has no folds"),
    ],
)
def test_a_fold_that_is_not_there_is_refused(
    folded: Callable[..., Path], settings: list[str], fold: Fold, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_dataset(folded(*settings)).of_fold(fold)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([["Case_1"], ["Case_1", "Case_2"]], "each case once"),
        ([["Case_9"]], "each case once"),
        ([[]], "each case once"),
        ("all", "valid list"),
        ([["Case_1"], ["Case_2", "Case_3", "Case_4"]], "Case_5' is in no fold"),
    ],
)
def test_folds_of_strangers_are_checked(
    folded: Callable[..., Path], folds: object, message: str
) -> None:
    data = folded("split.folds=3")
    about = json.loads((data / DATASET).read_text())
    (data / DATASET).write_text(json.dumps(about | {"folds": folds}))
    with pytest.raises(DatasetError, match=message):
        read_dataset(data)
