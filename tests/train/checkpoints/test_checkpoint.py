"""Promise 3: only what verifies is a checkpoint, and a kill at any instant costs no older one."""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.command_line import UsageError
from train.checkpoints.checkpoint_files import CheckpointError, describe_files, verify
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.load_checkpoint import load_all_tensors, load_checkpoint
from train.checkpoints.published import (
    find_checkpoint,
    newest_intact,
    published_checkpoints,
    read_pointer,
)
from train.checkpoints.saver import Saver
from train.checkpoints.state import Progress, State
from train.checkpoints.upkeep import Retention, clean_up_after_kills, remove_checkpoint
from train.config import TrainConfig
from train.loop.optimizer import build_optimizer
from train.ranks.distributed import Ranks

Kills = Callable[..., Iterator[Path]]


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


# There and back


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


def test_every_tensor_and_nothing_else_is_under_its_name(two_steps: Path) -> None:
    tensors = load_all_tensors(two_steps / "step_00000002")
    parts = ("step", "exp_avg", "exp_avg_sq")
    optimizer = [f"optimizer.{name}.{part}" for name in ("weight", "bias") for part in parts]
    assert set(tensors) == {"model.weight", "model.bias", *optimizer}
    assert tensors_sha256(tensors) == tensors_sha256(state_at(2).tensors())


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


# What counts


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file())


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
    """launch.on_exit reads it, to tell a job's own progress; the state is the same either way."""
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    save(tmp_path, 2)
    path = tmp_path / "step_00000002"
    assert json.loads((path / "COMPLETE").read_text())["job"] == job
    assert verify(path) == ""
    assert "job" not in json.loads((path / "state.json").read_text())


FILES = (".metadata", "__0_0.distcp", "state.json")


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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, not"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "bytes, not"),
        (lambda file: file.write_bytes(b""), "has 0 bytes"),
        (lambda file: file.unlink() or file.mkdir(), "is missing"),
    ],
)
def test_a_damaged_file_is_named(
    name: str, damage: Callable[[Path], object], reason: str, two_steps: Path
) -> None:
    path = two_steps / "step_00000002"
    damage(path / name)
    problem = verify(path)
    assert name in problem
    assert reason in problem


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_shows(name: str, two_steps: Path) -> None:
    """40 of 40 loaded in silence before there were hashes. Here: a bit of every 29th byte."""
    path = two_steps / "step_00000002"
    content = bytearray((path / name).read_bytes())
    for place in range(0, len(content), 29):
        content[place] ^= 1 << place % 8
        (path / name).write_bytes(content)
        assert verify(path) == f"{name} is damaged (sha256 differs)"
        content[place] ^= 1 << place % 8
    (path / name).write_bytes(content)
    assert verify(path) == ""


def test_a_flipped_bit_of_complete_shows(two_steps: Path) -> None:
    path = two_steps / "step_00000002"
    content = bytearray((path / "COMPLETE").read_bytes())
    for place in range(len(content)):
        content[place] ^= 1 << place % 8
        (path / "COMPLETE").write_bytes(content)
        assert verify(path), f"byte {place}: {bytes(content)!r}"
        content[place] ^= 1 << place % 8


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no COMPLETE"),
        ("", "COMPLETE is damaged"),
        ('{"format": 1, "files": {', "COMPLETE is damaged"),
        ("[]", "COMPLETE is damaged"),
        ("null", "COMPLETE is damaged"),
        ("{}", "COMPLETE is damaged"),
        ('{"format": 1}', "COMPLETE is damaged"),
        ('{"format": 1, "files": {}, "sha256": "0"}', "COMPLETE is damaged"),
    ],
)
def test_a_damaged_complete_is_none(content: str | None, reason: str, two_steps: Path) -> None:
    file = two_steps / "step_00000002" / "COMPLETE"
    file.unlink() if content is None else file.write_text(content)
    assert re.match(reason, verify(two_steps / "step_00000002"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"format": 1, "files": {"state.json": 7}}, "COMPLETE is damaged"),
        ({"format": 1, "files": {"state.json": {"bytes": 1}}}, "state.json has .* bytes, not 1"),
        ({"format": 2, "files": {}}, "format 2, this version reads 1"),
    ],
)
def test_a_complete_that_says_something_else_is_none(
    content: dict[str, Any], reason: str, two_steps: Path
) -> None:
    write_complete(two_steps / "step_00000002", content)
    assert re.match(reason, verify(two_steps / "step_00000002"))


