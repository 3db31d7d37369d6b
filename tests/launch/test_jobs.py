"""jobs.py, and the jobs of a run, without a cluster.

What Slurm answers comes from executables on PATH that answer as the real ones were seen to; the
real ones are asked in test_cluster.py.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common import lease
from common.command_line import UsageError, UserError
from data_prep.output_lock import WHOLE, lease_of
from launch import job as in_job
from launch import jobs, local
from launch.record import logs
from launch.record.events import note, note_in_job, write_submission
from launch.record.run_jobs import has_task, queued_jobs
from launch.record.submitting import submitting
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
        printed = ""
        while "this job waits for it" not in printed and not prepared.done():
            time.sleep(0.05)
            printed += capsys.readouterr().err
        other.release()
        assert prepared.result(timeout=60) == 0
    last = capsys.readouterr()
    assert (printed + last.err).count("is preparing it; ") == 1
    assert "this job waits for it" in printed
    assert "kept as they were: 1 field" in last.out


class TestJobs:
    """status, logs, list."""

    def test_status_without_any_slurm_comes_from_what_the_run_noted(
        self, run: Path, slurm: Path
    ) -> None:
        note(run, "started", "train", job="7", restart=0, nodes="n1")
        note(run, "requeued", "train", job="7", step=5, reason="preempted", restart=0, nodes="n1")
        note(run, "started", "train", job="7", restart=1, nodes="n1")
        note(run, "finished", "train", job="7", restart=1, nodes="n1")
        now = {"step": 9, "total_steps": 10, "epoch": 3, "is_finished": False}
        now["time_s"] = time.time() - 200
        (run / "progress.json").write_text(json.dumps(now))
        metrics = [{"step": 4, "val/dice": 0.5}, {"step": 8, "val/dice": 0.25}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        lines = jobs.status(run)
        text = "\n".join(lines)
        assert lines[2].split() == ["train", "7", "COMPLETED", "n1", "1"]
        assert "step 9 of 10, epoch 3, saved at step 0; last sign of life 3 min ago" in text
        assert "validation Dice 0.5000 at step 4" in text
        assert re.search(r"^ +1 .* n1 +steps 0 to 5 +requeued: preempted$", text, re.MULTILINE)
        assert re.search(r"^ +2 .* n1 +steps . to 9 +finished$", text, re.MULTILINE)

    @pytest.mark.parametrize(
        ("is_finished", "event"), [(False, "last sign of life"), (True, "finished")]
    )
    def test_a_finished_run_says_so(
        self, run: Path, slurm: Path, is_finished: bool, event: str
    ) -> None:
        now = {"step": 10, "total_steps": 10, "epoch": 3, "time_s": time.time() - 200}
        (run / "progress.json").write_text(json.dumps({**now, "is_finished": is_finished}))
        text = f"step 10 of 10, epoch 3, saved at step 0; {event} 3 min ago"
        assert any(line.endswith(text) for line in jobs.status(run))

    def test_accounts_are_believed_where_the_queue_has_forgotten(
        self, run: Path, slurm: Path
    ) -> None:
        answer(slurm, "scontrol", "No jobs in the system")
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
        with pytest.raises(UsageError, match="no log of rank 4; ranks with a log: 1"):
            jobs.main(["logs", str(run), "--rank", "4"])

    def test_commands_about_a_run_with_a_space_can_be_pasted(self) -> None:
        run = Path("/a b")
        assert logs.whole(run, "train").startswith(
            "`python launch/jobs.py logs '/a b' --stage train`"
        )
        assert local.goes_on(run) == "the same command with 'run=/a b' goes on"

    def test_a_log_cannot_control_the_terminal(
        self, run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = run / "launch" / "jobs" / "7"
        folder.mkdir(parents=True)
        two_pieces = b"x" * (logs.READ_BYTES - 1) + "é\n".encode()
        (folder / "7_0_log.out").write_bytes(two_pieces + b"a\tb\r\x1b[2J\x07\0\xc2\x9b1m\xff\n")
        assert jobs.main(["logs", str(run)]) == 0
        first, *rest = capfd.readouterr().out.splitlines()
        assert (len(first), first[-1]) == (logs.READ_BYTES, "é")
        assert rest == ["a\tb", "\\x1b[2J\\x07\\x00\\x9b1m\ufffd"]

    def test_a_log_is_followed_until_its_reader_goes(self, run: Path) -> None:
        folder = run / "launch" / "jobs" / "7"
        folder.mkdir(parents=True)
        log = folder / "7_0_log.out"
        log.write_text("begun\n")
        command = [sys.executable, "launch/jobs.py", "logs", "-f", str(run)]
        with subprocess.Popen(command, cwd=jobs.ROOT, stdout=subprocess.PIPE, text=True) as shown:
            assert shown.stdout
            try:
                assert shown.stdout.readline() == "begun\n"
                with log.open("a") as more:
                    more.write("\x1b[2J\n")
                assert shown.stdout.readline() == "\\x1b[2J\n"
                shown.send_signal(signal.SIGINT)
                assert shown.wait(timeout=30) == 130
            finally:
                shown.kill()

    @pytest.mark.parametrize("number", ["9" * 5000, "\u0667", "7; rm", "-7", ""])
    def test_what_is_no_number_of_a_job_is_passed_over(
        self, number: str, run: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        answer(slurm, "scontrol", "No jobs in the system")
        note(run, "queued", "chain", jobs={"train": number})
        note(run, "started", "train", job=number)
        assert jobs.main(["status", str(run)]) == 0
        about = json.loads((run / "launch" / "submission.json").read_text())
        about["earlier"] = [about | {"jobs": {"train": number}}]
        (run / "launch" / "submission.json").write_text(json.dumps(about))
        with pytest.raises(UsageError, match="holds no job"):
            jobs.main(["status", str(run)])

    def test_a_submission_that_was_cut_off_is_known_by_its_jobs(
        self, tmp_path: Path, slurm: Path
    ) -> None:
        """Killed between queueing and submission.json: submit refuses the run for these jobs."""
        (tmp_path / "launch").mkdir()
        note(tmp_path, "queued", "chain", jobs={"train": "7"})
        answer(slurm, "scontrol", "JobId=7 JobState=PENDING Reason=Priority")
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
        with pytest.raises(UsageError, match=r"runs/ holds no run that launch/submit\.py started"):
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
        lines = "".join(f'echo "JobId={job} {text}"\n' for job, text in states.items())
        config = '[ "$2" != config ] || { echo "ClusterName             = here"; exit 0; }\n'
        write(slurm, "scontrol", f'{config}[ "$4" = --all ] || exit 1\n{lines}')
        answer(slurm, "sbatch", "")

    def rows(self, run: Path) -> list[list[str]]:
        lines = jobs.status(run)
        return [line.split()[:3] for line in lines[2 : lines.index("training  has not begun")]]

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
        with pytest.raises(UserError, match="Slurm does not tell the states of its jobs"):
            jobs.main(["cancel", str(run)])

    @pytest.mark.parametrize(
        ("job", "says", "is_ours"),
        [
            ("3", "Command={run}/launch/jobs/.sub mission.sh WorkDir=/", True),
            ("3", "", True),  # this Slurm does not say it
            (
                "3",
                "Command=(null) WorkDir=/ StdIn=/dev/null StdOut={run}/launch/jobs/3/3.out",
                True,
            ),
            ("3", "Command=/tmp/a copy WorkDir=/ StdOut={run}/launch/jobs/%j/%j.out Power=", True),
            ("3", "Command=/elsewhere/{run.name}/launch/jobs/.submission.sh WorkDir=/", False),
            ("3", "Command=/home/b/job.sh WorkDir=/home/b StdOut=/home/b/3.out", False),
            ("3", "Command=(null) WorkDir=/ StdOut=/dev/null", False),
            ("3", "Command=bash WorkDir={run}", False),  # salloc
            ("3", "Command=hostname WorkDir={run}", False),  # srun
            ("5", "Command=/b/other/launch/jobs/.submission.sh WorkDir=/", False),
            ("9", "Command=/code/slurm/train.sbatch a=1 WorkDir=/code StdOut=/code/9.out", True),
            ("9", "Command=(null) WorkDir=/ StdOut=/b/other/launch/jobs/9/9_0.out", False),
        ],
    )
    def test_a_number_that_now_is_anothers_is_left_alone(
        self, job: str, says: str, is_ours: bool, run: Path, slurm: Path
    ) -> None:
        self.queue(slurm, {job: f"JobState=RUNNING {says.format(run=run)}"})
        write(slurm, "scancel", f'echo "$1" >> {slurm}/cancelled\n')
        assert [each.job for each in queued_jobs(run)] == ([job] if is_ours else [])
        assert jobs.main(["cancel", str(run)]) == 0
        assert (slurm / "cancelled").exists() == is_ours

    @pytest.mark.parametrize("cluster", ["here", "there"])
    def test_so_is_one_of_another_cluster_with_the_same_files(
        self, cluster: str, run: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both count from 1, and this one's 7 and 8 are somebody's salloc."""
        monkeypatch.setenv("SLURM_CLUSTER_NAME", cluster)
        note_in_job(run, "started", "train")  # of job 7
        note(run, "queued", "chain", jobs={"evaluate": "8"}, cluster=cluster)
        self.queue(slurm, dict.fromkeys(("7", "8"), "JobState=RUNNING"))
        assert [job.job for job in queued_jobs(run)] == (["7", "8"] if cluster == "here" else [])

    def test_slurm_is_asked_once_however_many_jobs_a_run_had(self, run: Path, slurm: Path) -> None:
        self.queue(slurm, {"3": "JobState=RUNNING"})
        assert jobs.main(["status", str(run)]) == 0
        asked = [line for line in (slurm / "called").read_text().splitlines() if "job" in line]
        assert asked == ["show job --oneliner --all"]

    @pytest.mark.parametrize("state", ["PENDING", "COMPLETING", "REQUEUE_HOLD"])
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
        with (
            pytest.raises(UserError, match="does not tell the states of its jobs"),
            submitting(run),
        ):
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


