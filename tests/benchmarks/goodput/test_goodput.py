"""The trace that all systems are under, and the sums, worked out by hand."""

import itertools
import statistics

import pytest

from tests.benchmarks.goodput.account import Start, settle
from tests.benchmarks.goodput.trace import LEAST_GAP_S, Event, draw_trace


def gaps(trace: list[Event]) -> list[float]:
    """Seconds between events."""
    times = [0.0, *(event.at_s for event in trace)]
    return [after - before for before, after in itertools.pairwise(times)]


def test_the_same_seed_draws_the_same_trace_and_another_one_another() -> None:
    drawn = draw_trace(3, 480, 90, 3)
    assert drawn == draw_trace(3, 480, 90, 3)
    assert drawn != draw_trace(4, 480, 90, 3)


def test_a_longer_trace_begins_like_a_shorter_one() -> None:
    shorter, longer = draw_trace(0, 480, 90, 3), draw_trace(0, 4800, 90, 3)
    assert shorter[:-1] == longer[: len(shorter) - 1]


def test_gaps_have_the_mean_asked_for_and_none_is_shorter_than_a_start() -> None:
    """An exponential of mean 70 s above 20 s: over 4,000 gaps the mean errs by 70 / 63 = 1.1 s."""
    drawn = gaps(draw_trace(0, 4000 * 90, 90, 3))
    assert min(drawn) >= LEAST_GAP_S
    assert statistics.mean(drawn) == pytest.approx(90, abs=4)
    assert statistics.stdev(drawn) == pytest.approx(70, abs=6)


def test_urgent_jobs_take_one_node_to_all_and_a_quarter_of_the_events_lose_a_node() -> None:
    drawn = draw_trace(0, 4000 * 90, 90, 3)
    lost = [event.lost for event in drawn if event.lost]
    assert set(lost) == {"n1", "n2", "n3"}
    assert {event.num_nodes for event in drawn if not event.lost} == {1, 2, 3}
    assert {event.num_nodes for event in drawn if event.lost} == {0}
    assert len(lost) / len(drawn) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_a_trace_ends_with_every_node_taken_after_its_time(seed: int) -> None:
    *before, last = draw_trace(seed, 480, 90, 3)
    assert (last.lost, last.num_nodes) == ("", 3)
    assert last.at_s > 480 >= max(event.at_s for event in before)


def start(begin_s: float, end_s: float, num_nodes: int, *signs: tuple[float, int]) -> Start:
    return Start(begin_s, num_nodes, end_s, signs=list(signs))


def test_steps_that_were_made_again_are_lost_and_the_others_count_as_if_undisturbed() -> None:
    """Ten steps on 3 nodes, of which 6 were saved; 4 again and 5 more on 1 node, all kept but 1.

    Useful: 6 steps of 0.5 s, 8 steps of 1 s = 11 s of 20 + 30 s.
    """
    starts = [
        start(0, 20, 3, (8, 0), (9, 1), (18, 10)),
        start(100, 130, 1, (110, 6), (112, 7), (129, 15)),
    ]
    starts[0].preempted_s = 15  # it had its nodes for 5 s more; the other start lost a node
    account = settle(starts, kept=14, step_s={1: 1.0, 3: 0.5})
    assert account.leaving_s == 5.0
    assert (account.useful, account.lost) == (14, 5)
    assert (account.useful_s, account.allocated_s) == (11.0, 50.0)
    assert account.goodput == 0.22
    assert account.start_up_s == 10.5  # the median of 9 and 12


def test_a_start_that_falls_far_back_takes_steps_of_several_starts_away() -> None:
    """0 to 10, 10 to 20, then again from 5: of the first 5 are left, of the second none."""
    starts = [
        start(0, 10, 1, (0, 0), (9, 10)),
        start(10, 20, 1, (11, 10), (19, 20)),
        start(20, 30, 1, (21, 5), (29, 9)),
    ]
    account = settle(starts, kept=9, step_s={1: 1.0})
    assert (account.useful, account.lost) == (5 + 0 + 4, 5 + 10 + 0)


def test_a_start_that_made_no_step_costs_its_time() -> None:
    starts = [start(0, 10, 2), start(20, 30, 2, (25, 0)), start(40, 50, 2, (45, 0), (46, 4))]
    account = settle(starts, kept=4, step_s={2: 0.5})
    assert (account.useful, account.lost, account.allocated_s) == (4, 0, 30.0)
    assert account.start_up_s == 6.0
    assert account.goodput == pytest.approx(2 / 30)
