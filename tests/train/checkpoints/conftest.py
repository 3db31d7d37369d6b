"""Checkpoints of a small state, and what is on disk of them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from train.checkpoints.checkpoint_files import describe_files
from train.checkpoints.progress import Progress
from train.checkpoints.saver import Saver
from train.checkpoints.state import State
from train.checkpoints.upkeep import Retention
from train.config import TrainConfig
from train.loop.optimizer import build_optimizer
from train.ranks.distributed import Ranks


def state_at(step: int, best_step: int = -1) -> State:
    """A state all of whose numbers are its step, so that a mixture would show."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for parameter in model.parameters():
        nn.init.constant_(parameter, step)
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.full_like(parameter, step),
            "exp_avg_sq": torch.full_like(parameter, step),
        }
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    metrics = {"val/dice": step / 100}
    return State(model, optimizer, scaler, Progress(step, step, 0.5, best_step, {}, metrics))


def empty_state() -> State:
    """What a run begins with, before it looks for a checkpoint."""
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, TrainConfig())
    return State(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), Progress())


@pytest.fixture
def save(ranks: Callable[[], Ranks]) -> Callable[..., None]:
    """save(folder, step) as training does, keeping the newest two and the best."""

    def write(folder: Path, step: int, best_step: int = -1, keep: int = 2) -> None:
        retention = Retention(keep)
        Saver(state_at(step, best_step), folder, retention, "0" * 64, ranks(), False).save()

    return write


@pytest.fixture
def two_steps(tmp_path: Path, save: Callable[..., None]) -> Path:
    """A folder with checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted(folder.glob("step_*"))]


def named_by(folder: Path, pointer: str) -> str:
    return (folder / pointer).read_text().strip()


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file())


def remake_complete(path: Path, **changes: Any) -> None:
    """COMPLETE as somebody would make it who knows how."""
    complete = json.loads((path / "COMPLETE").read_text())
    complete["files"] = describe_files(path / name for name in complete["files"])
    del complete["sha256"]
    write_complete(path, complete | changes)


def write_complete(path: Path, content: dict[str, Any]) -> None:
    """COMPLETE with its own hash, worked out here."""
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "COMPLETE").write_text(json.dumps({**content, "sha256": own}))
