"""What is loaded is what was saved, and nothing of a checkpoint is run."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from tests.train.checkpoints.conftest import empty_state, remake_complete, state_at
from train.checkpoints.checkpoint_files import CheckpointError, verify
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.load_checkpoint import check_metadata, load_all_tensors, load_checkpoint
from train.ranks.distributed import Ranks


def test_every_tensor_and_nothing_else_is_under_its_name(two_steps: Path) -> None:
    tensors = load_all_tensors(two_steps / "step_00000002")
    parts = ("step", "exp_avg", "exp_avg_sq")
    optimizer = [f"optimizer.{name}.{part}" for name in ("weight", "bias") for part in parts]
    assert set(tensors) == {"model.weight", "model.bias", *optimizer}
    assert tensors_sha256(tensors) == tensors_sha256(state_at(2).tensors())


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


def test_no_tensor_pays_for_another_by_a_negative_size(tmp_path: Path) -> None:
    """A stranger's metadata: a huge tensor and one of fewer than no values, together none."""
    (tmp_path / "__0_0.distcp").write_bytes(bytes(100))
    properties = TensorProperties(dtype=torch.float32)
    sizes = {"huge": torch.Size((10**9,)), "less": torch.Size((-(10**9),))}
    entries: dict[str, Any] = {
        name: TensorStorageMetadata(properties, size, []) for name, size in sizes.items()
    }
    with pytest.raises(ValueError, match="negative"):
        check_metadata(tmp_path, Metadata(entries, storage_data={}))
