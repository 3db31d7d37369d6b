"""submit.py without a cluster: what is refused, what is printed, and the chain on one machine."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.command_line import EXIT_STOPPED, UsageError, UserError
from data_prep.synthetic import main as synthetic
from launch import profiles, queueing, slurm_commands
from launch import submit as submit_module
from launch.profiles import PROFILES, Profile, load_profile
from launch.queueing import Job, plan, queue, script
from launch.stages import Request, stage_arguments
from launch.submit import Relay
from tests import ranks

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "default.sbatch"


Submit = Callable[..., Any]


@pytest.fixture
def submit(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Call submit.py where no Slurm is to be found; returns code, out and err."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "/bin-without-slurm")
    monkeypatch.setenv("SLURM_CONF", "")

    def call(*arguments: str) -> Any:
        return cli(submit_module.main, *arguments)

    return call


@pytest.fixture
def raw(raw_folder: Callable[..., Path]) -> Path:
    return raw_folder({"1": 1, "2": 1, "3": 1})


class TestDryRun:
    """The exact scripts, on a machine without Slurm."""

    def test_the_default_profile_gives_the_golden_scripts(self) -> None:
        """To change the golden file on purpose: delete it, run this test, read the difference."""
        run, profile = Path("/shared/runs/first"), load_profile("default", {"nodes": "2"})
        request = Request({"raw": "/shared/raw", "epochs": "3"}, run)
        arguments = stage_arguments(["prepare", "train", "evaluate"], request, profile)
        jobs = plan(run, run / "launch" / "code-1", arguments, profile)
        before = ["", *(f"<id of {job.label}>" for job in jobs)]
        texts = [script(run, job, waited) for job, waited in zip(jobs, before, strict=False)]
        text = "\n".join(texts).replace(sys.executable, "/usr/bin/python")
        if not GOLDEN.is_file():
            GOLDEN.write_text(text)
        assert text == GOLDEN.read_text()

    def test_it_prints_every_job_and_queues_nothing(
        self, submit: Submit, raw: Path, tmp_path: Path
    ) -> None:
        done = submit("--dry-run", "--nodes", "4", f"raw={raw}", f"run={tmp_path / 'run'}")
        assert done.code == 0, done.err
        for line in (
            "#SBATCH --array=0-3%4",
            "#SBATCH --nodes=4",
            "#SBATCH --dependency='afterok:<id of join>'",
            "#SBATCH --signal=USR2@120",
            "--cpus-per-task=4 --kill-on-bad-exit=1",
        ):
            assert line in done.out
        assert not (tmp_path / "run").exists()


class TestRefusals:
    """Before anything is queued."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nosuch=1"], "nosuch=1: no stage knows 'nosuch'"),
            (["epochs=three"], "train: epochs=three"),
            (["train.epochs=0"], "train: epochs=0: must be at least 1"),
            (["prepare.copies=x"], "prepare: copies=x"),
            (
                ["--profile", "nosuch"],
                "--profile nosuch: slurm/nosuch.yaml does not exist; profiles are cpu, default",
            ),
            (["--nodes", "0"], "nodes=0: must be at least 1"),
            (["--stages", "train,paint"], "unknown paint; prepare, train, evaluate"),
        ],
    )
    def test_one_line_and_code_2(
        self, submit: Submit, arguments: list[str], message: str, raw: Path
    ) -> None:
        done = submit("--dry-run", f"raw={raw}", *arguments)
        assert done.code == 2
        assert message in done.err
        assert done.err.count("\n") == 1

    def test_outside_a_cluster_both_ways_out_are_named(self, submit: Submit, raw: Path) -> None:
        done = submit(f"raw={raw}")
        assert done.code == 2
        assert "no Slurm on this machine" in done.err
        assert "--dry-run" in done.err
        assert "--cluster local" in done.err