class TestSeveral:
    """A folder of three folds: two are trained by tasks of job 7 and share task 1."""

    @pytest.fixture
    def folder(self, run: Path, slurm: Path) -> Path:
        for number, (task, rank) in enumerate(((0, 0), (1, 0), (1, 2))):
            (run / f"fold-{number}/launch").mkdir(parents=True)
            fold = run / f"fold-{number}"
            note(fold, "queued", "chain", jobs={"train": "7"}, task=task, rank=rank)
            (run / f"launch/jobs/7_{task}").mkdir(parents=True, exist_ok=True)
            log = run / f"launch/jobs/7_{task}/7_{task}_{rank}_log.out"
            log.write_text(f"this is fold {number}\n")
        script = f"{run}/launch/jobs/.train.sh"
        tasks = [
            f"JobId=8 ArrayJobId=7 ArrayTaskId=0 JobState=COMPLETED Command={script} WorkDir=/",
            f"JobId=7 ArrayJobId=7 ArrayTaskId=1-2%1 JobState=PENDING Command={script} WorkDir=/",
        ]
        write(slurm, "scontrol", "".join(f'echo "{task}"\n' for task in tasks))
        write(slurm, "scancel", f'echo "$@" >> {slurm}/cancelled\n')
        note(run / "fold-0", "started", "train", job="7_0")
        note(run / "fold-0", "finished", "train", job="7_0")
        about = {"step": 9, "total_steps": 9, "epoch": 3, "is_finished": True, "time_s": 1}
        (run / "fold-0/progress.json").write_text(json.dumps(about))
        (run / "fold-0/metrics.jsonl").write_text('{"step": 3, "val/dice": 0.75}\n')
        return run

    def test_status_has_a_row_for_each_run(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert jobs.main(["status", str(folder)]) == 0
        rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert "fold-0 7_0 finished 9 of 9 0 0.7500 at step 3" in rows
        assert "fold-1 7_1 PENDING 0" in rows
        assert "fold-2 7_1 PENDING 0" in rows

    def test_logs_are_those_of_the_run_named(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number, words in enumerate(([f"{folder}/fold-0"], [str(folder), "--run", "fold-1"])):
            assert jobs.main(["logs", *words]) == 0
            assert capsys.readouterr().out == f"this is fold {number}\n"
        assert jobs.main(["logs", f"{folder}/fold-2"]) == 0
        assert capsys.readouterr().out == "this is fold 2\n"
        with pytest.raises(UsageError, match="has fold-0, fold-1, fold-2"):
            jobs.main(["logs", str(folder), "--run", "fold-3"])

    def test_list_says_how_far_they_are(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert jobs.main(["list", str(folder.parent)]) == 0
        assert f"{folder}: 3 runs: 1 finished, 2 not begun" in capsys.readouterr().out

    def test_one_that_shares_its_job_is_not_cancelled_alone(
        self, folder: Path, slurm: Path
    ) -> None:
        with pytest.raises(UsageError, match=r"shares its job with fold-2; .* cancel "):
            jobs.main(["cancel", f"{folder}/fold-1"])
        assert not (slurm / "cancelled").exists()
        (folder / "fold-2/launch/events.jsonl").unlink()  # as where the task has one run
        assert jobs.main(["cancel", f"{folder}/fold-1"]) == 0
        assert (slurm / "cancelled").read_text() == "7_1\n"

    def test_one_that_was_submitted_by_itself_is_cancelled_with_all(
        self, folder: Path, slurm: Path
    ) -> None:
        note(folder / "fold-0", "queued", "chain", jobs={"train": "9"})
        script = "Command={}/launch/jobs/.train.sh WorkDir=/"
        tasks = [
            f"JobId=7 ArrayJobId=7 ArrayTaskId=1-2 JobState=PENDING {script.format(folder)}",
            f"JobId=9 JobState=RUNNING {script.format(folder / 'fold-0')}",
        ]
        write(slurm, "scontrol", "".join(f'echo "{task}"\n' for task in tasks))
        assert jobs.main(["cancel", str(folder)]) == 0
        assert (slurm / "cancelled").read_text().split() == ["9", "7"]

    def test_a_run_and_its_folder_are_busy_alike(self, folder: Path, slurm: Path) -> None:
        answer(slurm, "sbatch", "")
        for busy in (folder, folder / "fold-1"):
            with pytest.raises(UsageError, match="still in the queue: train 7"), submitting(busy):
                pass
        with submitting(folder / "fold-0"):
            pass


@pytest.mark.parametrize(
    ("listed", "tasks"),
    [("3", [3]), ("0,2-4%2", [0, 2, 3, 4]), ("0-8:4", [0, 4, 8]), ("", []), ("N/A", [])],
)
def test_tasks_of_an_array_as_slurm_lists_them(listed: str, tasks: list[int]) -> None:
    about = {"ArrayTaskId": listed}
    assert [number for number in range(10) if has_task(about, number)] == tasks
