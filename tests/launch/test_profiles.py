"""Profiles: typed GPUs, arguments of sbatch, and what a file gets wrong."""

from pathlib import Path
from typing import Any

import pytest

from common.command_line import UsageError
from launch.cluster import profiles
from launch.cluster.profiles import Profile, load_profile
from launch.job_requests import plan, script

RUN = Path("/runs/a")
STAGES = {"prepare": [], "train": [], "evaluate": []}


def scripts(profile: Profile) -> dict[str, list[str]]:
    """Stage -> the arguments of sbatch in its script."""
    jobs = plan(RUN, RUN / "code", STAGES, profile)
    return {
        job.label: [
            line.removeprefix("#SBATCH ")
            for line in script(RUN, job, "").splitlines()
            if line.startswith("#SBATCH")
        ]
        for job in jobs
    }


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make slurm/mine.yaml of a text, and load it."""
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)

    def load(text: str, **flags: str) -> Profile:
        (tmp_path / "mine.yaml").write_text(text)
        return load_profile("mine", flags)

    return load


@pytest.mark.parametrize(
    ("name", "train", "evaluate"),
    [
        ("cpu", {"cpus-per-task": "2", "ntasks-per-node": "2"}, {"cpus-per-task": "2"}),
        (
            "dev",
            {"cpus-per-task": "1", "ntasks-per-node": "2", "gpus-per-node": "2"}
            | {"partition": "low", "signal": "USR2@30", "time": "60"},
            {"cpus-per-task": "1", "partition": "low", "signal": "USR2@30", "time": "60"},
        ),
        (
            "preemptible",
            {"cpus-per-task": "8", "ntasks-per-node": "2", "gpus-per-node": "2"}
            | {"partition": "preemptible", "signal": "USR2@180", "time": "1440"},
            {"cpus-per-task": "8", "partition": "preemptible", "signal": "USR2@180"}
            | {"time": "1440"},
        ),
    ],
)
def test_a_shipped_profile_asks_for_this_where_the_default_does_not(
    name: str, train: dict[str, str], evaluate: dict[str, str]
) -> None:
    """What the default asks for is in default.sbatch."""
    default, asked = scripts(load_profile("default", {})), scripts(load_profile(name, {}))
    for label, expected in (("train", train), ("evaluate", evaluate)):
        added = [argument.removeprefix("--") for argument in asked[label]]
        new = dict(pair.split("=", 1) for pair in added if f"--{pair}" not in default[label])
        assert new == expected
        assert any("gpu" in pair for pair in added) is (name != "cpu")


class TestGPUs:
    """A number, or a type and a number."""

    def test_a_type_reaches_every_job_with_gpus(self) -> None:
        profile = load_profile("default", {"gpus_per_node": "a100:2", "prep_jobs": "1"})
        assert (profile.gpus, profile.tasks_per_node) == (2, 2)
        asked = scripts(profile)
        assert "--gpus-per-node=a100:2" in asked["train"]
        assert "--ntasks-per-node=2" in asked["train"]
        assert "--gpus-per-node=a100:1" in asked["evaluate"]
        assert not [argument for argument in asked["prepare"] if "gpu" in argument]

    def test_a_file_gives_it_too_and_a_flag_comes_after_it(self, write: Any) -> None:
        assert write("gpus_per_node: a100:2").gpu_type == "a100"
        assert write("gpus_per_node: a100:2", gpus_per_node="4").gpus_per_node == 4

    @pytest.mark.parametrize("wrong", ["a100", ":2", "a100:0", "a100:two", "a b:2", "1.5"])
    def test_what_is_neither_is_refused(self, wrong: str) -> None:
        with pytest.raises(UsageError, match=r"gpus_per_node=.*: expected .* as in a100:2"):
            load_profile("default", {"gpus_per_node": wrong})

    def test_gres_gives_them_where_the_number_is_said_too(self, write: Any) -> None:
        profile = write("gpus_per_node: 2\nprep_jobs: 1\nsbatch_args: ['--gres=gpu:a100:2,lic:1']")
        asked = scripts(profile)
        for label in ("train", "evaluate"):
            assert "--gres=gpu:a100:2,lic:1" in asked[label]
            assert not [argument for argument in asked[label] if "gpus-per-node" in argument]
        assert "--ntasks-per-node=2" in asked["train"]
        assert "--gres=lic:1" in asked["prepare"]

    @pytest.mark.parametrize(
        ("gres", "gpus", "given"),
        [("gpu:a100:2", "1", 2), ("gpu:2", "0", 2), ("gpu", "2", 1), ("gpu:a:1,gpu:b:2", "a:3", 3)],
    )
    def test_gres_that_gives_another_number_is_refused(
        self, gres: str, gpus: str, given: int, write: Any
    ) -> None:
        with pytest.raises(UsageError, match=rf"--gres={gres}: gives {given} GPUs per node"):
            write(f"gpus_per_node: {gpus}\nsbatch_args: ['--gres={gres}']")


class TestSbatchArguments:
    """sbatch_args."""

    def test_they_are_in_every_script_those_about_gpus_only_where_there_are_gpus(self) -> None:
        given = ["--exclude=gpu3", "--exclusive", "--mem-per-gpu=20G", "--comment=two words"]
        asked = scripts(Profile(sbatch_args=given, prep_jobs=1))
        for label in ("prepare", "train", "evaluate"):
            assert {"--exclude=gpu3", "--exclusive", "--comment='two words'"} <= set(asked[label])
            assert ("--mem-per-gpu=20G" in asked[label]) is (label != "prepare")

    @pytest.mark.parametrize(
        ("argument", "instead"),
        [
            ("--nodes=2", "nodes:"),
            ("--gpus=4", "gpus_per_node:"),
            ("--tim=5", "time_min:"),  # sbatch would take it
            ("--mincpus=9", "cpus_per_task:"),  # a range of nodes gives its own
            ("--part=high", "partition:"),
            ("--no-requeue", "retries:"),
            ("--export=NONE", "environment:"),
            ("--output=/x", "RUN/launch/jobs"),
        ],
    )
    def test_what_eosin_sets_is_refused_with_the_key_to_use(
        self, argument: str, instead: str, write: Any
    ) -> None:
        with pytest.raises(UsageError) as error:
            write(f"sbatch_args: [{argument}]")
        assert str(error.value).startswith(f"slurm/mine.yaml: sbatch_args: {argument}: Eosin sets")
        assert instead in str(error.value)

    @pytest.mark.parametrize(
        "wrong", ["-x n3", "exclude=n3", "--exclude n3", "--no_requeue", "--exclude=", ""]
    )
    def test_what_is_no_long_argument_is_refused(self, wrong: str) -> None:
        with pytest.raises(ValueError, match="expected --name or --name=value"):
            Profile(sbatch_args=[wrong])

    @pytest.mark.parametrize(
        ("argument", "instead"),
        [
            ("--export=NONE", "environment:"),
            ("--exp=NONE", "environment:"),
            ("--ntasks=1", "ranks_per_node:"),
            ("--nodes=1", "nodes:"),
            ("--output=/x", "RUN/launch/jobs"),
            ("--kill-on-bad-exit=0", "retries:"),
            ("--kill=0", "retries:"),
            ("--cpus-per-task=1", "cpus_per_task:"),
            ("--chdir=/x", "setup:"),
            ("--gpus-per-task=1", "gpus_per_node:"),
        ],
    )
    def test_srun_is_not_told_otherwise_either(
        self, argument: str, instead: str, write: Any
    ) -> None:
        """Its last argument counts: it would undo what the script needs."""
        with pytest.raises(UsageError) as error:
            write(f"srun_args: [{argument}]")
        assert str(error.value).startswith(f"slurm/mine.yaml: srun_args: {argument}: Eosin sets --")
        assert instead in str(error.value)

    @pytest.mark.parametrize("wrong", ["-n1", "-n 1", "--mpi pmix", "pmix", ""])
    def test_srun_takes_whole_names_too(self, wrong: str) -> None:
        """-n1 would be one task."""
        with pytest.raises(
            ValueError, match=r"srun_args: .*expected --name or --name=value, as in"
        ):
            Profile(srun_args=[wrong])

    def test_what_is_only_sruns_is_taken(self) -> None:
        given = ["--mpi=pmix", "--cpu-bind=cores", "--wait=60", "--label", "--gpu-bind=none"]
        given += ["--container-mounts=/a:/a", "--mem-bind=local", "--network=single_node_vni"]
        profile = Profile(srun_args=given)
        (job,) = plan(RUN, RUN / "code", {"train": []}, profile)
        (line,) = [line for line in script(RUN, job, "").splitlines() if "--mpi=pmix" in line]
        assert all(argument in line for argument in given)

    def test_two_ways_to_give_the_memory_are_refused(self) -> None:
        with pytest.raises(ValueError, match="--mem-per-gpu: contradicts mem_gb"):
            Profile(sbatch_args=["--mem-per-gpu=2G"], mem_gb=4)


class TestLines:
    """No value becomes a line of the script by itself."""

    @pytest.mark.parametrize(
        "wrong",
        [
            {"partition": "low\n#SBATCH --no-requeue"},
            {"environment": {"A\n#SBATCH --hold\nB": "1"}},
            {"environment": {"A": "1\nreboot"}},
            {"environment": {"A;reboot;B": "1"}},
            {"srun_args": ["--mpi=none\nreboot"]},
            {"sbatch_args": ["--comment=a\x1b[2J"]},
            {"setup": ["module load cuda\x07"]},
            {"setup": ["# first", "  #SBATCH --no-requeue"]},
            {"setup": ["# first\n#SBATCH --no-requeue"]},
        ],
    )
    def test_a_line_break_or_a_control_character_is_refused(self, wrong: dict[str, Any]) -> None:
        (key,) = wrong
        with pytest.raises(ValueError, match=f"^{key}[=:]"):
            Profile(**wrong)

    def test_setup_may_have_several_lines(self) -> None:
        Profile(setup=["if true; then\n\tmodule load cuda\nfi"], environment={"A": "é 'b' $c"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: two", "mine.yaml: nodes=two: expected a whole number from 1, or the least and"),
        ("nodes: 0", "slurm/mine.yaml: nodes=0: expected a whole number from 1"),
        ("nodes: 4-1", "slurm/mine.yaml: nodes=4-1: expected a whole number from 1"),
        ("nodes: 0-2", "slurm/mine.yaml: nodes=0-2: expected a whole number from 1"),
        ("nodes: 1-", "slurm/mine.yaml: nodes=1-: expected a whole number from 1"),
        ("gpus_per_node: many", "slurm/mine.yaml: gpus_per_node=many: expected"),
        ("setup: module load cuda", "mine.yaml: setup: expected a list"),
        ("sbatch_args: --exclusive", "mine.yaml: sbatch_args: expected a list"),
        ("sbatch_args: {gres: x}", "mine.yaml: sbatch_args: expected a list"),
        ("environment: [A]", "mine.yaml: environment: "),
        ("partition: [a, b]", "mine.yaml: partition: expected text"),
        ("nosuch: 1", "mine.yaml: nosuch: no key 'nosuch'"),
        ("nodes: 1\n\tx", "mine.yaml: "),
        ("- nodes", "mine.yaml: holds no keys"),
    ],
)
def test_a_wrong_profile_is_told_by_file_and_key(text: str, message: str, write: Any) -> None:
    with pytest.raises(UsageError) as error:
        write(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_flag_is_not_blamed_on_the_file(write: Any) -> None:
    with pytest.raises(UsageError, match=r"^nodes=0: expected a whole number"):
        write("partition: low", nodes="0")


def test_one_run_is_not_packed_and_may_have_several_nodes() -> None:
    profile = Profile(pack=4, nodes=2)
    assert profile.packing(1) == Profile(pack=1, nodes=2)
    with pytest.raises(UsageError, match="pack=4, nodes=2: runs that share"):
        profile.packing(3)
