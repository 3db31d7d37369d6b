"""Whether a job comes back, as the last line of its script decides: promise 5.

The real script runs. What Slurm answers comes from executables on PATH that answer as the real ones
were seen to; the real ones are asked in test_cluster.py.
"""

import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common.command_line import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE
from launch.outcome import Verdict, leave_outcome
from launch.record.events import last_step, read_events
from tests.launch.fakes import write
from train.checkpoints.checkpoint_files import write_complete

SCRIPT = Path(__file__).parents[2] / "launch" / "on_exit.sh"
TOOLS = ("bash", "cat", "date", "dirname", "env", "grep", "head", "mkdir", "readlink", "rm", "sed")
TOOLS += ("sync", "tail", "timeout", "tr")

# What `scontrol show job` was seen to say of a job, one that started at ten
START = "StartTime=2026-01-02T10:00:00"
RUNNING = f"JobState=RUNNING {START} PreemptTime=None SuspendTime=None"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-01-02T10:05:00")
PREEMPTED_BEFORE = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-01-02T09:00:00")
SUSPENDED = RUNNING.replace("SuspendTime=None", "SuspendTime=2026-01-02T10:05:00")
SUSPENDED_BEFORE = RUNNING.replace("SuspendTime=None", "SuspendTime=2026-01-02T09:00:00")
LEAVING = RUNNING.replace("RUNNING", "COMPLETING")  # scancel, a lost node, the end of the grace
PENDING = RUNNING.replace("RUNNING", "PENDING")
BY_SLURM = "job is COMPLETING; it was preempted, and Slurm itself requeues it"
LEFT_PREEMPTED = PREEMPTED.replace("RUNNING", "COMPLETING")
AT_LIMIT = LEAVING.replace("COMPLETING", "COMPLETING Reason=TimeLimit")  # the limit itself
LATE_PREEMPTED = LEFT_PREEMPTED.replace("COMPLETING", "COMPLETING Reason=TimeLimit")
IN_BETWEEN = {name: RUNNING.replace("RUNNING", name) for name in (
    "SIGNALING", "CONFIGURING", "RESIZING", "STAGE_OUT", "SUSPENDED"
)}  # fmt: skip
ENDED = {name: RUNNING.replace("RUNNING", name) for name in (
    "CANCELLED", "TIMEOUT", "REQUEUED"
)}  # fmt: skip
NO_ANSWER = ""
TERM, USR2, INT, HUP, KILL = (int(signal.Signals[f"SIG{name}"]) for name in (
    "TERM", "USR2", "INT", "HUP", "KILL"
))  # fmt: skip


class Ended(NamedTuple):
    """What the script came to."""

    event: dict[str, Any]
    """The event that it noted last."""
    said: str
    num_requeues: int


