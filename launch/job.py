"""What runs inside a job: one stage, in every task, and what to do when it must stop.

    srun python -m launch.job STAGE RUN key=value ...     as slurm/train.sbatch does by hand

Slurm stops a job with SIGTERM (preemption, scancel, a lost node) or, some time before the time
limit, SIGUSR2. Training then saves and returns; if Slurm still calls the job RUNNING (preempted,
or out of time), rank 0 has it requeued. Otherwise it is being cancelled, or Slurm requeues it
itself: a job that is COMPLETING is left alone. Without the requeue a preempted job that saved and
left in good time would count as done, and be lost.
"""

import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.helpers import TorchDistributedEnvironment

from common import command_line
from common.command_line import EXIT_FAILED, EXIT_STOPPED, UserError
from common.lease import TakenError
from common.slurm_job import job_id
from common.stop_request import SIGNALS, StopRequest
from launch import slurm_commands
from launch.events import last_step, note

STAGES = ("prepare", "train", "evaluate")
WAIT_S = 120.0  # for Slurm to end us after a requeue
TURN_S = 10.0  # between looks whether another preparation of the same data set has ended


class StageStopped(Exception):  # noqa: N818  (not an error)
    """A signal in a stage that has nothing to save: what it has done so far stays done."""


@dataclass(frozen=True)
class Stage:
    """A stage with its arguments; submitit pickles it and calls it in every task."""

    name: str
    run: str
    arguments: list[str]

    def __call__(self) -> None:
        """Run the stage; leaves the process with its exit code where that is not 0."""
        with StopRequest() as stop:  # first of all: from here on no signal is lost
            code = self.guarded(stop)
            if code == EXIT_STOPPED:
                code = come_back(Path(self.run), self.name, stop)
        if code:
            sys.exit(code)

    def guarded(self, stop: StopRequest) -> int:
        """The stage's exit code; an error is noted with the rank it came from.

        An error while the job is being stopped (a rank that is gone, a worker that the signal
        reached) is no failure.
        """
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        try:
            if is_first():
                note(Path(self.run), "started", self.name, **where())
            return run_stage(self.name, self.arguments, stop)
        except StageStopped:
            return EXIT_STOPPED
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            message, code = str(error), error.exit_code
        except Exception as error:
            traceback.print_exc()
            message, code = f"{type(error).__name__}: {error}", EXIT_FAILED
        if stop.signum and is_leaving(slurm_commands.show_job(job_id()), stop):
            return EXIT_STOPPED
        self.note_error(message)
        return code

    def note_error(self, message: str) -> None:
        """Keep the reason where `status` finds it."""
        rank = int(os.environ.get("SLURM_PROCID", 0))
        reason = message.strip().splitlines()[-1][:300]
        note(Path(self.run), "error", self.name, rank=rank, reason=reason, **where())


def run_stage(name: str, arguments: list[str], stop: StopRequest) -> int:
    """Import the stage, late, and call its main."""
    if name == "train":
        # As torchrun would: rank, world size, rendezvous. Which GPUs are ours Slurm has said.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        from train.__main__ import main as train

        return train(arguments, stop)

    def cut_off(signum: int, frame: FrameType | None) -> None:
        stop.note(signum, frame)
        if stop.num_signals == 1:
            raise StageStopped

    for signum in SIGNALS:
        signal.signal(signum, cut_off)
    return prepare_in_turn(arguments) if name == "prepare" else evaluate(arguments)


def prepare_in_turn(arguments: list[str]) -> int:
    """Prepare the data set, after another job that is preparing the same one for its run."""
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
    """Evaluate the run."""
    from train.evaluate import main

    return main(arguments)


def is_first() -> bool:
    """Whether this is the first task of the job."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def where() -> dict[str, Any]:
    """Job, restart and nodes, for an event."""
    return {
        "job": job_id(),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "nodes": os.environ.get("SLURM_JOB_NODELIST", socket.gethostname()),
    }


def come_back(run: Path, stage: str, stop: StopRequest) -> int:
    """After a stop: have the job requeued if Slurm means it to go on; returns the exit code."""
    if stop.signum == signal.SIGINT:  # Ctrl-C: somebody wants it to end
        if is_first():
            note(run, "stopped", stage, step=last_step(run), reason="SIGINT", **where())
        return EXIT_STOPPED
    if is_first():
        job = slurm_commands.show_job(job_id())
        state, step = job.get("JobState", "unknown"), last_step(run)
        # unknown: better brought back once too often than lost
        if state not in ("RUNNING", "unknown"):
            note(run, "stopped", stage, step=step, reason=f"job is {state}", **where())
            return EXIT_STOPPED
        refusal = slurm_commands.requeue(job_id())
        if refusal:
            note(run, "requeue refused", stage, step=step, reason=refusal, **where())
            print(f"error: Slurm refuses to requeue: {refusal}", file=sys.stderr)
            return EXIT_STOPPED
        note(run, "requeued", stage, step=step, reason=why(job, stop), **where())
    wait_for_the_end(stop)
    return EXIT_STOPPED


def is_leaving(job: dict[str, str], stop: StopRequest) -> bool:
    """Whether the signal came because the job is to leave its nodes.

    srun sends SIGTERM too, to end the other ranks when one has crashed; that is a failure.
    """
    return job.get("JobState") != "RUNNING" or why(job, stop) != "SIGTERM"


def why(job: dict[str, str], stop: StopRequest) -> str:
    """What the signal means to a job that is still RUNNING."""
    if stop.signum == signal.SIGUSR2:
        return "time limit"
    return "preempted" if was_preempted(job) else "SIGTERM"


def was_preempted(job: dict[str, str]) -> bool:
    """Whether Slurm has preempted this start of a job (PreemptTime may be of an earlier one)."""
    preempted_at = job.get("PreemptTime", "None")
    return preempted_at != "None" and preempted_at >= job.get("StartTime", "")


def wait_for_the_end(stop: StopRequest) -> None:
    """Stay until Slurm ends the job: a task that left now could count as the job's success.

    The requeue sends SIGTERM; after the signal that stopped us that is the second.
    """
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and stop.num_signals < 2:
        time.sleep(0.1)


def main(argv: list[str]) -> int:
    """Run a stage by hand: STAGE RUN key=value ..."""
    if len(argv) < 2 or argv[0] not in STAGES:
        raise command_line.UsageError(f"python -m launch.job {{{'|'.join(STAGES)}}} RUN key=value")
    (Path(argv[1]) / "launch").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SUBMITIT_EXECUTOR", "slurm")  # by which submitit knows where it is
    Stage(argv[0], argv[1], argv[2:])()
    return 0


if __name__ == "__main__":
    command_line.run(main)
