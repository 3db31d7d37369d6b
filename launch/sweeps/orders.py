"""What the first rank of a trial tells the others: RUN/launch/trial.json.

Only the first rank speaks to the study; all of them need the settings. They cannot meet before they
train, so they wait for a file. It names the start of the job that it is for, and counts: a trial
with folds trains several times.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common.command_line import UserError
from common.files import write_atomically
from common.schema import read_checked
from common.stop_request import StopRequest
from train.ranks.slurm_job import job_id, restart_count

ORDER = "launch/trial.json"
LOOK_S = 0.1
PATIENCE_S = 600.0
OF_THIS_START = ("SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")


@dataclass(frozen=True)
class Order:
    """A training that all ranks are to take part in."""

    start: str
    """The start of the job, as all of its ranks know it."""
    number: int
    arguments: list[str]
    """key=value of the training; none where nothing is left to train."""
    port: int
    """Where the ranks meet, 0 for the port that they know."""


def is_first() -> bool:
    """Return whether this is the first rank, by the environment of torchrun."""
    return os.environ.get("RANK", "0") == "0"


def has_others() -> bool:
    """Return whether there are other ranks."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def this_start() -> str:
    """Return what all ranks of this start have in common, and no other start has."""
    others = (os.environ.get(name, "") for name in OF_THIS_START)
    return "/".join([job_id(), str(restart_count()), *others])


def give_order(run: Path, number: int, arguments: list[str]) -> Order:
    """Tell the other ranks what to train."""
    order = Order(this_start(), number, arguments, free_port() if number and has_others() else 0)
    if has_others():
        write_atomically(run / ORDER, json.dumps(asdict(order)).encode())
    return order


def wait_for_order(run: Path, number: int, stop: StopRequest) -> Order | None:
    """Wait until the first rank says what to train; None if a stop was asked for.

    Raises UserError if it says nothing.
    """
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            order = read_checked(run / ORDER, Order)
        except (OSError, ValueError):  # not there yet, or left by another version
            order = None
        if order and (order.start, order.number) == (this_start(), number):
            return order
        if stop.signum:
            return None
        time.sleep(LOOK_S)
    raise UserError(
        f"{run / ORDER}: the first rank did not say in {PATIENCE_S:.0f} s what to train"
    )


def meet_at(port: int) -> None:
    """Have the ranks meet at a port of the first rank's own: what they left at the one before, as
    in torchrun's store, would confuse them."""
    if port:
        os.environ["MASTER_PORT"] = str(port)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
