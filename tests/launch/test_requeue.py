"""The one decision whether a job comes back, and those who carry it out: promise 5.

What Slurm answers comes from executables on PATH that answer as the real ones were seen to; the
real ones are asked in test_cluster.py.
"""

import json
import shutil
import signal
from pathlib import Path

import pytest

from common.command_line import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE
from common.stop_request import StopRequest
from launch import on_exit
from launch.cluster import slurm_commands
from launch.job import Stage
from launch.record.events import note, own_step, read_events
from launch.requeue import Action, decide
from tests.launch.fakes import answer

# What `scontrol show job` was seen to say of a job, one that started at ten
RUNNING = {"JobState": "RUNNING", "PreemptTime": "None", "StartTime": "2026-01-02T10:00:00"}
PREEMPTED = RUNNING | {"PreemptTime": "2026-01-02T10:05:00"}
PREEMPTED_BEFORE = RUNNING | {"PreemptTime": "2026-01-02T09:00:00"}  # and it started again
LEAVING = RUNNING | {"JobState": "COMPLETING"}  # scancel, a lost node, the end of the grace
NO_ANSWER: dict[str, str] = {}
TERM, USR2, INT, HUP = signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP


class TestDecide:
    """Every case, worked out by hand from what a real Slurm did."""

    @pytest.mark.parametrize(
        ("job", "signum", "action", "reason"),
        [
            (PREEMPTED, TERM, Action.REQUEUE, "preempted"),
            (RUNNING, USR2, Action.REQUEUE, "time limit"),
            (PREEMPTED, USR2, Action.REQUEUE, "time limit"),  # either way it comes back
            (LEAVING, TERM, Action.END, "job is COMPLETING"),  # scancel, or a lost node
            (LEAVING, USR2, Action.END, "job is COMPLETING"),  # cancelled close to its limit
            (RUNNING | {"JobState": "PENDING"}, TERM, Action.END, "job is PENDING"),
            (RUNNING, TERM, Action.REQUEUE, "SIGTERM"),  # a kill by hand
            (PREEMPTED_BEFORE, TERM, Action.REQUEUE, "SIGTERM"),
            (RUNNING, HUP, Action.REQUEUE, "SIGHUP"),
            (NO_ANSWER, TERM, Action.REQUEUE, "SIGTERM"),  # better once too often than lost
            (NO_ANSWER, USR2, Action.REQUEUE, "time limit"),
            (RUNNING, INT, Action.END, "SIGINT"),
            (NO_ANSWER, INT, Action.END, "SIGINT"),
            (RUNNING, 0, Action.REQUEUE, "stopped"),  # the script, after a refusal in the task
        ],
    )
    def test_a_stage_that_a_signal_stopped(
        self, job: dict[str, str], signum: int, action: Action, reason: str
    ) -> None:
        """It has saved, so this is no failure, however many there were."""
        decision = decide(job, EXIT_STOPPED, signum=signum, failures=9, retries=0)
        assert (decision.action, decision.reason) == (action, reason)

    @pytest.mark.parametrize(
        ("job", "signum", "is_stop"),
        [
            (PREEMPTED, TERM, True),
            (RUNNING, USR2, True),
            (LEAVING, TERM, True),
            (NO_ANSWER, TERM, True),
            (RUNNING, TERM, False),  # srun ends the ranks that are left
            (PREEMPTED_BEFORE, TERM, False),
        ],
    )
    def test_a_rank_that_fails_after_a_signal(
        self, job: dict[str, str], signum: int, is_stop: bool
    ) -> None:
        """As a rank whose neighbours have gone: a failure only where the job stays."""
        assert decide(job, EXIT_FAILED, signum=signum).is_stop is is_stop

    @pytest.mark.parametrize(
        ("job", "code", "failures", "action"),
        [
            (RUNNING, 0, 0, Action.FINISH),
            (LEAVING, 0, 0, Action.FINISH),
            (RUNNING, EXIT_FAILED, 0, Action.RETRY),
            (RUNNING, EXIT_FAILED, 1, Action.RETRY),
            (RUNNING, EXIT_FAILED, 2, Action.GIVE_UP),
            (NO_ANSWER, EXIT_FAILED, 0, Action.RETRY),
            (RUNNING, EXIT_USAGE, 0, Action.GIVE_UP),  # time does not mend a wrong command line
            (RUNNING, 128 + TERM, 0, Action.RETRY),
            (PREEMPTED, 128 + TERM, 9, Action.REQUEUE),  # before Python could catch it
            (PREEMPTED, EXIT_FAILED, 9, Action.REQUEUE),
            (PREEMPTED_BEFORE, 128 + TERM, 2, Action.GIVE_UP),
            (RUNNING, 128 + USR2, 9, Action.REQUEUE),
            (RUNNING, 255, 0, Action.RETRY),  # a container runtime's, or sys.exit(-1)
            (LEAVING, EXIT_FAILED, 0, Action.END),
            (LEAVING, 128 + USR2, 0, Action.END),
            (LEAVING, EXIT_STOPPED, 0, Action.END),  # requeued by its task
        ],
    )
    def test_a_script_whose_srun_has_ended(
        self, job: dict[str, str], code: int, failures: int, action: Action
    ) -> None:
        assert decide(job, code, failures=failures, retries=2).action is action

    @pytest.mark.parametrize("code", [EXIT_STOPPED, EXIT_FAILED, 128 + TERM])
    def test_what_a_task_has_seen_end_is_not_requeued_by_the_script(self, code: int) -> None:
        assert decide(RUNNING, code, has_ended=True, retries=2).action is Action.END


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a folder for its events."""
    (tmp_path / "launch").mkdir()
    return tmp_path


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, where scontrol says that job 7 is running: that is ours."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(slurm_commands, "WAIT_S", 0.0)
    answer(folder, "scontrol", "JobId=7 JobState=RUNNING")
    return folder


def num_requeues(slurm: Path) -> int:
    """How often Slurm was asked to requeue job 7."""
    called = slurm / "called"
    return called.read_text().splitlines().count("requeue 7") if called.exists() else 0


def refuse(slurm: Path) -> None:
    """Let scontrol refuse to requeue."""
    lines = 'if [ "$1" = requeue ]; then echo "Requested operation disabled" >&2; exit 1; fi\n'
    script = slurm / "scontrol"
    script.write_text(script.read_text().replace("printf", lines + "printf"))


def save(run: Path, step: int, job: str) -> None:
    """As much of a checkpoint as launch/ reads."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "COMPLETE").write_text(json.dumps({"job": job}))
    (folder.parent / "latest").write_text(f"{folder.name}\n")


