"""The chain on this machine, and signals on their way to its programs."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.command_line import EXIT_STOPPED
from data_prep.synthetic import main as synthetic
from launch import jobs as run_jobs
from launch import local
from launch.cluster.profiles import Profile
from launch.local import Relay
from tests import ranks

ROOT = Path(__file__).parents[2]
# As in a task of srun's, or in a shell that torchrun and its settings were tried in
IN_A_JOB = {
    **{"SLURM_JOB_ID": "17", "SLURM_PROCID": "1", "SLURM_ARRAY_JOB_ID": "16", "PMI_RANK": "1"},
    **{"SLURM_ARRAY_TASK_ID": "2", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
    **{"MASTER_ADDR": "n1", "MASTER_PORT": "29500", "PET_NNODES": "2", "CUDA_VISIBLE_DEVICES": ""},
}


def test_the_same_chain_runs_on_this_machine_and_goes_on_after_a_signal(tmp_path: Path) -> None:
    """--cluster local, in a job. On two ranks at first, where SIGUSR2 would end torchrun before a
    save, and then on one."""
    raw, run = tmp_path / "raw", tmp_path / "run"
    synthetic([f"out={raw}", "fields=2", "cases=4", "width_px=200", "height_px=192"])
    chain = [
        "--cluster", "local", "--profile", "cpu", f"raw={raw}", f"run={run}", "copies=4",
        "split.val_cases=[3]", "split.test_cases=[4]", "epochs=8", "crop.size_px=64",
        "model.width=4", "model.depth=2", "amp=off", "panels=0",
    ]  # fmt: skip

    def start(num_ranks: int) -> subprocess.Popen[str]:
        command = [sys.executable, "launch/submit.py", "--ranks-per-node", str(num_ranks), *chain]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **IN_A_JOB}, text=True, **pipes
        )

    stopped = start(2)
    ranks.wait_for(lambda: any(run.glob("checkpoints/*/COMPLETE")), stopped)
    stopped.send_signal(signal.SIGUSR2)
    code, output = ranks.finish(stopped)
    assert code == 1, output  # torchrun's
    at = re.search(r"stopped by SIGUSR2 at step (\d+), saved", output)
    assert at, output
    assert f"error: train ended with code 1; the same command with run={run} goes on" in output
    (log,) = run.glob("launch/jobs/local-1/train_log.out")
    assert at[0] in log.read_text()
    assert run_jobs.status(run)[2].split()[:3] == ["prepare", "local-1", "COMPLETED"]
    assert run_jobs.status(run)[3].split()[:3] == ["train", "local-1", "STOPPED"]
    assert run_jobs.status(run)[-1].endswith(f"steps 0 to {at[1]}  stopped: SIGUSR2")
    code, output = ranks.finish(start(1))
    assert code == 0, output
    assert f"(step {at[1]})" in output, "it went on from another step"
    summary = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
    assert summary["num_fields"] == 2
    first, second = run_jobs.status(run)[-2:]
    assert first.endswith("stopped: SIGUSR2")
    assert second.endswith(f"steps {at[1]} to 16  finished")
    assert "finished" in next(line for line in run_jobs.status(run) if line.startswith("training"))
    events = [json.loads(line) for line in (run / "launch" / "events.jsonl").open()]
    assert [(event["stage"], event["event"]) for event in events if "code" in event] == [
        ("prepare", "finished"),
        ("train", "stopped"),
        ("prepare", "finished"),
        ("train", "finished"),
        ("evaluate", "finished"),
    ]


@pytest.mark.parametrize(("ignored", "expected"), [(False, 7), (True, 0)])
def test_a_closed_terminal_reaches_what_runs_on_this_machine_but_under_nohup(
    ignored: bool, expected: int
) -> None:
    """The program says with code 7 that the signal came to it, and else ends well."""
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGHUP, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\nsignal.sigtimedwait([signal.SIGUSR1], 1)"
    )
    passes_on = (
        "import sys; from launch.local import Relay\n"
        "with (relay := Relay()): sys.exit(relay.run([sys.executable, '-c', sys.argv[1]]))"
    )
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    process = subprocess.Popen(
        [sys.executable, "-c", passes_on, program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == expected


def test_a_signal_that_comes_while_a_program_is_started_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "pathlib.Path(sys.argv[1]).touch()\ntime.sleep(60)"
    )
    ready = tmp_path / "ready"
    may_start = subprocess.Popen

    def start(*given: Any, **options: Any) -> subprocess.Popen[str]:
        process = may_start(*given, **options)
        ranks.wait_for(ready.exists, process)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    relay = Relay()
    with relay:
        assert relay.run([sys.executable, "-c", ""]) == 0  # a stage before, which is no more
        monkeypatch.setattr(subprocess, "Popen", start)
        assert relay.run([sys.executable, "-c", program, str(ready)]) == 7


def test_a_signal_reaches_a_program_once() -> None:
    """train takes a second Ctrl-C as a wish to end without saving."""
    sent: list[int] = []
    relay = Relay()
    relay.note(signal.SIGINT, None)
    relay.process = SimpleNamespace(send_signal=sent.append)  # type: ignore[assignment]
    relay.note(signal.SIGINT, None)  # as where the program was just started
    relay.pass_on()
    assert sent == [signal.SIGINT, signal.SIGINT], "two that came, each once"


def test_a_signal_between_two_stages_ends_the_chain_and_is_no_longer_caught_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(run: Path, event: str, *given: Any, **about: Any) -> None:
        if event == "finished":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(local, "note", noted)
    before = signal.getsignal(signal.SIGTERM)
    touch = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    commands = {
        stage: [sys.executable, "-c", touch, str(tmp_path / stage)]
        for stage in ("prepare", "train")
    }
    argv = ["--cluster", "local", "epochs=3"]
    assert local.run_here(tmp_path, argv, commands, Profile()) == EXIT_STOPPED
    assert (tmp_path / "prepare").exists()
    assert not (tmp_path / "train").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    submission = json.loads((tmp_path / "launch/submission.json").read_text())
    assert submission["command"] == "python launch/submit.py --cluster local epochs=3"