class Slurm:
    """A folder that is all of PATH, with a scontrol, and the run of job 7."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.run, self.log = folder / "bin", folder / "run", folder / "log"
        self.bin.mkdir()
        self.run.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        write(self.bin, "sleep", "")
        self.job = RUNNING
        self.partition = "PreemptMode=REQUEUE"
        self.refusals = 0
        """How often scontrol refuses to requeue."""
        self.variables = {"PATH": str(self.bin), "SLURM_JOB_ID": "7"}
        self.others: list[Path] = []
        """Runs that share the job."""

    def leave(self, verdict: Verdict, signum: int = 0, reason: str = "", **variables: str) -> None:
        """Leave an outcome as a rank does."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_PROCID"):
                patch.delenv(name, raising=False)
            for name, value in (self.variables | variables).items():
                patch.setenv(name, value)
            leave_outcome(self.run, verdict, signum, reason)

    def save(self, step: int, job: str, fold: str = "") -> None:
        """As much of a checkpoint as the script reads, of the run or of a fold in its folder."""
        folder = self.run / fold / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_complete(folder, {"step": step, "job": job, "files": {}})
        (folder.parent / "latest").write_text(f"{folder.name}\n")

    def end(self, code: int, retries: int = 2, stage: str = "train") -> Ended:
        """Run the last line of the job's script; its output goes to the job's log."""
        answer = f"JobId=7 JobName=x {self.job} Partition=low Command=/x JobState=NONE/y WorkDir=/"
        partition = f"PartitionName=low {self.partition} State=UP"
        write(self.bin, "scontrol", f"""
            case "$1 $2" in
            "show partition") [ "$4" = low ] && echo "{partition}" ;;
            "show job") [ "{self.job}" ] || exit 1; echo "{answer}" ;;
            requeue*) n=$(grep -c ^requeue {shlex.quote(str(self.bin / "called"))})
                [ $n -gt {self.refusals} ] || {{ echo first; echo not now >&2; exit 1; }} ;;
            esac
        """)  # fmt: skip
        (self.bin / "called").unlink(missing_ok=True)
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            done = subprocess.run(
                [self.bin / "bash", "-c", SCRIPT.read_text(), "on_exit", self.run, stage, str(code),
                 str(retries), *self.others],
                env=self.variables, stdout=log, stderr=log, timeout=30,
            )  # fmt: skip
        assert done.returncode == code
        called = self.bin / "called"
        calls = called.read_text().splitlines() if called.exists() else []
        events = read_events(self.run)
        return Ended(
            events[-1] if events else {"event": ""},
            self.log.read_bytes()[before:].decode(),
            sum(call.startswith("requeue ") for call in calls),
        )


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    """A Slurm that says that job 7 is running."""
    folder = tmp_path / "a 'folder' of \"é\""
    folder.mkdir()
    return Slurm(folder)


