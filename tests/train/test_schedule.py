"""The learning rate at steps that one can work out."""

import math

import pytest

from train.config import TrainConfig
from train.schedule import learning_rate


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
