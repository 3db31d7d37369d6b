"""Checkpoints are found by their names; damaged ones are passed over, and named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.command_line import UsageError
from tests.train.checkpoints.conftest import empty_state
from train.checkpoints.checkpoint_files import CheckpointError
from train.checkpoints.published import (
    find_checkpoint,
    newest_intact,
    read_pointer,
)
from train.ranks.distributed import Ranks


@pytest.mark.parametrize(
    ("name", "step"), [("latest", 2), ("best", 1), ("1", 1), ("2", 2), ("step_00000001", 1)]
)
def test_a_checkpoint_is_found_by_its_names(
    name: str, step: int, tmp_path: Path, save: Callable[..., None]
) -> None:
    save(tmp_path, 1, best_step=1)
    save(tmp_path, 2, best_step=1)
    assert find_checkpoint(tmp_path, name) == tmp_path / f"step_0000000{step}"


@pytest.mark.parametrize("name", ["best", "7", "nonsense"])
def test_a_checkpoint_that_is_not_there_is_named_with_those_that_are(
    name: str, two_steps: Path
) -> None:
    with pytest.raises(UsageError, match=f"checkpoint={name}: .*step_00000001, step_00000002"):
        find_checkpoint(two_steps, name)


@pytest.mark.parametrize("name", ["../elsewhere", "step_00000002/../..", "/etc", "step_final", ""])
def test_a_pointer_names_a_step_and_nothing_else(name: str, two_steps: Path) -> None:
    (two_steps / "latest").write_text(name)
    assert read_pointer(two_steps, "latest") is None
    with pytest.raises(UsageError, match="checkpoint=latest: not in"):
        find_checkpoint(two_steps, "latest")


def test_damaged_ones_are_passed_over_and_said(
    two_steps: Path, save: Callable[..., None], ranks: Callable[[], Ranks]
) -> None:
    save(two_steps, 3, keep=9)
    (two_steps / "step_00000002" / "COMPLETE").unlink()
    (two_steps / "step_00000003" / "state.json").write_text("{}")
    path, passed_over = newest_intact(two_steps)
    assert path == two_steps / "step_00000001"
    assert [line.partition(":")[0] for line in passed_over] == ["step_00000003", "step_00000002"]
    state = empty_state()
    notes = state.restore(two_steps, ranks())
    assert notes[0].startswith("passed over step_00000003: state.json has 2 bytes")
    assert notes[1:] == [
        "passed over step_00000002: no COMPLETE",
        "resumed from step_00000001 (step 1)",
    ]
    assert state.progress.step == 1


def test_checkpoints_of_which_none_is_intact_are_an_error(
    two_steps: Path, ranks: Callable[[], Ranks]
) -> None:
    """Not a new beginning: the run would be thrown away in silence."""
    for step in (1, 2):
        (two_steps / f"step_0000000{step}" / ".metadata").unlink()
    for look in (newest_intact, lambda folder: empty_state().restore(folder, ranks())):
        with pytest.raises(CheckpointError, match=r"step_00000002: \.metadata is missing; step_"):
            look(two_steps)


def test_no_checkpoint_at_all_is_none(tmp_path: Path) -> None:
    assert newest_intact(tmp_path) == (None, [])
