"""What runs in each task of a job: one stage, and what to do when Slurm stops it.

    srun python -m launch.job STAGE RUN key=value ...     as slurm/train.sbatch does by hand

Slurm stops a job with SIGTERM (preemption, scancel, a lost node) or, some time before the time
limit, with SIGUSR2. Training then saves and returns, and rank 0 has the job requeued where
launch/requeue.py decides so. Preparation and evaluation have nothing to save: they are interrupted
where they are, and keep the fields that are done.

submitit only writes the sbatch script and carries the stage to the node. Its own `checkpoint()` is
not used: it runs on rank 0 alone, inside the signal handler, so a save that all ranks take part in
would hang there; and it ignores SIGTERM, which may be the only signal of a preemption.
"""

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from common import command_line
from common.command_line import EXIT_FAILED, EXIT_STOPPED, UserError
from common.lease import TakenError
from common.stop_request import SIGNALS, StopRequest
from launch.cluster import slurm_commands
from launch.record.events import STAGES, last_step, note_in_job
from launch.requeue import Action, decide, request_requeue
from train.ranks.slurm_job import job_id

WAIT_S = 120.0  # how long Slurm may take to end this process after a requeue
TURN_S = 10.0  # between two looks whether another preparation of the same data set has ended


class StageStopped(Exception):  # noqa: N818  (not an error)
    """A signal interrupts a stage that has nothing to save."""


@dataclass(frozen=True)
class Stage:
    """A stage with its arguments. submitit pickles it and calls it in every task."""

    name: str
    run: str
    arguments: list[str]

    def __call__(self) -> None:
        """Run the stage. Ends the process with the stage's exit code where that is not 0."""
        with StopRequest() as stop:  # first of all: from here on no signal is lost
            code, error = self.attempt(stop)
            if error and stop.signum and self.is_leaving(code, stop):
                # a rank that is gone, or a worker that the signal reached: no failure
                code, error = EXIT_STOPPED, ""
            if error:
                self.note_error(error)
            elif code == EXIT_STOPPED:
                self.stop(stop)
        if code:
            sys.exit(code)

    def attempt(self, stop: StopRequest) -> tuple[int, str]:
        """Run the stage; returns its exit code and its error, '' for none."""
        try:
            if is_first():
                note_in_job(Path(self.run), "started", self.name)
            return run_stage(self.name, self.arguments, stop), ""
        except StageStopped:
            return EXIT_STOPPED, ""
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code, str(error)
        except Exception as error:
            traceback.print_exc()
            return EXIT_FAILED, f"{type(error).__name__}: {error}"

    def is_leaving(self, code: int, stop: StopRequest) -> bool:
        """Return whether the signal came because the job leaves its nodes."""
        return decide(slurm_commands.show_job(job_id()), code, signum=stop.signum).is_stop

    def note_error(self, message: str) -> None:
        """Note the reason of a failure, for launch/on_exit.py and `jobs.py status`."""
        rank = int(os.environ.get("SLURM_PROCID", 0))
        reason = message.strip().splitlines()[-1][:300]
        note_in_job(Path(self.run), "error", self.name, rank=rank, reason=reason)

    def stop(self, stop: StopRequest) -> None:
        """After a signal: have the job requeued if it is to go on, and wait to be ended."""
        if is_first():
            run, is_ctrl_c = Path(self.run), stop.signum == signal.SIGINT
            job = {} if is_ctrl_c else slurm_commands.show_job(job_id())
            decision = decide(job, EXIT_STOPPED, signum=stop.signum)
            facts = {"step": last_step(run), "reason": decision.reason}
            if decision.action is Action.END:
                note_in_job(run, "stopped", self.name, **facts)
                return
            if not request_requeue(run, self.name):
                return
            note_in_job(run, "requeued", self.name, **facts)
        if stop.signum != signal.SIGINT:
            wait_for_the_end(stop)


def run_stage(name: str, arguments: list[str], stop: StopRequest) -> int:
    """Import the stage, late, and return the exit code of its main."""
    if name == "train":
        from submitit.helpers import TorchDistributedEnvironment

        # As torchrun would: rank, world size, rendezvous. Which GPUs are ours Slurm has said.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        from train.__main__ import main as train

        return train(arguments, stop)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # At any instruction, which is safe: both stages can be run again
        stop.note(signum, frame)
        if stop.num_signals == 1:
            raise StageStopped

    for signum in SIGNALS:
        signal.signal(signum, interrupt)
    return prepare_in_turn(arguments) if name == "prepare" else evaluate(arguments)


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


def is_first() -> bool:
    """Return whether this is the first task of the job."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def wait_for_the_end(stop: StopRequest) -> None:
    """Wait until Slurm ends the job: a task that left now could count as the job's success.

    The requeue sends SIGTERM. That is the second signal, after the one that stopped the stage.
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
