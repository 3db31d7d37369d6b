"""stage=: training reads a copy of the pack on the machine's own disk, and computes the same."""

import dataclasses
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.command_line import UsageError
from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset
from data_prep.dataset.pack import TrainingPixels, packed_path
from tests.forked_ranks import ForkedRanks
from train.config import TrainConfig
from train.crops.staging import staged_pixels
from train.loop.trainer import Trainer
from train.ranks.distributed import Ranks
from train.ranks.lock import RunLock
from train.runs.open_run import open_run

Tiny = Callable[..., TrainConfig]


@pytest.fixture
def stage(with_pack: Dataset, ranks: Callable[..., Ranks]) -> Callable[[str], Any]:
    """Stage the pack; returns the pixels and the line about them."""
    return lambda folder: staged_pixels(TrainingPixels(with_pack), folder, ranks(), StopRequest())


def test_every_sample_is_the_same_and_read_from_the_copy(
    stage: Any, with_pack: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pixels, told = stage("${TMPDIR}")
    shared = packed_path(with_pack.folder, with_pack.description.content_sha256)
    copy = tmp_path / f"eosin-{os.getuid()}" / shared.name
    assert f"the pack is read from {copy} (copied on 1 of 1 machines" in told
    assert Path(pixels.packed.filename) == copy
    whole = slice(None), slice(None)
    for number in range(len(pixels)):
        expected = TrainingPixels(with_pack)[number].window(*whole)
        assert np.array_equal(pixels[number].window(*whole), expected)
    assert "(found there, " in stage("$TMPDIR")[1]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("$NOT_SET", "NOT_SET is not set"),
        ("$NOT_SET/eosin", "NOT_SET is not set"),
        ("/no/such/disk", "/no/such/disk: No such file or directory"),
    ],
)
def test_where_there_can_be_no_copy_one_line_says_so_and_the_shared_pack_is_read(
    folder: str, reason: str, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "n3")
    pixels, told = stage(folder)
    assert told.startswith(f"stage={folder}: n3 read the shared pack: {reason}")
    assert "\n" not in told
    assert pixels.pack is None
    assert pixels.packed is not None


def test_without_a_pack_there_is_nothing_to_copy(
    prepared: Dataset, ranks: Callable[..., Ranks], tmp_path: Path
) -> None:
    pixels, told = staged_pixels(TrainingPixels(prepared), str(tmp_path), ranks(), StopRequest())
    assert "there is no pack to copy; `python -m data_prep` again with the same settings" in told
    assert pixels.packed is None
    assert list(tmp_path.iterdir()) == []


def test_a_stop_leaves_the_copy_and_training_saves(
    with_pack: Dataset, ranks: Callable[..., Ranks], tmp_path: Path
) -> None:
    stop = StopRequest()
    stop.adopt(15)
    (tmp_path / f"eosin-{os.getuid()}").mkdir()
    with (tmp_path / f"eosin-{os.getuid()}" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another job copies, for long
        pixels, _ = staged_pixels(TrainingPixels(with_pack), str(tmp_path), ranks(), stop)
    assert pixels.pack is None


def test_a_relative_folder_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="stage=local: must be a whole path, or begin with a"):
        tiny(Path(), "stage=local")


def test_the_bits_are_those_without_it(
    with_pack: Dataset,
    tiny: Tiny,
    ranks: Callable[..., Ranks],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = []
    for name, more in (("shared", ()), ("staged", (f"stage={tmp_path}",))):
        config = dataclasses.replace(
            tiny(tmp_path / name, "epochs=1", *more), data=str(with_pack.folder)
        )
        config, _ = open_run(config, with_pack, torch.device("cpu"))
        lock = RunLock(tmp_path / name)
        trainer = Trainer(config, with_pack, ranks(), StopRequest(), lock)
        assert trainer.fit() == 0
        states.append(trainer.state.model.state_dict())
    assert f"the pack is read from {tmp_path}/eosin-" in capsys.readouterr().out
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_two_ranks_of_a_machine_read_one_copy(with_pack: Dataset, tmp_path: Path) -> None:
    settings = [f"data={with_pack.folder}", f"run={tmp_path / 'run'}", f"stage={tmp_path}"]
    settings += ["epochs=1", "batch_size=4", "crop.size_px=64", "model.width=4", "model.depth=2"]
    settings += ["tile.size_px=96", "tile.overlap_px=16", "panels=0", "device=cpu", "amp=off"]
    told = ForkedRanks("train.__main__", settings, 2, tmp_path / "log").finish()
    assert told.count("the pack is read from") == 1
    assert "(copied on 1 of 1 machines, " in told
    assert len(list(tmp_path.rglob("*.u8"))) == 1
