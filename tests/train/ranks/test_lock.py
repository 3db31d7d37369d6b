"""One run folder, one run; one folder of results, one process that writes into it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common import lease
from common.command_line import UserError
from train import evaluate, predict
from train.config import TrainConfig
from train.evaluation import run_evaluation
from train.loop.trainer import Trainer
from train.prediction.predictor import Predictor
from train.ranks.lock import RunLock, lock_suffix


def test_a_run_that_was_taken_over_ends(
    tiny: Callable[..., TrainConfig],
    new_trainer: Callable[[TrainConfig], Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that stood still for longer than a lease must not write beside its successor."""
    monkeypatch.setattr(lease, "LEASE_S", 0.3)
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    trainer = new_trainer(tiny(tmp_path / "run", "epochs=1000"))
    trainer.lock = RunLock(tmp_path / "run")
    trainer.lock.acquire()
    original = trainer.train_step

    def taken_over_in_step_2() -> None:
        if trainer.state.progress.step == 2:
            (tmp_path / "run" / "lock").unlink()
            time.sleep(1)
        original()

    trainer.train_step = taken_over_in_step_2
    with pytest.raises(UserError, match="another one took it over"):
        trainer.fit()
    assert trainer.state.progress.step == 3


HOLD = """
import sys, time
from pathlib import Path
from common import lease
lease.BEAT_S = 0.1
lease.Lease(Path(sys.argv[1]), "out", name=sys.argv[2], doing="writing results").acquire()
print("held", flush=True)
time.sleep(60)
"""
Hold = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    out = tmp_path / "results"
    for kind in ("evaluation", "predict"):
        (out / ".eosin" / kind).mkdir(parents=True)
        (out / ".eosin" / kind / f".{'0' * 16}.tmp").write_text("another's, half written")
    return out


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((50, 60, 3), 120, np.uint8))
    return path


@pytest.fixture(params=["evaluate", "predict"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lock(kind: str, picture: Path) -> str:
    """The lock's path in the folder of the results."""
    return ".eosin/lock" + (lock_suffix(picture) if kind == "predict" else "")


@pytest.fixture
def hold(out: Path, lock: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    """hold() is another process that writes into the folder of the results."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(out), lock]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def command(kind: str, own_run: Path, out: Path, picture: Path, cli: Callable) -> Callable[[], Any]:
    """command() writes results into `out`."""
    if kind == "evaluate":
        return lambda: cli(evaluate.main, f"run={own_run}", f"out={out}", "cases=[4]", "figures=1")
    return lambda: cli(
        predict.main, f"run={own_run}", f"input={picture}", f"out={out}", "min_tissue=0"
    )


def files(folder: Path) -> dict[str, bytes]:
    """What is there, without the lock, which its holder touches."""
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return {str(path): path.read_bytes() for path in found if not path.name.startswith("lock")}


def test_a_second_process_that_would_write_results_is_refused_and_changes_nothing(
    hold: Hold, out: Path, command: Callable[[], Any]
) -> None:
    holder, before = hold(), files(out)
    outcome = command()
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        f"error: out={out}: process {holder.pid} on {socket.gethostname()} is writing results into"
        " it; wait for its end or stop it, or name another out=\n"
    )
    assert files(out) == before


def test_what_a_killed_process_left_of_results_is_taken_over(
    hold: Hold, out: Path, lock: str, command: Callable[[], Any]
) -> None:
    holder = hold()
    holder.kill()
    holder.wait()
    assert command().code == 0
    assert not (out / lock).exists()


@pytest.mark.parametrize("kind", ["predict"])
def test_other_images_are_predicted_into_the_same_folder_at_once(
    hold: Hold, out: Path, own_run: Path, picture: Path, cli: Callable
) -> None:
    """As the tasks of a job array do."""
    hold()
    other = picture.with_name("b.png")
    other.write_bytes(picture.read_bytes())
    outcome = cli(predict.main, f"run={own_run}", f"input={other}", f"out={out}", "min_tissue=0")
    assert outcome.code == 0, outcome.err
    assert (out / "b_mask.tif").is_file()


def test_results_are_not_written_by_a_process_whose_folder_another_took_over(
    out: Path, lock: str, command: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it stood still for longer than a lease."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)

    def taken(before: Callable) -> Callable:
        def call(*given: Any, **named: Any) -> Any:
            found = before(*given, **named)
            (out / lock).write_text("pid=1\nhost=elsewhere\ntoken=another's\n")
            return found

        return call

    monkeypatch.setattr(run_evaluation, "evaluate_run", taken(run_evaluation.evaluate_run))
    monkeypatch.setattr(Predictor, "plan", taken(Predictor.plan))
    outcome = command()
    assert outcome.code == 1
    assert "another one took it over" in outcome.err
    assert [path.name for path in out.iterdir()] == [".eosin"]
