"""Promise 3: a kill at any instant of a save costs no older checkpoint."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.train.checkpoints.conftest import empty_state, files_of, named_by, state_at, steps_in
from train.checkpoints.checkpoint_files import verify
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.upkeep import clean_up_after_kills
from train.ranks.distributed import Ranks

Kills = Callable[..., Iterator[Path]]


def test_a_checkpoint_is_these_files(two_steps: Path) -> None:
    names = [file.name for file in files_of(two_steps / "step_00000002")]
    assert names == [".metadata", "COMPLETE", "__0_0.distcp", "state.json"]


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}, "8_1"),
    ],
)
def test_it_says_which_job_saved_it(
    variables: dict[str, str],
    job: str,
    tmp_path: Path,
    save: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """launch/on_exit.sh tells a job's own progress by it; the state is the same either way."""
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    save(tmp_path, 2)
    path = tmp_path / "step_00000002"
    assert json.loads((path / "COMPLETE").read_text())["job"] == job
    assert verify(path) == ""
    assert "job" not in json.loads((path / "state.json").read_text())


def check_promise_3(folder: Path, older: int, newer: int, save: Callable[..., None]) -> None:
    """After a kill: nothing unfinished counts, nothing older is lost, and training goes on."""
    state = empty_state()
    state.restore(folder, Ranks(0, 1, torch.device("cpu")))
    assert state.progress.step in (older, newer)
    expected = state_at(state.progress.step).tensors()
    assert tensors_sha256(state.tensors()) == tensors_sha256(expected)
    assert verify(folder / named_by(folder, "latest")) == ""
    assert not list(folder.glob(".step_*"))
    for step in (newer, newer + 1):
        save(folder, step, best_step=1, keep=1)
    assert steps_in(folder) == [1, newer + 1]
    assert named_by(folder, "latest") == f"step_{newer + 1:08d}"


def test_a_kill_while_saving_leaves_the_older_or_the_newer(
    tmp_path: Path, save: Callable[..., None], kills: Kills
) -> None:
    """Killed before each change to the file system, also while step 2 is dropped for step 3."""
    before = tmp_path / "before"
    save(before, 1, best_step=1, keep=1)
    save(before, 2, best_step=1, keep=1)
    for folder in kills(before, lambda folder: save(folder, 3, best_step=1, keep=1)):
        assert verify(folder / named_by(folder, "latest")) == ""
        check_promise_3(folder, older=2, newer=3, save=save)


def test_a_kill_while_saving_a_step_again_leaves_one_of_both(
    tmp_path: Path, save: Callable[..., None], kills: Kills
) -> None:
    """Stopped at a step that was just saved; between two renames the step has no name at all."""
    before = tmp_path / "before"
    for step in (1, 2):
        save(before, step, best_step=1)
    nameless = 0
    for folder in kills(before, lambda folder: save(folder, 2, best_step=1)):
        nameless += not (folder / "step_00000002").exists()
        check_promise_3(folder, older=2, newer=2, save=save)
    assert nameless == 1


def test_a_kill_while_clearing_up_after_a_kill_is_no_worse(
    tmp_path: Path, save: Callable[..., None], kills: Kills
) -> None:
    before = tmp_path / "before"
    for step in (1, 2):
        save(before, step, best_step=1)
    shutil.copytree(before / "step_00000002", before / ".step_00000003.tmp")
    (before / "step_00000002").rename(before / ".step_00000002.replaced")
    for folder in kills(before, clean_up_after_kills):
        check_promise_3(folder, older=2, newer=2, save=save)


def test_a_save_over_what_a_kill_left_is_whole(two_steps: Path, save: Callable[..., None]) -> None:
    """DCP into a folder that holds an old .metadata would mix both."""
    shutil.copytree(two_steps / "step_00000001", two_steps / ".step_00000003.tmp")
    (two_steps / ".step_00000003.tmp" / "__7_0.distcp").write_bytes(b"left over")
    save(two_steps, 3)
    assert verify(two_steps / "step_00000003") == ""
    assert len(files_of(two_steps / "step_00000003")) == 4


def test_what_lies_in_a_step_that_is_saved_again_stays_there(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    save(tmp_path, 1)
    (tmp_path / "step_00000001" / "notes.txt").write_text("mine")
    save(tmp_path, 1)
    assert (tmp_path / "step_00000001" / "notes.txt").read_text() == "mine"
    assert verify(tmp_path / "step_00000001") == ""
    assert not list(tmp_path.glob(".step*"))
