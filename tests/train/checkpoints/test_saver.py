"""Checkpoints in the background hold the state as it was, one at a time, and fail aloud."""

import dataclasses
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UserError
from model.precision import choose_precision
from train.checkpoints.checkpoint_files import CheckpointError, verify, write_durably
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.load_checkpoint import load_all_tensors
from train.checkpoints.published import find_checkpoint, published_checkpoints, step_of
from train.checkpoints.save_checkpoint import publish, save_checkpoint, tensors_of_rank
from train.checkpoints.saver import Saver
from train.checkpoints.state import State
from train.checkpoints.upkeep import Retention
from train.config import TrainConfig
from train.loop.initial_state import build_state
from train.loop.trainer import Trainer
from train.ranks.distributed import Ranks
from train.ranks.lock import RunLock

Tiny = Callable[..., TrainConfig]
SHA256 = "c" * 64


@pytest.fixture
def state(tiny: Tiny, tmp_path: Path) -> State:
    """A small network's state."""
    return build_state(
        tiny(tmp_path), 1, choose_precision(torch.device("cpu"), "off", "contiguous")
    )


@pytest.fixture
def saver(state: State, tmp_path: Path, ranks: Callable[[], Ranks]) -> Iterator[Saver]:
    """In the background, keeping two."""
    saver = Saver(state, tmp_path / "checkpoints", Retention(2), SHA256, ranks(), True)
    yield saver
    saver.close()


class Gate:
    """Holds save_checkpoint back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        original = save_checkpoint

        def held(*given: Any) -> Path:
            assert self.opened.wait(20)
            return original(*given)

        monkeypatch.setattr("train.checkpoints.saver.save_checkpoint", held)


def test_what_is_saved_is_the_state_at_the_time(
    saver: Saver, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on at once, and what it changes then is not in the checkpoint."""
    gate = Gate(monkeypatch)
    state.progress.step = 3
    before = tensors_sha256(state.tensors())
    saver.save()
    saver.wait_for_copy()
    assert saver.is_busy
    assert not saver.folder.exists()
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1)
    state.progress.step = 4
    gate.opened.set()
    saver.wait()
    path = find_checkpoint(saver.folder, "latest")
    assert tensors_sha256(load_all_tensors(path)) == before
    assert json.loads((path / "state.json").read_text())["step"] == 3
    complete = json.loads((path / "COMPLETE").read_text())
    assert complete["config_sha256"] == SHA256


