"""jobs.py, doctor.py and the decisions after a failure, without a cluster.

What Slurm answers comes from executables on PATH that answer as the real ones were seen to; the
real ones are asked in test_cluster.py.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common import lease
from common.command_line import EXIT_STOPPED, EXIT_USAGE, UsageError, UserError
from common.stop_request import StopRequest
from data_prep.claim import WHOLE, lease_of
from launch import ended, jobs, slurm_commands
from launch import job as in_job
from launch.doctor import main as doctor
from launch.events import note, own_step, read_events, write_submission
from launch.job import come_back, is_leaving, why
from launch.run_jobs import queued_jobs, submitting
from tests.launch.fakes import answer, write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose training was submitted as job 7."""
    (tmp_path / "launch").mkdir()
    write_submission(tmp_path, {"time_s": 0, "revision": "abc", "jobs": {"train": "7"}})
    return tmp_path


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH: a test puts in what Slurm's commands answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return folder


def save(run: Path, step: int, job: str) -> None:
    """As much of a checkpoint as launch/ reads."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "COMPLETE").write_text(json.dumps({"job": job}))
    (folder.parent / "latest").write_text(f"{folder.name}\n")


def stopped_by(signum: int) -> StopRequest:
    stop = StopRequest()
    stop.note(signum, None)
    return stop


def test_a_preparation_waits_for_another_run_that_prepares_the_same_data(
    raw_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two runs were submitted, and their jobs prepare data/prepared at the same time."""
    raw, out = raw_folder({"1": 1}), tmp_path / "prepared"
    given = [f"raw={raw}", f"out={out}", "copies=1", "workers=1", "split.val=0", "split.test=0"]
    assert in_job.prepare_in_turn(given) == 0
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(in_job, "TURN_S", 0.1)
    with ThreadPoolExecutor(1) as pool, lease_of(out, WHOLE) as other:
        prepared = pool.submit(in_job.prepare_in_turn, given)
        time.sleep(2)
        other.release()
        assert prepared.result(timeout=60) == 0
    told = capsys.readouterr()
    assert told.err.count("is preparing it; ") == 1
    assert "this job waits for it" in told.err
    assert "kept as they were: 1 field" in told.out


RUNNING = {"JobState": "RUNNING", "PreemptTime": "None", "StartTime": "2026-01-02T10:00:00"}


class TestWhy:
    """What a signal means, from what Slurm says of the job."""

    @pytest.mark.parametrize(
        ("job", "signum", "reason", "leaves"),
        [
            ({}, signal.SIGUSR2, "time limit", True),
            ({"PreemptTime": "2026-01-02T10:05:00"}, signal.SIGTERM, "preempted", True),
            ({"PreemptTime": "2026-01-02T09:00:00"}, signal.SIGTERM, "SIGTERM", False),
            ({}, signal.SIGTERM, "SIGTERM", False),
            ({"JobState": "COMPLETING"}, signal.SIGTERM, "SIGTERM", True),
        ],
    )
    def test_reason(self, job: dict[str, str], signum: int, reason: str, leaves: bool) -> None:
        stop = stopped_by(signum)
        assert why(RUNNING | job, stop) == reason
        assert is_leaving(RUNNING | job, stop) is leaves


