"""What is queued is what --dry-run prints, whatever the submitter's shell holds."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from common.command_line import UsageError
from launch import submit
from launch.queueing import Job, too_large
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


def test_a_job_that_no_node_can_hold_is_told_what_it_asks_for() -> None:
    asked = {"ntasks_per_node": 2, "cpus_per_task": 8, "gpus_per_node": 2}
    job = Job("train", "train", [[]], asked)
    told = too_large(job, "sbatch: error: Requested node configuration is not available")
    assert "no node has 16 CPUs (2 ranks of cpus_per_task=8), gpus_per_node=2;" in told
    assert "--cpus-per-task" in told
    assert too_large(job, "sbatch: error: invalid partition specified: gpu") == ""