class TestOnExit:
    """The last line of a job's script."""

    def end(self, run: Path, code: int, retries: int = 2) -> str:
        """The event that is noted last, '' for none."""
        assert on_exit.main([str(run), "train", str(code), str(retries)]) == code
        events = read_events(run)
        return str(events[-1]["event"]) if events else ""

    def test_success_is_noted(self, run: Path, slurm: Path) -> None:
        assert self.end(run, 0) == "finished"
        assert not (slurm / "called").exists()

    def test_a_failure_is_retried_until_there_was_no_progress(self, run: Path, slurm: Path) -> None:
        seen = []
        for step in (4, 4, 9, 9, 9):  # a newer checkpoint before the third starts the count anew
            save(run, step, job="7")
            seen.append(self.end(run, 137))
        assert seen == ["failed", "failed", "failed", "failed", "gave up"]
        assert read_events(run)[-1]["reason"] == "killed by SIGKILL"
        assert num_requeues(slurm) == 4

    def test_what_another_job_saves_is_no_progress_of_this_one(
        self, run: Path, slurm: Path
    ) -> None:
        """Also where the other's checkpoints push out those of this job."""
        save(run, 4, job="7")
        seen = []
        for step in (6, 8, 10):
            save(run, step, job="5")
            seen.append(self.end(run, 1))
            shutil.rmtree(run / "checkpoints" / "step_00000004", ignore_errors=True)
        assert seen == ["failed", "failed", "gave up"]
        assert read_events(run)[-1]["step"] == 10

    def test_a_damaged_checkpoint_is_nobodys(self, run: Path) -> None:
        for step, text in ((7, '{"job": '), (8, "[]"), (9, "{}")):
            save(run, step, job="7")
            (run / "checkpoints" / f"step_{step:08d}" / "COMPLETE").write_text(text)
        save(run, 3, job="7")
        assert own_step(run, "7") == 3
        assert own_step(run, "8") == 0

    @pytest.mark.parametrize("code", [255, 161])
    def test_a_code_that_is_no_signal_is_told_as_it_is(
        self, code: int, run: Path, slurm: Path
    ) -> None:
        assert self.end(run, code) == "failed"
        assert read_events(run)[-1]["reason"] == f"exit code {code}"

    def test_a_job_that_is_leaving_is_left_alone(self, run: Path, slurm: Path) -> None:
        answer(slurm, "scontrol", "JobId=7 JobState=COMPLETING")
        assert self.end(run, 75) == ""
        assert num_requeues(slurm) == 0

    def test_a_refused_requeue_is_tried_again_and_then_reported(
        self, run: Path, slurm: Path
    ) -> None:
        refuse(slurm)
        assert self.end(run, 1) == "requeue refused"
        assert num_requeues(slurm) == 5
        assert "disabled" in read_events(run)[-1]["reason"]

    def test_a_preemption_before_python_could_catch_it_is_no_failure(
        self, run: Path, slurm: Path
    ) -> None:
        times = "StartTime=2026-01-02T10 PreemptTime=2026-01-02T11"
        answer(slurm, "scontrol", f"JobId=7 JobState=RUNNING {times}")
        assert [self.end(run, 143, retries=0) for _ in range(3)] == ["requeued"] * 3
        assert num_requeues(slurm) == 3

    def test_the_error_of_a_rank_is_the_reason(self, run: Path, slurm: Path) -> None:
        note(run, "started", "train", job="7")
        note(run, "error", "train", job="7", rank=3, reason="no space left")
        self.end(run, 1)
        assert read_events(run)[-1]["reason"] == "rank 3: no space left"