class TestEnded:
    """The last line of a job's script."""

    def end(self, run: Path, code: int, retries: int = 2) -> int:
        return ended.main([str(run), "train", str(code), str(retries)])

    def last(self, run: Path) -> str:
        return str(read_events(run)[-1]["event"])

    def test_success_is_noted(self, run: Path, slurm: Path) -> None:
        assert self.end(run, 0) == 0
        assert self.last(run) == "finished"

    def test_a_failure_is_brought_back_until_there_was_no_progress(
        self, run: Path, slurm: Path
    ) -> None:
        answer(slurm, "scontrol", "JobId=7 JobState=RUNNING")
        seen = []
        for step in (4, 4, 9, 9, 9):  # a newer checkpoint before the third starts the count anew
            save(run, step, job="7")
            assert self.end(run, 137) == 137
            seen.append(self.last(run))
        assert seen == ["failed", "failed", "failed", "failed", "gave up"]
        assert read_events(run)[-1]["reason"] == "killed by SIGKILL"
        assert (slurm / "called").read_text().splitlines().count("requeue 7") == 4

    def test_what_another_job_saves_is_no_progress_of_this_one(
        self, run: Path, slurm: Path
    ) -> None:
        """Also where the other's checkpoints push out those of this job."""
        answer(slurm, "scontrol", "JobId=7 JobState=RUNNING")
        save(run, 4, job="7")
        seen = []
        for step in (6, 8, 10):
            save(run, step, job="5")
            self.end(run, 1)
            shutil.rmtree(run / "checkpoints" / "step_00000004", ignore_errors=True)
            seen.append(self.last(run))
        assert seen == ["failed", "failed", "gave up"]
        assert read_events(run)[-1]["step"] == 10

    def test_a_damaged_checkpoint_is_nobodys(self, run: Path) -> None:
        for step, text in ((7, '{"job": '), (8, "[]"), (9, "{}")):
            save(run, step, job="7")
            (run / "checkpoints" / f"step_{step:08d}" / "COMPLETE").write_text(text)
        save(run, 3, job="7")
        assert own_step(run, "7") == 3
        assert own_step(run, "8") == 0

    def test_a_wrong_command_line_is_not_tried_again(self, run: Path, slurm: Path) -> None:
        answer(slurm, "scontrol", "JobId=7 JobState=RUNNING")
        self.end(run, EXIT_USAGE)
        assert self.last(run) == "gave up"

    @pytest.mark.parametrize("code", [255, 161, 127])
    def test_a_code_that_is_no_signal_is_brought_back_too(
        self, code: int, run: Path, slurm: Path
    ) -> None:
        """A container runtime's, or sys.exit(-1)."""
        answer(slurm, "scontrol", "JobId=7 JobState=RUNNING")
        assert self.end(run, code) == code
        assert self.last(run) == "failed"
        assert read_events(run)[-1]["reason"] == f"exit code {code}"

    def test_a_job_that_is_leaving_is_left_alone(self, run: Path, slurm: Path) -> None:
        answer(slurm, "scontrol", "JobId=7 JobState=COMPLETING")
        assert self.end(run, 75) == 75
        assert read_events(run) == []
        assert "requeue" not in (slurm / "called").read_text()

    def test_a_refused_requeue_is_tried_again_and_then_reported(
        self, run: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(slurm_commands, "WAIT_S", 0.0)
        answer(slurm, "scontrol", "JobId=7 JobState=RUNNING")
        script = (slurm / "scontrol").read_text()
        refuse = 'if [ "$1" = requeue ]; then echo "Requested operation disabled" >&2; exit 1; fi\n'
        (slurm / "scontrol").write_text(script.replace("printf", refuse + "printf"))
        self.end(run, 1)
        assert (slurm / "called").read_text().splitlines().count("requeue 7") == 5
        assert self.last(run) == "requeue refused"
        assert "disabled" in read_events(run)[-1]["reason"]

    def test_a_preemption_before_python_could_hear_it_is_not_counted(
        self, run: Path, slurm: Path
    ) -> None:
        preempted = "JobId=7 JobState=RUNNING StartTime=2026-01-02T10 PreemptTime=2026-01-02T11"
        answer(slurm, "scontrol", preempted)
        for _ in range(5):
            self.end(run, 143, retries=1)
        assert {event["event"] for event in read_events(run)} == {"requeued"}

    def test_ctrl_c_stays_stopped(self, run: Path, slurm: Path) -> None:
        answer(slurm, "scontrol", "JobId=7 JobState=RUNNING")
        note(run, "started", "train", job="7")
        assert come_back(run, "train", stopped_by(signal.SIGINT)) == EXIT_STOPPED
        assert self.end(run, EXIT_STOPPED) == EXIT_STOPPED
        assert self.last(run) == "stopped"
        assert not (slurm / "called").exists() or "requeue" not in (slurm / "called").read_text()

    def test_the_error_of_a_rank_is_the_reason(self, run: Path, slurm: Path) -> None:
        answer(slurm, "scontrol", "JobId=7 JobState=RUNNING")
        note(run, "started", "train", job="7")
        note(run, "error", "train", job="7", rank=3, reason="no space left")
        self.end(run, 1)
        assert read_events(run)[-1]["reason"] == "rank 3: no space left"


class TestJobs:
    """status, logs, list."""

    def test_status_without_any_slurm_comes_from_what_the_run_noted(
        self, run: Path, slurm: Path
    ) -> None:
        note(run, "started", "train", job="7", restart=1, nodes="n1")
        note(run, "requeued", "train", job="7", step=5, reason="preempted", restart=0, nodes="n1")
        note(run, "finished", "train", job="7", restart=1, nodes="n1")
        now = {"step": 9, "total_steps": 10, "epoch": 3, "time_s": time.time() - 200}
        (run / "progress.json").write_text(json.dumps(now))
        metrics = [{"step": 4, "val/dice": 0.5}, {"step": 8, "val/dice": 0.25}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        lines = jobs.status(run)
        text = "\n".join(lines)
        assert lines[2].split() == ["train", "7", "COMPLETED", "n1", "1"]
        assert "step 9 of 10, epoch 3, saved at step 0; last sign of life 3 min ago" in text
        assert "validation Dice 0.5000 at step 4" in text
        assert "train requeued at step 5: preempted" in text

    def test_accounts_are_believed_where_the_queue_has_forgotten(
        self, run: Path, slurm: Path
    ) -> None:
        answer(slurm, "scontrol", "slurm_load_jobs error: Invalid job id specified", 1)
        answer(slurm, "sacct", "7|CANCELLED by 0")
        note(run, "started", "train", job="7", restart=0, nodes="n1")
        lines = jobs.status(run)
        assert lines[2].split()[2] == "CANCELLED"

    def test_logs_finds_the_rank_and_names_those_there_are(
        self, run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = run / "launch" / "jobs" / "7"
        folder.mkdir(parents=True)
        (folder / "7_1_log.out").write_text("of rank one\n")
        assert jobs.main(["logs", str(run), "--rank", "1"]) == 0
        assert capfd.readouterr().out == "of rank one\n"
        with pytest.raises(UsageError, match="no log of rank 4; there are ranks: 1"):
            jobs.main(["logs", str(run), "--rank", "4"])

    def test_a_submission_that_was_cut_off_is_known_by_its_jobs(
        self, tmp_path: Path, slurm: Path
    ) -> None:
        """Killed between queueing and submission.json: submit refuses the run for these jobs."""
        (tmp_path / "launch").mkdir()
        note(tmp_path, "queued", "chain", jobs={"train": "7"})
        answer(slurm, "scontrol", "JobId=7 JobState=PENDING Command=(null)")
        lines = jobs.status(tmp_path)
        assert "or its submission was cut off" in lines[0]
        assert lines[2].split()[:3] == ["train", "7", "PENDING"]
        assert jobs.main(["status", str(tmp_path)]) == 0

    def test_a_run_is_known_by_its_path_and_by_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        run = Path("runs/first")
        (run / "launch").mkdir(parents=True)
        for given in ("runs/first", "run=runs/first", "first"):
            assert jobs.find_run(given) == run
        with pytest.raises(UsageError, match=r"no run in runs/ that launch/submit\.py started"):
            jobs.main(["status"])

    def test_a_folder_that_was_not_submitted_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no job of launch/submit\.py"):
            jobs.main(["status", str(tmp_path)])


class TestEverySubmission:
    """Jobs of earlier submissions, and jobs by hand."""

    @pytest.fixture
    def run(self, run: Path) -> Path:
        """Job 3 and 4 were submitted first, 7 last, 9 by hand, 5 and 6 in between were cut off."""
        write_submission(run, {"time_s": 0, "revision": "", "jobs": {"train": "3", "join": "4"}})
        write_submission(run, {"time_s": 0, "revision": "", "jobs": {"train": "7"}})
        note(run, "queued", "chain", jobs={"prepare": "5"})
        note(run, "started", "train", job="9", nodes="n1")
        note(run, "started", "prepare", job="5_1", nodes="n1")
        note(run, "started", "train", job="local")
        return run

    @staticmethod
    def queue(slurm: Path, states: dict[str, str]) -> None:
        """Let scontrol know these jobs, and no other."""
        cases = "".join(f'{job}) echo "JobId={job} {text}";;\n' for job, text in states.items())
        unknown = "*) echo slurm_load_jobs error: Invalid job id specified >&2; exit 1;;"
        write(slurm, "scontrol", f'case "$4" in\n{cases}{unknown}\nesac\n')
        answer(slurm, "sbatch", "")

    def rows(self, run: Path) -> list[list[str]]:
        lines = jobs.status(run)
        return [line.split()[:3] for line in lines[2:] if not line.startswith("training")]

    def test_nothing_of_a_submission_is_lost(self, run: Path) -> None:
        about = json.loads((run / "launch" / "submission.json").read_text())
        submitted = [about["jobs"], *(earlier["jobs"] for earlier in about["earlier"])]
        assert submitted == [{"train": "7"}, {"train": "3", "join": "4"}, {"train": "7"}]

    def test_status_lists_the_newest_jobs_and_all_that_are_in_the_queue(
        self, run: Path, slurm: Path
    ) -> None:
        states = {"3": "JobState=PENDING", "4": "JobState=FAILED", "9": "JobState=SUSPENDED"}
        self.queue(slurm, states | {"5": "JobState=COMPLETING"})
        assert self.rows(run) == [
            ["train", "3", "PENDING"],
            ["prepare", "5", "COMPLETING"],
            ["train", "7", "UNKNOWN"],
            ["train", "9", "SUSPENDED"],
        ]

    def test_cancel_ends_all_that_are_in_the_queue_the_last_first(
        self, run: Path, slurm: Path
    ) -> None:
        self.queue(slurm, dict.fromkeys(("3", "9"), "JobState=RUNNING") | {"4": "JobState=TIMEOUT"})
        write(slurm, "scancel", f'echo "$1" >> {slurm}/cancelled\n')
        assert jobs.main(["cancel", str(run)]) == 0
        assert (slurm / "cancelled").read_text().split() == ["9", "3"]

    def test_cancel_that_gets_no_answer_fails(self, run: Path, slurm: Path) -> None:
        answer(slurm, "scontrol", "Unable to contact slurm controller", 1)
        with pytest.raises(UserError, match="Slurm does not say how job 3 stands"):
            jobs.main(["cancel", str(run)])

    def test_a_number_that_now_is_anothers_is_left_alone(self, run: Path, slurm: Path) -> None:
        ours = f"JobState=RUNNING Command={run}/launch/jobs/.sub mission.sh WorkDir=/"
        anothers = "JobState=RUNNING Command=/b/other/launch/jobs/.submission.sh WorkDir=/"
        self.queue(
            slurm,
            {
                "3": ours,
                "4": "JobState=RUNNING Command=/home/b/job.sh WorkDir=/home/b",
                "5": anothers,
                "7": ours,
                "9": "JobState=RUNNING Command=/code/slurm/train.sbatch WorkDir=/code",
            },
        )
        assert [job.job for job in queued_jobs(run)] == ["3", "7", "9"]

    @pytest.mark.parametrize(
        "state", ["PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUE_HOLD", "CONFIGURING"]
    )
    def test_a_second_submission_is_refused_while_a_job_is_in_the_queue(
        self, state: str, run: Path, slurm: Path
    ) -> None:
        self.queue(slurm, {"3": f"JobState={state}", "4": "JobState=COMPLETED"})
        with pytest.raises(UsageError) as error, submitting(run):
            pass
        assert f"still in the queue: train 3 ({state}); nothing was queued" in str(error.value)
        for command in ("status", "cancel"):
            assert f"`python launch/jobs.py {command} {run}`" in str(error.value)

    def test_ended_jobs_do_not_hinder_and_no_answer_does(self, run: Path, slurm: Path) -> None:
        ended = ["COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL"]
        numbers = ("3", "4", "5", "7", "9")
        self.queue(slurm, {n: f"JobState={s}" for n, s in zip(numbers, ended, strict=True)})
        with submitting(run):
            pass
        answer(slurm, "scontrol", "Unable to contact slurm controller", 1)
        with pytest.raises(UserError, match="does not say how job 3 stands"), submitting(run):
            pass

    def test_two_at_the_same_instant_do_not_both_pass(self, run: Path, slurm: Path) -> None:
        self.queue(slurm, {})
        with submitting(run):  # noqa: SIM117
            with pytest.raises(UserError, match="is submitting it; wait"), submitting(run):
                pass

    def test_logs_finds_those_of_an_earlier_submission(
        self, run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for job in ("3", "4"):
            folder = run / "launch" / "jobs" / job
            folder.mkdir(parents=True)
            (folder / f"{job}_0_log.out").write_text(f"of job {job}\n")
        assert jobs.main(["logs", str(run), "--stage", "train"]) == 0
        assert jobs.main(["logs", str(run)]) == 0
        assert capfd.readouterr().out == "of job 3\nof job 4\n"


class TestDoctor:
    """Fine, doubtful or fatal."""

    CONFIG = "JobRequeue              = 1\nPreemptMode = REQUEUE\nSLURM_VERSION = 23.02\n"

    def test_a_plain_box_has_its_facts_and_is_told_the_ways_out(
        self, slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert doctor(["--shared", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        assert "cores" in text
        assert "use torchrun, or submit.py --cluster local" in text

    def test_a_folder_that_is_not_there_is_fatal(
        self, slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert doctor(["--shared", str(tmp_path / "none")]) == 1
        assert "FATAL" in capsys.readouterr().out
