"""The learning rate at steps that one can work out."""

import dataclasses
import math
from typing import Literal

import pytest

from train.config import TrainConfig
from train.loop.optimizer import learning_rate


def config(schedule: str, warmup_steps: int) -> TrainConfig:
    return TrainConfig(data="", run="", lr=0.8, schedule=schedule, warmup_steps=warmup_steps)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("constant", 0, {0: 0.8, 7: 0.8, 11: 0.8}),
        ("constant", 4, {0: 0.2, 1: 0.4, 3: 0.8, 11: 0.8}),
        # of 12 steps: half way at 6, a third of the way at 4 (cos 60 degrees)
        ("cosine", 0, {0: 0.8, 4: 0.8 * 0.75, 6: 0.4, 8: 0.8 * 0.25, 12: 0.0}),
        # 8 steps after a warm-up of 4
        ("cosine", 4, {0: 0.2, 3: 0.8, 4: 0.8, 8: 0.4, 12: 0.0}),
    ],
)
def test_the_rate_is_as_worked_out(
    schedule: str, warmup_steps: int, expected: dict[int, float]
) -> None:
    for step, rate in expected.items():
        assert learning_rate(step, 12, config(schedule, warmup_steps)) == pytest.approx(rate)


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
    assert learning_rate(0, 12, scaled) == pytest.approx(expected)
    assert learning_rate(11, 12, scaled) == pytest.approx(0.8 if lr_scale == "none" else 3.2)


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
