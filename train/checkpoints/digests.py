"""sha256 of tensors and of JSON, by their values alone."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """sha256 over names, types, shapes and bytes of nested dicts of tensors.

    It depends on the values alone, not on how many ranks saved them or on the order of names.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(named_tensors(tensors)):
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        total.update(header.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def named_tensors(tensors: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of nested dicts."""
    for key, value in tensors.items():
        if isinstance(value, Tensor):
            yield prefix + key, value
        else:
            yield from named_tensors(value, f"{prefix}{key}.")


def json_sha256(content: Mapping[str, Any]) -> str:
    """sha256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
