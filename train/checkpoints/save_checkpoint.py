"""Save a checkpoint: all ranks write under a temporary name, rank 0 publishes what is whole."""

import errno
import functools
import operator
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from common.files import sync
from common.slurm_job import job_id
from train.checkpoints.checkpoint_files import (
    COMPLETE,
    FORMAT,
    STATE,
    CheckpointError,
    describe_files,
    torch_errors_explained,
    write_durably,
)
from train.checkpoints.digests import json_sha256
from train.checkpoints.published import published_checkpoints, step_name
from train.checkpoints.upkeep import remove_replaced, remove_unfinished
from train.ranks.distributed import Ranks


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config_sha256: str,
    ranks: Ranks,
    check_ours: Callable[[], None] = lambda: None,
) -> Path:
    """Write and publish the checkpoint of a step; collective.

    `tensors` are this rank's share by dotted name (`share`), `state` is JSON, of which rank 0's is
    kept. Rank 0 calls `check_ours` before it touches what may be another process's by now. Raises
    CheckpointError on every rank where it fails on one; older checkpoints are as they were.
    """
    final = folder / step_name(step)
    temporary = folder / f".{final.name}.tmp"
    try:

        def begin() -> None:
            check_ours()
            make_empty(temporary)

        ranks.first_does(begin)
        writer = FileSystemWriter(temporary)  # fsyncs each file
        with torch_errors_explained("saved"):
            state_dict_saver.save(
                dict(tensors),
                storage_writer=writer,
                process_group=ranks.group,
                no_dist=ranks.world_size == 1,
            )
        # each rank reads back its own files: on many nodes no one rank hashes everything
        own = f"__{ranks.rank}_*.distcp"
        described = ranks.all_do(lambda: describe_files(temporary.glob(own)))

        def complete() -> None:
            write_durably(temporary / STATE, dict(state))
            files = describe_files(temporary / name for name in (".metadata", STATE))
            content: dict[str, Any] = {
                "format": FORMAT,
                "step": step,
                "world_size": ranks.world_size,
                "config_sha256": config_sha256,
                "job": job_id(),
                "files": functools.reduce(operator.or_, described, files),
            }
            write_durably(temporary / COMPLETE, {**content, "sha256": json_sha256(content)})
            check_ours()
            publish(temporary, final)

        ranks.first_does(complete)
    except (CheckpointError, OSError) as error:
        reason = str(error)
        num_bytes = sum(ranks.gather(sum(tensor.nbytes for tensor in tensors.values())))
        raise ranks.first_does(lambda: not_saved(temporary, num_bytes, reason)) from None
    return final


def publish(temporary: Path, final: Path) -> None:
    """Give a finished checkpoint its name; one that has it (the same step) steps aside first."""
    sync(temporary)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    sync(final.parent)
    remove_replaced(replaced, final)


def tensors_of_rank(tensors: Mapping[str, Tensor], rank: int, world_size: int) -> dict[str, Tensor]:
    """The tensors that a rank writes of those that all ranks have: about as many bytes each."""
    num_bytes = [0] * world_size
    mine = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        lightest = num_bytes.index(min(num_bytes))
        num_bytes[lightest] += tensor.nbytes
        if lightest == rank:
            mine[name] = tensor
    return mine


def make_empty(folder: Path) -> None:
    """A new folder in place of what a killed save left. Raises CheckpointError where somebody has
    put something there."""
    remove_unfinished(folder)
    if os.path.lexists(folder):
        raise CheckpointError(f"{folder}: holds what is no checkpoint's; move it away")
    folder.mkdir(parents=True)


def not_saved(temporary: Path, num_bytes: int, reason: str) -> CheckpointError:
    """The error of a save that failed, its half-written files removed."""
    remove_unfinished(temporary)
    folder = temporary.parent
    free = shutil.disk_usage(next(path for path in temporary.parents if path.exists())).free
    needed = max([num_bytes, *(space_of(path) for path in published_checkpoints(folder)[-1:])])
    kept = "the checkpoints before it are as they were"
    if free >= needed and os.strerror(errno.ENOSPC) not in reason:
        return CheckpointError(f"{folder}: {reason}; {kept}")
    missing = f", {megabytes(needed - free)} are missing" if needed > free else " by now"
    return CheckpointError(
        f"{folder}: the disk is full: a checkpoint takes {megabytes(needed)},"
        f" {megabytes(free)} are free{missing}; {kept}. Make room"
        " (keep_checkpoints says how many are kept) and run the same command again"
    )


def space_of(folder: Path) -> int:
    """The bytes of disk that the files of a folder take."""
    return sum(512 * path.stat().st_blocks for path in folder.iterdir())


def megabytes(num_bytes: int) -> str:
    """A size to read."""
    return f"{num_bytes / 1e6:.1f} MB"
