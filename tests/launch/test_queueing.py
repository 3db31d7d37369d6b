"""What is queued is what --dry-run prints, whatever the submitter's shell holds."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from common import plain_yaml
from common.command_line import UsageError, UserError
from data_prep.__main__ import main as data_prep
from launch import submit
from launch.cluster import profiles, slurm_commands
from launch.cluster.profiles import Profile
from launch.job_requests import plan
from launch.queueing import queue
from launch.record.events import note, read_events
from tests.launch.fakes import answer, write

HOSTILE = {
    "SBATCH_PARTITION": "high",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_EXPORT": "NONE",
    "SRUN_CPUS_PER_TASK": "9",
    "SLURM_MEM_PER_CPU": "1",
    "MASTER_PORT": "29500",
    "CUDA_VISIBLE_DEVICES": "3",
}
# Slurm, torchrun and mpirun set such in what they start; nobody needs to be told
FROM_LAUNCHERS = (
    *("PMI_RANK", "PMIX_RANK", "PMI2_SIZE", "OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID"),
    *("TORCHELASTIC_USE_AGENT_STORE", "SUBMITIT_FOLDER", "SQUEUE_FORMAT", "SCANCEL_STATE"),
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that queues all as job 7, and keeps the environment and the script it was given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in {**HOSTILE, **dict.fromkeys(FROM_LAUNCHERS, "7")}.items():
        monkeypatch.setenv(name, value)
    queues(folder, "echo 7")
    write(folder, "scancel", f'echo "$1" >> {folder}/cancelled\n')
    return folder


def queues(slurm: Path, prints: str, code: int = 0, reason: str = "None") -> None:
    """Let sbatch keep what it is given, as job 7, and print something; scontrol knows the job."""
    keep = f'env > {slurm}/environment\ncat "$2" > {slurm}/script\necho "$2" > {slurm}/path\n'
    refuse = 'case "$1" in --test-only) exit 0;; esac\n'
    write(slurm, "sbatch", f"{refuse}{keep}{prints}\nexit {code}\n")
    job = (
        f"JobId=7 JobName=x JobState=PENDING Reason={reason} Command=$(cat {slurm}/path) WorkDir=/"
    )
    other = "JobId=2026 JobState=RUNNING Reason=None Command=/else.sh WorkDir=/"
    write(
        slurm,
        "scontrol",
        f'case "$*" in "show job --oneliner 7") echo "{job}";;\n'
        f'"show job --oneliner 2026") echo "{other}";;\n'
        f'"show job --oneliner --all") echo "{other}"; echo "{job}";;\n'
        '*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1;; esac\n',
    )


@pytest.fixture
def arguments(raw_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """A preparation in one job, in folders that want quotes."""
    raw, run = raw_folder({"1": 1, "2": 1, "3": 1}), tmp_path / "it's my run"
    asked = ["--profile", "default", "--stages", "prepare", "--prep-jobs", "1"]
    return [*asked, f"raw={raw}", f"run={run}"]


def test_the_script_is_the_printed_one_and_the_shell_stays_outside(
    slurm: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(arguments) == 0
    told, out = (text := capsys.readouterr()).err, text.out
    run = arguments[-1].removeprefix("run=")
    for words in (["status"], ["logs", "-f"]):
        assert shlex.join(["python", "launch/jobs.py", *words, run]) in out
    assert shlex.join(["tensorboard", "--logdir", run]) in out
    assert told == (
        "CUDA_VISIBLE_DEVICES, MASTER_PORT, SBATCH_EXPORT, SBATCH_NO_REQUEUE, SBATCH_PARTITION,"
        " SLURM_MEM_PER_CPU, SRUN_CPUS_PER_TASK of your shell are ignored; put them into the"
        " profile, for example under partition:, sbatch_args: or environment:\n"
    )
    environment = (slurm / "environment").read_text()
    assert not [name for name in (*HOSTILE, *FROM_LAUNCHERS) if f"{name}=" in environment]
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


def test_what_a_job_or_torchrun_sets_is_ignored_without_a_word(
    slurm: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody has set it by hand, and nobody could mend it."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    submit.main(["--dry-run", *arguments])
    told = capsys.readouterr().err
    assert told.startswith("SBATCH_EXPORT, SBATCH_NO_REQUEUE, SBATCH_PARTITION of your shell are")


def test_runs_of_an_array_know_their_job_before_the_next_is_queued(
    slurm: Path, arguments: list[str], tmp_path: Path
) -> None:
    """A task of it may start at once, and ask about the others. A failure leaves nothing."""
    (raw,) = (given for given in arguments if given.startswith("raw="))
    data, run = f"{tmp_path}/set", tmp_path / "S"
    assert data_prep([raw, f"out={data}", "copies=1", "workers=1"]) == 0
    noted = f"cat {run}/trial-1/launch/events.jsonl > {slurm}/seen"
    queues(slurm, f"{noted} && {{ echo enough >&2; exit 1; }}\necho 7")
    small = ["batch_size=1", "crop.size_px=16", "microbatches=1", "--ranks-per-node", "1"]
    with pytest.raises(UserError, match="compare: Slurm refuses the job: enough"):
        submit.main(["--profile", "cpu", f"data={data}", f"run={run}", *small,
                     "--sweep", "lr=1e-4,1e-3"])  # fmt: skip
    noted_then = json.loads((slurm / "seen").read_text())
    assert (noted_then["jobs"], noted_then["task"]) == ({"train": "7"}, 1)
    assert not run.exists()


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
    answer(slurm, "scontrol", f"JobId=7 JobState=FAILED Command=$(cat {slurm}/path) WorkDir=/")
    queues_anew = 'case "$1" in --test-only) exit 0;; esac; echo "$2" > {0}/path; echo 7\n'
    write(slurm, "sbatch", queues_anew.format(slurm))
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


class TestIds:
    """A job id is that of our script, whatever the sbatch of a site prints."""

    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slurm_commands, "WAIT_S", 0)

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        return tmp_path / "run"

    def queue(self, run: Path, num_tasks: int = 1) -> dict[str, str]:
        """Queue a preparation."""
        jobs = plan(run, run / "code", {"prepare": []}, Profile(prep_jobs=num_tasks))
        return queue(run, jobs[:1])

    @pytest.mark.parametrize(
        "prints",
        [
            "echo 7",
            "echo '7;cluster'",
            "echo 'Welcome to 2026!'; echo 'job 2026 is running'; echo 7; echo '4 news'",
            "echo 2026; echo 7",
            "echo 'job 2026' >&2; echo '7;cluster2026'",
            "echo 'Submitted batch job 7 on cluster 2026'",  # a wrapper that drops --parsable
            "echo queued",
            ":",
        ],
    )
    def test_it_is_found_among_anything(self, prints: str, slurm: Path, run: Path) -> None:
        queues(slurm, prints)
        assert self.queue(run) == {"prepare": "7"}
        assert [event["jobs"] for event in read_events(run)] == [{"prepare": "7"}]
        assert [path.name for path in (run / "launch/jobs").glob("[0-9]*")] == ["7"]
        assert sorted(path.name for path in (run / "launch/jobs/7").iterdir()) == [
            "7_submission.sh", "7_submitted.pkl",
        ]  # fmt: skip
        assert cancelled(slurm) == []

    @pytest.mark.parametrize(
        "command", ["(null)", "/var/spool/slurmd/job00007/slurm_script", "/a b"]
    )
    @pytest.mark.parametrize("prints", ["echo 7", "echo queued", "echo refused >&2; exit 1"])
    def test_its_log_tells_where_a_site_hands_on_a_copy_of_the_script(
        self, command: str, prints: str, slurm: Path, run: Path
    ) -> None:
        """Job 6, an earlier one of the run, has its log there, too."""
        queues(slurm, prints)
        folder = run / "launch" / "jobs"
        folder.mkdir(parents=True)
        note(run, "queued", "chain", jobs={"join": "6"})
        lines = [
            f"JobId={job} JobState=PENDING Reason=Priority Command={command} WorkDir=/ StdOut={log}"
            for job, log in (("6", f"{folder}/6/6_0_log.out"), ("7", f"{folder}/%j/%j_0_log.out"))
        ]
        everything = "; ".join(f"echo '{line}'" for line in lines)
        write(
            slurm,
            "scontrol",
            f'case "$*" in *--all) {everything};; *" 6") echo "{lines[0]}";;'
            f' *" 7") echo "{lines[1]}";; *) echo Invalid job id >&2; exit 1;; esac\n',
        )
        if "refused" in prints:
            with pytest.raises(UserError, match="nothing is left in the queue"):
                self.queue(run)
            assert cancelled(slurm) == ["7"]
        else:
            assert self.queue(run) == {"prepare": "7"}
            assert cancelled(slurm) == []

    @pytest.mark.parametrize("state", ["PENDING", "CANCELLED"])
    def test_scancel_is_repeated_and_what_slurm_says_then_counts(
        self, state: str, slurm: Path
    ) -> None:
        """Its answer may be lost although it was heard."""
        answer(slurm, "scontrol", f"JobId=7 JobState={state}")
        lost = "echo scancel: error: Socket timed out >&2; exit 1"
        write(slurm, "scancel", f'echo "$1" >> {slurm}/cancelled\n{lost}\n')
        assert slurm_commands.cancel(["7"]) == (["7"] if state == "PENDING" else [])
        tries = slurm_commands.TRIES if state == "PENDING" else 1
        assert cancelled(slurm) == ["7"] * tries

    def test_a_second_try_of_scancel_is_enough(self, slurm: Path) -> None:
        answer(slurm, "scontrol", "JobId=7 JobState=PENDING")
        once = f"[ $(wc -l < {slurm}/cancelled) = 2 ]"
        write(slurm, "scancel", f'echo "$1" >> {slurm}/cancelled\n{once}\n')
        assert slurm_commands.cancel(["7"]) == []

    def test_what_nobody_knows_is_not_denied(self, slurm: Path, run: Path) -> None:
        """sbatch timed out, and scontrol does, too."""
        lost = "echo error: Socket timed out >&2; exit 1"
        write(slurm, "sbatch", f"{lost}\n")
        write(slurm, "scontrol", f"{lost}\n")
        with pytest.raises(UserError, match="whether a job was queued is not known") as told:
            self.queue(run)
        assert "nothing is left" not in str(told.value)

    def test_the_tasks_of_an_array_find_what_to_do(self, slurm: Path, run: Path) -> None:
        assert self.queue(run, 2) == {"prepare": "7"}
        for task in ("7_0", "7_1"):
            assert (run / f"launch/jobs/{task}/{task}_submitted.pkl").is_file()

    def test_a_job_that_was_queued_all_the_same_is_not_left_behind(
        self, slurm: Path, run: Path
    ) -> None:
        queues(slurm, "echo 'sbatch: error: lost 2026' >&2; echo '(see the wiki)' >&2", code=1)
        with pytest.raises(UserError, match="refuses the job: sbatch: error: lost 2026; nothing"):
            self.queue(run)
        assert cancelled(slurm) == ["7"]

    def test_without_an_id_anywhere_nothing_of_others_is_cancelled(
        self, slurm: Path, run: Path
    ) -> None:
        queues(slurm, f"rm {slurm}/path; echo 2026")
        with pytest.raises(UserError, match="sbatch printed '2026', and scontrol shows no") as told:
            self.queue(run)
        assert "`scancel <its id>` ends it" in str(told.value)
        assert "nothing is left" not in str(told.value)
        assert cancelled(slurm) == []
        assert not list((run / "launch/jobs").glob("[0-9]*"))

    @pytest.mark.parametrize(
        "reason",
        ["PartitionTimeLimit", "PartitionConfig", "QOSMaxWallDurationPerJobLimit", "InvalidAccount",
         "AssocMaxNodePerJobLimit", "QOSMinGRES", "BadConstraints"],
    )  # fmt: skip
    def test_a_job_that_would_wait_for_ever_is_cancelled(
        self, reason: str, slurm: Path, run: Path
    ) -> None:
        queues(slurm, "echo 7", reason=reason)
        with pytest.raises(
            UserError, match=f"prepare: Slurm would never start the job: {reason}: "
        ):
            self.queue(run)
        assert cancelled(slurm) == ["7"]

    @pytest.mark.parametrize(
        "reason",
        ["None", "Priority", "Resources", "Dependency", "ReqNodeNotAvail", "QOSMaxJobsPerUserLimit",
         "AssocGrpNodeLimit", "ReqNodeNotAvail,_UnavailableNodes:n[1-4]", "PartitionDown"],
    )  # fmt: skip
    def test_one_that_waits_its_turn_stays(self, reason: str, slurm: Path, run: Path) -> None:
        queues(slurm, "echo 7", reason=reason)
        assert self.queue(run) == {"prepare": "7"}
        assert cancelled(slurm) == []


def cancelled(slurm: Path) -> list[str]:
    """The jobs that scancel was called for."""
    kept = slurm / "cancelled"
    return kept.read_text().split() if kept.exists() else []