class TestDecide:
    """Every case, worked out by hand from what a real Slurm did."""

    @pytest.mark.parametrize(
        ("job", "signum", "event", "reason"),
        [
            (PREEMPTED, TERM, "requeued", "preempted"),
            (RUNNING, USR2, "requeued", "time limit"),
            (PREEMPTED, USR2, "requeued", "preempted"),  # either way it comes back
            (AT_LIMIT, TERM, "requeued", "time limit"),  # the save took longer than the lead
            (LATE_PREEMPTED, TERM, "stopped", BY_SLURM),
            *((job, TERM, "requeued", "SIGTERM") for job in IN_BETWEEN.values()),
            *((job, TERM, "stopped", f"job is {name}") for name, job in ENDED.items()),
            (LEAVING, TERM, "stopped", "job is COMPLETING"),  # scancel, or a lost node
            (LEAVING, USR2, "stopped", "job is COMPLETING"),  # cancelled close to its limit
            (PENDING, TERM, "stopped", "job is PENDING"),
            (RUNNING, TERM, "requeued", "SIGTERM"),  # a kill by hand
            (PREEMPTED_BEFORE, TERM, "requeued", "SIGTERM"),
            (RUNNING, HUP, "requeued", "SIGHUP"),
            (NO_ANSWER, TERM, "requeued", "SIGTERM"),  # better once too often than lost
            (NO_ANSWER, USR2, "requeued", "time limit"),
            (RUNNING, INT, "stopped", "SIGINT"),
            (NO_ANSWER, INT, "stopped", "SIGINT"),
        ],
    )
    def test_a_stage_that_a_signal_stopped(
        self, job: str, signum: int, event: str, reason: str, slurm: Slurm
    ) -> None:
        """It has saved, so this is no failure, however many there were."""
        slurm.job = job
        slurm.save(4, job="7")
        slurm.leave(Verdict.STOPPED, signum)
        ended = slurm.end(EXIT_STOPPED, retries=0)
        assert (ended.event["event"], ended.event["reason"]) == (event, reason)
        assert ended.num_requeues == (event == "requeued")
        assert ended.said == f"{event} ({reason})\n"

    def test_what_is_saved_is_no_failure_though_a_rank_ended_late(self, slurm: Slurm) -> None:
        """srun kills the ranks that are left a while after the first one's code."""
        slurm.save(4, job="7")
        slurm.leave(Verdict.STOPPED, TERM)
        assert slurm.end(128 + KILL, retries=0).event["reason"] == "SIGTERM"

    @pytest.mark.parametrize(
        ("mode", "event"),
        [
            ("PreemptMode=REQUEUE", "stopped"),
            ("PreemptMode=CANCEL", "requeued"),
            ("PreemptMode=CANCELLED_X", "stopped"),
        ],
    )
    @pytest.mark.parametrize("job", [LEFT_PREEMPTED, LATE_PREEMPTED])
    def test_a_job_whose_grace_is_over(self, job: str, mode: str, event: str, slurm: Slurm) -> None:
        """Slurm itself brings it back, but where its partition's mode only ends it."""
        slurm.job, slurm.partition = job, mode
        ended = slurm.end(128 + TERM, retries=0)
        reason = "preempted" if event == "requeued" else BY_SLURM
        assert (ended.event["event"], ended.event["reason"]) == (event, reason)
        assert ended.num_requeues == (event == "requeued")

    @pytest.mark.parametrize(
        ("job", "signum", "event"),
        [
            (PREEMPTED, TERM, "requeued"),
            (RUNNING, USR2, "requeued"),
            (LEAVING, TERM, "stopped"),
            (NO_ANSWER, TERM, "requeued"),
            (RUNNING, TERM, "failed"),  # srun ends the ranks that are left
            (PREEMPTED_BEFORE, TERM, "failed"),
            (SUSPENDED, 0, "requeued"),  # its timeouts ran on
            (SUSPENDED_BEFORE, 0, "failed"),
        ],
    )
    def test_a_rank_that_fails_after_a_signal(
        self, job: str, signum: int, event: str, slurm: Slurm
    ) -> None:
        """As a rank whose neighbours have gone: a failure only where the job stays."""
        slurm.job = job
        slurm.leave(Verdict.FAILED, signum, "no sign of life")
        assert slurm.end(EXIT_FAILED).event["event"] == event

    @pytest.mark.parametrize(
        ("job", "code", "retries", "event", "num_requeues"),
        [
            (RUNNING, 0, 2, "finished", 0),
            (LEAVING, 0, 2, "finished", 0),
            (RUNNING, EXIT_FAILED, 1, "failed", 1),
            (RUNNING, EXIT_FAILED, 0, "gave up", 0),
            (NO_ANSWER, EXIT_FAILED, 1, "failed", 1),
            (RUNNING, 128 + TERM, 1, "failed", 1),
            (PREEMPTED, 128 + TERM, 0, "requeued", 1),  # before Python could catch it
            (PREEMPTED, EXIT_FAILED, 0, "requeued", 1),
            (PREEMPTED_BEFORE, 128 + TERM, 0, "gave up", 0),
            (RUNNING, 128 + USR2, 1, "requeued", 1),
            (RUNNING, 128 + USR2, 0, "gave up", 0),  # it has saved nothing
            (AT_LIMIT, 128 + TERM, 1, "requeued", 1),
            (AT_LIMIT, 128 + TERM, 0, "gave up", 0),
            (RUNNING, 128 + INT, 1, "stopped", 0),
            (RUNNING, EXIT_USAGE, 1, "failed", 1),  # Slurm's, where the program is not there
            (RUNNING, EXIT_STOPPED, 1, "requeued", 1),
            (RUNNING, 255, 1, "failed", 1),  # a container runtime's, or sys.exit(-1)
            (LEAVING, EXIT_FAILED, 1, "stopped", 0),
            (LEAVING, 128 + USR2, 1, "stopped", 0),
            (LEAVING, EXIT_STOPPED, 1, "stopped", 0),
            (LEFT_PREEMPTED, 128 + TERM, 1, "stopped", 0),  # no grace: Slurm requeues it by itself
        ],
    )
    def test_a_job_of_which_no_rank_has_left_an_outcome(
        self, job: str, code: int, retries: int, event: str, num_requeues: int, slurm: Slurm
    ) -> None:
        slurm.job = job
        ended = slurm.end(code, retries)
        assert (ended.event["event"], ended.num_requeues) == (event, num_requeues)

    @pytest.mark.parametrize("job", [RUNNING, SUSPENDED, NO_ANSWER])
    def test_what_time_cannot_heal_is_not_tried_again(self, job: str, slurm: Slurm) -> None:
        slurm.job = job
        slurm.leave(Verdict.REFUSED, 0, "lr=x: expected a number")
        ended = slurm.end(EXIT_USAGE)
        assert (ended.event["event"], ended.num_requeues) == ("gave up", 0)
        assert ended.event["reason"] == "rank 0: lr=x: expected a number"


