"""What disturbs a training, and when: the same for every system."""

from dataclasses import dataclass

from common import seeds

LEAST_GAP_S = 20.0  # a start takes a while; a shorter gap would measure nothing else
LOST_NODES = 0.25  # fraction of the events in which a node is lost; the others preempt
PREEMPTION_S = 10.0, 30.0
LOSS_S = 45.0, 60.0  # longer than Slurm takes to miss a node


@dataclass(frozen=True)
class Event:
    """A disturbance."""

    at_s: float
    """Seconds since the trace began."""
    lost: str
    """The node that is lost; '' where an urgent job comes instead."""
    num_nodes: int
    """How many nodes the urgent job takes; 0 where there is none."""
    lasts_s: float
    """How long the urgent job, or the node's absence, lasts."""

    def __str__(self) -> str:
        what = f"node {self.lost} lost" if self.lost else f"{self.num_nodes} nodes taken"
        return f"{self.at_s:.0f} s: {what} for {self.lasts_s:.0f} s"


def draw_trace(seed: int, duration_s: float, mean_s: float, num_nodes: int) -> list[Event]:
    """Return the events, in order. Raises ValueError for a mean that leaves nothing to draw.

    The last one, the first after `duration_s`, takes every node: the trace ends with a gap that is
    as long as the others, not with one that is cut.
    """
    if mean_s <= LEAST_GAP_S:
        raise ValueError(f"mean_s={mean_s}: must be above {LEAST_GAP_S}")
    random = seeds.generator(seed, "goodput")
    events: list[Event] = []
    at_s = 0.0
    while at_s <= duration_s:
        at_s += LEAST_GAP_S + random.exponential(mean_s - LEAST_GAP_S)
        is_last = at_s > duration_s
        is_loss, number = random.random() < LOST_NODES, int(random.integers(1, num_nodes + 1))
        if is_last:
            is_loss, number = False, num_nodes
        lasts_s = random.uniform(*(LOSS_S if is_loss else PREEMPTION_S))
        lost, taken = (f"n{number}", 0) if is_loss else ("", number)
        events.append(Event(at_s, lost, taken, lasts_s))
    return events
