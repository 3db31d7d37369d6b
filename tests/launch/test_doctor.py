"""doctor.py without a cluster: Slurm's commands are executables that answer as it was seen to."""

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UsageError, UserError
from launch.cluster import node_check, profiles
from launch.cluster.profiles import load_profile
from launch.doctor import main as doctor
from tests.launch.fakes import answer, write

PARTITION = (
    "PartitionName=low Default=YES GraceTime=10 MaxTime=1-00:00:00 Nodes=n[1-2] TotalNodes=2"
    " PreemptMode=CANCEL State=UP"
)
NODE = "NodeName={} CPUTot=8 Gres=gpu:2 RealMemory=64000 State=IDLE Partitions=low"
# What a job sees on a node where all is well
GOOD = {
    "node": "n1", "python": "3.11", "missing": [], "scontrol": True, "unresolved": [],
    "project": True, "shared": True, "shm": 2 * 10**9, "cores": 4, "torch": "2.11", "error": "",
    "gpus": 2, "nccl": True,
}  # fmt: skip


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder for runs."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def cluster(slurm: Path) -> Callable[..., None]:
    """Let a Slurm answer; a job on a node sees what is good, but for some facts."""

    def start(partition: str = PARTITION, **seen: Any) -> None:
        write(
            slurm,
            "scontrol",
            'case "$2" in\n'
            'config) printf "JobRequeue = 0\\nSLURM_VERSION = 22\\nClusterName = dev\\n";;\n'
            f'partition) echo "{partition}";;\n'
            f'node) echo "{NODE.format("n1")}"; echo "{NODE.format("n2")}";;\nesac\n',
        )
        for command in ("sbatch", "squeue"):
            answer(slurm, command, "")
        line = node_check.MARK + json.dumps(GOOD | seen)
        runs = slurm.parent / "runs"
        sees = f'for at in {runs}/.eosin-doctor-*; do echo seen > "$at/n1"; done'
        write(slurm, "srun", f"{sees}\necho 'module: loaded'\necho '{line}'\n")

    return start


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str], shared: Path) -> Callable[..., dict[str, str]]:
    """Call doctor.py; returns question -> verdict and answer."""

    def call(*arguments: str, code: int = 0) -> dict[str, str]:
        capsys.readouterr()
        assert doctor(["--shared", str(shared), *arguments]) == code
        lines = capsys.readouterr().out.splitlines()
        assert len(set(lines)) == len(lines)
        parts = [re.fullmatch(r"(\w+) +(.*?): (.*)", line) for line in lines]
        found = {part[2]: f"{part[1]} {part[3]}" for part in parts if part}
        assert len(found) == len(lines), "a question is answered twice"
        return found

    return call


def test_a_plain_box_has_its_facts_and_is_told_the_ways_out(slurm: Path, ask: Any) -> None:
    told = ask()
    assert "cores" in told["this machine"]
    assert "use torchrun, or submit.py --cluster local" in told["Slurm"]


