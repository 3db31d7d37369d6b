"""When to save within an epoch: a node that dies costs a minute, or more where saves are dear."""

from dataclasses import dataclass
from typing import Literal

from train.checkpoints.save_checkpoint import megabytes

SHORTEST_S = 60.0  # also as long as nothing is known of what a save costs
PER_STALL = 100  # so that training stands still for 1% of the time at most
# So that a save is being written for half the time at most: file system and cores have other work,
# and a signal seldom finds a save going on, which its own save would have to wait for.
PER_WRITE = 2
NOTICEABLE = 1.25  # factor by which the interval changes before the user is told


@dataclass(frozen=True)
class SaveCost:
    """What a save cost, as rank 0 sees it; the others copy and write about as many bytes."""

    num_bytes: int
    """Of the tensors of all ranks together."""
    stall_s: float
    """Seconds for which training waited."""
    write_s: float
    """Seconds from the request until the checkpoint was published."""


def interval_s(cost: SaveCost) -> float:
    """Return the seconds between saves that cost as much."""
    return max(SHORTEST_S, PER_STALL * cost.stall_s, PER_WRITE * cost.write_s)


class SaveInterval:
    """The time between saves within an epoch. It follows their cost, unless a number is given."""

    def __init__(self, given: float | Literal["auto"]) -> None:
        self.is_auto = given == "auto"
        self.seconds = SHORTEST_S if given == "auto" else given
        self.write_s = 0.0
        """How long a save is written, if known; no save is begun so close to an epoch's end."""
        self.told_s = self.seconds

    def follow(self, cost: SaveCost) -> str:
        """Take up what the last save cost. Returns a line for the user, or '' if the interval is
        about the one that was told last."""
        if not self.is_auto:
            return ""
        self.seconds, self.write_s = interval_s(cost), cost.write_s
        shorter, longer = sorted((self.seconds, self.told_s))
        if longer <= NOTICEABLE * shorter:
            return ""
        self.told_s = self.seconds
        return (
            f"a save of {megabytes(cost.num_bytes)} takes {cost.write_s:.1f} s here and holds"
            f" training up for {cost.stall_s:.1f} s: saves every {self.seconds:.0f} s"
        )

    def is_due(self, waited_s: float, num_steps: int, steps_left: int) -> bool:
        """Whether to save, `waited_s` and `num_steps` after the last save.

        `steps_left`: to the end of the epoch, which saves too, and would have to wait for a save
        that is still being written.
        """
        left_s = steps_left * waited_s / max(1, num_steps)
        return steps_left > 0 and waited_s >= self.seconds and left_s >= self.write_s
