"""What is read of a run, against numbers worked out by hand."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.command_line import UsageError
from tests.train.conftest import one_rank
from train.comparison.facts import hours_of, read_facts
from train.ranks.lock import locked
from train.runs.history import Point

Write = Callable[..., Path]


def test_hours_are_those_of_the_steps_at_the_speed_of_each_point() -> None:
    """8 crops a step: 10 steps at 8 crops/s, 20 at 4 crops/s, and 5 more at the last speed."""
    points: list[Point] = [
        {"step": 10, "speed/samples_per_s": 8.0},
        {"step": 30, "speed/samples_per_s": 4.0},
    ]
    assert hours_of(points, 8, 35) == pytest.approx((10 + 40 + 10) / 3600)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [{"step": 10}],
        [{"step": 10, "speed/samples_per_s": 0.0}],
        [{"step": 9, "speed/samples_per_s": 1.0}, {"step": 8, "speed/samples_per_s": 1.0}],
    ],
)
def test_hours_that_are_not_known_are_not_made_up(points: list[Point]) -> None:
    assert hours_of(points, 8, 10) is None


def test_the_best_validation_is_the_first_with_the_highest_dice(write_run: Write) -> None:
    facts = read_facts(write_run("a", [0.2, None, 0.6, 0.6, 0.5], restarts=2))
    assert facts.best is not None
    assert facts.best["epoch"] == 3
    assert facts.num_restarts == 2
    assert read_facts(write_run("b", [None])).best is None


def test_states(write_run: Write) -> None:
    finished = write_run("a", [0.5, 0.6])
    assert read_facts(finished).state == "finished"
    unfinished = write_run("b", [0.5], epochs=3)
    assert read_facts(unfinished).state == "unfinished"
    with locked(unfinished, one_rank()):
        assert read_facts(unfinished).state == "running"
        long_ago = time.time() - 3600
        os.utime(unfinished / "lock", (long_ago, long_ago))
        assert read_facts(unfinished).state == "unfinished"
    progress = unfinished / "progress.json"
    progress.write_text(progress.read_text().replace("false", "true"))  # as stop_after= ends it
    assert read_facts(unfinished).state == "stopped early"
    progress.unlink()
    assert read_facts(unfinished).state == "not begun"


def test_what_is_no_run_says_what_to_type(write_run: Write) -> None:
    run = write_run("runs/a", [0.5])
    with pytest.raises(UsageError, match=rf"runs={run.parent}/\*"):
        read_facts(run.parent)
    with pytest.raises(UsageError, match="give the run's folder"):
        read_facts(run / "model.safetensors")


def test_the_cases_are_those_of_the_fold(write_run: Write, in_folds: object) -> None:
    facts = read_facts(write_run("a", [0.5], "fold=1", data=in_folds))
    assert facts.data.cases["test"] == ["Case_2"]
    assert facts.data.cases["val"] == ["Case_3"]
