"""Report a training's epochs to its study while it runs, and stop it early if it is worse."""

import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from common.stop_request import REQUESTED, StopRequest
from launch.sweeps.study import Study
from train.runs.history import METRICS, read_metrics

DICE = "val/dice"
LOOK_S = 1.0
FIRST_JUDGED = 0.25  # fraction of the epochs, before which little is known


@dataclass
class Watch:
    """While this context lasts, a thread follows a run's metrics.jsonl."""

    study: Study
    run: Path
    epochs: int
    """Epochs of the whole training."""
    stop: StopRequest
    is_pruning: bool
    has_told: bool = False
    has_looked: bool = False
    seen: tuple[int, int] = (0, 0)
    """Size and time of the file that was read last."""
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self.thread = threading.Thread(target=self.follow, daemon=True, name="watch of a trial")
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        self.thread.join()

    @property
    def has_pruned(self) -> bool:
        """Whether the run was stopped because it is worse, and not by a signal before."""
        return self.stop.signum == REQUESTED

    def follow(self) -> None:
        """Look until the training ends. A study that cannot be reached does not end it."""
        while not self.over.wait(LOOK_S):
            try:
                self.look()
            except Exception as error:
                if not self.has_told:
                    print(f"warning: {self.run}: not reported yet: {error}", file=sys.stderr)
                self.has_told = True

    def look(self) -> None:
        """Report what is new, and ask for a stop if the run is worse than others."""
        now = version_of(self.run / METRICS)
        if now == self.seen:
            return
        dice = dice_by_epoch(self.run)
        for epoch, value in dice.items():
            self.study.report(self.run.name, epoch, value)
        self.seen = now
        is_judged = self.is_pruning and max(dice, default=self.epochs) < self.epochs
        if is_judged and self.study.is_to_prune(self.run.name, int(FIRST_JUDGED * self.epochs)):
            self.stop.request()


def dice_by_epoch(run: Path) -> dict[int, float]:
    """Return epoch -> Dice of the validation, of the epochs that have one."""
    found = ((point.get("epoch"), point.get(DICE)) for point in read_metrics(run))
    return {int(epoch): value for epoch, value in found if epoch is not None and value is not None}


def version_of(file: Path) -> tuple[int, int]:
    """Return the size and the time of a file, (0, 0) where there is none."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return 0, 0
    return about.st_size, about.st_mtime_ns