def test_a_folder_that_is_not_there_is_fatal(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(["--shared", str(tmp_path / "none")]) == 1
    assert "FATAL" in capsys.readouterr().out


class TestComingBack:
    """What decides whether a preempted run comes back."""

    def test_a_cluster_is_asked(self, cluster: Any, ask: Any) -> None:
        """Its grace of ten seconds is enough for a save of ten, and not for one of a minute."""
        cluster()
        told = {question: text.split()[0] for question, text in ask().items()}
        expected = {"Slurm": "fine", "JobRequeue": "doubtful", "partition low": "fine"}
        expected |= {"PreemptMode": "doubtful", "GraceTime": "fine", "signal_lead_s": "fine"}
        assert expected.items() <= told.items()
        assert "doubtful 10 s after SIGTERM, but" in ask("--save-s", "60")["GraceTime"]

    def test_suspension_is_described(self, cluster: Any, ask: Any) -> None:
        cluster(PARTITION.replace("CANCEL", "GANG,SUSPEND"))
        told = ask()["PreemptMode"]
        assert told.startswith("doubtful GANG,SUSPEND: a preempted job is stopped where it is")
        assert "keep their memory" in told


class TestLimits:
    """The same as submit.py refuses."""

    def test_what_cannot_start_is_fatal_with_a_command(self, cluster: Any, ask: Any) -> None:
        cluster(PARTITION.replace("1-00:00:00", "30:00"))
        told = ask("--profile", "default", code=1)["time_min=720"]
        assert told.startswith("FATAL partition low allows 30 (MaxTime)")
        assert told.endswith("python launch/submit.py --profile default --time-min 30")

    def test_without_a_profile_that_of_the_cluster_fits(self, cluster: Any, ask: Any) -> None:
        cluster(PARTITION.replace("1-00:00:00", "30:00"))
        told = ask()
        assert "partition low" in told["profile"]
        assert told["jobs"] == "fine Slurm takes those of all stages"

    def test_slurms_own_refusal_is_fatal(self, cluster: Any, ask: Any, slurm: Path) -> None:
        cluster()
        refusal = "echo 'allocation failure: Invalid account' >&2; echo '(see wiki)' >&2; exit 1\n"
        write(slurm, "sbatch", refusal)
        told = ask("--profile", "default", code=1)
        assert told["jobs"] == (
            "FATAL prepare: Slurm refuses the job: allocation failure: Invalid account"
        )
        assert not [question for question in told if question.endswith(" on n1")], "no job is tried"


class TestNodes:
    """A job of seconds that looks at a node."""

    def test_a_good_node(self, cluster: Any, ask: Any, shared: Path) -> None:
        cluster()
        told = {key: text for key, text in ask().items() if key.endswith(" on n1")}
        assert len(told) == 8
        assert all(text.startswith("fine") for text in told.values())
        assert not list(shared.iterdir())

    @pytest.mark.parametrize(
        ("seen", "question", "expected"),
        [
            ({"project": False}, "{project}", "FATAL is not seen: put it on a file system"),
            ({"shared": False}, "folder for runs {runs}", "FATAL is not shared, or not writable"),
            ({"node": "n9"}, "folder for runs {runs}", "FATAL is not shared"),  # another disk
            ({"missing": ["cv2"]}, "Python", "FATAL 3.11 with torch 2.11, without cv2: install"),
            ({"torch": "", "error": "OSError: libx.so"}, "Python", "FATAL 3.11 with OSError: lib"),
            ({"scontrol": False}, "scontrol", "FATAL not found: a job cannot have itself requeued"),
            ({"unresolved": ["n2"]}, "names of nodes", "FATAL unknown: n2: ranks on several"),
            ({"shm": 10**8}, "/dev/shm", "doubtful 0.1 GB free: loader workers"),
            ({"cores": 1}, "cores", "doubtful 1 for a task: the profile asks for cpus_per_task=4"),
            ({"gpus": 0}, "GPUs", "doubtful torch sees 0, with NCCL"),
            ({"gpus": 1}, "GPUs", "FATAL torch sees 1, with NCCL: the profile asks for 2"),
            ({"nccl": False}, "GPUs", "FATAL torch sees 2, without NCCL"),
        ],
    )
    def test_what_is_missing_there_is_told(
        self, seen: dict[str, Any], question: str, expected: str, cluster: Any, ask: Any,
        shared: Path,
    ) -> None:  # fmt: skip
        cluster(**seen)
        project = Path(__file__).parents[2]
        name = question.format(project=project, runs=shared)
        told = ask(code=int(expected.startswith("FATAL")))
        assert told[f"{name} on {seen.get('node', 'n1')}"].startswith(expected)

    def test_a_job_that_does_not_start_at_once_is_no_failure(
        self, cluster: Any, ask: Any, slurm: Path
    ) -> None:
        cluster()
        write(slurm, "srun", "echo 'srun: error: Unable to allocate: nodes are busy' >&2; exit 1\n")
        told = ask()["a node"]
        assert told.startswith("doubtful not looked at, no job can start at once: srun: error: Un")
        asked = (slurm / "called").read_text()
        assert "--nodes=2" in asked
        assert "--nodes=1" in asked

    def test_a_node_without_python_is_told(self, cluster: Any, ask: Any, slurm: Path) -> None:
        cluster()
        write(slurm, "srun", "echo 'bash: line 2: python: No such file or directory'\n")
        told = ask(code=1)["Python on a node"]
        assert told.startswith(f"FATAL {sys.executable} does not start there: bash: line 2: py")

    def test_the_look_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(node_check, "look_at_torch", dict)
        monkeypatch.setenv("SLURMD_NODENAME", "n1")
        project = Path(__file__).parents[2]
        names = ["localhost", "no-such-host.invalid"]
        seen = node_check.look(str(project), str(tmp_path), "", names)
        expected = {"node": "n1", "missing": [], "project": True, "shared": True}
        expected |= {"scontrol": False, "unresolved": ["no-such-host.invalid"]}
        assert expected.items() <= seen.items()
        assert (tmp_path / "n1").is_file()
        seen = node_check.look(str(tmp_path), str(tmp_path / "none"), "/opt/scontrol", [])
        assert (seen["project"], seen["shared"], seen["scontrol"]) == (False, False, True)
        seen = node_check.look(str(tmp_path), str(tmp_path), node_check.UNSEEN, [])
        assert seen["scontrol"] is None

    def test_it_looks_for_every_package(self) -> None:
        """By the distributions that pyproject.toml lists."""
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
        listed = project["project"]["dependencies"]
        names = {re.split(r"[<>=]", text)[0].replace("-", "_") for text in listed}
        others = {"opencv_python_headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
        assert {others.get(name, name) for name in names} == {*node_check.NEEDED, "torch"}


class TestPythonOfJobs:
    """A node is looked at by what its jobs start, as they start it."""

    @pytest.fixture
    def node(
        self, cluster: Any, slurm: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        """A folder that is PATH on a node, with srun, which runs its command, but no scontrol."""
        cluster()
        monkeypatch.setattr(profiles, "PROFILES", slurm.parent)
        tools = slurm.parent / "tools"
        tools.mkdir()
        for name in ("bash", "dirname", "readlink"):
            (tools / name).symlink_to(shutil.which(name, path="/usr/bin:/bin") or "")
        (tools / "srun").symlink_to(slurm / "srun")
        sees = f'for at in {shared}/.eosin-doctor-*; do echo seen > "$at/n1"; done'
        skip = 'while case "$1" in -*) true;; *) false;; esac; do shift; done'
        write(slurm, "srun", f'{sees}\n{skip}\nPATH={tools}\nexec "$@"\n')
        return tools

    def look(self, folder: Path, name: str) -> None:
        """Let a program say that all is well, and keep the last of its arguments."""
        seen = f"{node_check.MARK}{json.dumps(GOOD)}"
        write(folder, name, f"echo '{seen}'\nfor word; do echo \"$word\"; done > {folder}/words\n")

    def test_that_of_the_profile(self, node: Path, ask: Any, slurm: Path, shared: Path) -> None:
        self.look(slurm.parent, "python")
        (slurm.parent / "own.yaml").write_text(f"python: {slurm.parent}/python\n")
        assert ask("--profile", "own")["scontrol on n1"] == "fine found"
        words = (slurm.parent / "words").read_text().splitlines()
        assert words[-3:] == [str(slurm / "scontrol"), "n1", "n2"]  # beside srun

    def test_that_in_a_container(self, node: Path, ask: Any, slurm: Path, shared: Path) -> None:
        self.look(node, "apptainer")
        (slurm.parent / "own.yaml").write_text("image: docker://eosin:1\ngpus_per_node: 2\n")
        ask("--profile", "own")
        words = (node / "words").read_text().splitlines()
        project = str(Path(__file__).parents[2])
        assert words[:2] == ["exec", "--nv"]
        assert project in words[: words.index("docker://eosin:1")]
        assert f"{shared}/.eosin-doctor-" in " ".join(words[: words.index("docker://eosin:1")])
        assert "python3" in words

    def test_an_image_that_is_not_there(self, node: Path, ask: Any, slurm: Path) -> None:
        (slurm.parent / "own.yaml").write_text("image: none.sif\n")
        told = ask("--profile", "own", code=1)
        assert told["jobs"].startswith("FATAL image=none.sif: no such file")

    def test_that_in_a_container_of_sruns(
        self, node: Path, ask: Any, slurm: Path, shared: Path
    ) -> None:
        """pyxis: srun takes image and folders, and no shell of the node's comes before them."""
        self.look(node, "env")
        (slurm.parent / "own.yaml").write_text("image: eosin:1\ncontainer: pyxis\nnodes: 1\n")
        ask("--profile", "own")
        (asked,) = [line for line in (slurm / "called").read_text().splitlines() if " -c " in line]
        assert "--container-image=eosin:1 --container-mounts=" in asked
        words = (node / "words").read_text().splitlines()
        assert "python3" in words
        assert words[-3:] == [node_check.UNSEEN, "n1", "n2"]

    def test_an_image_that_does_not_start(self, node: Path, ask: Any, slurm: Path) -> None:
        write(
            slurm, "srun", "echo 'slurmstepd: error: pyxis: failed to import image' >&2; exit 1\n"
        )
        (slurm.parent / "own.yaml").write_text("image: eosin:1\ncontainer: pyxis\n")
        told = ask("--profile", "own", code=1)["image eosin:1 on a node"]
        assert told.startswith("FATAL does not start there: slurmstepd: error: pyxis: failed")


class TestWriteProfile:
    """--write-profile."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(profiles, "PROFILES", tmp_path)
        return tmp_path

    def test_it_is_written_and_the_next_commands_are_told(
        self, cluster: Any, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cluster()
        assert doctor(["--write-profile"]) == 0
        told = capsys.readouterr().out
        profile = load_profile("mine", {})
        assert (profile.partition, profile.gpus_per_node, profile.cpus_per_task) == ("low", 2, 4)
        assert (folder / "mine.yaml").read_text() in told
        assert "next  python launch/doctor.py  " in told
        assert "python launch/submit.py --nodes 2" in told
        assert doctor(["--write-profile", "other"]) == 0
        assert "python launch/submit.py --profile other --nodes 2" in capsys.readouterr().out

    def test_a_file_that_is_there_stays(self, cluster: Any, folder: Path) -> None:
        cluster()
        (folder / "mine.yaml").write_text("nodes: 1\n")
        (folder / "mine-2.yaml").write_text("nodes: 2\n")
        with pytest.raises(UsageError, match=r"\n  python launch/doctor.py --write-profile mine-3"):
            doctor(["--write-profile"])
        assert (folder / "mine.yaml").read_text() == "nodes: 1\n"

    def test_other_folders_are_none_of_its_business(self, cluster: Any) -> None:
        cluster()
        with pytest.raises(UsageError, match="not a plain name"):
            doctor(["--write-profile", "../mine"])

    def test_without_a_cluster_it_says_so(self, slurm: Path, cluster: Any) -> None:
        with pytest.raises(UserError, match="no Slurm answers on this machine"):
            doctor(["--write-profile"])
        cluster(PARTITION.replace("State=UP", "State=DOWN"))
        with pytest.raises(UserError, match="no partition is up"):
            doctor(["--write-profile"])
