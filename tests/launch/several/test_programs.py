"""Programs that run at once get every signal once, also while they are started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from common.command_line import EXIT_STOPPED
from launch import local
from launch.local import Relay, train_members
from launch.record.events import read_events
from launch.record.local_runs import local_stages

MEETS = (  # waits until all the others are there, so it ends only beside them
    "import pathlib, sys, time\n"
    "here, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
    "(here / str(number)).touch()\n"
    "while len([*here.iterdir()]) < 3: time.sleep(0.02)\n"
    "print('met')\nsys.exit(int(sys.argv[3]))"
)
SAVES = (
    "import signal, sys, time, pathlib\n"
    "got = []\n"
    "signal.signal(signal.SIGTERM, lambda *_: got.append(1))\n"
    "pathlib.Path(sys.argv[1]).touch()\n"
    "while not got: time.sleep(0.02)\n"
    "time.sleep(0.3)\nsys.exit(75 if len(got) == 1 else 9)"
)


def runs(folder: Path, number: int) -> list[Path]:
    return [folder / f"fold-{each}" for each in range(number)]


def test_several_run_at_once_and_one_that_fails_ends_no_other(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    trainings = [
        (run, [sys.executable, "-c", MEETS, str(meeting), str(number), "7" if number == 1 else "0"])
        for number, run in enumerate(runs(tmp_path, 3))
    ]
    with (relay := Relay()):
        assert train_members(trainings, 3, relay) == 7
    states = [local_stages(run)[-1].state for run in runs(tmp_path, 3)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED"]
    for run in runs(tmp_path, 3):
        assert (run / "launch/jobs/local-1/train_log.out").read_text() == "met\n"


def test_one_after_the_other_goes_on_behind_one_that_fails(tmp_path: Path) -> None:
    script = "import sys; sys.exit(int(sys.argv[1]))"
    trainings = [
        (run, [sys.executable, "-c", script, str(code)])
        for run, code in zip(runs(tmp_path, 3), (0, 7, 0), strict=True)
    ]
    with (relay := Relay()):
        assert train_members(trainings, 1, relay) == 7
    assert [local_stages(run)[-1].state for run in runs(tmp_path, 3)][2] == "COMPLETED"


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_stops_what_runs_and_starts_nothing_more(at_once: int, tmp_path: Path) -> None:
    ready = [tmp_path / f"ready-{number}" for number in range(3)]
    trainings = [
        (run, [sys.executable, "-c", SAVES, str(path)])
        for run, path in zip(runs(tmp_path, 3), ready, strict=True)
    ]
    script = (
        "import os, signal, sys, threading, time\nfrom pathlib import Path\n"
        "paths = [Path(path) for path in sys.argv[1:]]\n"
        "deadline = time.monotonic() + 60\n"
        "while not all(p.exists() for p in paths) and time.monotonic() < deadline:\n"
        "    time.sleep(0.02)\n"
        "os.kill(os.getppid(), signal.SIGTERM)"
    )
    with (relay := Relay()):
        teller = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, ready[:at_once])], cwd=tmp_path
        )
        assert train_members(trainings, at_once, relay) == EXIT_STOPPED
        teller.wait()
    ends = [event for run in runs(tmp_path, 3)[:at_once] for event in read_events(run)[-1:]]
    assert [(event["event"], event["code"]) for event in ends] == [("stopped", 75)] * at_once
    assert not read_events(tmp_path / "fold-2"), "it was started after the signal"


def test_a_signal_that_comes_while_a_program_is_started_reaches_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_start = subprocess.Popen

    def start(*given: Any, **options: Any) -> Any:
        process = may_start(*given, **options)
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    command = [sys.executable, "-c", SAVES, str(tmp_path / "ready")]
    with (relay := Relay()):
        assert local.train_at_once([(tmp_path / "fold-0", command)], 2, relay) == 75
