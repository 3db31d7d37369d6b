"""A digest depends on names, types, shapes and values, and on nothing else."""

from typing import Any

import pytest
import torch
from torch import nn

from train.checkpoints.digests import tensors_sha256

TENSORS = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": {"c": torch.ones(2)}}


@pytest.mark.parametrize(
    "same",
    [
        {"b": {"c": torch.ones(2)}, "a": TENSORS["a"].clone()},
        {"a": TENSORS["a"].T.contiguous().T, "b": TENSORS["b"]},
        {"a": TENSORS["a"], "b.c": torch.ones(2)},
        {"a": nn.Parameter(TENSORS["a"]), "b": TENSORS["b"]},
    ],
    ids=["order", "layout", "flat names", "parameter"],
)
def test_a_digest_depends_on_values_alone(same: dict[str, Any]) -> None:
    assert tensors_sha256(same) == tensors_sha256(TENSORS)


@pytest.mark.parametrize(
    "other",
    [
        {**TENSORS, "a": TENSORS["a"].nextafter(torch.tensor(9.0))},
        {**TENSORS, "a": TENSORS["a"].reshape(3, 2)},
        {**TENSORS, "a": TENSORS["a"].view(torch.int32)},
        {**TENSORS, "a": torch.where(TENSORS["a"] == 0, -0.0, TENSORS["a"])},
        {"A": TENSORS["a"], "b": TENSORS["b"]},
        {"a": TENSORS["a"]},
        {**TENSORS, "d": torch.zeros(0)},
    ],
    ids=["last bit", "shape", "type", "sign of 0", "name", "fewer", "more"],
)
def test_a_digest_tells_any_difference(other: dict[str, Any]) -> None:
    assert tensors_sha256(other) != tensors_sha256(TENSORS)


def test_a_digest_takes_types_that_numpy_has_not() -> None:
    half = {"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "b": torch.tensor(3)}
    assert len(tensors_sha256(half)) == 64
