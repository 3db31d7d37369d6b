"""submit.py --folds, --sweep and --pack: what is refused, and what each run is trained with."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import command_line
from common.command_line import UsageError
from data_prep.__main__ import main as data_prep
from launch import jobs
from launch import submit as submit_module
from launch.cluster.profiles import Profile
from launch.command_lines import parse
from launch.record.events import COMPARE
from launch.stages import Request, stage_arguments
from tests.processes import prepare_alone
from train.comparison.config import CompareConfig
from train.runs.newest import CONFIG
from train.runs.several import expanded

PLAIN = ("--dry-run", "--profile", "cpu", "--ranks-per-node", "1")
SMALL = ("batch_size=1", "crop.size_px=16", "microbatches=1")
LR, WIDTH = "lr=1e-4,1e-3", "model.width=16,32"


@pytest.fixture
def dry(cli: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call submit.py --dry-run where no Slurm is to be found; returns code, out and err."""
    monkeypatch.setenv("PATH", "/bin-without-slurm")

    def call(*arguments: str) -> Any:
        return cli(submit_module.main, *PLAIN, *arguments)

    return call


@pytest.fixture
def raw(raw_folder: Callable[..., Path]) -> Path:
    return raw_folder({"1": 1, "2": 1, "3": 1, "4": 1})


@pytest.fixture
def prepared(raw: Path, here: Path) -> Path:
    """A data set of four folds."""
    prepare_alone(f"raw={raw}", f"out={here / 'set'}", "split.folds=4", "copies=1")
    return here / "set"


def tasks(text: str) -> list[tuple[int, str]]:
    """Return the task and the arguments of each training that a dry run prints."""
    found = re.findall(r"^#   task (\d+): train (.*)$", text, re.MULTILINE)
    return [(int(task), given) for task, given in found]


