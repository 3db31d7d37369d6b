"""The learning rate at steps that one can work out, and what is said of it before it changes."""

import dataclasses
import math
from typing import Any, Literal

import pytest

from train.config import TrainConfig
from train.loop.schedule import about_schedule, learning_rate


def config(schedule: str, warmup_steps: int, epochs: int = 1, **more: Any) -> TrainConfig:
    return TrainConfig(lr=0.8, schedule=schedule, warmup_steps=warmup_steps, epochs=epochs, **more)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("constant", 0, {0: 0.8, 7: 0.8, 11: 0.8}),
        ("constant", 4, {0: 0.2, 1: 0.4, 3: 0.8, 11: 0.8}),
        # of 12 steps: half way at 6, a third of the way at 4 (cos 60 degrees)
        ("cosine", 0, {0: 0.8, 4: 0.8 * 0.75, 6: 0.4, 8: 0.8 * 0.25}),
        # 8 steps after a warm-up of 4
        ("cosine", 4, {0: 0.2, 3: 0.8, 4: 0.8, 8: 0.4, 11: 0.4 * (1 - math.cos(math.pi / 8))}),
        # at half of the way, and at three quarters
        ("poly", 0, {0: 0.8, 6: 0.8 * 0.5**0.9, 9: 0.8 * 0.25**0.9}),
        ("poly", 4, {0: 0.2, 3: 0.8, 4: 0.8, 8: 0.8 * 0.5**0.9}),
    ],
)
def test_the_rate_is_as_worked_out(
    schedule: str, warmup_steps: int, expected: dict[int, float]
) -> None:
    for step, rate in expected.items():
        assert learning_rate(step, 12, config(schedule, warmup_steps)) == pytest.approx(rate)
        # the same 12 steps in four epochs
        in_four = config(schedule, warmup_steps, epochs=4)
        assert learning_rate(step, 3, in_four) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("lr_scale", "batch_size", "expected"),
    [
        ("none", 32, 0.8),
        ("sqrt", 32, 1.6),
        ("linear", 32, 3.2),
        ("linear", 8, 0.8),
        ("sqrt", 2, 0.4),
    ],
)
def test_the_rate_follows_the_batch_from_the_8_crops_that_lr_is_meant_for(
    lr_scale: str, batch_size: int, expected: float
) -> None:
    scaled = dataclasses.replace(
        config("constant", 0), lr_scale=lr_scale, batch_size=batch_size, microbatches=1
    )
    assert learning_rate(0, 12, scaled) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lr_scale", "warmup_steps", "expected"),
    # 12 steps in 3 epochs; times four at 32 crops
    [
        ("none", "auto", 0.8),
        ("linear", "auto", 3.2 / 4),
        ("linear", 2, 3.2 / 2),
        ("linear", 0, 3.2),
    ],
)
def test_a_scaled_rate_rises_over_the_first_epoch_unless_it_is_said_otherwise(
    lr_scale: str, warmup_steps: int | Literal["auto"], expected: float
) -> None:
    scaled = dataclasses.replace(
        config("constant", 0),
        lr_scale=lr_scale,
        batch_size=32,
        microbatches=1,
        epochs=3,
        warmup_steps=warmup_steps,
    )
    assert learning_rate(0, 4, scaled) == pytest.approx(expected)
    assert learning_rate(11, 4, scaled) == pytest.approx(0.8 if lr_scale == "none" else 3.2)


