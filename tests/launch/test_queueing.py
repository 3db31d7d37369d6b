"""What is queued is what --dry-run prints, whatever the submitter's shell holds."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from common import plain_yaml
from common.command_line import UsageError
from launch import submit
from launch.cluster import profiles
from launch.job_requests import Job, too_large
from tests.launch.fakes import answer, write

HOSTILE = {
    "SBATCH_PARTITION": "high",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_EXPORT": "NONE",
    "SRUN_CPUS_PER_TASK": "9",
    "SLURM_MEM_PER_CPU": "1",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that queues all as job 7, and keeps the environment and the script it was given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    keep = f'env > {folder}/environment\ncat "$1" > {folder}/script\n'
    write(folder, "sbatch", f"{keep}echo Submitted batch job 7\n")
    answer(folder, "srun", "")
    answer(folder, "scontrol", "JobId=7 JobState=PENDING Command=(null)")
    return folder


@pytest.fixture
def arguments(raw_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """A preparation in one job, in folders that want quotes."""
    raw, run = raw_folder({"1": 1, "2": 1, "3": 1}), tmp_path / "it's my run"
    return ["--stages", "prepare", "--prep-jobs", "1", f"raw={raw}", f"run={run}"]


def test_the_script_is_the_printed_one_and_the_shell_stays_outside(
    slurm: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(arguments) == 0
    told = capsys.readouterr().err
    assert told == (
        "SBATCH_EXPORT, SBATCH_NO_REQUEUE, SBATCH_PARTITION, SLURM_MEM_PER_CPU, SRUN_CPUS_PER_TASK"
        " of your shell are ignored; put them into the profile, for example under partition: or"
        " sbatch_args:\n"
    )
    environment = (slurm / "environment").read_text()
    assert not [name for name in HOSTILE if f"{name}=" in environment]
    assert "SLURM_CONF=/etc/slurm.conf" in environment
    assert os.environ["SBATCH_PARTITION"] == "high", "the shell of the caller is changed"
    queued = (slurm / "script").read_text()

    assert submit.main(["--dry-run", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == told
    assert without_time(queued) in without_time(printed.out)


@pytest.mark.parametrize(
    "name",
    ["a $HOME `id` $(id)", "say \"x\" && 'y'", "-rf", "#SBATCH --hold", "ü 中 🔬", "~;*?|>&!"],
)
def test_any_name_is_printed_and_queued_alike_and_means_itself(
    name: str, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    raw_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Names of folders, and texts of a profile. The shell of the job reads each as it is."""
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    texts = {"partition": name, "account": name, "qos": name, "constraint": name}
    texts |= {"environment": {"NAME": name}, "sbatch_args": [f"--comment={name}"]}
    texts |= {"srun_args": [f"--comment={name}"], "setup": ["echo 'set up'"]}
    (tmp_path / "mine.yaml").write_text(plain_yaml.dump(texts))
    raw, run = raw_folder({"1": 1, "2": 1, "3": 1}), tmp_path / name / "run"
    asked = ["--profile", "mine", "--stages", "prepare", "--prep-jobs", "1", f"raw={raw}"]
    asked += [f"data={tmp_path / name / 'set'}", f"run={run}"]
    assert submit.main(asked) == 0
    queued = (slurm / "script").read_text()
    capsys.readouterr()
    submit.main(["--dry-run", *asked])
    script, called = capsys.readouterr().out.split("\n# The stage in each task")
    assert without_time(script) == without_time(f"##### prepare\n{queued}")
    assert shlex.split(called.splitlines()[1])[1:][1] == f"out={tmp_path / name / 'set'}"
    assert_flags_mean(queued, dict.fromkeys(("partition", "account", "qos", "comment"), name))
    shell = "".join(f"{word}() {{ printf '%s\\0' \"$@\"; }}\n" for word in ("srun", "cd", "export"))
    shell += 'bash() { shift; srun "$@"; }\n'  # of launch/on_exit.sh
    bash = subprocess.run(
        ["/bin/bash", "-c", shell + queued], capture_output=True, text=True, check=True
    )
    words = bash.stdout.split("\0")
    assert {f"NAME={name}", f"--comment={name}", f"{run}/launch/jobs/%j"} <= set(words)
    assert words[-5:] == [str(run), "prepare", "0", "3", ""]


def assert_flags_mean(script: str, expected: dict[str, str]) -> None:
    """Check the arguments of sbatch in a script."""
    flags = [line[8:] for line in script.splitlines() if line.startswith("#SBATCH --")]
    given = dict(shlex.split(flag)[0].removeprefix("--").partition("=")[::2] for flag in flags)
    assert expected.items() <= given.items()


def without_time(text: str) -> str:
    """A script without the time in the snapshot's name."""
    return re.sub(r"code-[\d-]+", "code", text)


def test_in_a_job_its_dozens_of_variables_are_told_as_one(
    slurm: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    submit.main(["--dry-run", *arguments])
    assert "SRUN_CPUS_PER_TASK, SLURM_* (of job 17) of your shell" in capsys.readouterr().err


def test_a_second_submission_queues_nothing_until_the_first_has_ended(
    slurm: Path, arguments: list[str]
) -> None:
    assert submit.main(arguments) == 0
    run = Path(arguments[-1].removeprefix("run="))
    before = sorted(run.rglob("*"))
    (slurm / "script").unlink()
    with pytest.raises(UsageError, match=r"still in the queue: prepare 7 \(PENDING\)"):
        submit.main(arguments)
    assert sorted(run.rglob("*")) == before
    assert not (slurm / "script").exists()
    answer(slurm, "scontrol", "JobId=7 JobState=FAILED Command=(null)")
    for folder in run.glob("launch/code-*"):  # that of this second
        folder.rename(folder.with_name("code-before"))
    assert submit.main(arguments) == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run=a\n#SBATCH --no-requeue", r"run='.*\\n#SBATCH --no-requeue': holds a line break"),
        ("run=a\x1bb", "holds a line break or a control character"),
        ("data=a\rb", r"data='a\\rb': holds a line break"),
        ("run=half%j", "run=.*half%j: Slurm reads % as a pattern"),
        ("run=a\\b", "Slurm reads .* as a pattern"),
    ],
)
def test_what_would_be_a_line_or_a_pattern_is_refused(
    setting: str, message: str, slurm: Path, arguments: list[str]
) -> None:
    with pytest.raises(UsageError, match=message):
        submit.main([*arguments, setting])
    with pytest.raises(UsageError, match="holds a line break"):
        submit.main([*arguments, "--partition", "low\n#SBATCH --no-requeue"])
    assert not (slurm / "script").exists()


def test_a_folder_whose_name_would_be_a_line_is_refused(
    slurm: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs are told whole paths, in the folder that submit.py was called in."""
    folder = tmp_path / "a\n#SBATCH --hold"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=r"folder='.*a\\n#SBATCH --hold': holds a line break"):
        submit.main(["--dry-run", *arguments, "config=mine.yaml"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UsageError, match=r"data=.*: holds a line break"):
        submit.main(["--dry-run", *arguments, "data=link"])


def test_a_job_that_no_node_can_hold_is_told_what_it_asks_for() -> None:
    asked = {"ntasks_per_node": 2, "cpus_per_task": 8, "gpus_per_node": 2}
    job = Job("train", "train", [[]], asked)
    told = too_large(job, "sbatch: error: Requested node configuration is not available")
    assert "no node has 16 CPUs (2 ranks of cpus_per_task=8), gpus_per_node=2;" in told
    assert "--cpus-per-task" in told
    assert too_large(job, "sbatch: error: invalid partition specified: gpu") == ""
