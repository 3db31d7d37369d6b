"""The files of a checkpoint: write and read COMPLETE, and verify that all files are unchanged.

    RUN/checkpoints/step_00000120/    __<rank>_0.distcp   tensors, each once, spread over the ranks
                                      .metadata           which file holds each tensor
                                      state.json          everything that is not a tensor
                                      COMPLETE            written last: size and hash of every file,
                                                          world size, hash of the configuration,
                                                          the Slurm job that saved it
    RUN/checkpoints/latest, best      names of published steps

A checkpoint is written under a temporary name. It gets its own name when COMPLETE and all files are
on disk.
"""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.command_line import UserError
from common.file_records import Version
from common.files import file_sha256, is_plain, sync
from common.schema import json_sha256, read_small, short, validated

FileEntries = dict[str, dict[str, Any]]
"""Name of a file -> its "bytes" and "sha256"."""

# One rank saves without a process group, on purpose
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

FORMAT = 1
COMPLETE, STATE, METADATA = "COMPLETE", "state.json", ".metadata"


class CheckpointError(UserError):
    """A checkpoint that cannot be saved or used."""


@dataclass(frozen=True)
class SavedFile:
    """The size and hash of a file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Complete:
    """The schema of COMPLETE."""

    world_size: int
    config_sha256: str
    files: dict[str, Any]
    """Name -> a SavedFile."""


def verify(path: Path) -> str:
    """Return '' for an intact checkpoint, else what is wrong with it.

    Raises OSError if the disk cannot be read now: that does not mean that the files are damaged.
    """
    try:
        complete = read_complete(path)
        for name in (*complete.files, METADATA, STATE):
            if not is_plain(name):
                return f"{COMPLETE} is damaged ({name!r} is not a plain file name)"
            if not (expected := complete.files.get(name)):
                return f"{COMPLETE} is damaged (it does not list {name})"
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected.bytes:
                return f"{name} has {file.stat().st_size} bytes, not {expected.bytes}"
            if file_sha256(file) != expected.sha256:
                return f"{name} is damaged (sha256 differs)"
    except FileNotFoundError:
        return f"no {COMPLETE}"
    except CheckpointError as error:
        return str(error)
    except (ValueError, IsADirectoryError) as error:
        return f"{COMPLETE} is damaged ({error})"
    return ""


def read_complete(path: Path) -> Complete:
    """Read COMPLETE. Raises OSError, ValueError if it is of another shape or its own hash differs,
    and CheckpointError if it is of another format."""
    content = read_small(path / COMPLETE)
    hashed = validated(dict[str, Any], content)
    if hashed.pop("sha256", "") != json_sha256(hashed):
        raise ValueError("sha256 differs")
    if (found := hashed.get("format")) != FORMAT:
        raise CheckpointError(f"format {short(found)}, this version reads {FORMAT}")
    complete = validated(Complete, content)
    listed = complete.files.items()
    files = {name: validated(SavedFile, json.dumps(entry)) for name, entry in listed}
    return replace(complete, files=files)


def complete_sha256(path: Path) -> str | None:
    """Return the hash of COMPLETE, which tells a checkpoint from any other; None for a file."""
    return file_sha256(path / COMPLETE) if path.is_dir() else None


def write_complete(path: Path, content: Mapping[str, Any]) -> None:
    """Write COMPLETE, with a hash of its own, into a checkpoint's folder."""
    write_durably(path / COMPLETE, {**content, "sha256": json_sha256(content)})


def unchanged_files(path: Path) -> list[str]:
    """Name the files of a checkpoint that nobody has changed since it was written, COMPLETE last.

    Names none if COMPLETE is damaged.
    """
    try:
        complete, written_ns = read_complete(path), (path / COMPLETE).lstat().st_mtime_ns
    except (OSError, ValueError, CheckpointError):
        return []
    versions = {
        name: Version(file.bytes, file.sha256)
        for name, file in complete.files.items()
        if is_plain(name)
    }

    def is_unchanged(name: str) -> bool:
        """Whether a file is as it was written. If its time is newer, its content is hashed."""
        mtime_ns = (path / name).lstat().st_mtime_ns if os.path.lexists(path / name) else -1
        return versions[name].is_at(path / name, mtime_ns if mtime_ns <= written_ns else -1)

    return [*filter(is_unchanged, versions), COMPLETE]


def describe_files(paths: Iterable[Path]) -> FileEntries:
    """Measure and hash files."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(paths)
    }


def write_durably(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON and wait until it is on the disk."""
    path.write_text(json.dumps(content, indent=1))
    sync(path)


@contextmanager
def torch_errors_explained(done: str) -> Iterator[None]:
    """Raise CheckpointError, with the reason of each rank, for a failure inside torch.

    Imports torch, which takes seconds: commands look for a checkpoint before they load it.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:  # a BaseException, which no other code catches
        reasons = [f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items()]
        raise CheckpointError(f"checkpoint not {done}: {'; '.join(reasons)}") from None
