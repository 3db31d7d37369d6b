"""What a task of a job leaves when its stage is stopped or fails, and the code it ends with."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.command_line import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE, UsageError, UserError
from common.stop_request import StopRequest
from data_prep.dataset.manifest import read_dataset
from launch.job import Pack, Stage, StageStopped, run_stage
from launch.record.events import note, read_events

End = Callable[[StopRequest], int]


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[object, str]]:
    """end(how, rank) runs a stage that ends so: its exit code, and the outcome that it leaves."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "launch").mkdir()

    def call(how: End, rank: int = 0) -> tuple[object, str]:
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setattr("launch.job.run_stage", lambda name, arguments, stop: how(stop))
        monkeypatch.setattr("launch.job.leave", sys.exit)  # not the process of the tests
        code: object = 0
        try:
            Stage("train", str(tmp_path), [])()
        except SystemExit as ended:
            code = ended.code
        left = tmp_path / "launch" / "outcomes" / "7.0"
        return code, left.read_text() if left.exists() else ""

    return call


def failing(error: Exception, signum: int = 0) -> End:
    """A stage that raises, after a signal if one is given."""

    def stage(stop: StopRequest) -> int:
        if signum:
            os.kill(os.getpid(), signum)
        raise error

    return stage


def stopping(stop: StopRequest) -> int:
    """A stage that a signal stops in order."""
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signum == signal.SIGTERM
    return EXIT_STOPPED


def test_success_leaves_nothing(end: Callable[..., tuple[object, str]], tmp_path: Path) -> None:
    assert end(lambda stop: 0) == (0, "")
    assert [event["event"] for event in read_events(tmp_path)] == ["started"]


def test_a_stop_is_left_by_the_first_task(end: Callable[..., tuple[object, str]]) -> None:
    """srun ends all tasks when one ends with a code; the others save their part first."""
    assert end(stopping, rank=1) == (0, "")
    left = "rank=0\nverdict=stopped\nsignal=15\nreason=\n"
    assert end(stopping) == (EXIT_STOPPED, left)


@pytest.mark.parametrize(
    ("error", "code", "verdict", "reason"),
    [
        (RuntimeError("a\nb"), EXIT_FAILED, "failed", "RuntimeError: a"),
        (OSError(28, "No space left"), EXIT_FAILED, "failed", "OSError: [Errno 28] No space left"),
        (UserError("the disk is full"), EXIT_FAILED, "failed", "the disk is full"),
        (UserError("other data", can_heal=False), EXIT_FAILED, "refused", "other data"),
        (UsageError("lr=x: a number"), EXIT_USAGE, "refused", "lr=x: a number"),
        (UsageError("raw=x: no", can_heal=True), EXIT_USAGE, "failed", "raw=x: no"),
    ],
)
@pytest.mark.parametrize("signum", [0, signal.SIGTERM])
def test_an_error_is_left_by_any_task(
    error: Exception,
    code: int,
    verdict: str,
    reason: str,
    signum: int,
    end: Callable[..., tuple[object, str]],
) -> None:
    left = f"rank=3\nverdict={verdict}\nsignal={signum:d}\nreason={reason}\n"
    assert end(failing(error, signum), rank=3) == (code, left)


def test_a_folder_that_takes_nothing_leaves_the_exit_code(
    end: Callable[..., tuple[object, str]], tmp_path: Path
) -> None:
    (tmp_path / "launch" / "outcomes").write_text("in the way")
    assert end(failing(UserError("no room"))) == (EXIT_FAILED, "")


@pytest.mark.parametrize("name", ["prepare", "evaluate"])
def test_a_signal_before_a_stage_that_saves_nothing_stops_it(name: str) -> None:
    """It does not begin: its arguments would be refused."""
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StageStopped):
            run_stage(name, ["nonsense"], stop)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("prepare", ["raw={}/missing", "out={}/out"]),
        ("prepare", ["raw={}/empty", "out={}/out"]),
        ("evaluate", ["run={}/missing"]),
        ("evaluate", ["run={}/empty", "raw={}/missing"]),
    ],
)
def test_a_mount_that_one_node_lacks_can_heal(
    name: str, arguments: list[str], tmp_path: Path
) -> None:
    """A mount leaves no folder, or an empty one, where it is missing."""
    (tmp_path / "empty").mkdir()
    given = [argument.format(tmp_path) for argument in arguments]
    with (
        StopRequest() as stop,
        pytest.raises(UsageError, match=r"no such|no images|not a run") as refused,
    ):
        run_stage(name, given, stop)
    assert refused.value.can_heal


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_data_that_one_node_lacks_can_heal(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as refused:
        read_dataset(tmp_path / name)
    assert refused.value.can_heal


def test_a_folder_of_other_files_cannot_heal(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with StopRequest() as stop, pytest.raises(UsageError, match="no images found") as refused:
        run_stage("prepare", [f"raw={tmp_path}", f"out={tmp_path}/out"], stop)
    assert not refused.value.can_heal


class Told:
    """A stage that notes the environment that it finds."""

    noted = "train"

    def __init__(self, run: Path, code: int = 0) -> None:
        self.run, self.code = str(run), code

    def __call__(self) -> None:
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")
        note(Path(self.run), "told", "train", text=[os.environ[name] for name in names])
        if self.code:
            sys.exit(self.code)


def test_runs_that_share_a_step_have_its_tasks_by_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs of two ranks each, in a step that has room for four."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    runs = [tmp_path / f"fold-{number}" for number in range(3)]
    for run in runs:
        (run / "launch").mkdir(parents=True)
    note(runs[1], "finished", "train", job="8")  # another job's end is not this one's
    note(runs[2], "finished", "train", job="7")
    pack = Pack([Told(run) for run in runs], 2)  # type: ignore[misc]
    for task in (1, 0, 3, 2, 5, 4, 7, 6):  # rank 0 does not end before the others begin
        monkeypatch.setenv("SLURM_PROCID", str(task))
        monkeypatch.setenv("SLURM_LOCALID", str(task))
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
        pack()
        assert os.environ["SLURM_PROCID"] == str(task), "submitit names its files by it"
    told = [[each["text"] for each in read_events(run) if each["event"] == "told"] for run in runs]
    assert told == [
        [["1", "1", "2", "0"], ["0", "0", "2", "0"]],
        [["1", "1", "2", "1"], ["0", "0", "2", "1"]],  # another port than the first
        [],
    ]
    last = [read_events(run)[-1] for run in runs]
    assert [(event["event"], event["job"]) for event in last[1:]] == [("finished", "7")] * 2


def test_a_run_that_shares_a_step_notes_that_it_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, by its first rank, and not where it failed. The process is its own task again then."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_LOCALID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    runs = [tmp_path / "fold-0", tmp_path / "fold-1"]
    for run in runs:
        (run / "launch").mkdir(parents=True)
    pack = Pack([Told(runs[0]), Told(runs[1], 1)], 2)  # type: ignore[misc]
    for task in (1, 0, 2, 3):
        monkeypatch.setenv("SLURM_PROCID", str(task))
        with contextlib.suppress(SystemExit):
            pack()
    kinds = [[event["event"] for event in read_events(run)] for run in runs]
    assert kinds == [["told", "told", "finished"], ["told", "told"]]
    assert not {"SLURM_LOCALID", "SLURM_STEP_ID"} & os.environ.keys(), "left for what comes after"
