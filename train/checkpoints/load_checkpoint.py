"""Load a checkpoint, without running code from it.

A checkpoint holds tensors and JSON, and `.metadata`, which is a pickle. It is unpickled with only
those classes that torch writes into it.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from common.command_line import printable
from common.files import is_plain
from common.schema import read_small
from train.checkpoints.checkpoint_files import METADATA, CheckpointError, torch_errors_explained
from train.checkpoints.progress import read_state
from train.ranks.distributed import Ranks

MOST_METADATA_BYTES = 10**9
# What torch writes into .metadata for dicts of plain tensors
ALLOWED = {
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


def load_checkpoint(path: Path, tensors: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Fill nested dicts of tensors in place, and return the checkpoint's `state`. Collective.

    Call `verify` first. Raises CheckpointError on every rank if loading fails on one.
    """
    read_tensors(path, tensors, alone=ranks.world_size == 1)
    return read_state(path)


def load_all_tensors(path: Path) -> dict[str, Tensor]:
    """Load every tensor of a checkpoint, by dotted name, into this process alone."""
    metadata = RestrictedReader(path).read_metadata()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    read_tensors(path, tensors, alone=True)
    return tensors


def read_tensors(path: Path, tensors: dict[str, Any], alone: bool) -> None:
    """Fill nested dicts of tensors in place. Collective, unless `alone`."""
    reader = RestrictedReader(path)
    reader.read_metadata()  # here every rank raises the CheckpointError itself
    with torch_errors_explained("loaded"):
        state_dict_loader.load(tensors, storage_reader=reader, no_dist=alone)


class RestrictedReader(FileSystemReader):
    """torch's reader, with `.metadata` read by RestrictedUnpickler."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read `.metadata` as torch does. Raises CheckpointError for anything unexpected in it."""
        metadata = unpickled(Path(self.path))
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def unpickled(path: Path) -> Metadata:
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


def check_metadata(path: Path, metadata: Metadata) -> None:
    """Raise an error of any kind unless these are the tensors that the files of a folder hold."""
    entries = [
        entry
        for entry in metadata.state_dict_metadata.values()
        if isinstance(entry, TensorStorageMetadata)
    ]
    if any(length < 0 for entry in entries for length in entry.size):
        raise ValueError("a tensor of a negative size")
    claimed = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in entries)
    held = sum(file.stat().st_size for file in path.glob("*.distcp"))
    if claimed > held:
        raise ValueError(f"its tensors take {claimed} bytes, and the files have {held}")
    for info in metadata.storage_data.values():
        if not is_plain(info.relative_path):
            raise CheckpointError(
                f"{METADATA} names a file {info.relative_path!r}, which is not a plain file"
                " name: not loaded"
            )


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that looks up ALLOWED and torch's dtypes only."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name that the pickle asks for. Raises CheckpointError if it is not allowed."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise CheckpointError(
            f".metadata asks for {module}.{name}, which no checkpoint needs: not loaded"
        )
