"""The newest and the best stay, and so does what is not ours."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.checkpoints.conftest import empty_state, files_of, named_by, steps_in
from train.checkpoints.checkpoint_files import verify
from train.checkpoints.published import (
    newest_intact,
    published_checkpoints,
)
from train.checkpoints.upkeep import clean_up_after_kills
from train.ranks.distributed import Ranks


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_and_the_best_are_kept(
    keep: int, tmp_path: Path, save: Callable[..., None]
) -> None:
    for step in range(1, 7):
        save(tmp_path, step, best_step=min(step, 2), keep=keep)
        assert named_by(tmp_path, "latest") == f"step_{step:08d}"
        assert named_by(tmp_path, "best") == f"step_{min(step, 2):08d}"
        newest = range(max(1, step + 1 - keep), step + 1)
        assert steps_in(tmp_path) == sorted({*newest, min(step, 2)})


def test_a_best_among_the_newest_is_not_kept_twice(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    for step in range(1, 4):
        save(tmp_path, step, best_step=step, keep=2)
    assert steps_in(tmp_path) == [2, 3]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_one_does_not_push_out_what_is_saved_now(
    keep: int, tmp_path: Path, save: Callable[..., None], ranks: Callable[[], Ranks]
) -> None:
    """Steps 5 and 6 are damaged; resumed from 1, a save by the clock falls on step 3."""
    for step in (1, 5, 6):
        save(tmp_path, step, keep=3)
    for step in (5, 6):
        (tmp_path / f"step_0000000{step}" / "state.json").unlink()
    state = empty_state()
    state.restore(tmp_path, ranks())
    save(tmp_path, 3, keep=keep)
    assert newest_intact(tmp_path)[0] == tmp_path / "step_00000003"


def test_folders_of_the_users_are_no_checkpoints_and_stay(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    for name in ("step_final", "step_00000001_mine", "step_1", ".step_old.tmp", ".step_1.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("mine")
    for step in range(1, 5):
        save(tmp_path, step, keep=1)
    clean_up_after_kills(tmp_path)
    assert [path.name for path in published_checkpoints(tmp_path)] == ["step_00000004"]
    assert len(list(tmp_path.rglob("state.json"))) == 5 + 1


def test_what_somebody_put_into_a_checkpoint_or_changed_there_stays(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    for step in (1, 2):
        save(tmp_path, step, keep=2)
    first, second = (tmp_path / f"step_0000000{step}" for step in (1, 2))
    (first / "notes.txt").write_text("mine")
    (first / "folder").mkdir()
    (second / "state.json").write_text("{}")
    for step in (3, 4):
        save(tmp_path, step, keep=1)
    assert sorted(path.name for path in first.iterdir()) == ["folder", "notes.txt"]
    assert [path.name for path in second.iterdir()] == ["state.json"]
    assert named_by(tmp_path, "latest") == "step_00000004"


def test_a_copied_checkpoint_is_removed_by_its_hashes(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    """Whose files are all of another time."""
    save(tmp_path / "first", 1)
    shutil.copytree(tmp_path / "first", tmp_path / "copy", copy_function=shutil.copyfile)
    for file in files_of(tmp_path / "copy" / "step_00000001"):
        os.utime(file, None if file.name != "COMPLETE" else (5, 5))
    save(tmp_path / "copy", 2, keep=1)
    assert steps_in(tmp_path / "copy") == [2]


def test_files_of_a_link_are_not_removed(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "run", 1)
    (tmp_path / "run" / "step_00000001").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "step_00000001").symlink_to(tmp_path / "elsewhere")
    save(tmp_path / "run", 2, keep=1)
    assert verify(tmp_path / "elsewhere") == ""