class TestFolds:
    def test_each_task_trains_its_fold_and_one_job_evaluates_all(
        self, dry: Callable[..., Any], raw: Path, here: Path
    ) -> None:
        done = dry("--folds", "cases", f"raw={raw}", "run=CV", *SMALL)
        assert done.code == 0, done.err
        data = f"data={here}/CV/prepared"
        for number, (task, given) in enumerate(tasks(done.out)):
            assert task == number
            assert f"{data} run={here}/CV/fold-{number} " in given
            assert f" fold={number}" in given
        assert len(tasks(done.out)) == 4, "a fold for each case, counted before it is prepared"
        assert "#SBATCH --array=0-3%4" in done.out
        assert f"raw={raw} split.folds=cases" in done.out
        assert "#SBATCH --dependency='afterok:<id of train>'" in done.out
        assert f"#   evaluate run={here}/CV\n" in done.out

    def test_the_script_ends_for_the_run_of_its_task(
        self, dry: Callable[..., Any], prepared: Path, here: Path
    ) -> None:
        """The lines of the script itself, with a stand-in for on_exit.sh."""
        import subprocess

        done = dry("--folds", "4", "data=set", "run=it's CV", "--pack", "3", *SMALL)
        (train,) = [part for part in done.out.split("##### ") if part.startswith("train\n")]
        lines = train.split("# setup\n")[1].splitlines()
        first = lines[: lines.index("trap at_end EXIT")]
        shell = "\n".join(line for line in first if not line.startswith("on_exit="))
        shell += "\nbash() { shift 3; printf '%s\\n' \"$@\"; }\non_exit=\n"
        for task, names in ((0, ("0", "1", "2")), (1, ("3",))):
            command = ["bash", "-c", f"{shell}(exit 9); at_end"]
            ended = subprocess.run(
                command, env={"SLURM_ARRAY_TASK_ID": str(task)}, capture_output=True, text=True
            )
            first_run, *others = [f"{here}/it's CV/fold-{name}" for name in names]
            assert ended.stdout.splitlines() == [first_run, "train", "9", "3", *others]
            assert ended.returncode == 9

    def test_what_has_finished_is_not_trained_again(
        self, dry: Callable[..., Any], prepared: Path, here: Path
    ) -> None:
        run = here / "CV/fold-2"
        run.mkdir(parents=True)
        (run / CONFIG).write_text(f"data: {prepared}\nfold: 2\nepochs: 3\nbatch_size: 1\n")
        about = '{"step": 9, "total_steps": 9, "epoch": 3, "is_finished": true, "time_s": 1}'
        (run / "progress.json").write_text(about)
        given = ("--folds", "4", "data=set", "run=CV", *SMALL)
        done = dry(*given, "epochs=3")
        assert "1 run of 4 finished before" in done.err
        folds = [re.search(r"fold=\d", given)[0] for _, given in tasks(done.out)]  # type: ignore[index]
        assert folds == ["fold=0", "fold=1", "fold=3"]
        packed = dry("--pack", "4", *given, "epochs=3")
        assert "#SBATCH --ntasks-per-node=3\n" in packed.out, "no CPUs for the one that finished"
        assert len(tasks(dry(*given, "epochs=4").out)) == 4, "more epochs are left to train"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--folds", "1"), "--folds 1: give the number of folds, from 2"),
            (("--folds", "4", "fold=1"), "fold=1: --folds trains every fold"),
            (("--folds", "4", "split.folds=3"), "split.folds=3: contradicts --folds 4"),
            (("--pack", "2"), "--pack 2: for several runs; give --folds or --sweep too"),
            (("--at-once", "2"), "--at-once 2: for several runs; give --folds or --sweep too"),
            (("--folds", "4", "--pack", "2", "--nodes", "2"), "pack=2, nodes=2: runs that share"),
            (("--folds", "4", "batch_size=900"), "fold-0 (fold=0): batch_size=900"),
        ],
    )
    def test_refusals(
        self, dry: Callable[..., Any], prepared: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        done = dry("data=set", *SMALL[1:], *arguments)
        assert done.code == 2
        assert message in done.err

    def test_a_set_with_other_folds_is_refused_with_the_command_that_deals_them(
        self, dry: Callable[..., Any], prepared: Path, raw: Path, here: Path
    ) -> None:
        done = dry("--folds", "3", f"raw={raw}", "data=set", *SMALL)
        assert done.code == 2
        assert f"--folds 3: {prepared} has 4 folds" in done.err
        elsewhere = dry("--folds", "3", "data=set", *SMALL).err
        assert elsewhere.count(" 'raw=<your raw fields>'") == 2, "which nobody knows here"
        deal = re.search(r"python -m data_prep (.*)", done.err)
        assert deal
        assert data_prep([*deal[1].split(), "workers=1"]) == 0
        again = dry("--folds", "3", "data=set", *SMALL)
        assert again.code == 0, again.err
        assert len(tasks(again.out)) == 3

    def test_one_run_and_a_folder_of_several_are_told_apart(
        self, dry: Callable[..., Any], prepared: Path, here: Path
    ) -> None:
        (here / "CV/fold-0").mkdir(parents=True)
        assert "CV: a folder of several runs" in dry("data=set", "fold=0", "run=CV", *SMALL).err
        (here / "one").mkdir()
        (here / "one" / CONFIG).write_text("fold: 0\n")
        assert "one: a run; its folder" in dry("--folds", "4", "data=set", "run=one", *SMALL).err


class TestSweep:
    def test_every_combination_is_a_task_and_none_is_tested(
        self, dry: Callable[..., Any], raw: Path, here: Path
    ) -> None:
        """As the issue writes it, with settings before and after; %K at a time."""
        given = ("--at-once", "2", *SMALL, "--sweep", LR, WIDTH, f"raw={raw}", "run=S")
        done = dry(*given)
        assert done.code == 0, done.err
        values = [re.findall(r" (?:lr|model.width)=(\S+)", given) for _, given in tasks(done.out)]
        assert values == [["1e-4", "16"], ["1e-4", "32"], ["1e-3", "16"], ["1e-3", "32"]]
        assert "#SBATCH --array=0-3%2" in done.out
        assert "#   evaluate" not in done.out
        assert "#SBATCH --dependency='afterany:<id of train>'" in done.out
        assert f"#   compare 'runs=[\"{here}/S\"]' out={here}/S/comparison" in done.out
        assert not (here / "S").exists()

    def test_a_pack_asks_for_the_cpus_of_all_and_the_gpus_of_one(
        self, dry: Callable[..., Any], raw: Path
    ) -> None:
        pack = ("--pack", "3", "--gpus-per-node", "1", "--ranks-per-node", "0")
        done = dry(*pack, "--sweep", LR, WIDTH, f"raw={raw}", *SMALL)
        assert [task for task, _ in tasks(done.out)] == [0, 0, 0, 1]
        for line in ("--array=0-1%2", "--ntasks-per-node=3", "--gpus-per-node=1"):
            assert f"#SBATCH {line}\n" in done.out
        assert " --kill-on-bad-exit=0 --wait=0 " in done.out

    def test_folds_of_each_trial(self, dry: Callable[..., Any], prepared: Path, here: Path) -> None:
        done = dry("--folds", "4", "--sweep", LR, "data=set", "run=S", *SMALL)
        runs = [re.search(r" run=(\S+)", given)[1] for _, given in tasks(done.out)]  # type: ignore[index]
        assert runs == [f"{here}/S/trial-{t}/fold-{f}" for t in range(2) for f in range(4)]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--sweep", "lr=1e-4,0"), "lr=0"),
            (("--sweep", "lr=1e-3"), "--sweep needs KEY=VALUES"),
            (("--sweep", "batch_size=2,900"), "trial-1 (batch_size=900): batch_size=900"),
            (("--sweep", LR, "--stages", "evaluate"), "unknown evaluate; prepare, train, compare"),
            (("--trials", "3"), "--trials: says how many settings to try"),
        ],
    )
    def test_refusals(
        self, dry: Callable[..., Any], prepared: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        done = dry("data=set", "fold=0", "crop.size_px=16", *arguments)
        assert done.code == 2
        assert message in done.err


class TestStudy:
    """Trials whose settings nobody knows before they start."""

    def test_of_a_file_of_settings(
        self, dry: Callable[..., Any], prepared: Path, here: Path
    ) -> None:
        pytest.importorskip("optuna")
        (here / "my.yaml").write_text("lr: 0.5\nseed: 7\n")
        sweep = ("--trials", "3", "--sweep", "lr=log(1e-4,1e-2)")
        done = dry("config=my.yaml", "data=set", "fold=0", "run=S", *SMALL, *sweep)
        assert done.code == 0, done.err
        found = re.findall(r"^#   task (\d): trial (.*)$", done.out, re.MULTILINE)
        assert [task for task, _ in found] == ["0", "1", "2"]
        for number, (_, given) in enumerate(found):
            assert f" run={here}/S/trial-{number} " in given
            assert " config=" in given
            assert " batch_size=1 microbatches=1" in given
        assert "#SBATCH --array=0-2%3" in done.out
        assert not (here / "S").exists()

    def test_its_batch_is_left_to_the_trials_that_draw_it(
        self, dry: Callable[..., Any], prepared: Path
    ) -> None:
        pytest.importorskip("optuna")
        given = ("--trials", "2", "data=set", "fold=0", "crop.size_px=16")
        done = dry(*given, "--sweep", "batch_size=1,2")
        assert done.code == 0, done.err
        assert "batch_size=" not in done.out
        assert "microbatches=" not in done.out
        done = dry(*given, "--nodes", "1-2", "--sweep", "batch_size=1,2")
        assert done.code == 2
        assert "--sweep: a trial has its own batch" in done.err

    @pytest.mark.parametrize(
        ("sweep", "message"),
        [
            ("batch_size=1,900", "a trial (batch_size=900): batch_size=900: the train split"),
            ("batch_size=2,1", "a trial (batch_size=1): train: batch_size=1 crops cannot be cut"),
            ("crop.size_px=int(16,900)", "a trial (crop.size_px=900): crop.size_px=900"),
        ],
    )
    def test_each_value_is_tried(
        self, dry: Callable[..., Any], prepared: Path, sweep: str, message: str
    ) -> None:
        pytest.importorskip("optuna")
        small = [each for each in SMALL if not each.startswith(sweep.partition("=")[0])]
        small[-1] = "--ranks-per-node=2" if sweep == "batch_size=2,1" else small[-1]
        done = dry("--trials", "2", "data=set", "fold=0", *small, "--sweep", sweep)
        assert done.code == 2
        assert message in done.err


class TestCommandsInRefusals:
    """Each is typed again: it is accepted, and is still of several runs."""

    def again(self, dry: Callable[..., Any], done: Any, number: int) -> list[str]:
        assert done.code == 2, done.err
        found = re.findall(r"^  python launch/submit.py (.*)$", done.err, re.MULTILINE)
        assert len(found) == number, done.err
        for command in found:
            words = [word for word in shlex.split(command) if word != "--dry-run"]
            accepted = dry(*words[words.index("1") + 1 :] if "1" in words else words)
            assert accepted.code == 0, accepted.err
        return found

    @pytest.mark.parametrize(
        ("arguments", "number"),
        [
            (("--folds", "4", "fold=1"), 1),
            (("--folds", "0x4"), 0),
            (("--sweep", LR, "lr=1e-4"), 1),
            (("--sweep", LR, "run=a,b", "run=S"), 1),
            (("--sweep", "lrr=1e-3,1e-2"), 0),
            (("--sweep", "lr=[1e-3,1e-2]"), 0),
            (("--sweep", LR, "fold=all"), 2),
        ],
    )
    def test_of_folds_and_sweeps(
        self, dry: Callable[..., Any], prepared: Path, arguments: tuple[str, ...], number: int
    ) -> None:
        fold = () if "--folds" in arguments or "fold=all" in arguments else ("fold=0",)
        done = dry("data=set", *SMALL, *fold, *arguments)
        for command in self.again(dry, done, number):
            assert "data=set" in command
            assert "--folds 4" in command or "--sweep" in command

    @pytest.mark.parametrize("is_prepared", [False, True])
    def test_cases_that_are_dealt_to_folds_need_a_choice(
        self, dry: Callable[..., Any], raw: Path, prepared: Path, is_prepared: bool
    ) -> None:
        given = ("data=set",) if is_prepared else (f"raw={raw}", "split.folds=4")
        done = dry(*given, *SMALL)
        assert "its cases are dealt to folds (split.folds=4); train every fold" in done.err
        every, one = self.again(dry, done, 2)
        assert "--folds 4" in every
        assert one.endswith(" fold=0")

    def test_a_fold_that_there_will_not_be(self, dry: Callable[..., Any], raw: Path) -> None:
        done = dry(f"raw={raw}", "split.folds=4", "fold=4", *SMALL)
        assert done.code == 2
        assert "has 4 folds: fold=0 to fold=3" in done.err

    def test_a_sweep_needs_a_validation(
        self, dry: Callable[..., Any], raw: Path, here: Path
    ) -> None:
        given = (f"raw={raw}", "split.val=0", "split.test=0.25", *SMALL, "--sweep", LR)
        (command,) = self.again(dry, dry(*given), 1)
        assert "split.val" not in command
        words = (f"raw={raw}", "out=noval", "split.val=0", "copies=1", "workers=1")
        assert data_prep([*words, "split.test=0.25"]) == 0
        done = dry("data=noval", *SMALL, "--sweep", LR)
        assert "it has no validation split; prepare another one" in done.err
        assert f" data={here}/noval-2 " in done.err
        assert " 'raw=<your raw fields>' split.val=0.15 --sweep " in done.err


@pytest.mark.parametrize(
    ("there", "flags", "message"),
    [
        ("fold-0", ("--sweep", LR), "a folder of folds; leave --sweep out"),
        ("trial-0", ("--folds", "4"), "a folder of trials; give --sweep too"),
        ("trial-0", ("--folds", "4", "--sweep", LR), "a folder of trials without folds; leave"),
        ("trial-0/fold-0", ("--sweep", LR), "a folder of trials that have folds; give --folds"),
    ],
)
def test_a_folder_holds_runs_of_one_kind(
    there: str,
    flags: tuple[str, ...],
    message: str,
    dry: Callable[..., Any],
    prepared: Path,
    here: Path,
) -> None:
    (here / "S" / there).mkdir(parents=True)
    (here / "S" / there / CONFIG).write_text("fold: 0\n")
    fold = () if "--folds" in flags else ("fold=0",)
    done = dry("data=set", "run=S", *SMALL, *fold, *flags)
    assert done.code == 2
    assert f"run={here}/S: {message}" in done.err


def test_words_after_sweep_are_swept_if_they_name_several_values() -> None:
    assert parse(["--sweep", "lrr=1,2", "train.lr=1,2", "lr=[1,2]", "prepare.a=1,2"]).swept == (
        "lrr=1,2", "train.lr=1,2", "lr=[1,2]",
    )  # fmt: skip
    words = ["--sweep", LR, "seed=3", "case_regex=Case_(a,b)", "classes=[a,b]", "lr=log(1,2)"]
    command = parse([*words, "--nodes", "1", "epochs=1,2"])
    assert command.swept == (LR, "lr=log(1,2)")
    options = submit_module.parse([*words, "--nodes", "1", "epochs=1,2"])
    assert options.several.swept == command.swept
    assert sorted(options.settings) == sorted(
        ["seed=3", "case_regex=Case_(a,b)", "classes=[a,b]", "epochs=1,2"]
    )
    again = submit_module.parse(command.words)
    assert again.several == options.several
    assert sorted(again.settings) == sorted(options.settings)


def test_runs_of_a_folder_share_its_data(here: Path) -> None:
    from launch.several.members import Member

    whole = Request({"raw": "raw", "epochs": "3"}, here / "CV")
    own = whole.of(Member("fold-1", {"fold": "1"}))
    assert own.run == here / "CV/fold-1"
    assert own.data == whole.data == here / "CV/prepared"


@pytest.mark.parametrize("name", ["S", "a b", "[a], {b}: *", 'it\'s "é" 🦠', "a,b"])
def test_a_sweep_is_compared_by_its_folder_whatever_its_name(here: Path, name: str) -> None:
    """A pattern of its trials would miss those that have not begun, and fail."""
    sweep = here / name
    (sweep / "trial-0/launch").mkdir(parents=True)
    given = stage_arguments([COMPARE], Request({}, sweep), Profile())[COMPARE]
    config = command_line.load(CompareConfig, given)
    assert (expanded(config.runs), config.out) == ([sweep], f"{sweep}/comparison")
    with pytest.raises(UsageError, match="nothing to compare") as refused:
        jobs.main(["compare", str(sweep)])
    assert f"not begun: {sweep}/trial-0" in str(refused.value)


def test_runs_in_a_folder_are_compared_whatever_its_name(here: Path) -> None:
    (here / "[a], *" / "b").mkdir(parents=True)
    with pytest.raises(UsageError, match="nothing to compare") as refused:
        jobs.main(["compare", str(here / "[a], *")])
    assert f"{here}/[a], */b" in str(refused.value)
