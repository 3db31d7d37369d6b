"""Compute sha256 of tensors: equal values have equal digests."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from model.ensemble import Ensemble


def model_sha256(model: nn.Module) -> str:
    """Hash a network's state, as `train.show` prints it for a checkpoint; of an ensemble, hash the
    digests of its members."""
    if isinstance(model, Ensemble):
        digests = "\n".join(map(model_sha256, model.members))
        return hashlib.sha256(digests.encode()).hexdigest()
    return tensors_sha256({"model": model.state_dict()})


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """Hash names, dtypes, shapes and values of nested dicts of tensors.

    The order of names, and which ranks saved the tensors, do not matter.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(named_tensors(tensors)):
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        total.update(header.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def named_tensors(tensors: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted name, tensor) for each tensor in nested dicts."""
    for key, value in tensors.items():
        if isinstance(value, Tensor):
            yield prefix + key, value
        else:
            yield from named_tensors(value, f"{prefix}{key}.")
