"""A state comes back whole, and `latest` and `best` name the newest and the best."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.train.checkpoints.conftest import empty_state, named_by, state_at
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.progress import Progress
from train.ranks.distributed import Ranks

Kills = Callable[..., Iterator[Path]]


def test_what_is_saved_comes_back_whole(two_steps: Path, ranks: Callable[[], Ranks]) -> None:
    state = empty_state()
    assert state.restore(two_steps, ranks()) == ["resumed from step_00000002 (step 2)"]
    assert state.progress == state_at(2).progress
    for parameter in state.model.parameters():
        assert (parameter == 2).all()
        assert {
            name: set(value.flatten().tolist())
            for name, value in state.optimizer.state[parameter].items()
        } == {"step": {2}, "exp_avg": {2}, "exp_avg_sq": {2}}
    assert tensors_sha256(state.tensors()) == tensors_sha256(state_at(2).tensors())
    # the next step of Adam must find what it needs
    state.model(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()


def test_nothing_there_is_a_run_at_its_beginning(
    tmp_path: Path, ranks: Callable[[], Ranks]
) -> None:
    state = empty_state()
    before = tensors_sha256(state.tensors())
    assert state.restore(tmp_path / "checkpoints", ranks()) == []
    assert (state.progress, tensors_sha256(state.tensors())) == (Progress(), before)


@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_a_kill_before_the_pointers_are_written_leaves_none_behind(
    pointer: str, tmp_path: Path, save: Callable[..., None], kills: Kills, ranks: Callable
) -> None:
    """Resumed, `latest` and `best` name the newest and the best step there are."""
    before = tmp_path / "before"
    save(before, 1, best_step=1)
    for folder in kills(before, lambda folder: save(folder, 2, best_step=2)):
        state = empty_state()
        state.restore(folder, ranks())
        expected = state.progress.step if pointer == "latest" else state.progress.best_step
        assert named_by(folder, pointer) == f"step_{expected:08d}"
