"""Load a checkpoint, without running code from it.

A checkpoint is one of torch.distributed.checkpoint: files of tensors, and `.metadata`, a pickle
that says where each of them is. It is read here without that package: importing it takes a rank a
second of each start, and the pickle needs none of its classes, only what they hold.
"""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor

from common.command_line import printable
from common.files import is_plain
from common.schema import read_small
from train.checkpoints.checkpoint_files import METADATA, CheckpointError
from train.checkpoints.digests import named_tensors
from train.checkpoints.progress import read_state
from train.ranks.distributed import Ranks

MOST_METADATA_BYTES = 10**9


def load_checkpoint(path: Path, tensors: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Fill nested dicts of tensors in place, and return the checkpoint's `state`. Collective.

    Call `verify` first. Raises CheckpointError on every rank if loading fails on one.
    """
    ranks.all_do(lambda: read_tensors(path, dict(named_tensors(tensors))))
    return read_state(path)


def load_all_tensors(path: Path) -> dict[str, Tensor]:
    """Load every tensor of a checkpoint, by dotted name, into this process alone."""
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in unpickled(path).state_dict_metadata.items()
    }
    read_tensors(path, tensors)
    return tensors


def read_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors in place, by dotted name. Raises CheckpointError for one that is missing or of
    another shape or dtype, and for files that cannot be read."""
    places = dict(where_tensors_are(path))
    for name, tensor in tensors.items():
        if name not in places:
            raise CheckpointError(f"{path}: not loaded: there is no {printable(name)} in it")
        try:
            found = read_tensor(path, places[name])
        except Exception as error:  # a stranger's file may raise any
            reason = printable(str(error).partition("\n")[0])
            raise CheckpointError(f"{path}: {printable(name)} not loaded: {reason}") from None
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise CheckpointError(
                f"{path}: {printable(name)} not loaded: it is {found.dtype} {tuple(found.shape)},"
                f" not {tensor.dtype} {tuple(tensor.shape)}"
            )
        tensor.detach().copy_(found)


def read_tensor(path: Path, place: "Record") -> Tensor:
    """Read one tensor as torch saved it."""
    with (path / place.relative_path).open("rb") as file:
        file.seek(place.offset)
        saved = file.read(place.length)
    found: Tensor = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    return found


def where_tensors_are(path: Path) -> Iterator[tuple[str, "Record"]]:
    """Yield the name of each tensor and its place: `relative_path`, `offset` and `length`."""
    for index, place in unpickled(path).storage_data.items():
        yield index.fqn, place


class Record:
    """What a class of torch.distributed.checkpoint holds, without what it does."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no {name}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class TensorProperties(Record):
    """A tensor's dtype, the first of the properties that torch saves."""

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0]


# What torch writes into .metadata for dicts of plain tensors
CHECKPOINT = "torch.distributed.checkpoint"
ALLOWED: dict[tuple[str, str], Any] = {
    ("pathlib", "PosixPath"): PosixPath,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    (f"{CHECKPOINT}.filesystem", "_StorageInfo"): Record,
    (f"{CHECKPOINT}.metadata", "TensorProperties"): TensorProperties,
} | {
    (f"{CHECKPOINT}.metadata", name): Record
    for name in (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
}


def unpickled(path: Path) -> Any:
    """Read a checkpoint's `.metadata`. Raises CheckpointError if it is not what torch writes."""
    try:
        content = read_small(path / METADATA, MOST_METADATA_BYTES)
        metadata = RestrictedUnpickler(io.BytesIO(content)).load()
        check_metadata(path, metadata)
    except CheckpointError:
        raise
    except Exception as error:  # a stranger's pickle may raise any
        raise CheckpointError(f"{path / METADATA}: damaged ({printable(str(error))})") from None
    return metadata


def check_metadata(path: Path, metadata: Any) -> None:
    """Raise an error of any kind unless these are the tensors that the files of a folder hold, each
    in one piece."""
    entries = metadata.state_dict_metadata.values()
    if any(length < 0 for entry in entries for length in entry.size):
        raise ValueError("a tensor of a negative size")
    claimed = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in entries)
    held = sum(file.stat().st_size for file in path.glob("*.distcp"))
    if claimed > held:
        raise ValueError(f"its tensors take {claimed} bytes, and the files have {held}")
    if sorted(index.fqn for index in metadata.storage_data) != sorted(metadata.state_dict_metadata):
        raise ValueError("not one piece of a file for each tensor")
    for place in metadata.storage_data.values():
        if not is_plain(place.relative_path):
            raise CheckpointError(
                f"{METADATA} names a file {place.relative_path!r}, which is not a plain file"
                " name: not loaded"
            )
        if place.offset < 0 or not 0 <= place.length <= held:
            raise ValueError(f"a piece of {place.length} bytes at {place.offset}")


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that knows ALLOWED and torch's dtypes only."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name that the pickle asks for. Raises CheckpointError if it is not allowed."""
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if found := ALLOWED.get((module, name)):
            return found
        raise CheckpointError(
            f".metadata asks for {module}.{name}, which no checkpoint needs: not loaded"
        )
