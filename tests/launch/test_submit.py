"""submit.py without a cluster: what is refused, what is printed, and the chain on one machine."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UsageError, UserError
from launch import queueing
from launch import submit as submit_module
from launch.cluster import profiles, slurm_commands
from launch.cluster.profiles import PROFILES, Profile, load_profile
from launch.job_requests import Job, plan, printed, script
from launch.queueing import queue
from launch.stages import Request, stage_arguments
from tests.launch.fakes import write

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
        texts = [printed(run, job, waited) for job, waited in zip(jobs, before, strict=False)]
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

    def test_a_range_of_nodes_tells_only_srun_how_many_tasks_a_node_has(
        self, submit: Submit, raw: Path, tmp_path: Path
    ) -> None:
        """Or Slurm takes no more nodes than one node has tasks (measured on 22.05)."""
        flags = ("--nodes", "1-4", "--gpus-per-node", "2", "--cpus-per-task", "3")
        done = submit("--dry-run", *flags, f"raw={raw}", f"run={tmp_path / 'run'}")
        assert done.code == 0, done.err
        (train,) = [part for part in done.out.split("#####") if part.startswith(" train\n")]
        for line in (
            "#SBATCH --nodes=1-4",
            "#SBATCH --mincpus=6",
            "#SBATCH --gpus-per-node=2",
            " --ntasks-per-node=2 ",
            " --cpus-per-task=3 ",
            # of all 8 ranks, however many start
            " epochs=1 batch_size=8 microbatches=8",
        ):
            assert line in train.replace(f"run={tmp_path / 'run'}", "epochs=1")
        assert "#SBATCH --ntasks-per-node" not in train
        assert "#SBATCH --cpus-per-task" not in train


class TestRefusals:
    """Before anything is queued."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nosuch=1"], "nosuch=1: no stage knows 'nosuch'"),
            (["epochs=three"], "train: epochs=three"),
            (["train.epochs=0"], "train: epochs=0: must be at least 1"),
            (["prepare.copies=x"], "prepare: copies=x"),
            (["loss.class_weights=[1,2]"], "has 1 class to learn (tumor); give a weight for each"),
            (
                ["--profile", "nosuch"],
                "--profile nosuch: slurm/nosuch.yaml does not exist; profiles are cpu, default",
            ),
            (["--nodes", "0"], "nodes=0: expected a whole number from 1"),
            (["--stages", "train,paint"], "unknown paint; prepare, train, evaluate"),
        ],
    )
    def test_one_line_and_code_2_above_what_would_be_accepted(
        self, submit: Submit, arguments: list[str], message: str, raw: Path
    ) -> None:
        done = submit("--dry-run", f"raw={raw}", *arguments)
        assert done.code == 2
        told = "no --profile given, and no Slurm on this machine (no sbatch): default is used\n"
        first, *commands = done.err.replace(told, "").splitlines()
        assert message in first
        assert f"  python launch/submit.py --dry-run raw={raw}" in commands

    @pytest.mark.parametrize(
        ("arguments", "instead"),
        [
            (["--ranks-per-node", "2"], ["--ranks-per-node 2 --gpus-per-node 0", ""]),
            (["--time-min", "2"], ["--time-min 2 --signal-lead-s 30", ""]),
            (["--signal-lead-s", "43200"], ["--signal-lead-s 43200 --time-min 722", ""]),
            (["epoch=1"], ["raw epochs=1", ""]),
            (["nodes=2"], ["--nodes 2"]),
            (["out=sets/a"], ["raw data=sets/a", ""]),
            (["acount=a"], ["--account a"]),
        ],
    )
    def test_whole_commands_are_named_that_are_accepted(
        self, submit: Submit, arguments: list[str], instead: list[str], raw: Path
    ) -> None:
        done = submit("--dry-run", *arguments, f"raw={raw}")
        lines = [line.removeprefix("  ") for line in done.err.splitlines()[1:]]
        assert len(lines) >= len(instead)
        for wanted, line in zip(instead, lines, strict=False):
            flags, _, more = wanted.partition("raw ")
            parts = ["python launch/submit.py --dry-run", flags, f"raw={raw}", more]
            assert line == " ".join(filter(None, parts))
            assert submit(*line.split()[2:]).code == 0

    def test_on_this_machine_ranks_need_no_gpu_where_there_is_none(
        self, submit: Submit, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = ("--cluster", "local", "--dry-run", "--stages", "prepare,train", f"raw={raw}")
        monkeypatch.setattr("launch.cluster.suggestion.DEVICES", tmp_path)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert "--nproc-per-node 2 " in submit(*given, "--ranks-per-node", "2").out
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        assert "--nproc-per-node" not in submit(*given).out
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
            (tmp_path / name).touch()
        assert "--nproc-per-node 3 " in submit(*given).out
        assert "--nproc-per-node" not in submit(*given, "--gpus-per-node", "1").out
        for named, has_two in (("1,0", True), ("1,0,-1,2", True), ("-1", False), ("", False)):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
            assert ("--nproc-per-node 2 " in submit(*given).out) == has_two
            assert ("--nproc-per-node" in submit(*given).out) == has_two

    def test_outside_a_cluster_both_ways_out_are_named(self, submit: Submit, raw: Path) -> None:
        done = submit(f"raw={raw}")
        assert done.code == 2
        assert "no Slurm on this machine" in done.err
        assert f"\n  python launch/submit.py --cluster local raw={raw}" in done.err
        assert f"\n  python launch/submit.py --dry-run raw={raw}" in done.err


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
    assert train.endswith("epochs=7 batch_size=8 microbatches=2")
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


def test_ctrl_c_between_two_jobs_cancels_what_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command would queue a second chain beside them."""
    cancelled: list[str] = []

    def queue_one(run: Path, job: Job, ids: dict[str, str]) -> None:
        if ids:
            raise KeyboardInterrupt
        ids[job.label] = "7"

    def cancel(jobs: list[str]) -> list[str]:
        cancelled.extend(jobs)
        return []

    monkeypatch.setattr(queueing, "queue_one", queue_one)
    monkeypatch.setattr(slurm_commands, "cancel", cancel)
    with pytest.raises(KeyboardInterrupt):
        queue(tmp_path, [Job("prepare", "prepare", [[]], {}), Job("join", "prepare", [[]], {})])
    assert cancelled == ["7"]


FITTING = ("batch_size=2", "crop.size_px=64")  # three fields of 160 x 120 px


class TestNothingIsLeft:
    """A submission that is refused or fails removes what it made, and nothing else."""

    @pytest.fixture
    def prepared(self, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Flags and settings that train on a prepared set, in a folder of one's own, with a Slurm
        whose jobs are all forgotten."""
        from data_prep.__main__ import main as data_prep

        data = tmp_path / "data"
        given = ["copies=1", "workers=1", "split.val=0", "split.test=0"]
        assert data_prep([f"raw={raw}", f"out={data}", *given]) == 0
        here, slurm = tmp_path / "here", tmp_path / "bin"
        here.mkdir()
        slurm.mkdir()
        monkeypatch.chdir(here)
        monkeypatch.setenv("PATH", f"{slurm}:/usr/bin:/bin")
        job = f"JobId=41 JobState=PENDING Reason=None Command=$(cat {slurm}/path) WorkDir=/"
        ours = '"show job --oneliner --all" | "show job --oneliner 41"'
        unknown = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
        write(slurm, "scontrol", f'case "$*" in {ours}) echo "{job}";; *) {unknown};; esac\n')
        write(slurm, "scancel", f'echo "$1" >> {slurm}/cancelled\n')
        accepts = f'echo "$2" > {slurm}/path; echo 41; exit 0'
        refuses = "echo sbatch: error: no more >&2; exit 1"
        is_test, is_last = '[ "$1" = --test-only ] && exit 0', 'grep -q eosin-evaluate "$2"'
        write(slurm, "sbatch", f"{is_test}\n{is_last} && {{ {refuses}; }}\n{accepts}\n")
        return ["--profile", "default", "--stages", "train,evaluate", *FITTING, f"data={data}"]

    def test_a_refused_second_job_takes_the_first_with_it(
        self, prepared: list[str], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="evaluate: Slurm refuses the job"):
            submit_module.main(prepared)
        assert (tmp_path / "bin" / "cancelled").read_text().split() == ["41"]
        assert list((tmp_path / "here").iterdir()) == []

    def test_what_slurm_does_not_cancel_keeps_its_files_and_its_record(
        self, prepared: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else it would start without its code, and the next submission would not know of it."""
        monkeypatch.setattr(slurm_commands, "WAIT_S", 0)
        write(tmp_path / "bin", "scancel", "echo scancel: error: Socket timed out >&2; exit 1\n")
        with pytest.raises(UserError, match=r"no more; .* `scancel 41` does it later$") as refused:
            submit_module.main([*prepared, "run=mine"])
        assert "nothing is left" not in str(refused.value)
        run = tmp_path / "here" / "mine"
        assert len(list(run.glob("launch/code-*/launch/job.py"))) == 1
        assert (run / "launch/jobs/41/41_submission.sh").is_file()
        with pytest.raises(UsageError, match=r"still in the queue: train 41 \(PENDING\)"):
            submit_module.main([*prepared, "run=mine"])

    def test_what_was_there_before_stays(self, prepared: list[str], tmp_path: Path) -> None:
        kept = tmp_path / "here" / "mine" / "launch" / "jobs" / "7" / "7_0_log.out"
        kept.parent.mkdir(parents=True)
        kept.touch()
        with pytest.raises(UserError, match="evaluate: Slurm refuses the job"):
            submit_module.main([*prepared, "run=mine"])
        assert [path for path in (tmp_path / "here").rglob("*") if path.is_file()] == [kept]

    def test_an_empty_folder_of_the_users_stays(self, prepared: list[str], tmp_path: Path) -> None:
        (tmp_path / "here" / "mine").mkdir()
        with pytest.raises(UserError, match="evaluate: Slurm refuses the job"):
            submit_module.main([*prepared, "run=mine"])
        assert list((tmp_path / "here").rglob("*")) == [tmp_path / "here" / "mine"]

    @pytest.mark.parametrize("cluster", ["slurm", "local"])
    def test_nor_where_it_cannot_be_recorded(
        self,
        prepared: list[str],
        tmp_path: Path,
        cluster: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its jobs, which are queued by then, are cancelled."""

        def fail(*given: Any) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr(queueing, "write_submission", fail)
        stage = [
            "--profile",
            "default",
            "--cluster",
            cluster,
            "--stages",
            "train",
            *FITTING,
            prepared[-1],
        ]
        with pytest.raises(OSError, match="full"):
            submit_module.main(stage)
        assert list((tmp_path / "here").iterdir()) == []
        if cluster == "slurm":
            assert (tmp_path / "bin" / "cancelled").read_text().split() == ["41"]
