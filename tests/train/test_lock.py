"""One run folder, one run."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lease
from command_line import UserError
from train.config import TrainConfig
from train.lock import RunLock
from train.trainer import Trainer


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
    with pytest.raises(UserError, match="another has taken it over"):
        trainer.fit()
    assert trainer.state.progress.step == 3