def test_a_folder_that_is_not_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert verify(tmp_path / "step_00000009") == "no COMPLETE"


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


# A kill at any instant


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


# What is kept


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


# What is not ours


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


def test_what_lies_in_a_step_that_is_saved_again_stays_there(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    save(tmp_path, 1)
    (tmp_path / "step_00000001" / "notes.txt").write_text("mine")
    save(tmp_path, 1)
    assert (tmp_path / "step_00000001" / "notes.txt").read_text() == "mine"
    assert verify(tmp_path / "step_00000001") == ""
    assert not list(tmp_path.glob(".step*"))


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


@pytest.mark.parametrize("name", ["../elsewhere", "step_00000002/../..", "/etc", "step_final", ""])
def test_a_pointer_names_a_step_and_nothing_else(name: str, two_steps: Path) -> None:
    (two_steps / "latest").write_text(name)
    assert read_pointer(two_steps, "latest") is None
    with pytest.raises(UsageError, match="checkpoint=latest: not in"):
        find_checkpoint(two_steps, "latest")


def test_a_complete_that_names_a_file_elsewhere_is_none(two_steps: Path) -> None:
    path = two_steps / "step_00000002"
    content = {"format": 1, "files": {"../latest": {"bytes": 14, "sha256": "0"}}}
    write_complete(path, content)
    assert "'../latest' is not a plain file name" in verify(path)
    remove_checkpoint(path)
    assert (two_steps / "latest").exists()


# Nothing of a checkpoint is run


class Malicious:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, Path.mkdir, torch.load])
def test_a_pickle_that_calls_something_is_refused_and_not_run(
    function: Callable[..., object], two_steps: Path, ranks: Callable[[], Ranks]
) -> None:
    path, trap = two_steps / "step_00000002", two_steps / "trap"
    (path / ".metadata").write_bytes(pickle.dumps(Malicious(function, trap)))
    remake_complete(path)
    assert verify(path) == ""
    loads = [
        lambda: load_all_tensors(path),
        lambda: load_checkpoint(path, state_at(1).tensors(), ranks()),
        lambda: empty_state().restore(two_steps, ranks()),
    ]
    for load in loads:
        with pytest.raises(CheckpointError, match="which no checkpoint needs"):
            load()
    assert not trap.exists()


# Digests


TENSORS = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": {"c": torch.ones(2)}}


@pytest.mark.parametrize(
    "same",
    [
        {"b": {"c": torch.ones(2)}, "a": TENSORS["a"].clone()},
        {"a": TENSORS["a"].T.contiguous().T, "b": TENSORS["b"]},
        {"a": TENSORS["a"], "b.c": torch.ones(2)},
        {"a": nn.Parameter(TENSORS["a"]), "b": TENSORS["b"]},
    ],
    ids=["order", "layout", "flat names", "parameter"],
)
def test_a_digest_depends_on_values_alone(same: dict[str, Any]) -> None:
    assert tensors_sha256(same) == tensors_sha256(TENSORS)


@pytest.mark.parametrize(
    "other",
    [
        {**TENSORS, "a": TENSORS["a"].nextafter(torch.tensor(9.0))},
        {**TENSORS, "a": TENSORS["a"].reshape(3, 2)},
        {**TENSORS, "a": TENSORS["a"].view(torch.int32)},
        {**TENSORS, "a": torch.where(TENSORS["a"] == 0, -0.0, TENSORS["a"])},
        {"A": TENSORS["a"], "b": TENSORS["b"]},
        {"a": TENSORS["a"]},
        {**TENSORS, "d": torch.zeros(0)},
    ],
    ids=["last bit", "shape", "type", "sign of 0", "name", "fewer", "more"],
)
def test_a_digest_tells_any_difference(other: dict[str, Any]) -> None:
    assert tensors_sha256(other) != tensors_sha256(TENSORS)


def test_a_digest_takes_types_that_numpy_has_not() -> None:
    half = {"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "b": torch.tensor(3)}
    assert len(tensors_sha256(half)) == 64