class TestInATask:
    """The first task of a job, after a signal."""

    @staticmethod
    def stop(run: Path, *signums: int) -> list[tuple[str, str]]:
        """Stop training; returns the events that are noted, with their reasons."""
        stop = StopRequest()
        for signum in signums:
            stop.note(signum, None)
        Stage("train", str(run), []).stop(stop)
        return [(event["event"], event["reason"]) for event in read_events(run)]

    def test_it_has_the_job_requeued_and_waits_for_the_second_signal(
        self, run: Path, slurm: Path
    ) -> None:
        assert self.stop(run, TERM, TERM) == [("requeued", "SIGTERM")]
        assert num_requeues(slurm) == 1

    def test_a_cancelled_job_is_not_requeued(self, run: Path, slurm: Path) -> None:
        answer(slurm, "scontrol", "JobId=7 JobState=COMPLETING")
        assert self.stop(run, TERM) == [("stopped", "job is COMPLETING")]
        assert num_requeues(slurm) == 0

    def test_ctrl_c_stays_stopped_in_the_script_too(self, run: Path, slurm: Path) -> None:
        note(run, "started", "train", job="7", reason="")
        assert self.stop(run, INT)[1:] == [("stopped", "SIGINT")]
        assert TestOnExit().end(run, EXIT_STOPPED) == "stopped"
        assert num_requeues(slurm) == 0

    def test_a_refusal_is_noted_and_nobody_waits(self, run: Path, slurm: Path) -> None:
        refuse(slurm)
        assert self.stop(run, USR2) == [("requeue refused", "Requested operation disabled")]

    def test_the_other_tasks_ask_for_nothing(
        self, run: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_PROCID", "3")
        assert self.stop(run, TERM, TERM) == []
        assert not (slurm / "called").exists()

    @pytest.mark.parametrize(
        ("state", "signum", "code", "event"),
        [
            ("RUNNING", 0, EXIT_FAILED, "error"),
            ("RUNNING", TERM, EXIT_FAILED, "error"),  # srun ends the ranks that are left
            ("COMPLETING", TERM, EXIT_STOPPED, "stopped"),
        ],
    )
    def test_an_error_counts_only_where_the_job_does_not_leave(
        self,
        state: str,
        signum: int,
        code: int,
        event: str,
        run: Path,
        slurm: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(name: str, arguments: list[str], stop: StopRequest) -> int:
            if signum:
                stop.note(signum, None)
            raise RuntimeError("a rank is gone")

        answer(slurm, "scontrol", f"JobId=7 JobState={state}")
        monkeypatch.setattr("launch.job.run_stage", fail)
        with pytest.raises(SystemExit) as ended:
            Stage("train", str(run), [])()
        assert ended.value.code == code
        assert [noted["event"] for noted in read_events(run)] == ["started", event]
