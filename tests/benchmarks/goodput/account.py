"""What became of the time that a job had nodes: steps that count, steps that were repeated."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Start:
    """A start of the job, from when it got its nodes to when it gave them back."""

    begin_s: float
    num_nodes: int
    end_s: float = 0.0
    preempted_s: float = 0.0
    """When Slurm sent SIGTERM to make room for another job; 0 where it did not."""
    signs: list[tuple[float, int]] = field(default_factory=list)
    """(time, step) of each sign of life; the first tells from which step this start goes on."""

    @property
    def resumed(self) -> int:
        """The step that it went on from."""
        return self.signs[0][1]

    @property
    def reached(self) -> int:
        """The last step that it made."""
        return self.signs[-1][1]

    @property
    def start_up_s(self) -> float | None:
        """Seconds from the nodes to the end of the first step; None if it made none."""
        first = next((time_s for time_s, step in self.signs if step > self.resumed), None)
        return None if first is None else first - self.begin_s


@dataclass(frozen=True)
class Account:
    """The sum over the starts of a run."""

    useful: int
    lost: int
    useful_s: float
    """What the useful steps would have taken undisturbed."""
    allocated_s: float
    start_up_s: float
    """The median over the starts, from the nodes to the end of the first step; NaN without any."""
    leaving_s: float
    """The median over preemptions, from the signal until the nodes are free; NaN without any."""

    @property
    def goodput(self) -> float:
        """The fraction of the allocated time that led to steps which count."""
        return self.useful_s / self.allocated_s if self.allocated_s else 0.0


def useful_steps(starts: Sequence[Start], kept: int) -> list[int]:
    """Return for each start how many of its steps were never made again.

    `kept` is the step that would be gone on from after the last start.
    """
    useful = []
    floor = kept
    for start in reversed(starts):
        if not start.signs:
            useful.append(0)
            continue
        useful.append(max(0, min(start.reached, floor) - start.resumed))
        floor = min(floor, start.resumed)
    return useful[::-1]


def settle(starts: Sequence[Start], kept: int, step_s: Mapping[int, float]) -> Account:
    """Sum up. `step_s`: number of nodes -> undisturbed seconds a step."""
    useful = useful_steps(starts, kept)
    made = [start.reached - start.resumed if start.signs else 0 for start in starts]
    return Account(
        useful=sum(useful),
        lost=sum(made) - sum(useful),
        useful_s=sum(
            number * step_s[start.num_nodes]
            for number, start in zip(useful, starts, strict=True)
            if number
        ),
        allocated_s=sum(start.end_s - start.begin_s for start in starts),
        start_up_s=median([start.start_up_s for start in starts if start.start_up_s is not None]),
        leaving_s=median(
            [start.end_s - start.preempted_s for start in starts if start.preempted_s]
        ),
    )


def median(times: Sequence[float]) -> float:
    """The median, or NaN of none."""
    return statistics.median(times) if times else float("nan")
