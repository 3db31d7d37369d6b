"""The difference of two evaluations: worked out by hand, and by another implementation."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import seeds
from train.comparison.config import CompareConfig
from train.comparison.difference import (
    Difference,
    NotComparableError,
    NotEvaluatedError,
    differences_between,
    paired_difference,
)
from train.comparison.rows import read_row
from train.metrics.scores import NUM_RESAMPLES

Write = Callable[..., Any]
NUCLEI = [2, 1, 1, 0]


def dice_of(counts: np.ndarray) -> float:
    hit, too_much, missed, _ = counts
    return 2 * hit / (2 * hit + too_much + missed)


def test_a_tiny_example_by_hand() -> None:
    """Case A: Dice 2/4 and 4/5. Case B: 8/10 and 6/10. Pooled: 10/14 and 10/15."""
    first = np.array([[1, 1, 1, 5], [4, 1, 1, 5]])
    second = np.array([[2, 1, 0, 5], [3, 1, 3, 4]])
    value, interval = paired_difference(first, second, ["A", "B"], seed=0)
    assert value == pytest.approx(10 / 15 - 10 / 14)
    # of two cases, three draws in four hold either or both: the ends are the cases' own
    assert interval == pytest.approx((6 / 10 - 8 / 10, 4 / 5 - 2 / 4))


def test_the_interval_is_that_of_another_implementation() -> None:
    """Resample by resample, with the same cases for both."""
    rng = np.random.default_rng(3)
    cases = [f"Case_{number}" for number in rng.integers(0, 9, 25)]
    first, second = rng.integers(1, 100, (2, 25, 4))
    names = sorted(set(cases))
    drawn = seeds.generator(7, "bootstrap").integers(len(names), size=(NUM_RESAMPLES, len(names)))
    differences = []
    for resample in drawn:
        fields = [
            field
            for number in resample
            for field, case in enumerate(cases)
            if case == names[number]
        ]
        pooled = [dice_of(counts[fields].sum(axis=0)) for counts in (first, second)]
        differences.append(pooled[1] - pooled[0])
    value, interval = paired_difference(first, second, cases, seed=7)
    assert value == pytest.approx(dice_of(second.sum(axis=0)) - dice_of(first.sum(axis=0)))
    assert interval == pytest.approx(np.quantile(differences, [0.025, 0.975]))


def test_pairing_takes_out_what_makes_a_case_hard_for_both() -> None:
    """The second is better by little in every case; the cases differ much."""
    hits = np.array([20, 40, 60, 80, 95, 30, 70])
    counts = [np.stack([n, 100 - n, 100 - n, 0 * n], axis=1) for n in (hits, hits + 2)]
    cases = [str(number) for number in range(len(hits))]
    value, interval = paired_difference(counts[0], counts[1], cases, seed=0)
    assert value == pytest.approx(0.02)
    assert interval == pytest.approx((0.02, 0.02))


@pytest.mark.parametrize(
    ("value", "interval", "num_cases", "words"),
    [
        (0.021, (0.004, 0.039), 17, "b is better by 0.0210 (95% interval 0.0040 to 0.0390, 17 "),
        (-0.021, (-0.039, -0.004), 17, "a is better by 0.0210 (95% interval 0.0040 to 0.0390, "),
        (0.01, (-0.01, 0.03), 3, "the interval holds 0, so no difference is shown with 3 cases"),
        (0.01, (0.005, 0.03), 3, "3 cases are few: of two equal models, one is ahead in all of"),
        (0.01, (0.005, 0.03), 3, "in 1 of 4 comparisons"),  # all three cases: 2 of 2 ** 3
        (0.01, None, 1, "b is better by 0.0100; no interval, with one annotated case"),
        (0.0, (0.0, 0.0), 9, "a and b are equal"),
        (0.0, (-0.1, 0.1), 9, "no difference is shown"),
        (None, None, 4, "nothing annotated"),
    ],
)
def test_plain_words(
    value: float | None, interval: tuple[float, float] | None, num_cases: int, words: str
) -> None:
    text = Difference("Dice of pixels", "a", "b", value, interval, num_cases).text
    assert words in text
    between = ": a difference between these two trained runs; another seed may differ as much"
    assert text.endswith(between) == (num_cases == 17)


# What is refused

COUNTS = {"Case_4-01": ([50, 10, 10, 30], NUCLEI), "Case_5-01": ([60, 10, 10, 20], NUCLEI)}
BETTER = {"Case_4-01": ([55, 5, 10, 30], NUCLEI), "Case_5-01": ([65, 5, 5, 25], NUCLEI)}


@pytest.fixture
def pair(write_run: Write, write_evaluation: Write) -> tuple[Path, Path]:
    """Two runs, evaluated alike."""
    first, second = write_run("a", [0.5]), write_run("b", [0.6], "lr=0.01")
    write_evaluation(first, COUNTS)
    write_evaluation(second, BETTER)
    return first, second


def differences(pair: tuple[Path, Path], *settings: Any) -> list[Difference]:
    rows = [read_row(path, "test", is_pruned=False) for path in pair]
    return differences_between(rows[0], rows[1], CompareConfig(runs=["a", "b"]))


def test_the_same_fields_in_another_order_are_paired(
    pair: tuple[Path, Path], write_evaluation: Write
) -> None:
    pixels, nuclei = differences(pair)
    assert pixels.value == pytest.approx(240 / 265 - 220 / 260)
    assert nuclei.value == 0
    assert pixels.num_cases == 2
    write_evaluation(pair[1], dict(reversed(BETTER.items())))
    assert differences(pair) == [pixels, nuclei]


def test_cases_without_a_figure_are_not_counted(
    pair: tuple[Path, Path], write_evaluation: Write
) -> None:
    """Two cases are annotated, and eight are not: they do not make it more than two."""
    nothing = {f"Case_{number}-01": ([0, 0, 0, 90], [0, 0, 0, 0]) for number in range(11, 19)}
    write_evaluation(pair[0], COUNTS | nothing)
    write_evaluation(pair[1], BETTER | nothing)
    pixels, nuclei = differences(pair)
    assert (pixels.num_cases, nuclei.num_cases) == (2, 2)
    assert "2 cases are few" in pixels.text


def refused(pair: tuple[Path, Path]) -> str:
    with pytest.raises(NotComparableError) as caught:
        differences(pair)
    return str(caught.value)


def command(run: Path, *more: str) -> str:
    return " ".join(["python -m train.evaluate", f"run={run}", "split=test", *more])


def test_a_run_without_an_evaluation_is_named_with_the_command(pair: tuple[Path, Path]) -> None:
    (pair[1] / "evaluation/test/summary.json").unlink()
    with pytest.raises(NotEvaluatedError) as caught:
        differences(pair)
    assert str(caught.value).splitlines()[2:] == [f"  {command(pair[1])}"]


def test_an_evaluation_of_another_checkpoint_is_refused(pair: tuple[Path, Path]) -> None:
    (pair[0] / "checkpoints" / "best").write_text("step_00000020\n")
    told = refused(pair)
    assert "is of step_00000010, and the best checkpoint is step_00000020 now" in told
    assert told.endswith(command(pair[0]))


def test_an_evaluation_of_a_replaced_checkpoint_is_refused(pair: tuple[Path, Path]) -> None:
    """As after a training that began anew: its checkpoints have the same names."""
    (pair[0] / "checkpoints" / "step_00000010" / "COMPLETE").write_text("another")
    assert "is of another step_00000010 than the one that is there now" in refused(pair)


def test_an_evaluation_of_an_earlier_version_is_refused(
    pair: tuple[Path, Path], write_evaluation: Write
) -> None:
    write_evaluation(pair[0], COUNTS, per_field=[{"field": "a", "case": "b"}])
    assert "counts: is missing" in refused(pair)


def test_other_fields_are_refused(pair: tuple[Path, Path], write_evaluation: Write) -> None:
    write_evaluation(pair[1], {"Case_4-01": BETTER["Case_4-01"]})
    told = refused(pair)
    assert "measured on other fields: Case_5-01 only by one" in told
    data = read_row(pair[0], "test", is_pruned=False).runs[0].config.data
    assert told.endswith(command(pair[1], f"data={data}"))


def test_another_truth_and_another_case_are_refused(
    pair: tuple[Path, Path], write_evaluation: Write
) -> None:
    truths = {"Case_4-01": "truth of Case_4-01", "Case_5-01": "corrected"}
    write_evaluation(pair[1], BETTER, truth_sha256=truths)
    assert "not measured against the same annotation, or of other cases: Case_5-01" in refused(pair)


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        ({"ignore_px": 0}, {"ignore_px": 5}, ["ignore_px=0"]),
        ({"ignore_px": 5}, {"ignore_px": 5}, []),
        (
            {"annotations": "masks", "ignore_value": 9},
            {"annotations": "masks"},
            ["ignore_value=9"],
        ),
        ({"annotations": "masks"}, {"ignore_px": 5}, ["annotations=masks"]),
    ],
)
def test_runs_of_other_ignored_pixels_are_to_be_measured_with_those_of_the_first(
    one: dict[str, Any],
    other: dict[str, Any],
    keys: list[str],
    pair: tuple[Path, Path],
    write_evaluation: Write,
) -> None:
    """On raw fields, where each would else take its own again."""
    write_evaluation(pair[1], BETTER, truth_sha256=dict.fromkeys(BETTER, "with a ring"))
    for run, changed in zip(pair, (one, other), strict=True):
        about = json.loads((run / "dataset.json").read_text())
        about["config"] |= changed
        (run / "dataset.json").write_text(json.dumps(about))
        shutil.copytree(run / "evaluation/test", run / "evaluation/raw")
    first, second = (read_row(path, "raw", is_pruned=False) for path in pair)
    with pytest.raises(NotComparableError) as caught:
        differences_between(first, second, CompareConfig(runs=["a", "b"], raw="raw"))
    commands = [
        shlex.join(["python", "-m", "train.evaluate", f"run={run}", "raw=raw", *keys])
        for run in pair
    ]
    assert str(caught.value).splitlines()[2:] == [f"  {each}" for each in commands]


def test_another_radius_of_matching_is_refused(
    pair: tuple[Path, Path], write_evaluation: Write
) -> None:
    nuclei = [{"field": name, "case": name[:6], "counts": {"tumor": NUCLEI}} for name in BETTER]
    detection = {"f1": 0.5, "radius_px": 6, "per_field": nuclei}
    write_evaluation(pair[1], BETTER, detection=detection)
    told = refused(pair)
    ways = [f"{run} with match_radius_px={px}" for run, px in zip(pair, (8, 6), strict=True)]
    assert ", ".join(ways) in told
    for run in pair:
        assert f"\n  {command(run, 'match_radius_px=8')}" in told
    write_evaluation(pair[1], BETTER, tta=True)
    assert "tta=true" in refused(pair)


def test_folds_are_paired_as_they_were_pooled(
    write_run: Write, write_evaluation: Write, in_folds: object
) -> None:
    """Two cross-validations, each fold of an ensemble of its own, on the cases of all."""
    for name in ("cv1", "cv2"):
        for fold in range(2):
            run = write_run(f"{name}/fold-{fold}", [0.5], f"fold={fold}", data=in_folds)
    root = run.parents[1]
    which = {"checkpoint": "step_00000010", "checkpoint_sha256": sha256(b"complete").hexdigest()}
    members = [{"run": f"fold-{fold}", **which} for fold in (0, 1)]
    way = {"tta": False, "detection": {"radius_px": 8}}
    write_evaluation(root / "cv1", COUNTS, folds=[way | member for member in members])
    write_evaluation(root / "cv2", BETTER, folds=[way | {"run": "both", "members": members}])
    pixels, _ = differences((root / "cv1", root / "cv2"))
    assert pixels.value == pytest.approx(240 / 265 - 220 / 260)
    (root / "cv2/fold-1/checkpoints/best").write_text("step_00000020\n")
    assert "is of step_00000010 of fold-1, and the best" in refused((root / "cv1", root / "cv2"))
    write_evaluation(root / "cv2", BETTER, folds=[way | members[0]])
    assert "is of fold-0" in refused((root / "cv1", root / "cv2"))


def test_other_classes_are_refused(pair: tuple[Path, Path], write_evaluation: Write) -> None:
    rows = [{"field": name, "case": name[:6], "counts": {"other": NUCLEI}} for name in BETTER]
    detection = {"f1": 0.5, "radius_px": 8, "per_field": rows}
    write_evaluation(pair[1], BETTER, per_field=rows, detection=detection)
    assert re.search(r"a learned tumor; \S*b learned other", refused(pair))


def test_a_case_that_one_was_trained_on_is_refused(
    pair: tuple[Path, Path], write_run: Write, write_evaluation: Write, in_folds: object
) -> None:
    """Fold 0 tests on Case_1 and is trained on Case_4 and Case_5; the other run is not."""
    folded = write_run("c", [0.5], "fold=0", data=in_folds)
    write_evaluation(folded, COUNTS)
    told = refused((pair[0], folded))
    assert f"{folded} was trained on Case_4, Case_5, which the other never saw" in told


@pytest.mark.parametrize("bad", ["[1, 2, 3]", "[1, 2, 3, -4]", '[1, 2, 3, "4"]', "7"])
def test_damaged_counts_are_refused(pair: tuple[Path, Path], bad: str) -> None:
    file = pair[0] / "evaluation/test/summary.json"
    file.write_text(file.read_text().replace("[50, 10, 10, 30]", bad))
    assert str(file) in refused(pair)
