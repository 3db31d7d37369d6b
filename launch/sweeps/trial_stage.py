"""What runs in each task of a trial: take its settings from the study, train, tell what came of it.

    python -m launch.sweeps.trial_stage SWEEP/trial-K key=value ...
    torchrun --nproc-per-node 2 -m launch.sweeps.trial_stage SWEEP/trial-K key=value ...

A trial that is stopped and starts again goes on as the same one. The first rank speaks to the
study; the others wait for what it says (orders.py).
"""

import statistics
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from common import command_line
from common.command_line import EXIT_STOPPED, UsageError, UserError, counted
from common.stop_request import REQUESTED, StopRequest
from data_prep.dataset.description import DATASET, read_description
from launch.record.events import LAUNCH, last_step, note_in_job, read_events
from launch.record.run_jobs import queued_jobs
from launch.sweeps.orders import Order, give_order, is_first, meet_at, wait_for_order
from launch.sweeps.plan import Plan, load_shared, read_plan
from launch.sweeps.pruning import Watch, dice_by_epoch
from launch.sweeps.study import COMPLETE, FAILED, PRUNED, RUNNING, SETTINGS, Study, state_of
from train.config import PRESETS, TrainConfig
from train.runs.several import NAME, fold_name

ENDS = {"stopped", "requeued", "failed", "requeue refused", "gave up", "cancelled"}  # of a start
FIRST_JUDGED_FOLD = 1  # one fold says little


def run_trial(run: Path, arguments: list[str], stop: StopRequest) -> int:
    """Train a trial on this rank, of as many as there are; returns the exit code.

    `arguments`: those of training that all trials share. Raises UserError; one that would come
    again at another start cannot heal.
    """
    trial = FirstRank(run, arguments, stop) if is_first() else OtherRank(run, arguments, stop)
    try:
        return trial.work()
    except UserError as error:
        if not is_for_good(error):
            raise
        error.can_heal = False
        trial.failed(error)
        raise


def is_for_good(error: UserError) -> bool:
    """Return whether an error would come again with the same settings."""
    messages = sys.modules.get("train.loop.messages")  # with torch, which may not be needed
    return not error.can_heal or bool(messages and isinstance(error, messages.NotFiniteError))


class OtherRank:
    """A rank that trains what the first one says."""

    def __init__(self, run: Path, arguments: list[str], stop: StopRequest) -> None:
        self.run, self.arguments, self.stop = run, arguments, stop

    def work(self) -> int:
        """Train until there is nothing left; returns the exit code."""
        for number in count():
            order = wait_for_order(self.run, number, self.stop)
            if order is None:
                return EXIT_STOPPED
            if not order.arguments:
                break
            if code := self.train(order):
                return 0 if self.stop.signum == REQUESTED else code
        return 0

    def train(self, order: Order) -> int:
        """Train with the other ranks; returns the exit code."""
        from train.__main__ import main

        meet_at(order.port)
        return main(order.arguments, self.stop)

    def failed(self, error: UserError) -> None:
        """Leave it to the first rank to tell the study."""


