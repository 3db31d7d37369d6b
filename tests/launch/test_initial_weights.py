"""init= at submission: what training would refuse on the node is refused before it is queued."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import command_line
from common.command_line import EXIT_USAGE
from launch.submit import main as submit
from tests.processes import prepare_alone
from train.config import TrainConfig

Cli = Callable[..., Any]
LOCAL = ("--cluster", "local", "--dry-run", "batch_size=1", "crop.size_px=64")
PREPARATION = ("split.train_cases=[1]", "split.val_cases=[2]", "split.test_cases=[3]")


@pytest.fixture
def source(brecahad: Path, here: Path) -> Path:
    """A run that trained on case 1 and validated on case 2, as far as a submission looks at it."""
    prepare_alone(*PREPARATION, "copies=1")
    run = here / "runs/first"
    (run / "checkpoints/step_00000004").mkdir(parents=True)
    (run / "checkpoints/best").write_text("step_00000004\n")
    (run / "config.yaml").write_text(command_line.as_yaml(TrainConfig(run=str(run))))
    shutil.copy(here / "data/prepared/dataset.json", run)
    return run


def test_the_same_splits_are_accepted_and_the_path_becomes_a_whole_one(
    source: Path, cli: Cli
) -> None:
    """Given on the command line, or in a file of settings; told is what it was chosen on."""
    Path("settings.yaml").write_text("init: runs/first\n")
    for given in ("init=runs/first", "train.init=runs/first", "config=settings.yaml"):
        done = cli(submit, *LOCAL, "run=runs/a", given)
        assert done.code == 0, done.err
        (train,) = [line for line in done.out.splitlines() if "init=" in line]
        assert shlex.split(train).count(f"init={source}") == 1
        assert "init=runs/first" not in train
        assert "its checkpoint was chosen by what it finds in Case_2 (val)" in done.err
    Path("settings.yaml").write_text("init: nowhere\n")
    done = cli(submit, *LOCAL, "run=runs/a", "config=settings.yaml", "init=")
    assert done.code == 0
    assert " init= " in f"{done.out.splitlines()[0]} "


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_model_that_has_seen_the_test_cases_is_refused_with_whole_commands(
    source: Path, here: Path, cli: Cli, is_prepared: bool
) -> None:
    """Of a set that is there, and of one that the same chain prepares first."""
    other = ["split.val_cases=[1]", "split.test_cases=[3]", "copies=1"]
    given = ["data=data/other", "run=runs/a"]
    if is_prepared:
        prepare_alone("out=data/other", *other)
    else:
        given += ["raw=data/BreCaHAD", *other]
    done = cli(submit, *LOCAL, *given, "init=runs/first")
    assert done.code == EXIT_USAGE
    assert "train: init=runs/first: has seen cases" in done.err
    assert "it was trained on Case_1 (val)" in done.err
    assert not Path("runs/a").exists()
    accepted = shlex.split(done.err.strip().rpartition("\n")[2])
    assert accepted[:2] == ["python", "launch/submit.py"]
    assert cli(submit, *accepted[2:]).code == 0


def test_another_network_is_refused_with_whole_commands(source: Path, cli: Cli) -> None:
    done = cli(submit, *LOCAL, "run=runs/a", "init=runs/first", "model.width=16")
    assert done.code == EXIT_USAGE
    assert "model.width: 64 there, 16 here" in done.err
    for line in done.err.splitlines()[1:]:
        assert cli(submit, *shlex.split(line)[2:]).code == 0


def test_what_is_no_run_is_refused(source: Path, cli: Cli) -> None:
    done = cli(submit, *LOCAL, "run=runs/a", "init=runs/nowhere")
    assert done.code == EXIT_USAGE
    assert "init=runs/nowhere: not a run" in done.err


def test_a_run_that_has_saved_goes_on_without_the_model(source: Path, here: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(source, here / "runs/second"))
    begun = ["batch_size=1", "microbatches=1", "crop.size_px=64"]
    begun += ["amp=off", "memory_format=contiguous", f"init={source}", f"run={run}"]
    begun += [f"data={here / 'data/prepared'}"]
    config = command_line.load(TrainConfig, begun)
    (run / "config.yaml").write_text(command_line.as_yaml(config))
    shutil.rmtree(source)
    done = cli(submit, *LOCAL, "run=runs/second", "init=runs/first")
    assert done.code == 0, done.err


@pytest.mark.parametrize("trials", [(), ("--trials", "2")])
def test_settings_of_swept_models_may_be_shared(
    source: Path, cli: Cli, trials: tuple[str, ...]
) -> None:
    """freeze_epochs= without init=, which no trial is, would be refused."""
    shutil.copytree(source, source.with_name("second"))
    sweep = ("--sweep", "init=runs/first,runs/second")
    done = cli(submit, *LOCAL, "run=runs/a", "freeze_epochs=1", *trials, *sweep)
    assert done.code == 0, done.err
    assert "freeze_epochs=1" in done.out
    assert ("init=" in done.out) == (not trials), "the study gives each trial its own"
