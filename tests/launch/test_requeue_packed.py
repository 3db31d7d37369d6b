"""Whether a job comes back that several runs share, and what each of them is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.command_line import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE
from launch.outcome import Verdict, leave_outcome
from launch.record.events import note, read_events
from tests.launch.test_requeue import KILL, PREEMPTED, TERM, Slurm
from train.checkpoints.checkpoint_files import write_complete


class Packed(Slurm):
    """Job 7 of three runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.runs = [folder / name for name in ("run", "fold-1", "it's fold-2")]
        self.others = self.runs[1:]
        for run in self.others:
            run.mkdir()

    def leave_of(self, number: int, verdict: Verdict, signum: int = 0, reason: str = "") -> None:
        """Leave an outcome of a run."""
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
            for name, value in self.variables.items():
                patch.setenv(name, value)
            leave_outcome(self.runs[number], verdict, signum, reason)

    def finish(self, number: int) -> None:
        """Let a run end with success, once: it does not start again."""
        if [event["event"] for event in read_events(self.runs[number])[-1:]] != ["finished"]:
            (self.runs[number] / "launch").mkdir(exist_ok=True)
            note(self.runs[number], "finished", "train", job="7", restart=0)

    def finish_before(self, number: int) -> None:
        """Let another job have finished a shorter training of a run."""
        (self.runs[number] / "launch").mkdir()
        note(self.runs[number], "finished", "train", job="6", restart=0)
        (self.runs[number] / "progress.json").write_text(json.dumps({"is_finished": True}))

    def save_of(self, number: int, step: int) -> None:
        """Let this job save a checkpoint of a run."""
        folder = self.runs[number] / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        write_complete(folder, {"step": step, "job": "7", "files": {}})
        (folder.parent / "latest").write_text(f"{folder.name}\n")

    def told(self) -> list[dict[str, Any]]:
        """Return the last event of each run."""
        return [read_events(run)[-1] for run in self.runs]


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    return Packed(tmp_path)


def kinds(packed: Packed) -> list[str]:
    return [event["event"] for event in packed.told()]


def test_a_preempted_job_comes_back_once_and_each_run_knows_its_own_step(packed: Packed) -> None:
    for number, step in enumerate((4, 6, 8)):
        packed.save_of(number, step)
        packed.leave_of(number, Verdict.STOPPED, TERM)
    packed.job = PREEMPTED
    assert packed.end(EXIT_STOPPED).num_requeues == 1
    assert kinds(packed) == ["requeued"] * 3
    assert [(event["step"], event["saved"]) for event in packed.told()] == [(4, 4), (6, 6), (8, 8)]
    assert not [path for run in packed.runs for path in run.glob("launch/outcomes/7.[0-9]*")]


def test_the_failure_of_one_counts_when_the_others_have_ended(packed: Packed) -> None:
    for retry in range(3):
        packed.variables["SLURM_RESTART_COUNT"] = str(retry)
        packed.leave_of(1, Verdict.FAILED, reason='no "loss"')
        packed.finish(0)
        packed.finish(2)
        ended = packed.end(EXIT_FAILED, retries=2)
        last = "gave up" if retry == 2 else "failed"
        assert kinds(packed) == ["finished", last, "finished"]
        assert packed.told()[1]["reason"] == 'rank 0: no "loss"'
        assert ended.num_requeues == (retry < 2)
        assert "fold-1: rank 0: no" in ended.said
    assert [event["event"] for event in read_events(packed.run)] == ["finished"], "told once"


def test_a_checkpoint_of_any_run_is_progress(packed: Packed) -> None:
    """Else the job would be given up for the run that fails, however far the others come."""
    packed.finish(0)

    def both_fail() -> int:
        for number in (1, 2):
            packed.leave_of(number, Verdict.FAILED, reason="a lost link")
        return packed.end(EXIT_FAILED, retries=1).num_requeues

    for retry in range(4):
        packed.variables["SLURM_RESTART_COUNT"] = str(retry)
        packed.save_of(2, retry + 1)
        assert both_fail() == 1
    packed.variables["SLURM_RESTART_COUNT"] = "4"
    assert both_fail() == 0


def test_what_no_retry_mends_is_tried_again_only_beside_what_one_may_mend(packed: Packed) -> None:
    packed.finish(2)
    packed.leave_of(0, Verdict.REFUSED, reason="other settings")
    packed.leave_of(1, Verdict.FAILED, reason="a lost link")
    assert packed.end(EXIT_USAGE).num_requeues == 1
    assert [event.get("reason") for event in packed.told()[:2]] == [
        "rank 0: other settings",
        "rank 0: a lost link",
    ]
    packed.variables["SLURM_RESTART_COUNT"] = "1"
    packed.finish(1)
    packed.leave_of(0, Verdict.REFUSED, reason="other settings")
    assert packed.end(EXIT_USAGE).num_requeues == 0
    assert kinds(packed) == ["gave up", "finished", "finished"]


def test_beside_a_preemption_a_failure_is_told_as_one(packed: Packed) -> None:
    packed.job = PREEMPTED
    packed.leave_of(0, Verdict.STOPPED, TERM)
    packed.leave_of(1, Verdict.FAILED, reason="no loss")
    packed.finish(2)
    assert packed.end(EXIT_STOPPED).num_requeues == 1
    assert kinds(packed) == ["requeued", "failed", "finished"]


def test_success_is_that_of_all(packed: Packed) -> None:
    assert packed.end(0).num_requeues == 0
    assert kinds(packed) == ["finished"] * 3


def test_what_an_earlier_job_finished_is_not_what_this_one_did(packed: Packed) -> None:
    """More epochs were asked for, and the run was killed before it could save or leave a word."""
    packed.finish_before(1)
    packed.finish(0)
    packed.leave_of(2, Verdict.STOPPED, TERM)
    packed.job = PREEMPTED
    assert packed.end(128 + KILL).num_requeues == 1
    assert kinds(packed) == ["finished", "requeued", "requeued"]
