"""The split by case: whole cases, from a seed, a list or a fold, and refusals that teach."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile

from common.command_line import UsageError
from data_prep.annotations.formats import READERS
from data_prep.config import SPLITS, PrepConfig, SplitConfig
from data_prep.raw import Field
from data_prep.split import split_cases

# BreCaHAD's 17 cases and 162 fields; the cases are of very different sizes
SIZES = [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 22]


def make_fields(sizes: list[int]) -> list[Field]:
    return [
        Field(f"Case_{case}-{number:02d}", f"Case_{case}", Path(), Path())
        for case, size in enumerate(sizes, start=1)
        for number in range(1, size + 1)
    ]


def cases_of(splits: dict[str, str], split: str) -> list[str]:
    return [case for case, name in splits.items() if name == split]


def num_fields(splits: dict[str, str], split: str, sizes: list[int]) -> int:
    return sum(sizes[int(case.removeprefix("Case_")) - 1] for case in cases_of(splits, split))


class TestByShare:
    @pytest.mark.parametrize("seed", range(20))
    def test_every_case_is_in_one_split_and_every_split_has_some(self, seed: int) -> None:
        splits = split_cases(make_fields(SIZES), SplitConfig(), seed)
        assert list(splits) == [f"Case_{case}" for case in range(1, 18)]
        assert set(splits.values()) == set(SPLITS)

    @pytest.mark.parametrize("seed", range(20))
    def test_shares_are_of_fields_to_within_half_a_largest_case(self, seed: int) -> None:
        splits = split_cases(make_fields(SIZES), SplitConfig(val=0.2, test=0.3), seed)
        for split, share in (("val", 0.2), ("test", 0.3), ("train", 0.5)):
            off = abs(num_fields(splits, split, SIZES) - share * 162)
            assert off <= max(SIZES), (split, off)

    def test_equal_cases_split_exactly(self) -> None:
        splits = split_cases(make_fields([5] * 20), SplitConfig(val=0.2, test=0.1), seed=0)
        assert Counter(splits.values()) == {"train": 14, "val": 4, "test": 2}

    def test_the_seed_decides_and_nothing_else(self) -> None:
        fields = make_fields(SIZES)
        drawn = [split_cases(fields, SplitConfig(), seed) for seed in (0, 0, 1, 2, 3)]
        assert drawn[0] == drawn[1]
        assert len({tuple(splits.values()) for splits in drawn}) == 4
        shuffled = [fields[index] for index in np.random.default_rng(0).permutation(len(fields))]
        assert split_cases(shuffled, SplitConfig(), 0) == drawn[0]

    def test_every_case_is_drawn_for_the_test_split_by_some_seed(self) -> None:
        fields = make_fields([3] * 6)
        drawn = [cases_of(split_cases(fields, SplitConfig(), seed), "test") for seed in range(60)]
        assert set(itertools.chain(*drawn)) == {f"Case_{case}" for case in range(1, 7)}

    @pytest.mark.parametrize(
        ("config", "there"),
        [
            (SplitConfig(val=0, test=0), {"train"}),
            (SplitConfig(val=0), {"train", "test"}),
            (SplitConfig(test=0), {"train", "val"}),
        ],
    )
    def test_a_share_of_0_makes_no_such_split(self, config: SplitConfig, there: set[str]) -> None:
        assert set(split_cases(make_fields(SIZES), config, 0).values()) == there

    def test_a_small_share_still_gets_one_case(self) -> None:
        config = SplitConfig(val=0.001, test=0.001)
        splits = split_cases(make_fields([8] * 3), config, 0)
        assert sorted(splits.values()) == ["test", "train", "val"]

    @pytest.mark.parametrize("sizes", [[4], [4, 4]])
    def test_too_few_cases_say_what_to_set(self, sizes: list[int]) -> None:
        with pytest.raises(UsageError, match=r"too few for .*set split\.\w+=0, or name cases"):
            split_cases(make_fields(sizes), SplitConfig(), 0)


class TestByList:
    @pytest.mark.parametrize("name", ["10", "Case_10"])
    def test_a_case_goes_where_its_list_says_under_both_names(self, name: str) -> None:
        config = SplitConfig(test_cases=[name], val=0)
        splits = split_cases(make_fields(SIZES), config, 0)
        assert cases_of(splits, "test") == ["Case_10"]
        assert len(cases_of(splits, "train")) == 16

    def test_the_rest_is_shared_out_as_before(self) -> None:
        config = SplitConfig(test_cases=["1", "2"])
        splits = split_cases(make_fields([5] * 20), config, 0)
        assert cases_of(splits, "test") == ["Case_1", "Case_2"]
        assert Counter(splits.values()) == {"test": 2, "val": 3, "train": 15}  # 0.15 of 20

    def test_three_lists_are_taken_as_they_are(self) -> None:
        config = SplitConfig(train_cases=["3"], val_cases=["1"], test_cases=["2"])
        splits = split_cases(make_fields([2, 2, 2]), config, 0)
        assert splits == {"Case_1": "val", "Case_2": "test", "Case_3": "train"}

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (SplitConfig(test_cases=["9"]), r"split\.test_cases: no case '9'; there are: Case_1, "),
            (SplitConfig(test_cases=["1"], val_cases=["Case_1"]), "Case_1 is in two lists"),
            (SplitConfig(train_cases=["1"], test_cases=["2"]), "in no list: Case_3, Case_4"),
            (SplitConfig(test_cases=["1", "2"], val_cases=["3", "4"]), "no case is left"),
        ],
    )
    def test_a_list_that_cannot_be_is_refused(self, config: SplitConfig, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            split_cases(make_fields([2] * 4), config, 0)


class TestByFold:
    @pytest.mark.parametrize("folds", [3, 5, "cases"])
    def test_every_case_may_be_trained_on(self, folds: int | str) -> None:
        splits = split_cases(make_fields(SIZES), SplitConfig(folds=folds), 0)
        assert splits == {f"Case_{case}": "train" for case in range(1, 18)}

    @pytest.mark.parametrize(
        ("folds", "num_cases", "message"),
        [
            (5, 4, r"split\.folds=5: there are only 4 cases$"),
            ("cases", 2, r"split\.folds=cases: there are only 2 cases, and 3 folds are needed"),
        ],
    )
    def test_more_folds_than_cases_are_refused(
        self, folds: int | str, num_cases: int, message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            split_cases(make_fields([3] * num_cases), SplitConfig(folds=folds), 0)

    def test_two_cases_are_two_folds_without_validation(self) -> None:
        assert split_cases(make_fields([1, 1]), SplitConfig(folds="cases", val=0), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val": -0.1}, r"split\.val=-0\.1"),
        ({"val": 0.5, "test": 0.5}, "leave a fraction for training"),
        ({"val": float("nan")}, r"split\.val=nan"),
        ({"test": float("nan")}, r"split\.test=nan"),
        ({"folds": 1}, r"split\.folds=1: at least 3"),
        ({"folds": 2}, r"split\.folds=2: at least 3 \(test, val and train; 2 with split\.val=0"),
        ({"folds": 1, "val": 0}, r"split\.folds=1: at least 2"),
        ({"folds": -1}, r"split\.folds=-1"),
        ({"folds": 5, "test_cases": ["1"]}, "exclude each other"),
        ({"folds": "cases", "val_cases": ["1"]}, "exclude each other"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig(**settings)


def test_the_pair_of_one_picture_in_the_sample_stays_together(real_data: Path) -> None:
    """Case_10-07 and Case_10-08 are one picture, annotated twice (and stored as JPEG twice)."""
    twins = [tifffile.imread(real_data / f"images/Case_10-0{number}.tif") for number in (7, 8)]
    assert np.abs(twins[0].astype(int) - twins[1]).mean() < 8
    fields, _ = READERS["brecahad"].find_fields(real_data, PrepConfig().case_regex)
    case_of = {field.name: field.case for field in fields}
    assert case_of["Case_10-07"] == case_of["Case_10-08"] == "Case_10"