class FirstRank(OtherRank):
    """The rank that speaks to the study."""

    def __init__(self, run: Path, arguments: list[str], stop: StopRequest) -> None:
        """Open the study. Raises UserError."""
        super().__init__(run, arguments, stop)
        if not (match := NAME.fullmatch(run.name)) or match[1] != "trial":
            raise UsageError(f"{run}: not a trial; a sweep's folder holds trial-0, trial-1, ...")
        (run / LAUNCH).mkdir(parents=True, exist_ok=True)
        self.plan = read_plan(run.parent)
        self.config = load_shared(arguments, self.plan.space)
        self.folds = folds_of(self.plan, self.config)
        self.study = Study(run.parent)

    def work(self) -> int:
        """Train what the trial's settings say, unless it has ended; returns the exit code."""
        name = self.run.name
        trial = self.study.take(name, self.plan, lambda other: is_lost(self.run.parent / other))
        if trial is None or state_of(trial) != RUNNING:
            why = f"is {state_of(trial)}" if trial else "was lost, and another has its settings"
            print(f"{name} {why}: nothing to train", flush=True)
            self.end(0)
            return 0
        settings = [f"{key}={value}" for key, value in trial.user_attrs[SETTINGS].items()]
        print(f"{name}: {' '.join(settings)}", flush=True)
        self.config = load([*self.arguments, *settings])
        return self.train_folds(settings) if self.plan.has_folds else self.train_once(settings)

    def train_once(self, settings: list[str]) -> int:
        """Train, and tell the study; returns the exit code."""
        order = give_order(self.run, 0, [*self.arguments, *settings, f"run={self.run}"])
        is_pruning = self.plan.prune != "off"
        watch = Watch(self.study, self.run, self.config.epochs, self.stop, is_pruning)
        with watch:
            code = self.train(order)
        watch.look()
        if code and not watch.has_pruned:
            return code
        if code:
            return self.prune(counted(len(dice_by_epoch(self.run)), "epoch"))
        self.end(1)
        return self.complete([self.run])

    def train_folds(self, settings: list[str]) -> int:
        """Train on one fold after the other, and tell the study; returns the exit code."""
        members = [self.run / fold_name(fold) for fold in self.folds]
        now = self.study.current(self.run.name)
        judged = set(now.intermediate_values) if now else set()  # by an earlier start
        for fold, member in enumerate(members):
            given = [*self.arguments, *settings, f"run={member}", f"fold={fold}"]
            if self.stop.signum:
                return EXIT_STOPPED
            if code := self.train(give_order(self.run, fold, given)):
                return code
            self.study.report(self.run.name, fold, self.mean_dice(members[: fold + 1]))
            is_judged = self.plan.prune != "off" and member != members[-1] and fold not in judged
            if is_judged and self.study.is_to_prune(self.run.name, FIRST_JUDGED_FOLD):
                self.end(fold + 1)
                return self.prune(counted(fold + 1, "fold"))
        self.end(len(members))
        return self.complete(members)

    def mean_dice(self, members: Sequence[Path]) -> float:
        """Return the best Dice of the validation of runs, on average. Raises UserError if a
        validation split has nothing annotated."""
        found = {member: dice_by_epoch(member) for member in members}
        if empty := [member for member, dice in found.items() if not dice]:
            raise UserError(
                f"{empty[0]}: no epoch has a validation Dice, by which trials are compared: nothing"
                " is annotated in the validation split; prepare another one with split.val",
                can_heal=False,
            )
        return statistics.fmean(max(dice.values()) for dice in found.values())

    def complete(self, members: Sequence[Path]) -> int:
        """Tell the study that the trial has finished; returns the exit code."""
        dice = self.mean_dice(members)
        self.tell(COMPLETE, dice)
        over = f", the mean of {counted(len(members), 'fold')}" if self.plan.has_folds else ""
        print(f"{self.run.name}: best validation Dice {dice:.4f}{over}", flush=True)
        return 0

    def prune(self, done: str) -> int:
        """Tell the study that the trial ended early; returns the exit code."""
        self.tell(PRUNED)
        reason = f"after {done}, worse than the median of the trials that have finished"
        note_in_job(self.run, "pruned", "train", step=last_step(self.run), reason=reason)
        print(f"{self.run.name}: pruned {reason}", flush=True)
        return 0

    def failed(self, error: UserError) -> None:
        """Tell the study that the trial has failed."""
        self.tell(FAILED)

    def tell(self, state: str, value: float | None = None) -> None:
        """Tell the study what came of the trial, if it has begun."""
        if trial := self.study.current(self.run.name):
            self.study.tell(trial, state, value)

    def end(self, number: int) -> None:
        """Tell the other ranks that no training is left after so many."""
        give_order(self.run, number, [])


def load(arguments: Sequence[str]) -> TrainConfig:
    """Load the settings of training. Raises UsageError."""
    return command_line.load(TrainConfig, arguments, preset_folder=PRESETS)


def folds_of(plan: Plan, config: TrainConfig) -> range:
    """Return the numbers of the folds that a trial trains on; none without folds.

    Raises UserError for a data set without them, or without a validation split.
    """
    folder = Path(config.data)
    data = read_description(folder / DATASET)
    if plan.has_folds and not data.folds:
        raise UserError(
            f"data={config.data}: has no folds; prepare it with split.folds=5, or give no --folds",
            can_heal=False,
        )
    view = data.of_fold(0 if plan.has_folds else config.fold, f"data={folder}", folder)
    if not view.cases.get("val"):
        raise UserError(
            f"data={config.data}: no validation split, by whose Dice trials are compared; prepare"
            " it with split.val above 0",
            can_heal=False,
        )
    return range(len(data.folds)) if plan.has_folds else range(0)


def is_lost(run: Path) -> bool:
    """Return whether nothing will come of a run: its newest start has ended, and no job of it is
    in the queue. A job that was cancelled may say so, or that it was stopped, or what it said
    before it waited to come back."""
    kinds = [event["event"] for event in read_events(run)]
    since = kinds[::-1][: kinds[::-1].index("started")] if "started" in kinds else []
    if ENDS.isdisjoint(since):
        return False
    try:
        return not queued_jobs(run)
    except UserError:  # Slurm does not answer
        return False


def main(argv: list[str]) -> int:
    """Run a trial by hand, or under torchrun: SWEEP/trial-K key=value ..."""
    if not argv or "=" in argv[0]:
        raise UsageError("python -m launch.sweeps.trial_stage SWEEP/trial-K key=value ...")
    with StopRequest() as stop:
        return run_trial(Path(argv[0]), argv[1:], stop)


if __name__ == "__main__":
    command_line.run(main)