class TestProfiles:
    """The settings of clusters."""

    def test_flags_come_after_the_profile(self) -> None:
        assert load_profile("dev", {}).gpus_per_node == 2
        profile = load_profile("dev", {"gpus_per_node": "0", "ranks_per_node": "3"})
        assert (profile.partition, profile.tasks_per_node) == ("low", 3)

    def test_a_profiles_text_reaches_the_script_as_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The shell of a job expands it, not submit.py with the variables of whoever submits."""
        monkeypatch.setattr(profiles, "PROFILES", tmp_path)
        monkeypatch.setenv("SECRET", "t0p-secret")
        (tmp_path / "mine.yaml").write_text(
            "partition: ${oc.env:SECRET}\n"
            "setup:\n  - export CUDA=${CUDA:-/usr/local/cuda}\n  - echo ${oc.env:SECRET} ${a\n"
            "environment:\n  CACHE: $HOME/x\n  TOOLS: ${HOME}/tools\n"
        )
        profile = load_profile("mine", {"account": "${oc.env:SECRET}"})
        assert profile.setup == [
            "export CUDA=${CUDA:-/usr/local/cuda}",
            "echo ${oc.env:SECRET} ${a",
        ]
        run = Path("/runs/a${b}")
        (job,) = plan(run, run / "code", {"train": [f"run={run}"]}, profile)
        lines = script(run, job, "").splitlines()
        assert "export CUDA=${CUDA:-/usr/local/cuda}" in lines
        assert "echo ${oc.env:SECRET} ${a" in lines
        assert "export CACHE='$HOME/x'" in lines
        assert "export TOOLS='${HOME}/tools'" in lines
        assert "#SBATCH --partition='${oc.env:SECRET}'" in lines
        assert "t0p-secret" not in "\n".join(lines)

    def test_every_shipped_profile_loads_and_the_template_names_every_key(self) -> None:
        for path in PROFILES.glob("*.yaml"):
            load_profile(path.stem, {})
        keys = set(re.findall(r"^(\w+):", (PROFILES / "template.yaml").read_text(), re.MULTILINE))
        assert keys == set(Profile.__dataclass_fields__)

    def test_ranks_and_gpus_that_contradict_are_refused(self) -> None:
        with pytest.raises(UsageError, match="gives one rank per GPU; leave ranks_per_node out"):
            load_profile("default", {"gpus_per_node": "2", "ranks_per_node": "3"})


def test_a_signal_that_may_come_as_the_job_starts_is_refused() -> None:
    """Slurm may send it a minute early: a job of 3 minutes can be told at most 2 ahead."""
    with pytest.raises(UsageError, match="signal_lead_s=120, time_min=3: Slurm sends"):
        load_profile("default", {"time_min": "3", "signal_lead_s": "120"})
    load_profile("default", {"time_min": "3", "signal_lead_s": "119"})


def test_a_dry_run_on_this_machine_prints_the_commands_and_runs_nothing(
    submit: Submit, raw: Path, tmp_path: Path
) -> None:
    done = submit(
        "--cluster", "local", "--dry-run", "--profile", "cpu", "--ranks-per-node", "2",
        f"raw={raw}", f"run={tmp_path / 'run'}", "epochs=7",
    )  # fmt: skip
    assert done.code == 0, done.err
    prepare, train, evaluate = done.out.splitlines()
    assert f"-m data_prep out={tmp_path / 'run/prepared'}" in prepare
    assert "torch.distributed.run" in train
    assert train.endswith("epochs=7")
    assert evaluate.endswith(f"-m train.evaluate run={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_a_submission_that_is_another_programs_is_left_alone(raw: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run" / "launch" / "submission.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    given = ["--cluster", "local", f"raw={raw}", f"run={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"in the way.*: submission\.json; .*name another run="):
        submit_module.main(given)
    assert mine.read_text() == "mine"


def test_the_same_chain_runs_on_this_machine_and_goes_on_after_a_signal(tmp_path: Path) -> None:
    """--cluster local. On two ranks at first, where SIGUSR2 would end torchrun before a save, and
    then on one."""
    raw, run = tmp_path / "raw", tmp_path / "run"
    synthetic([f"out={raw}", "fields=2", "cases=4", "width_px=200", "height_px=192"])
    chain = [
        "--cluster", "local", "--profile", "cpu", f"raw={raw}", f"run={run}", "copies=4",
        "split.val_cases=[3]", "split.test_cases=[4]", "epochs=8", "crop.size_px=64",
        "model.width=4", "model.depth=2", "amp=off", "panels=0",
    ]  # fmt: skip

    def start(num_ranks: int) -> subprocess.Popen[str]:
        command = [sys.executable, "launch/submit.py", "--ranks-per-node", str(num_ranks), *chain]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    stopped = start(2)
    ranks.wait_for(lambda: any(run.glob("checkpoints/*/COMPLETE")), stopped)
    stopped.send_signal(signal.SIGUSR2)
    code, output = ranks.finish(stopped)
    assert code == 1, output  # torchrun's
    at = re.search(r"stopped by SIGUSR2 at step (\d+), saved", output)
    assert at, output
    assert f"error: train ended with code 1; the same command with run={run} goes on" in output
    code, output = ranks.finish(start(1))
    assert code == 0, output
    assert f"(step {at[1]})" in output, "it went on from another step"
    summary = json.loads((run / "evaluation" / "test" / "summary.json").read_text())
    assert summary["num_fields"] == 2
    events = [json.loads(line) for line in (run / "launch" / "events.jsonl").open()]
    assert [(event["stage"], event["event"]) for event in events if "code" in event] == [
        ("prepare", "finished"),
        ("train", "gave up"),
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
        "import sys; from launch.submit import Relay\n"
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


def test_ctrl_c_between_two_jobs_cancels_what_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command would queue a second chain beside them."""
    cancelled: list[tuple[str, ...]] = []

    def queue_one(run: Path, job: Job, before: str) -> str:
        if before:
            raise KeyboardInterrupt
        return "7"

    monkeypatch.setattr(queueing, "queue_one", queue_one)
    monkeypatch.setattr(slurm_commands, "ask", lambda *words: cancelled.append(words))
    with pytest.raises(KeyboardInterrupt):
        queue(tmp_path, [Job("prepare", "prepare", [[]], {}), Job("join", "prepare", [[]], {})])
    assert cancelled == [("scancel", "7")]


def test_a_signal_between_two_stages_ends_the_chain_and_is_no_longer_caught_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(run: Path, event: str, *given: Any, **about: Any) -> None:
        if event == "finished":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(submit_module, "note", noted)
    before = signal.getsignal(signal.SIGTERM)
    touch = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    commands = {
        stage: [sys.executable, "-c", touch, str(tmp_path / stage)]
        for stage in ("prepare", "train")
    }
    argv = ["--cluster", "local", "epochs=3"]
    assert submit_module.run_here(tmp_path, argv, commands, Profile()) == EXIT_STOPPED
    assert (tmp_path / "prepare").exists()
    assert not (tmp_path / "train").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    submission = json.loads((tmp_path / "launch/submission.json").read_text())
    assert submission["command"] == "python launch/submit.py --cluster local epochs=3"
