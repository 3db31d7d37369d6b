"""Sharded checkpoints that count only when they are whole.

    RUN/checkpoints/step_00000120/    __<rank>_0.distcp   tensors, each once, spread over the ranks
                                      .metadata           where each tensor lies
                                      state.json          everything that is not a tensor
                                      COMPLETE            written last: size and hash of every file,
                                                          world size, hash of the configuration,
                                                          the Slurm job that saved it
    RUN/checkpoints/latest, best      names of published steps

A checkpoint is made under a temporary name, and gets its own once COMPLETE and the files are on
disk. It holds tensors and JSON only; `.metadata` is a pickle of torch's, read with nothing but
the classes that it needs, so a checkpoint from elsewhere runs no code.
"""

import errno
import functools
import hashlib
import io
import json
import operator
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from common.command_line import UsageError, UserError
from common.files import clear, file_sha256, is_plain, sync, write_atomically
from common.recorded import Version
from common.slurm_job import job_id
from train.ranks.distributed import Ranks

# One rank alone saves without a process group, as is meant
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

FORMAT = 1
COMPLETE, STATE = "COMPLETE", "state.json"
STEP = re.compile(r"step_\d{8,}")
ASIDE = re.compile(rf"\.({STEP.pattern})\.(tmp|replaced)")
PART = re.compile(rf"__\d+_\d+\.distcp|\.metadata(\.tmp)?|{re.escape(STATE)}|{COMPLETE}")
# All that torch writes into .metadata for dicts of plain tensors
PICKLED = {
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
} | {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
}


class CheckpointError(UserError):
    """No checkpoint that can be used."""


