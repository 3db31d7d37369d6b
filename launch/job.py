"""What runs in each task of a job: one stage, and what to leave when it is stopped or fails.

    srun python -m launch.job STAGE RUN key=value ...     as slurm/train.sbatch does by hand

Slurm stops a job with SIGTERM (preemption, scancel, a lost node) or, some time before the time
limit, with SIGUSR2. Training then saves and returns. Preparation and evaluation have nothing to
save: they are interrupted where they are, and keep the fields that are done. The tasks leave how
the stage ended in the run folder (launch/outcome.py) and end; the last line of the job's script
(launch/on_exit.sh) decides whether the job comes back.

submitit only writes the sbatch script and carries the stage to the node. Its own `checkpoint()` is
not used: it runs on rank 0 alone, inside the signal handler, so a save that all ranks take part in
would hang there; and it ignores SIGTERM, which may be the only signal of a preemption.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from common import command_line
from common.command_line import EXIT_FAILED, EXIT_STOPPED, UserError
from common.lease import TakenError
from common.stop_request import SIGNALS, StopRequest
from launch.outcome import Verdict, leave_outcome
from launch.record.events import (
    COMPARE,
    STAGES,
    TRIAL,
    last_step,
    note_in_job,
    read_events,
)
from train.ranks.slurm_job import become_rank, job_id, num_tasks

TURN_S = 10.0  # between two looks whether another preparation of the same data set has ended


class StageStopped(Exception):  # noqa: N818  (not an error)
    """A signal interrupts a stage that has nothing to save."""


@dataclass(frozen=True)
class Stage:
    """A stage with its arguments. submitit pickles it and calls it in every task."""

    name: str
    run: str
    arguments: list[str]

    @property
    def noted(self) -> str:
        """The stage as events name it: a trial of a study is a training."""
        return "train" if self.name == TRIAL else self.name

    def __call__(self) -> None:
        """Run the stage. Ends the process with the stage's exit code where that is not 0."""
        with StopRequest() as stop:  # first of all: from here on no signal is lost
            code = self.attempt(stop)
        # One code is enough for srun, which ends all tasks as soon as one ends with another than 0
        if code == EXIT_STOPPED:
            leave(code if is_first() else 0)
        if code:
            sys.exit(code)

    def attempt(self, stop: StopRequest) -> int:
        """Run the stage, and leave its outcome where it has no success; returns the exit code."""
        run = Path(self.run)
        try:
            if is_first():
                with contextlib.suppress(OSError):  # a full disk is for the stage to find
                    note_in_job(run, "started", self.noted, ranks=num_tasks())
            code = run_stage(self.name, self.arguments, stop)
        except StageStopped:
            code = EXIT_STOPPED
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            verdict = Verdict.FAILED if error.can_heal else Verdict.REFUSED
            leave_outcome(run, verdict, stop.signum, str(error))
            return error.exit_code
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            leave_outcome(run, Verdict.FAILED, stop.signum, reason)
            return EXIT_FAILED
        if code == EXIT_STOPPED and is_first():
            leave_outcome(run, Verdict.STOPPED, stop.signum)
        return code


@dataclass(frozen=True)
class Pack:
    """Stages of several runs, which share a step of a job: each has as many of its tasks.

    Slurm divides the CPUs among tasks and sends each of them the signals, so every run saves by
    itself. A run that fails does not end the others.
    """

    stages: list[Stage]
    num_tasks: int
    """Tasks of each stage."""

    def __call__(self) -> None:
        """Run the stage that this task belongs to, unless an earlier start of the job ended it."""
        number, rank = divmod(int(os.environ["SLURM_PROCID"]), self.num_tasks)
        if number >= len(self.stages) or has_finished(run := Path(self.stages[number].run)):
            return
        with as_task(number, rank, self.num_tasks):
            self.stages[
                number
            ]()  # returns with success only, but for ranks beside one that stopped
        if rank == 0:  # by itself: progress.json may be that of an earlier job
            with contextlib.suppress(OSError):  # a full disk: it is found to be done at a restart
                note_in_job(run, "finished", self.stages[number].noted, step=last_step(run))


def has_finished(run: Path) -> bool:
    """Return whether this job has finished a run before."""
    mine = [event["event"] for event in read_events(run) if event.get("job") == job_id()]
    return mine[-1:] == ["finished"]


@contextlib.contextmanager
def as_task(number: int, rank: int, num_tasks: int) -> Iterator[None]:
    """While this context lasts, the process is a task of a step of its run's own.

    `number`: which of the runs that share the step; each needs a port of its own.
    """
    step = int(os.environ.get("SLURM_STEP_ID", 0))
    about = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_TASKS": num_tasks}
    about["SLURM_STEP_ID"] = step + number
    before = {name: os.environ.get(name) for name in about}
    os.environ.update({name: str(value) for name, value in about.items()})
    try:
        yield
    finally:  # submitit names its files by these
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def run_stage(name: str, arguments: list[str], stop: StopRequest) -> int:
    """Import the stage, late, and return the exit code of its main."""
    if name == TRIAL:
        become_rank()
        from launch.sweeps.trial_stage import run_trial

        (*_, run) = (given for given in arguments if given.startswith("run="))
        return run_trial(Path(run.removeprefix("run=")), arguments, stop)
    if name == "train":
        become_rank()
        from train.__main__ import main as train

        return train(arguments, stop)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # At any instruction, which is safe: both stages can be run again
        stop.note(signum, frame)
        if stop.num_signals == 1:
            raise StageStopped

    for signum in SIGNALS:
        signal.signal(signum, interrupt)
    if stop.signum:  # one that came before
        raise StageStopped
    return OTHERS[name](arguments)


def prepare_in_turn(arguments: list[str]) -> int:
    """Prepare the data set; waits while another job prepares the same one for its run."""
    from data_prep.__main__ import main

    is_told = False
    while True:
        try:
            return main(arguments)
        except TakenError as error:
            if not is_told:
                print(f"{error}; this job waits for it", file=sys.stderr, flush=True)
            is_told = True
            time.sleep(TURN_S)


def evaluate(arguments: list[str]) -> int:
    """Evaluate the run; returns the exit code."""
    from train.evaluate import main

    return main(arguments)


def compare(arguments: list[str]) -> int:
    """Compare the trials of a sweep; returns the exit code."""
    from train.compare import main

    return main(arguments)


OTHERS = {"prepare": prepare_in_turn, "evaluate": evaluate, COMPARE: compare}


def leave(code: int) -> NoReturn:
    """End the process at once: Python and torch take seconds to end, and a grace may be short."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Return whether this is the first task of the job."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def main(argv: list[str]) -> int:
    """Run a stage by hand: STAGE RUN key=value ..."""
    if len(argv) < 2 or argv[0] not in STAGES:
        raise command_line.UsageError(f"python -m launch.job {{{'|'.join(STAGES)}}} RUN key=value")
    (Path(argv[1]) / "launch").mkdir(parents=True, exist_ok=True)
    Stage(argv[0], argv[1], argv[2:])()
    return 0


if __name__ == "__main__":
    command_line.run(main)
