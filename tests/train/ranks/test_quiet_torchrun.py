"""A refusal under torchrun: one line; what says something else is shown as ever."""

import logging
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from common import command_line
from common.command_line import UsageError
from tests.ranks import ROOT, TIMEOUT_S
from train.ranks import quiet_torchrun


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for the path with the entry points of pyproject.toml, as installation writes them,
    so that those of another checkout do not count."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = tmp_path / f"eosin-{about['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: eosin\nVersion: {about['version']}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in about["entry-points"].items()
    ]
    (folder / "entry_points.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["train", "sede=1"], "sede=1: no key 'sede'"),
        (["data_prep", "seed=1"], "data_prep runs without torchrun, as python -m data_prep "),
    ],
)
def test_a_refusal_on_two_ranks_is_one_line(
    installed: Path, command: list[str], error: str
) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    ended = subprocess.run(
        [sys.executable, "-m", *torchrun, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"error: {error}")
    assert ended.stderr.count("\n") == 1, ended.stderr


def failed(exitcode: int) -> ChildFailedError:
    """What torchrun raises where its first rank ends so."""
    return ChildFailedError("train", {0: ProcessFailure(0, 1, exitcode, "")})


@pytest.mark.parametrize(
    ("error", "is_shown"),
    [
        (failed(1), False),
        (failed(75), False),
        (failed(-signal.SIGKILL), True),
        (SignalException("ended", signal.SIGINT), False),
        (SignalException("ended", signal.SIGTERM), True),
        (RuntimeError("of torchrun itself"), True),
    ],
    ids=["refused", "stopped", "killed", "interrupted", "terminated", "another"],
)
def test_what_no_rank_has_said_is_shown(
    error: Exception, is_shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet_torchrun.show_unexplained(type(error), error, None)
    assert bool(capsys.readouterr().err) == is_shown


@pytest.mark.parametrize(
    ("line", "arguments", "is_of_use"),
    [
        ("failed (exitcode: %s) local_rank: %s", (2, 0), False),
        ("failed (exitcode: %s) local_rank: %s", (-9, 0), True),
        ("Sending process %s closing signal %s", (7, "SIGTERM"), False),
        ("The server socket has failed to listen", (), True),
    ],
)
def test_lines_of_its_log_that_say_something_stay(
    line: str, arguments: tuple[object, ...], is_of_use: bool
) -> None:
    record = logging.LogRecord("torch", logging.ERROR, "api.py", 1, line, arguments, None)
    assert quiet_torchrun.is_of_use(record) == is_of_use


@pytest.mark.parametrize(
    ("argv", "is_ours"),
    [
        (["torchrun", "--nproc-per-node", "2", "-m", "train.evaluate", "run=a"], True),
        (["torchrun", "-m", "data_prep", "seed=1"], True),
        (["torchrun", "train.py"], False),
        (["torchrun", "-m", "trainer"], False),
        (["torchrun", "-m", "another", "train"], False),
    ],
)
def test_other_programs_under_torchrun_are_left_alone(argv: list[str], is_ours: bool) -> None:
    assert quiet_torchrun.starts_ours(argv) == is_ours


@pytest.mark.parametrize("is_started_by_torchrun", [True, False])
def test_a_rank_that_does_not_speak_leaves_the_first_the_time_to(
    is_started_by_torchrun: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """torchrun ends the others as soon as one has ended, and with them the line. A RANK that is
    left behind in a shell silences nobody."""
    waited: list[float] = []
    monkeypatch.setenv("RANK", "1")
    if is_started_by_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr("time.sleep", waited.append)

    def refuse(argv: list[str]) -> int:
        raise UsageError("wrong")

    with pytest.raises(SystemExit) as caught:
        command_line.run(refuse, [])
    told = "" if is_started_by_torchrun else "error: wrong\n"
    assert (caught.value.code, capsys.readouterr().err) == (2, told)
    assert waited == [command_line.RANK_0_PRINTS_S] * is_started_by_torchrun


def test_a_rank_that_saves_is_waited_for_unless_another_wait_is_typed(installed: Path) -> None:
    """By default torchrun kills ranks 30 s after a signal, and dies of SIGUSR2 itself."""
    program = (
        "import sys; sys.argv = ['torchrun', *sys.argv[1:]]\n"
        "from torch.distributed.run import parse_args\n"
        "read = parse_args(sys.argv[1:])\n"
        "print(read.shutdown_timeout, 'SIGUSR2' in read.signals_to_handle)"
    )

    def waits(*argv: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", program, *argv],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert waits("-m", "train") == "3600 True\n"
    assert waits("--shutdown-timeout", "5", "-m", "train") == "5 True\n"
    assert waits("-m", "another") == "None False\n"
