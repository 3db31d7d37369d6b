"""Kernels without a fixed order are named."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model import ModelConfig
from model.precision import choose_precision
from train.config import TrainConfig
from train.loop.determinism import (
    be_deterministic,
    nondeterministic_kernels,
    trial_step,
)
from train.loop.initial_state import build_state

Tiny = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def scatter_somehow() -> None:
    """put_ is one of the few operations without a fixed order that run on a CPU too."""
    for _ in range(2):
        torch.zeros(3).put_(torch.tensor([0, 1]), torch.ones(2))


def test_a_kernel_without_a_fixed_order_is_named_once(tiny: Tiny, tmp_path: Path) -> None:
    be_deterministic(tiny(tmp_path))
    assert nondeterministic_kernels(scatter_somehow) == ["put_"]


def test_off_asks_for_none(tiny: Tiny, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(False)
    be_deterministic(tiny(tmp_path, "reproducible=off"))
    assert nondeterministic_kernels(scatter_somehow) == []


def test_a_network_that_normalises_over_crops_is_tried_on_two(tiny: Tiny, tmp_path: Path) -> None:
    network = ModelConfig("smp", encoder="tu-skresnet18")
    config = dataclasses.replace(tiny(tmp_path, "microbatches=2"), model=network)
    precision = choose_precision(torch.device("cpu"), "off", "contiguous")
    model = build_state(config, 1, precision).model
    assert nondeterministic_kernels(lambda: trial_step(model, config, precision)) == []


@pytest.mark.parametrize("norm", ["none", "batch", "group", "instance"])
@pytest.mark.parametrize("dice_weight", [0, 1])
def test_every_kernel_of_the_network_has_a_fixed_order_on_a_cpu(
    norm: str, dice_weight: int, tiny: Tiny, tmp_path: Path
) -> None:
    settings = ("model.width=8", f"model.norm={norm}", f"loss.dice_weight={dice_weight}")
    config = tiny(tmp_path, *settings)
    be_deterministic(config)
    precision = choose_precision(torch.device("cpu"), "off", "contiguous")
    model = build_state(config, 2, precision).model
    before = [parameter.clone() for parameter in model.parameters()]
    assert nondeterministic_kernels(lambda: trial_step(model, config, precision)) == []
    assert any(parameter.grad is not None for parameter in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))