def save(
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
        with torchs_own_words("saved"):
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
            write_durably(temporary / COMPLETE, {**content, "sha256": hash_json(content)})
            check_ours()
            publish(temporary, final)

        ranks.first_does(complete)
    except (CheckpointError, OSError) as error:
        reason = str(error)
        num_bytes = sum(ranks.gather(sum(tensor.nbytes for tensor in tensors.values())))
        raise ranks.first_does(lambda: not_saved(temporary, num_bytes, reason)) from None
    return final


def share(tensors: Mapping[str, Tensor], rank: int, world_size: int) -> dict[str, Tensor]:
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


def remove_unfinished(folder: Path) -> None:
    """Remove the files that a save which did not end has left, and nothing else."""
    clear(folder, lambda name: bool(PART.fullmatch(name)))
    with suppress(OSError):  # not there, or not empty
        folder.rmdir()


def remove(path: Path) -> None:
    """Remove a checkpoint: those of its files that are as its COMPLETE says, and that, last.

    Killed in between, it is half a checkpoint, which `verify` tells, and goes the next time.
    """
    if path.is_symlink():
        return
    for name in own_files(path):
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or not there
        path.rmdir()


def own_files(path: Path) -> list[str]:
    """The files of a checkpoint that nobody has changed since it was written, COMPLETE the last.

    There are none where COMPLETE is damaged.
    """
    try:
        content, written_ns = read_complete(path), (path / COMPLETE).lstat().st_mtime_ns
        listed = {name: entry for name, entry in content["files"].items() if is_plain(name)}
        versions = {
            name: Version(int(entry["bytes"]), entry["sha256"]) for name, entry in listed.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []

    def is_own(name: str) -> bool:
        """Whether a file is as it was written. One that was touched since is hashed again."""
        mtime_ns = (path / name).lstat().st_mtime_ns if os.path.lexists(path / name) else -1
        return versions[name].is_at(path / name, mtime_ns if mtime_ns <= written_ns else -1)

    return [*filter(is_own, versions), COMPLETE]


def read_complete(path: Path) -> dict[str, Any]:
    """What COMPLETE says. Raises ValueError where its own hash differs."""
    content: dict[str, Any] = json.loads((path / COMPLETE).read_text())
    if content.pop("sha256") != hash_json(content):
        raise ValueError("sha256 differs")
    return content


def not_saved(temporary: Path, num_bytes: int, reason: str) -> CheckpointError:
    """The error of a save that failed, its half-written files removed."""
    remove_unfinished(temporary)
    folder = temporary.parent
    free = shutil.disk_usage(next(path for path in temporary.parents if path.exists())).free
    needed = max([num_bytes, *(space_of(path) for path in published(folder)[-1:])])
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


def load(path: Path, tensors: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Fill (nested dicts of) `tensors` in place from a checkpoint, return its `state`; collective.

    The caller has verified the checkpoint (`newest_intact`, `find`).
    """
    read_tensors(path, tensors, alone=ranks.world_size == 1)
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    return state


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones were passed over.

    Raises CheckpointError where there are checkpoints but none is intact: starting anew in
    silence would throw the run away.
    """
    passed_over: list[str] = []
    for path in reversed(published(folder)):
        problem = verify(path)
        if not problem:
            return path, passed_over
        passed_over.append(f"{path.name}: {problem}")
    if passed_over:
        raise CheckpointError(
            f"{folder}: no intact checkpoint ({'; '.join(passed_over)}). Restore one, or name"
            " another run= to start anew"
        )
    return None, []


def verify(path: Path) -> str:
    """Why a folder is not an intact checkpoint, or '' where it is.

    Raises OSError where that cannot be told: a disk that cannot be read just now damages nothing.
    """
    try:
        complete = read_complete(path)
        if complete["format"] != FORMAT:
            return f"format {complete['format']}, this version reads {FORMAT}"
        for name, expected in complete["files"].items():
            if not is_plain(name):
                return f"{COMPLETE} is damaged ({name!r} is not a plain file name)"
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if file_sha256(file) != expected["sha256"]:
                return f"{name} is damaged (sha256 differs)"
    except FileNotFoundError:
        return f"no {COMPLETE}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{COMPLETE} is damaged ({error})"
    return ""


def find(folder: Path, name: str) -> Path:
    """The folder of 'latest', 'best', a step's number or a step's name; unverified."""
    if name in ("latest", "best"):
        target = pointed(folder, name)
    else:
        target = folder / (step_name(int(name)) if name.isdigit() else name)
    if target is None or not target.is_dir():
        if not (steps := published(folder)):
            raise UsageError(f"checkpoint={name}: no checkpoint was saved yet in {folder}")
        known = ", ".join(["latest", "best", *(path.name for path in steps)])
        raise UsageError(f"checkpoint={name}: not in {folder}; there are: {known}")
    return target


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay."""

    newest: int
    """So many of the newest, and the best."""
    every_steps: int = 0
    """And for good those whose step it divides; 0 for none."""

    def apply(self, folder: Path) -> None:
        """Remove the others."""
        best = pointed(folder, "best")
        for path in published(folder)[: -self.newest]:
            is_for_good = self.every_steps and step_of(path) % self.every_steps == 0
            if path != best and not is_for_good:
                remove(path)


def clean_up(folder: Path) -> None:
    """Remove what killed saves left, and put back one that was killed while being replaced."""
    for path in sorted(folder.glob(".step_*")):
        match = ASIDE.fullmatch(path.name)
        if match and match[2] == "tmp":
            remove_unfinished(path)
        elif match and (folder / match[1]).exists():
            remove_replaced(path, folder / match[1])
        elif match:
            path.rename(folder / match[1])


def remove_replaced(replaced: Path, final: Path) -> None:
    """Remove the checkpoint in whose place another came; what else lay in it goes there too."""
    remove(replaced)
    for path in replaced.iterdir() if replaced.is_dir() else ():
        if not os.path.lexists(final / path.name):
            path.rename(final / path.name)
    with suppress(OSError):  # not there, or not empty
        replaced.rmdir()


def set_aside_newer(path: Path) -> None:
    """Rename the damaged checkpoints after an intact one: they would count among the newest kept,
    and push out what is saved from now on."""
    for damaged in published(path.parent):
        if damaged.name > path.name:
            aside = damaged.with_name(f"damaged_{damaged.name}")
            while os.path.lexists(aside):
                aside = aside.with_name(f"{aside.name}_again")
            damaged.rename(aside)


def step_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.name.removeprefix("step_"))


def published(folder: Path) -> list[Path]:
    """Folders named as checkpoints, oldest first; unverified."""
    found = (path for path in folder.glob("step_*") if STEP.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=step_of)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished checkpoint its name; one that has it (the same step) steps aside first."""
    sync(temporary)
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    sync(final.parent)
    remove_replaced(replaced, final)


def point(folder: Path, pointer: str, target: Path) -> None:
    """Let 'latest' or 'best' name a published step."""
    if pointed(folder, pointer) != target:
        write_atomically(folder / pointer, f"{target.name}\n".encode(), is_synced=True)
        sync(folder)


def pointed(folder: Path, pointer: str) -> Path | None:
    """The step that 'latest' or 'best' names, if there is one."""
    file = folder / pointer
    name = file.read_text().strip() if file.is_file() else ""
    return folder / name if STEP.fullmatch(name) else None


def write_durably(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON and wait until it is on the disk."""
    path.write_text(json.dumps(content, indent=1))
    sync(path)


def describe_files(paths: Iterator[Path]) -> dict[str, dict[str, Any]]:
    """Name -> size and hash."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(paths)
    }


def hash_json(content: Mapping[str, Any]) -> str:
    """sha256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest(tensors: Mapping[str, Any]) -> str:
    """sha256 over names, types, shapes and bytes of nested dicts of tensors.

    It depends on the values alone, not on how many ranks saved them or on the order of names.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(flatten(tensors)):
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        total.update(header.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def flatten(tensors: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of nested dicts."""
    for key, value in tensors.items():
        if isinstance(value, Tensor):
            yield prefix + key, value
        else:
            yield from flatten(value, f"{prefix}{key}.")


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows nothing but what PICKLED lists."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name of the pickle; refuse all others."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in PICKLED:
            return super().find_class(module, name)
        raise CheckpointError(
            f".metadata asks for {module}.{name}, which no checkpoint needs: not loaded"
        )


class PlainReader(FileSystemReader):
    """torch's reader, with `.metadata` read by PlainUnpickler."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The same as torch's, restricted."""
        content = (Path(self.path) / ".metadata").read_bytes()
        metadata = PlainUnpickler(io.BytesIO(content)).load()
        for info in (metadata.storage_data or {}).values():
            if not is_plain(info.relative_path):
                raise CheckpointError(
                    f".metadata names a file {info.relative_path!r}, which is not a plain file"
                    " name: not loaded"
                )
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def all_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its dotted name, in one process."""
    metadata = PlainReader(path).read_metadata()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    read_tensors(path, tensors, alone=True)
    return tensors


@contextmanager
def torchs_own_words(done: str) -> Iterator[None]:
    """A failure on any rank as an error of ours."""
    try:
        yield
    except CheckpointException as error:  # a BaseException, which nobody else catches
        reasons = [f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items()]
        raise CheckpointError(f"checkpoint not {done}: {'; '.join(reasons)}") from None


def read_tensors(path: Path, tensors: dict[str, Any], alone: bool) -> None:
    """Fill (nested dicts of) tensors in place; collective, unless `alone`."""
    reader = PlainReader(path)
    reader.read_metadata()  # a refusal here is an error of ours, on every rank
    with torchs_own_words("loaded"):
        state_dict_loader.load(tensors, storage_reader=reader, no_dist=alone)