def test_there_is_one_save_at_a_time(
    saver: Saver, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first, whose copy it would overwrite."""
    gate = Gate(monkeypatch)
    expected = []
    state.progress.step = 1
    expected.append(tensors_sha256(state.tensors()))
    saver.save()
    saver.wait_for_copy()
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1)
    state.progress.step = 2
    expected.append(tensors_sha256(state.tensors()))
    second = threading.Thread(target=saver.save)
    second.start()
    second.join(0.5)
    assert second.is_alive()
    gate.opened.set()
    second.join()
    saver.wait()
    assert not saver.is_busy
    paths = published_checkpoints(saver.folder)
    assert [path.name for path in paths] == ["step_00000001", "step_00000002"]
    assert [tensors_sha256(load_all_tensors(path)) for path in paths] == expected


def test_the_update_of_a_step_waits_for_the_copy(
    tiny: Tiny,
    new_trainer: Callable[[TrainConfig], Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copies are slow here: the bits must still be those of the step that was saved."""
    original = Saver.copy

    def slow(saver: Saver, tensors: dict[str, torch.Tensor]) -> None:
        time.sleep(0.2)
        original(saver, tensors)

    monkeypatch.setattr(Saver, "copy", slow)
    trainer = new_trainer(
        tiny(tmp_path / "run", "epochs=1", "save_every_s=0", "keep_checkpoints=9")
    )
    digests = {}
    step = trainer.train_step

    def noted() -> None:
        step()
        digests[trainer.state.progress.step] = tensors_sha256(trainer.state.tensors())

    trainer.train_step = noted
    trainer.fit()
    paths = published_checkpoints(tmp_path / "run" / "checkpoints")
    assert len(paths) > 1
    for path in paths:
        found = tensors_sha256(load_all_tensors(path))
        assert found == digests[step_of(path)]


def test_the_copy_is_waited_for_on_the_ranks_own_gpu(
    saver: Saver, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pretend one: a thread that does not name it would wait for GPU 0, and write what is not
    copied yet."""
    gpu = torch.device("cuda", 1)
    saver.ranks = dataclasses.replace(saver.ranks, device=gpu)
    waited_for = []

    def synchronize(device: object = None) -> None:
        waited_for.append((device, saver.copied.is_set()))

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    state.progress.step = 1
    saver.save()
    saver.wait()
    assert waited_for == [(gpu, False)]


def test_a_process_that_lost_its_run_publishes_nothing(
    state: State, tmp_path: Path, ranks: Callable[[], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what its thread was writing when another took the run over."""
    lock = RunLock(tmp_path)
    lock.acquire()
    folder = tmp_path / "checkpoints"
    saver = Saver(state, folder, Retention(2), SHA256, ranks(), True, lock.check)
    state.progress.step = 1
    saver.save()
    saver.wait()
    original = write_durably

    def taken_meanwhile(path: Path, content: Any) -> None:
        original(path, content)
        (tmp_path / "lock").write_text("token=another")

    monkeypatch.setattr("train.checkpoints.save_checkpoint.write_durably", taken_meanwhile)
    state.progress.step = 2
    saver.save()
    with pytest.raises(UserError, match="another one took it over"):
        saver.wait()
    saver.close()
    assert [path.name for path in published_checkpoints(folder)] == ["step_00000001"]
    assert (folder / "latest").read_text() == "step_00000001\n"


def test_a_save_that_fails_stops_the_run_at_the_next_step(
    tiny: Tiny,
    new_trainer: Callable[[TrainConfig], Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in silence, and not only at the end: checked once a step."""
    original, failed_at = publish, []

    def no_more_after_step_4(temporary: Path, final: Path) -> None:
        if final.name != "step_00000004":
            failed_at.append(trainer.state.progress.step)
            raise OSError(5, "Input/output error")
        original(temporary, final)

    monkeypatch.setattr("train.checkpoints.save_checkpoint.publish", no_more_after_step_4)
    trainer = new_trainer(tiny(tmp_path / "run", "epochs=1000"))
    with pytest.raises(CheckpointError, match=r"Input/output error; the checkpoints before it"):
        trainer.fit()
    # of step 8, published by a thread; the next epoch's save would have met it too
    assert 8 <= failed_at[0] < 12
    assert trainer.state.progress.step <= 12
    assert verify(tmp_path / "run" / "checkpoints" / "step_00000004") == ""
    assert not list((tmp_path / "run" / "checkpoints").glob(".step*"))


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="a small disk is mounted, as root"
)
def test_a_full_disk_says_how_much_is_missing(
    state: State, tmp_path: Path, ranks: Callable[[], Ranks]
) -> None:
    """A real one, of 1 MB: the older checkpoint stays whole, the unfinished one goes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk])
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        saver = Saver(state, disk / "checkpoints", Retention(2), SHA256, ranks(), False)
        state.progress.step = 1
        saver.save()
        first = saver.folder / "step_00000001"
        (used,) = subprocess.check_output(["du", "-s", "-B1", first], text=True).split()[:1]
        size = int(used)
        free = shutil.disk_usage(disk).free
        (disk / "others").write_bytes(b"x" * (free - size // 2))
        state.progress.step = 2
        with pytest.raises(CheckpointError, match="the disk is full") as caught:
            saver.save()
        missing = (size - shutil.disk_usage(disk).free) / 1e6
        assert f"takes {size / 1e6:.1f} MB" in str(caught.value)
        assert f"{missing:.1f} MB are missing" in str(caught.value)
        assert [path.name for path in saver.folder.iterdir() if "step" in path.name] == [
            "step_00000001"
        ]
        assert verify(saver.folder / "step_00000001") == ""
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_ranks_share_the_tensors(world_size: int) -> None:
    """Each tensor is one rank's, and no rank has much more to write than another."""
    sizes = [900, 100, 100, 300, 300, 500, 1, 1, 1, 700]
    tensors = {f"t{index}": torch.zeros(size) for index, size in enumerate(sizes)}
    shares = [tensors_of_rank(tensors, rank, world_size) for rank in range(world_size)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    loads = [sum(tensor.numel() for tensor in share.values()) for share in shares]
    # the longest-processing-time rule: at most 4/3 of the best there is
    best = max(900, sum(sizes) / world_size)
    assert max(loads) <= best * 4 / 3


def test_a_run_says_what_its_checkpoints_cost(
    tiny: Tiny,
    new_trainer: Callable[[TrainConfig], Trainer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new_trainer(tiny(tmp_path / "run")).fit()
    assert "; checkpoints held it up for 0." in capsys.readouterr().out
