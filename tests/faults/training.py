"""Trainings that may be killed at a named instant."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

from tests.faults.rank import Instant
from tests.forked_ranks import ForkedRanks
from train import show

NUM_STEPS = 12
SETTINGS = (
    "epochs=3",
    "batch_size=4",
    "microbatches=4",
    "lr=0.01",
    "save_every_s=0",
    "log_every_steps=1",
    "rank_timeout_s=20",
    "crop.size_px=32",
    "model.width=4",
    "model.depth=2",
    "model.dropout=0.2",
    "tile.size_px=64",
    "tile.overlap_px=8",
    "panels=1",
)


class Launch(ForkedRanks):
    """The ranks of one start of a training.

    `logs` is a folder for what they print; not on the disk of the run, which may be full. `fatal`
    is a rank that is to die, and when.
    """

    def __init__(
        self,
        run: Path,
        data: Path,
        logs: Path,
        world_size: int,
        amp: str = "amp=off",
        fatal: tuple[int, Instant] | None = None,
    ) -> None:
        self.logs = logs
        self.last_step = step(run)

        def given(rank: int) -> list[Any]:
            instant = fatal[1] if fatal and fatal[0] == rank else None
            dies = (instant.name, instant.passing) if instant else None
            return [str(run), dies, str(self.passed_by(rank))]

        arguments = [f"data={data}", f"run={run}", *SETTINGS, amp]
        log = logs / "ranks.log"
        super().__init__("train.__main__", arguments, world_size, log, given)

    def passed_by(self, rank: int) -> Path:
        """Where a rank that came to its end says which instants it came by."""
        return self.logs / f"passed.{rank}"


def step(run: Path) -> int:
    """The last step that a run told."""
    try:
        return int(json.loads((run / "progress.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def resumed_at(output: str) -> int:
    """The step at which a start of a training went on; 0 where it began anew."""
    found = re.search(r"resumed from step_(\d+)", output)
    return int(found[1]) if found else 0


def digests(run: Path) -> list[str]:
    """Step, epoch and digests of the newest checkpoint, as train.show prints them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        show.main([f"run={run}"])
    wanted = ("step", "epoch", "model", "state")
    return [line for line in printed.getvalue().splitlines() if line.startswith(wanted)]


def passed_instants(launch: Launch, rank: int) -> dict[str, int]:
    """Name -> how often, of the instants that a rank came by."""
    lines = launch.passed_by(rank).read_text().splitlines()
    return {name: int(count) for name, count in (line.split("\t") for line in lines)}
