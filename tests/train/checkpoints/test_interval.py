"""How often to save follows from what a save costs; expected values are worked out by hand."""

import math

import pytest

from train.checkpoints.interval import SaveCost, SaveInterval, interval_s


@pytest.mark.parametrize(
    ("stall_s", "write_s", "expected"),
    [
        (0.0, 0.0, 60),
        (0.002, 1.4, 60),  # 0.2 and 2.8 would do
        (0.6, 30.0, 60),
        (0.9, 40.0, 90),  # a hundred stalls; two writes would be 80
        (0.3, 40.0, 80),
        (0.0, 600.0, 1200),
        (5.0, 5.0, 500),  # checkpoint=blocking
    ],
)
def test_the_interval_is_a_minute_or_what_the_dearer_side_asks_for(
    stall_s: float, write_s: float, expected: float
) -> None:
    cost = SaveCost(1, stall_s, write_s)
    assert interval_s(cost) == pytest.approx(expected)
    assert stall_s <= 0.0101 * interval_s(cost)
    assert write_s <= interval_s(cost) / 2


def test_it_follows_the_last_save_both_ways_and_tells_only_what_is_news() -> None:
    """More than a quarter from what was told last, so that many small changes are told too."""
    interval = SaveInterval("auto")
    assert interval.seconds == 60
    followed = []
    for write_s in (1, 37, 38, 47, 48, 40, 38, 30, 1):
        told = interval.follow(SaveCost(1, 0.25, write_s))
        followed.append((interval.seconds, told.partition(": ")[2]))
    assert followed == [
        (60, ""),
        (74, ""),
        (76, "saves every 76 s"),
        (94, ""),
        (96, "saves every 96 s"),
        (80, ""),
        (76, "saves every 76 s"),
        (60, "saves every 60 s"),
        (60, ""),
    ]


def test_the_line_says_why() -> None:
    assert SaveInterval("auto").follow(SaveCost(373_000_000, 0.9, 40)) == (
        "a save of 373.0 MB takes 40.0 s here and holds training up for 0.9 s: saves every 90 s"
    )


@pytest.mark.parametrize("given", [1.0, 7.0, 600.0])
def test_a_number_stays_as_it_is(given: float) -> None:
    """However dear saves are, and to the epoch's last step."""
    interval = SaveInterval(given)
    assert interval.follow(SaveCost(1, 10.0, 1000.0)) == ""
    assert interval.is_due(given, 1, 1)
    assert not interval.is_due(given - 0.1, 1, 1)


def test_infinity_is_never_reached() -> None:
    assert not SaveInterval(math.inf).is_due(1e9, 1, 1)


@pytest.mark.parametrize(
    ("waited_s", "num_steps", "steps_left", "expected"),
    [
        (89.9, 9, 50, False),
        (90.0, 9, 50, True),
        (90.0, 9, 4, True),  # 40 s to go, which a save takes
        (90.0, 9, 3, False),  # the one at the epoch's end would wait for 10 s
        (9000.0, 0, 1, True),  # resumed, and nothing is known of a step yet
        (9000.0, 1, 0, False),  # validation comes next, and saves
    ],
)
def test_no_save_is_begun_so_late_that_the_epochs_own_would_wait(
    waited_s: float, num_steps: int, steps_left: int, expected: bool
) -> None:
    interval = SaveInterval("auto")
    interval.follow(SaveCost(1, 0.9, 40.0))
    assert interval.is_due(waited_s, num_steps, steps_left) == expected