@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_a_cosine_falls_all_the_way(warmup_steps: int) -> None:
    rates = [learning_rate(step, 40, config("cosine", warmup_steps)) for step in range(40)]
    falling = rates[max(0, warmup_steps - 1) :]
    assert falling == sorted(falling, reverse=True)
    assert max(rates) == 0.8
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("total_steps", [1, 3])
def test_a_run_shorter_than_its_warm_up_has_a_rate(total_steps: int) -> None:
    for step in range(total_steps):
        assert math.isclose(
            learning_rate(step, total_steps, config("cosine", 5)), 0.8 * (step + 1) / 5
        )


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_after_the_schedules_end_the_rate_stays_at_that_of_its_last_step(schedule: str) -> None:
    """Two epochs of 4 steps are scheduled, of 4: it neither rises again nor falls to nothing."""
    longer = config(schedule, 0, epochs=4, schedule_epochs=2)
    last = {"cosine": 0.4 * (1 + math.cos(math.pi * 7 / 8)), "poly": 0.8 * (1 / 8) ** 0.9}[schedule]
    assert [learning_rate(step, 4, longer) for step in range(7, 16)] == pytest.approx([last] * 9)
    shorter = config(schedule, 0, epochs=2)
    for step in range(8):
        assert learning_rate(step, 4, longer) == learning_rate(step, 4, shorter)


def test_a_constant_rate_needs_no_schedule() -> None:
    """Its warm-up goes on as it began, however many epochs there are."""
    for epochs, schedule_epochs in ((4, 1), (4, "auto"), (1, 4)):
        made = config("constant", 8, epochs=epochs, schedule_epochs=schedule_epochs)
        assert learning_rate(3, 2, made) == pytest.approx(0.4)
        assert learning_rate(7, 2, made) == pytest.approx(0.8)


TWO = config("cosine", 0, epochs=2)
# of 8 steps: 0.8 * (1 + cos(7/8 of 180 degrees)) / 2; of 16, at half: 0.4; at step 4: 0.682843
STAYS = "the learning rate stays at 3.0e-02, where its schedule over 2 epochs ended"
STRETCHED = "the learning rate follows a schedule over 4 epochs in place of 2: 4.0e-01 at the next"


@pytest.mark.parametrize(
    ("changes", "begun", "step", "said"),
    [
        ({}, TWO, 8, ""),
        (
            {"epochs": 4, "schedule_epochs": 2},
            TWO,
            8,
            f"epochs: 2 -> 4: {STAYS}; schedule_epochs=4 stretches the schedule instead: 4.0e-01 at"
            " the next step",
        ),
        ({"epochs": 4}, TWO, 8, f"epochs: 2 -> 4: {STRETCHED} step, in place of 3.0e-02"),
        (
            {"epochs": 4, "schedule_epochs": 2},
            TWO,
            4,
            "epochs: 2 -> 4: the learning rate follows its schedule over 2 epochs, and then stays"
            " at 3.0e-02; schedule_epochs=4 stretches the schedule instead: 6.8e-01 at the next"
            " step",
        ),
        (
            {"epochs": 1, "schedule_epochs": 2},
            TWO,
            2,
            # steps 3 of 8 and 2 of 4: 0.4 * (1 + cos 67.5 degrees), and at half
            "epochs: 2 -> 1: the learning rate follows its schedule over 2 epochs, and is 5.5e-01"
            " at the last step; schedule_epochs=1 shortens the schedule instead: 4.0e-01 at the"
            " next step",
        ),
        # it was given beforehand
        ({"epochs": 4}, dataclasses.replace(TWO, schedule_epochs=4), 8, ""),
        ({"epochs": 4, "schedule": "constant"}, TWO, 8, ""),
        ({"epochs": 4}, None, 0, ""),
        (
            {"epochs": 4, "schedule_epochs": 2},
            None,
            0,
            "epochs=4 schedule_epochs=2: the learning rate follows its schedule over 2 epochs, and"
            " then stays at 3.0e-02; schedule_epochs=4 stretches the schedule instead",
        ),
    ],
)
def test_what_becomes_of_the_rate_is_said(
    changes: dict[str, Any], begun: TrainConfig | None, step: int, said: str
) -> None:
    """Epochs of 4 steps."""
    assert about_schedule(dataclasses.replace(TWO, **changes), begun, 4, step) == said


def test_nothing_is_said_again_of_what_was_there_at_the_last_start() -> None:
    longer = dataclasses.replace(TWO, epochs=4, schedule_epochs=2)
    assert about_schedule(longer, longer, 4, 9) == ""
