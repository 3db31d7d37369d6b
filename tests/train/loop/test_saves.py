"""How often a run saves, by a clock of the test's own, and which checkpoints stay."""

import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train.config import TrainConfig
from train.loop.trainer import Trainer

Tiny = Callable[..., TrainConfig]
NewTrainer = Callable[[TrainConfig], Trainer]

STEP_S = 10
STEPS_PER_EPOCH = 88
SETTINGS = ("crop.per_sample=22", "panels=0")  # of 16 crops, by four


class SlowDisk:
    """A clock, steps of STEP_S that compute nothing, and saves that take as long as is said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.write_s, self.stall_s = 0.0, 0.0, 0.0
        self.saved: list[int] = []
        self.written_at_s = 0.0
        self.written = threading.Event()
        clock = SimpleNamespace(monotonic=lambda: self.now_s)
        monkeypatch.setattr("train.loop.trainer.time", clock)
        monkeypatch.setattr("train.checkpoints.saver.time", clock)
        monkeypatch.setattr("train.checkpoints.saver.save_checkpoint", self.save)
        monkeypatch.setattr("train.checkpoints.saver.set_pointers", lambda *given: None)

    def save(self, folder: Path, step: int, *rest: Any) -> Path:
        """Write nothing; in the background, until `step` finds that the time is over."""
        self.saved.append(step)
        if threading.current_thread() is threading.main_thread():
            self.now_s += self.write_s
        else:
            assert self.written.wait(20)
        return folder

    def train(self, trainer: Trainer, dear_until: int) -> list[str]:
        """Train, with a save of 40 s and a stall of 0.89 s up to a step, and cheaper ones then."""
        saver, progress = trainer.saver, trainer.state.progress
        request = saver.save

        def save() -> None:
            dear = progress.step < dear_until
            self.write_s, self.stall_s = (40, 0.89) if dear else (5, 0)
            self.written_at_s = self.now_s + self.write_s
            self.written.clear()
            if progress.step == trainer.total_steps:
                self.written.set()  # nothing comes after it that would move the clock
            request()

        def step() -> None:
            self.now_s += STEP_S
            progress.step += 1
            if saver.running and not self.written.is_set():
                saver.stalled_s, self.stall_s = saver.stalled_s + self.stall_s, 0
                if self.now_s >= self.written_at_s:
                    self.written.set()
                    saver.running.result()

        saver.save, trainer.train_step = save, step
        trainer.fit()
        return self.saved


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    """Before the trainer, which looks at the clock when it is made."""
    return SlowDisk(monkeypatch)


def told(out: str) -> list[str]:
    """The lines about saves, but for their size."""
    return re.findall(r"^a save of \d+\.\d MB (takes .*)$", out, re.MULTILINE)


def test_saves_come_every_minute_or_as_seldom_as_their_cost_asks_for(
    disk: SlowDisk,
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After step 6 each takes 40 s: one in nine steps, and none of step 87, which would be written
    until after the epoch's end. From step 88 they are cheap: one in six."""
    trainer = new_trainer(tiny(tmp_path, *SETTINGS))
    assert trainer.steps_per_epoch == STEPS_PER_EPOCH
    saved = disk.train(trainer, dear_until=STEPS_PER_EPOCH)
    assert saved == [*range(6, 80, 9), *range(88, 176, 6), 176]
    assert told(capsys.readouterr().out) == [
        "takes 40.0 s here and holds training up for 0.9 s: saves every 89 s",
        "takes 10.0 s here and holds training up for 0.0 s: saves every 60 s",
    ]


def test_saves_that_training_waits_for_cost_it_a_hundredth(
    disk: SlowDisk,
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of 40 s each: within these epochs of 880 s one, before the cost is known. Of 5 s each: one
    in 50 steps."""
    trainer = new_trainer(tiny(tmp_path, *SETTINGS, "checkpoint=blocking"))
    saved = disk.train(trainer, dear_until=STEPS_PER_EPOCH)
    assert saved == [6, 88, 138, 176]
    assert told(capsys.readouterr().out) == [
        "takes 40.0 s here and holds training up for 40.0 s: saves every 4000 s",
        "takes 5.0 s here and holds training up for 5.0 s: saves every 500 s",
    ]


def test_a_number_of_seconds_is_kept_whatever_a_save_costs(
    disk: SlowDisk,
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ("checkpoint=blocking", "save_every_s=100", "epochs=1")
    trainer = new_trainer(tiny(tmp_path, *SETTINGS, *settings))
    saved = disk.train(trainer, dear_until=1000)
    assert saved == [*range(10, 88, 10), 88]
    assert told(capsys.readouterr().out) == []


def test_saves_within_epochs_push_out_neither_the_best_nor_what_is_kept_for_good(
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every step is saved. Step 4 is the best, step 12 the end of the third epoch."""
    dices = iter((0.7, 0.5, 0.6, 0.4))
    monkeypatch.setattr(
        "train.loop.validation.validation_metrics",
        lambda results, classes: {"val/loss": 1.0, "val/dice": next(dices)},
    )
    settings = ("epochs=4", "save_every_s=0", "checkpoint=blocking", "keep_every=3", "panels=0")
    trainer = new_trainer(tiny(tmp_path, *settings))
    progress = trainer.state.progress

    def step() -> None:
        progress.step += 1

    trainer.train_step = step
    trainer.fit()
    kept = {int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*")}
    assert kept == {4, 12, 15, 16}
    assert (tmp_path / "checkpoints" / "best").read_text() == "step_00000004\n"


def test_what_a_save_needs_is_imported_before_a_signal_asks_for_one(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, after the first step, and not in the thread that trains."""
    seen = []

    def import_module(name: str) -> None:
        seen.append((name, threading.current_thread() is threading.main_thread()))

    monkeypatch.setattr(
        "train.checkpoints.saver.importlib", SimpleNamespace(import_module=import_module)
    )
    trainer = new_trainer(tiny(tmp_path))
    step = trainer.train_step

    def with_signal() -> None:
        step()
        assert not seen or trainer.state.progress.step > 1
        if trainer.state.progress.step == 3:
            trainer.stop.note(signal.SIGTERM, None)

    trainer.train_step = with_signal
    trainer.fit()
    assert seen == [("torch.distributed.checkpoint", False)]
