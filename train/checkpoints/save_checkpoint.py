"""Save a checkpoint: all ranks write under a temporary name, then rank 0 publishes it."""

import errno
import functools
import operator
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common.files import sync
from train.checkpoints.checkpoint_files import (
    FORMAT,
    STATE,
    CheckpointError,
    FileEntries,
    describe_files,
    torch_errors_explained,
    write_complete,
    write_durably,
)
from train.checkpoints.published import published_checkpoints, step_name
from train.checkpoints.upkeep import remove_replaced, remove_unfinished
from train.ranks.distributed import Ranks
from train.ranks.slurm_job import job_id


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config_sha256: str,
    ranks: Ranks,
    check_ours: Callable[[], None] = lambda: None,
) -> Path:
    """Write and publish the checkpoint of a step, and return its folder. Collective.

    `tensors`: by dotted name, those that this rank writes (`tensors_of_rank`). `state`: JSON; rank
    0's is written. `check_ours`: rank 0 calls it before it changes files; it raises UserError if
    another process has taken over the run. Raises CheckpointError on every rank if saving fails on
    one; older checkpoints are not touched.
    """
    final = folder / step_name(step)
    temporary = folder / f".{final.name}.tmp"

    def begin() -> None:
        check_ours()
        make_empty(temporary)

    def complete(entries: list[FileEntries]) -> None:
        write_durably(temporary / STATE, dict(state))
        files = describe_files(temporary / name for name in (".metadata", STATE))
        content = {
            "format": FORMAT,
            "step": step,
            "world_size": ranks.world_size,
            "config_sha256": config_sha256,
            "job": job_id(),
            "files": functools.reduce(operator.or_, entries, files),
        }
        write_complete(temporary, content)
        check_ours()
        publish(temporary, final)

    try:
        ranks.first_does(begin)
        entries = write_tensors(temporary, tensors, ranks)
        ranks.first_does(lambda: complete(entries))
    except (CheckpointError, OSError) as error:
        reason = str(error)
        num_bytes = sum(ranks.gather(sum(tensor.nbytes for tensor in tensors.values())))
        raise ranks.first_does(lambda: not_saved(temporary, num_bytes, reason)) from None
    return final


def write_tensors(
    temporary: Path, tensors: Mapping[str, Tensor], ranks: Ranks
) -> list[FileEntries]:
    """Write the tensors of all ranks, and return the entries of each rank's files. Collective."""
    from torch.distributed.checkpoint import state_dict_saver  # here: it takes a second
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    writer = FileSystemWriter(temporary)  # syncs each file
    with torch_errors_explained("saved"):
        state_dict_saver.save(
            dict(tensors),
            storage_writer=writer,
            process_group=ranks.group,
            no_dist=ranks.world_size == 1,
        )
    # each rank hashes its own files: on many nodes that is too much for one rank
    return ranks.all_do(lambda: describe_files(temporary.glob(f"__{ranks.rank}_*.distcp")))


def publish(temporary: Path, final: Path) -> None:
    """Give a finished checkpoint its name; an older one of the same step is removed."""
    sync(temporary)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    sync(final.parent)
    remove_replaced(replaced, final)


def tensors_of_rank(tensors: Mapping[str, Tensor], rank: int, world_size: int) -> dict[str, Tensor]:
    """Return the tensors that a rank writes: each is one rank's, in about equal bytes per rank.

    `tensors` are the same on all ranks.
    """
    num_bytes = [0] * world_size
    mine = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        lightest = num_bytes.index(min(num_bytes))
        num_bytes[lightest] += tensor.nbytes
        if lightest == rank:
            mine[name] = tensor
    return mine


def make_empty(folder: Path) -> None:
    """Make a folder to save into, without the files of a killed save. Raises CheckpointError if it
    holds other files."""
    remove_unfinished(folder)
    if os.path.lexists(folder):
        raise CheckpointError(f"{folder}: holds files that are no checkpoint's; move it away")
    folder.mkdir(parents=True)


def not_saved(temporary: Path, num_bytes: int, reason: str) -> CheckpointError:
    """Remove the files of a failed save, and return its error.

    `num_bytes`: size of the state's tensors. If the disk is full, the error says how much room is
    missing.
    """
    remove_unfinished(temporary)
    folder = temporary.parent
    free = shutil.disk_usage(next(path for path in temporary.parents if path.exists())).free
    needed = max([num_bytes, *(disk_bytes(path) for path in published_checkpoints(folder)[-1:])])
    kept = "the checkpoints before it are as they were"
    if free >= needed and os.strerror(errno.ENOSPC) not in reason:
        return CheckpointError(f"{folder}: {reason}; {kept}")
    missing = f", {megabytes(needed - free)} are missing" if needed > free else " by now"
    return CheckpointError(
        f"{folder}: the disk is full: a checkpoint takes {megabytes(needed)},"
        f" {megabytes(free)} are free{missing}; {kept}. Make room"
        " (keep_checkpoints says how many are kept) and run the same command again"
    )


def disk_bytes(folder: Path) -> int:
    """Return the bytes of disk that the files of a folder take."""
    return sum(512 * path.stat().st_blocks for path in folder.iterdir())


def megabytes(num_bytes: int) -> str:
    """Format a size in MB."""
    return f"{num_bytes / 1e6:.1f} MB"
