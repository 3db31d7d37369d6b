"""What status says of jobs in the queue and of the starts of a training."""

import json
from pathlib import Path

import pytest

from launch.cluster.pending import why_it_waits
from launch.record.events import note, write_submission
from launch.record.status import status
from tests.launch.fakes import write


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("PartitionTimeLimit", "never starts: the partition allows less time; submit it with a"),
        ("Reservation", "waits for its reservation to begin"),
        ("ReservationDeleted", "never starts: its reservation is gone"),
        ("QOSMinGRES", "never starts: below what its quality of service asks for"),
        ("QOSMaxMemoryPerJob", "never starts: above a limit of your account"),
        ("QOSNotAllowed", "never starts: the partition does not take this quality"),
        ("MaxMemPerLimit", "never starts: the partition allows less memory"),
        ("QOSMaxJobsPerUserLimit", "waits until jobs of your account or group have ended"),
        ("PartitionDown", "waits until the partition is up again"),
        ("BeginTime", "waits until 22:42:10"),
        ("Dependency", "waits for the job before it"),
        ("DependencyNeverSatisfied", "never starts: a job before it failed"),
        ("JobHeldUser", "held; `scontrol release 7` lets it start"),
        ("QOSMaxWallDurationPerJobLimit", "never starts: above a limit of your account"),
        ("AssocGrpCpuLimit", "waits until jobs of your account or group have ended"),
        ("ReqNodeNotAvail,_UnavailableNodes:n1", "waits for nodes that are down or reserved"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_a_reason_is_said_in_words(reason: str, words: str) -> None:
    task = {"JobId": "7", "Reason": reason, "StartTime": "2026-11-30T22:42:10"}
    assert why_it_waits(task).startswith(words)


class TestSlurm:
    """What scontrol says of job 7, and what the run noted."""

    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "launch").mkdir()
        (tmp_path / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        write_submission(tmp_path, {"time_s": 0, "revision": "", "jobs": {"train": "7"}})
        return tmp_path

    @staticmethod
    def says(run: Path, *tasks: str) -> list[str]:
        """Let scontrol say this of the job; returns the lines of `status`."""
        lines = "".join(f'echo "JobId=7 {task}"\n' for task in tasks)
        write(run / "bin", "scontrol", lines)
        return status(run)

    def test_a_job_that_slurm_took_away_at_once_comes_back(self, run: Path) -> None:
        note(run, "started", "train", job="7", nodes="n[1-2]", restart=0)
        note(run, "stopped", "train", job="7", step=18, reason="job is COMPLETING")
        waits = "JobState=PENDING Reason=BeginTime Restarts=1 StartTime=2026-11-30T22:42:10"
        lines = self.says(run, waits)
        assert lines[2].endswith("comes back: waits until 22:42:10")
        assert lines[-1].endswith("stopped: job is COMPLETING; Slurm brings it back")
        ended = self.says(run, "JobState=CANCELLED Restarts=0")
        assert ended[-1].endswith("steps 0 to 18  stopped: job is COMPLETING")

    def test_a_refused_requeue_is_how_a_start_ended(self, run: Path) -> None:
        note(run, "started", "train", job="7", nodes="n1", restart=0)
        note(run, "requeue refused", "train", job="7", step=18, reason="Access denied; stopped: x")
        lines = self.says(run, "JobState=COMPLETED Restarts=0")
        assert lines[-1].endswith("steps 0 to 18  requeue refused: Access denied; stopped: x")
        assert sum("requeue refused" in line or "without a word" in line for line in lines) == 1

    def test_what_paths_and_comments_say_is_not_believed(self, run: Path) -> None:
        script = f"{run}/launch/jobs/.train JobState=FAILED JobId=4 ArrayJobId=4 Restarts=9.sh"
        note(run, "started", "train", job="7", nodes="n1")
        rest = "WorkDir=/x JobState=TIMEOUT Comment=a JobState=FAILED JobId=4 StdOut=/x/JobId=4"
        lines = self.says(run, f"JobState=RUNNING Restarts=0 NodeList=n1 Command={script} {rest}")
        assert lines[2].split() == ["train", "7", "RUNNING", "n1", "0"]

    def test_a_suspended_job_has_not_failed(self, run: Path) -> None:
        note(run, "started", "train", job="7", nodes="n1")
        lines = self.says(run, "JobState=SUSPENDED Reason=None Restarts=12 NodeList=n1")
        assert lines[2].split()[2:5] == ["SUSPENDED", "n1", "12"]
        assert lines[2].endswith("waits until the cluster resumes it; this is no failure")
        assert lines[-1].endswith("steps 0 to 0")

    def test_tasks_of_an_array_in_the_same_state_share_a_row(self, run: Path) -> None:
        tasks = [f"JobState=COMPLETED Restarts=0 NodeList=n{n}" for n in (1, 2, 1)]
        lines = self.says(run, *tasks, "JobState=RUNNING Restarts=10 NodeList=n3")
        assert lines[2].split() == ["train", "7", "COMPLETED", "n1,n2", "0", "3", "tasks"]
        assert lines[3].split() == ["train", "7", "RUNNING", "n3", "10"]
        assert lines[2].index("n1") == lines[3].index("n3")

    def test_each_start_has_its_nodes_steps_and_end(self, run: Path) -> None:
        """One start per way to end; the second was lost with its node."""
        starts = [(100, "n1"), (200, "n[1-3]"), (300, "n4")]
        ends = [(150, {"event": "requeued", "step": 5, "reason": "x" * 5000})]
        events = [
            {"time_s": at, "event": "started", "stage": "train", "job": "7", "nodes": nodes}
            for at, nodes in starts
        ] + [{"time_s": at, "stage": "train", "job": "7", **end} for at, end in ends]
        events.sort(key=lambda event: event["time_s"])
        (run / "launch/events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        restarts = [
            {"step": 5, "time_s": 210, "notes": []},
            {"step": 9, "time_s": 310, "notes": []},
        ]
        (run / "restarts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in restarts))
        now = {"step": 11, "total_steps": 90, "epoch": 1, "time_s": 320, "is_finished": False}
        (run / "progress.json").write_text(json.dumps(now))
        lines = self.says(run, "JobState=RUNNING Restarts=2 NodeList=n4")
        first, second, third = (line.split() for line in lines[-3:])
        assert first[3:8] == ["n1", "steps", "0", "to", "5"]
        assert first[8:] == ["requeued:", "x" * 160 + "..."]
        assert second[3:8] == ["n[1-3]", "steps", "5", "to", "9"]
        assert lines[-2].endswith(
            "ended without a word (killed, or its node was lost); it came back"
        )
        assert third[3:] == ["n4", "steps", "9", "to", "11"]
        assert sum("requeued" in line for line in lines) == 1