class TestOutcome:
    """What the ranks leave."""

    def test_the_first_error_counts(self, slurm: Slurm) -> None:
        slurm.leave(Verdict.FAILED, 0, "no space left\nMake room", SLURM_PROCID="3")
        slurm.leave(Verdict.REFUSED, TERM, "no sign of life from rank 3", SLURM_PROCID="1")
        ended = slurm.end(EXIT_FAILED, retries=3)
        assert ended.event["reason"] == "rank 3: no space left"
        assert ended.said == "failed (rank 3: no space left); requeued, try 1 of 3\n"

    @pytest.mark.parametrize("start", ["1", "10"])
    def test_that_of_an_earlier_start_is_not_taken_for_this_one(
        self, start: str, slurm: Slurm
    ) -> None:
        slurm.leave(Verdict.REFUSED, INT, "old", SLURM_RESTART_COUNT=start)
        ended = slurm.end(EXIT_FAILED)
        assert (ended.event["event"], ended.event["reason"]) == ("failed", "exit code 1")
        names = [path.name for path in (slurm.run / "launch" / "outcomes").iterdir()]
        assert names == ["7.requeues"]  # it does not stay

    def test_of_two_ranks_one_is_first_whatever_an_earlier_start_has_left(
        self, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The slower is about to leave its own when the faster one does."""
        slurm.leave(Verdict.REFUSED, 0, "old", SLURM_RESTART_COUNT="1")
        slurm.variables["SLURM_RESTART_COUNT"] = "2"
        link = Path.hardlink_to

        def after_the_faster(path: Path, temporary: Path) -> None:
            monkeypatch.setattr(Path, "hardlink_to", link)
            slurm.leave(Verdict.FAILED, 0, "the cause")
            link(path, temporary)

        monkeypatch.setattr(Path, "hardlink_to", after_the_faster)
        slurm.leave(Verdict.REFUSED, 0, "no sign of life from rank 0", SLURM_PROCID="1")
        event = slurm.end(EXIT_FAILED).event
        assert (event["event"], event["reason"]) == ("failed", "rank 0: the cause")
        assert event["restart"] == 2

    def test_it_holds_for_one_end_of_the_script(self, slurm: Slurm) -> None:
        """A script may run several stages, each with this line."""
        slurm.leave(Verdict.REFUSED, 0, "once")
        assert slurm.end(EXIT_FAILED).event["event"] == "gave up"
        assert slurm.end(EXIT_FAILED).event["event"] == "failed"

    def test_each_task_of_an_array_has_its_own(self, slurm: Slurm) -> None:
        slurm.variables |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
        slurm.leave(Verdict.REFUSED, 0, "of the other", SLURM_ARRAY_TASK_ID="1")
        event = slurm.end(EXIT_FAILED).event
        assert (event["event"], event["job"]) == ("failed", "7_2")
        assert "requeue 7_2" in (slurm.bin / "called").read_text()

    @pytest.mark.parametrize(
        "reason",
        [
            'it\'s "quoted" \\ `date` $(date) ${PATH} %s \\n',
            "naïve 図 🦠 café",
            "x" * 10_000,
            "ü" * 10_000,
            "key=value restart=9",
        ],
    )
    def test_a_reason_is_kept_as_it_is_but_short(self, reason: str, slurm: Slurm) -> None:
        slurm.leave(Verdict.FAILED, 0, reason)
        noted = slurm.end(EXIT_FAILED).event["reason"].removeprefix("rank 0: ")
        assert reason.startswith(noted)
        assert len(noted) >= min(len(reason), 290)
        assert len(noted) <= 300

    def test_what_would_break_a_line_or_a_terminal_is_left_out(self, slurm: Slurm) -> None:
        slurm.leave(Verdict.FAILED, 0, "a\tb\x1b[2J\x00c\x7fd \udce9e\x85f")
        ended = slurm.end(EXIT_FAILED)
        assert ended.event["reason"] == "rank 0: a\\x09b\\x1b[2J\\x00c\\x7fd ?e"
        assert ended.said.count("\n") == 1

    @pytest.mark.parametrize("content", [b"", b"\0" * 99, b"signal=$(date)\n" * 9**5])
    def test_a_damaged_one_is_none(self, content: bytes, slurm: Slurm) -> None:
        slurm.leave(Verdict.STOPPED)
        (slurm.run / "launch" / "outcomes" / "7.0").write_bytes(content)
        assert slurm.end(EXIT_FAILED).event["event"] == "failed"


class TestRetries:
    """A job that fails is tried again while it gets further."""

    def test_until_there_was_no_progress(self, slurm: Slurm) -> None:
        seen = []
        for step in (4, 4, 9, 9, 9):  # a newer checkpoint before the third starts the count anew
            slurm.save(step, job="7")
            seen.append(slurm.end(128 + KILL))
        events = [ended.event["event"] for ended in seen]
        assert events == ["failed", "failed", "failed", "failed", "gave up"]
        assert [ended.num_requeues for ended in seen] == [1, 1, 1, 1, 0]
        assert seen[-1].event["reason"] == "killed by SIGKILL"
        assert seen[1].said == "failed (killed by SIGKILL); requeued, try 2 of 2\n"
        assert (seen[3].event["step"], seen[3].event["saved"]) == (9, 9)

    def test_what_another_job_saves_is_no_progress_of_this_one(self, slurm: Slurm) -> None:
        """Also where the other's checkpoints push out those of this job."""
        slurm.save(4, job="7")
        seen = []
        for step in (6, 8, 10):
            slurm.save(step, job="77")
            seen.append(slurm.end(1).event["event"])
            shutil.rmtree(slurm.run / "checkpoints" / "step_00000004", ignore_errors=True)
        assert seen == ["failed", "failed", "gave up"]
        assert read_events(slurm.run)[-1]["step"] == 10

    @pytest.mark.parametrize(
        ("job", "code", "reason"),
        [
            (RUNNING, 128 + USR2, "time limit"),
            (AT_LIMIT, 128 + TERM, "time limit"),
            (SUSPENDED, EXIT_FAILED, "was suspended; exit code 1"),  # again and again, as by GANG
            (RUNNING, EXIT_STOPPED, "stopped"),
        ],
    )
    def test_what_comes_back_without_progress_counts(
        self, job: str, code: int, reason: str, slurm: Slurm
    ) -> None:
        slurm.job = job
        seen = [slurm.end(code)]
        slurm.save(4, job="7")
        seen += [slurm.end(code) for _ in range(4)]
        counted = f"{reason}, without a newer checkpoint"
        assert [ended.event["event"] for ended in seen] == ["requeued"] * 4 + ["gave up"]
        assert [ended.event["reason"] for ended in seen] == [counted, reason, *[counted] * 3]
        assert [ended.num_requeues for ended in seen] == [1, 1, 1, 1, 0]
        assert seen[0].said == f"stopped ({counted}); requeued, try 1 of 2\n"
        assert seen[1].said == f"requeued ({reason})\n"
        assert seen[3].said == f"stopped ({counted}); requeued, try 2 of 2\n"
        assert seen[4].said == f"gave up ({counted})\n"

    def test_preemption_never_counts_nor_does_progress(self, slurm: Slurm) -> None:
        """They leave all retries to the failures after them."""
        slurm.save(4, job="7")
        assert slurm.end(128 + USR2, retries=1).said == "requeued (time limit)\n"
        slurm.job = PREEMPTED
        for _ in range(3):
            assert slurm.end(128 + TERM, retries=1).said == "requeued (preempted)\n"
        slurm.job = RUNNING
        assert slurm.end(1, retries=1).said.endswith("; requeued, try 1 of 1\n")
        assert slurm.end(1, retries=1).event["event"] == "gave up"

    def test_what_a_preemption_saved_is_no_progress_of_the_next_start(self, slurm: Slurm) -> None:
        slurm.save(4, job="7")
        slurm.job = PREEMPTED
        assert slurm.end(128 + TERM, retries=0).event["event"] == "requeued"
        slurm.job = RUNNING
        assert slurm.end(128 + USR2, retries=0).event["event"] == "gave up"

    def test_a_checkpoint_of_a_fold_is_progress_of_its_trial(self, slurm: Slurm) -> None:
        """Which trains one fold after the other: the step of a new one is less than that before."""
        seen = []
        for step, fold in ((4, "fold-0"), (6, "fold-0"), (2, "fold-1"), (3, "fold-10")):
            slurm.save(step, job="7", fold=fold)
            seen.append(slurm.end(128 + USR2, retries=0))
        assert [ended.said for ended in seen] == ["requeued (time limit)\n"] * 4
        assert [ended.event["step"] for ended in seen] == [4, 6, 8, 11]
        assert last_step(slurm.run) == 11
        slurm.save(5, job="77", fold="fold-10")
        ended = slurm.end(128 + USR2, retries=0)
        assert (ended.event["event"], ended.event["step"]) == ("gave up", 13)

    @pytest.mark.parametrize("content", ['{"job": ', "[]", "{}", '{"job": 7}', ""])
    def test_a_damaged_checkpoint_is_nobodys(self, content: str, slurm: Slurm) -> None:
        slurm.save(7, job="7")
        (slurm.run / "checkpoints" / "step_00000007" / "COMPLETE").write_text(content)
        slurm.save(3, job="7")
        assert slurm.end(1).event["saved"] == 3

    @pytest.mark.parametrize("content", [b"", b"\xff\0", b"step_$(date)", b"step_" + b"9" * 10**6])
    def test_a_damaged_pointer_names_no_step(self, content: bytes, slurm: Slurm) -> None:
        slurm.save(7, job="7")
        (slurm.run / "checkpoints" / "latest").write_bytes(content)
        assert slurm.end(1).event["step"] == 0

    def test_a_failure_is_counted_before_the_job_is_requeued(self, slurm: Slurm) -> None:
        """Else a script that is killed between would come back for ever."""
        slurm.refusals = 99
        assert slurm.end(1).event["event"] == "requeue refused"
        assert slurm.end(1, retries=1).event["event"] == "gave up"

    def test_where_nothing_can_be_counted_the_restarts_are(self, slurm: Slurm) -> None:
        outcomes = slurm.run / "launch" / "outcomes"
        outcomes.mkdir(parents=True)
        (outcomes / "7.requeues").mkdir()  # as good as a full disk, for root too
        assert slurm.end(1, retries=2).event["event"] == "failed"
        slurm.variables["SLURM_RESTART_COUNT"] = "2"
        assert slurm.end(1, retries=2).event["event"] == "gave up"
        slurm.save(4, job="7")  # by the last start, or one before: nobody knows
        assert slurm.end(128 + USR2, retries=2).event["event"] == "gave up"
        slurm.job = PREEMPTED
        assert slurm.end(128 + TERM, retries=2).event["event"] == "requeued"

    def test_a_damaged_count_is_no_program(self, slurm: Slurm) -> None:
        outcomes = slurm.run / "launch" / "outcomes"
        outcomes.mkdir(parents=True)
        text = "x[$(echo 1 >&2)]\n0 free\n0\n08\n" + "9" * 99 + "\n0 free"
        (outcomes / "7.requeues").write_text(text)
        assert slurm.end(1, retries=3).said == "failed (exit code 1); requeued, try 3 of 3\n"


class TestRequest:
    """What Slurm answers to the request."""

    def test_it_is_repeated(self, slurm: Slurm) -> None:
        slurm.refusals = 4
        slurm.leave(Verdict.STOPPED, TERM)
        ended = slurm.end(EXIT_STOPPED)
        assert (ended.event["event"], ended.num_requeues) == ("requeued", 5)

    def test_a_refusal_is_told_and_nothing_else(self, slurm: Slurm) -> None:
        slurm.refusals = 5
        slurm.save(4, job="7")
        slurm.leave(Verdict.STOPPED, TERM)
        ended = slurm.end(EXIT_STOPPED)
        assert ended.num_requeues == 5
        assert [event["event"] for event in read_events(slurm.run)] == ["requeue refused"]
        assert ended.event["reason"] == "not now; stopped: SIGTERM"
        assert ended.said.startswith("requeue refused: not now; submit the run again")
        assert "step 4" in ended.said

    @pytest.mark.parametrize(("signum", "waits"), [(USR2, False), (TERM, True)])
    def test_without_scontrol_only_slurm_itself_can_bring_it_back(
        self, signum: int, waits: bool, slurm: Slurm, tmp_path: Path
    ) -> None:
        """It does so for a preempted job that still runs at the end of its grace."""
        tools = tmp_path / "tools"
        shutil.copytree(slurm.bin, tools, symlinks=True)
        slurm.variables["PATH"] = str(tools)
        slurm.leave(Verdict.STOPPED, signum)
        ended = slurm.end(EXIT_STOPPED)
        assert ended.event["event"] == "requeue refused"
        assert ended.event["reason"].startswith("no scontrol on this node; stopped: ")
        called = slurm.bin / "called"
        assert (called.read_text() if called.exists() else "") == ("120\n" if waits else "")

    def test_scontrol_is_found_beside_srun(self, slurm: Slurm, tmp_path: Path) -> None:
        tools = tmp_path / "tools"
        shutil.copytree(slurm.bin, tools, symlinks=True)
        write(slurm.bin, "srun", "")
        (tools / "srun").symlink_to(slurm.bin / "srun")
        slurm.variables["PATH"] = str(tools)
        slurm.leave(Verdict.STOPPED, USR2)
        assert slurm.end(EXIT_STOPPED).event["event"] == "requeued"


class TestReason:
    """Why a job failed of which no rank has left an outcome, by its log."""

    @pytest.mark.parametrize(
        ("log", "reason"),
        [
            ("", "exit code 1"),
            ("/a/slurm_script: line 9: x: command not found\n", "line 9: x: command not found"),
            (
                "slurmstepd-n1: error: execve(): python: No such file or directory\n"
                "srun: error: n1: task 0: Exited with exit code 2\n"
                "slurmstepd-n2: error: *** STEP 6.2 ON n1 CANCELLED AT 2026-01-02T10:00:00 ***\n"
                "srun: launch/slurm: _step_signal: Terminating StepId=6.2\n"
                "srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n"
                "srun: got SIGCONT\nsrun: forcing job termination\n",
                "slurmstepd-n1: error: execve(): python: No such file or directory",
            ),
            (
                "srun: unrecognized option '--nope'\nTry \"srun --help\" for more information\n",
                "srun: unrecognized option '--nope'",
            ),
            (
                "a module is loaded\nsrun: error: Unable to create step for job 6: Memory\n",
                "srun: error: Unable to create step for job 6: Memory",
            ),
            ("epoch 1 (step 4): val/loss 0.5\n", "epoch 1 (step 4): val/loss 0.5"),
            (
                "Traceback (most recent call last):\n  File x\nImportError: no torch\n\n",
                "ImportError: no torch",
            ),
            ("error: of the last start\nfailed (it); requeued, try 1 of 3\n", "exit code 1"),
            ("error: then\nfailed (it); requeued, try 1 of 3\nerror: now\n", "error: now"),
            ("\xff\0error: \"a\\b\x1b\n" * 20_000, 'error: "a\\b'),
        ],
    )  # fmt: skip
    def test_it_is_the_last_line_but_for_those_that_a_task_has_ended(
        self, log: str, reason: str, slurm: Slurm
    ) -> None:
        slurm.log.write_bytes(log.encode("latin-1"))
        assert slurm.end(1).event["reason"].strip() == reason

    @pytest.mark.parametrize("tasks", ["task 11", "tasks 11-15"])
    def test_the_log_of_the_task_that_failed_tells_it(self, tasks: str, slurm: Slurm) -> None:
        """Each task has its own; the job's is that of the first."""
        slurm.log = slurm.log.with_name("7_0_log.out")
        slurm.log.write_text(
            f"set up\nsrun: error: n2: {tasks}: Exited with exit code 2\n"
            "srun: error: n1: task 0: Killed\n"
        )
        said = "slurmstepd: error: execve(): python: No such file or directory"
        slurm.log.with_name("7_11_log.out").write_text(f"{said}\n")
        slurm.log.with_name("7_1_log.out").write_text("of another\n")
        assert slurm.end(EXIT_USAGE).event["reason"] == said

    def test_a_kill_for_memory_is_told(self, slurm: Slurm) -> None:
        said = "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0."
        slurm.log.write_text(f"{said}\nsrun: error: n1: task 0: Out Of Memory\n")
        assert slurm.end(128 + KILL).event["reason"] == f"killed by SIGKILL: {said}"

    @pytest.mark.parametrize("code", [255, 161])
    def test_a_code_that_is_no_signal_is_told_as_it_is(self, code: int, slurm: Slurm) -> None:
        assert slurm.end(code).event["reason"] == f"exit code {code}"


def test_an_event_has_what_every_event_of_a_job_has(slurm: Slurm) -> None:
    slurm.variables |= {"SLURM_RESTART_COUNT": "3", "SLURM_JOB_NODELIST": "n[1-2]"}
    event = slurm.end(0, stage="prepare").event
    assert event.pop("time_s") > 1.7e9
    assert event == {
        "event": "finished", "stage": "prepare", "step": 0, "reason": "", "job": "7",
        "restart": 3, "nodes": "n[1-2]",
    }  # fmt: skip
    assert not (slurm.bin / "called").exists()


def test_it_writes_through_no_link(slurm: Slurm, tmp_path: Path) -> None:
    (slurm.run / "launch").mkdir()
    (slurm.run / "launch" / "events.jsonl").symlink_to(tmp_path / "other")
    slurm.end(0)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("missing", ["RUN", "DATA"])
def test_training_by_hand_needs_both_folders(missing: str, tmp_path: Path) -> None:
    """A script that went on would make folders in /, and start ranks without data."""
    write(tmp_path, "mkdir", "")
    write(tmp_path, "srun", "")
    given = {
        "RUN": str(tmp_path / "run"),
        "DATA": str(tmp_path),
        "PATH": f"{tmp_path}:/usr/bin:/bin",
    }
    given.pop(missing)
    called = ["bash", "slurm/train.sbatch"]
    done = subprocess.run(called, env=given, cwd=SCRIPT.parents[1], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"--export=ALL,{missing}=..." in done.stderr
    assert not (tmp_path / "called").exists()


def test_at_the_end_the_script_needs_no_file_of_the_code(tmp_path: Path) -> None:
    """Which may have been tidied away, or its mount gone stale."""
    run, code, tools = (tmp_path / name for name in ("run", "code", "bin"))
    shutil.copytree(SCRIPT.parent, code / "launch")
    shutil.copytree(SCRIPT.parents[1] / "slurm", code / "slurm")
    tools.mkdir()
    write(tools, "srun", f"mv {code} {code}.away; echo no disk; exit 3")
    given = {"RUN": str(run), "DATA": str(tmp_path), "RETRIES": "0", "SLURM_JOB_ID": "7"}
    given |= {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "1"}
    with (tmp_path / "log").open("wb") as log:
        done = subprocess.run(
            ["bash", "slurm/train.sbatch"], env=given, cwd=code, stdout=log, stderr=log
        )
    assert done.returncode == 3
    (event,) = read_events(run)
    assert (event["event"], event["reason"]) == ("gave up", "no disk")
