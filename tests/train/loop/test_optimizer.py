"""Optimizers, clipping and averaging against what numpy makes of their papers' formulas."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from train.config import TrainConfig
from train.loop.optimizer import (
    build_optimizer,
    clip_gradient,
    move_average,
    set_learning_rate,
)

RATE, DECAY, MOMENTUM = 0.1, 0.3, 0.8
Floats = np.ndarray


def gradients(seed: int = 0) -> list[list[Floats]]:
    """Of three steps, for a weight (2, 3) and a bias (2,)."""
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=(2, 3)), rng.normal(size=2)] for _ in range(3)]


def two_layers() -> nn.Module:
    """An encoder of a weight alone, and a head of a bias alone; in the order of `gradients`."""
    model = nn.Module()
    model.encoder, model.head = nn.Linear(3, 2, bias=False), nn.Module()
    model.head.bias = nn.Parameter(torch.zeros(2))
    return model


def values_of(model: nn.Module) -> list[Floats]:
    return [parameter.detach().double().numpy().copy() for parameter in model.parameters()]


def give(model: nn.Module, of_step: list[Floats]) -> None:
    for parameter, gradient in zip(model.parameters(), of_step, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)


def adam(weight: Floats, steps: list[Floats], rate: float, *, decoupled: bool) -> Floats:
    """Kingma & Ba 2015, algorithm 1; decoupled: Loshchilov & Hutter 2019, algorithm 2."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for number, gradient in enumerate(steps, 1):
        if decoupled:
            weight = weight - rate * DECAY * weight
        else:
            gradient = gradient + DECAY * weight
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999**number)) + 1e-8
        weight = weight - rate * first / (1 - 0.9**number) / corrected
    return weight


def sgd(weight: Floats, steps: list[Floats], rate: float, momentum: float) -> Floats:
    """With the L2 penalty, and one look ahead along the velocity (Nesterov)."""
    velocity = np.zeros_like(weight)
    for gradient in steps:
        gradient = gradient + DECAY * weight
        velocity = momentum * velocity + gradient
        weight = weight - rate * (gradient + momentum * velocity)
    return weight


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"optimizer": "adam"}, lambda *given: adam(*given, decoupled=False)),
        ({"optimizer": "adamw"}, lambda *given: adam(*given, decoupled=True)),
        ({"optimizer": "sgd", "momentum": MOMENTUM}, lambda *given: sgd(*given, MOMENTUM)),
        ({"optimizer": "sgd", "momentum": 0}, lambda *given: sgd(*given, 0)),
    ],
)
def test_steps_are_those_of_the_formulas(
    settings: dict[str, Any], formula: Callable[..., Floats]
) -> None:
    """The encoder's rate is a quarter of the others', and both follow the schedule."""
    torch.manual_seed(0)
    model = two_layers()
    config = TrainConfig(
        init="another", lr=9, encoder_lr_factor=0.25, weight_decay=DECAY, **settings
    )
    optimizer = build_optimizer(model, config)
    before = values_of(model)
    for of_step in gradients():
        set_learning_rate(optimizer, RATE)
        give(model, of_step)
        optimizer.step()
    rates = 0.25 * RATE, RATE
    for number, (weight, now) in enumerate(zip(before, values_of(model), strict=True)):
        steps = [of_step[number] for of_step in gradients()]
        expected = formula(weight, steps, rates[number])
        np.testing.assert_allclose(now, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_state_that_checkpoints_hold_is_there_before_the_first_step(name: str) -> None:
    """Of the names that steps leave, in tensors that steps change in place."""
    model = two_layers()
    optimizer = build_optimizer(model, TrainConfig(optimizer=name))
    before = {each: dict(optimizer.state[each]) for each in model.parameters()}
    assert all(before.values())
    give(model, gradients()[0])
    optimizer.step()
    for parameter, state in before.items():
        assert state.keys() == optimizer.state[parameter].keys()
        for key, tensor in state.items():
            assert optimizer.state[parameter][key] is tensor
            assert tensor.any()


@pytest.mark.parametrize("largest", [0.5, 1.7, 100.0])
def test_a_gradient_is_as_long_as_allowed_over_all_weights_together(largest: float) -> None:
    model = nn.Linear(3, 2)
    (of_step, *_) = gradients()
    give(model, of_step)
    clip_gradient(model, largest)
    length = np.sqrt(sum((each**2).sum() for each in of_step))
    assert 1.7 < length < 100  # the last one leaves it as it is
    for parameter, gradient in zip(model.parameters(), of_step, strict=True):
        expected = gradient * min(1, largest / length)
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-5)


def test_no_gradient_at_all_stays_none() -> None:
    model = nn.Linear(3, 2)
    give(model, [np.zeros((2, 3)), np.zeros(2)])
    clip_gradient(model, 0.5)
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_an_average_counts_the_newest_most_at_first() -> None:
    """Decays of 1/10, 2/11, then 0.25 where (1 + step) / (10 + step) is 3/12 and 4/13."""
    model, averaged = nn.Linear(1, 1), nn.Linear(1, 1)
    for module in (model, averaged):
        module.register_buffer("mean", torch.zeros(1))
    nn.init.constant_(averaged.weight, 0.0)
    averaged.requires_grad_(False)
    expected = 0.0
    for step, (value, decay) in enumerate([(4.0, 0.1), (3.0, 2 / 11), (9.0, 0.25), (5.0, 0.25)]):
        nn.init.constant_(model.weight, value)
        model.mean.fill_(10 * value)
        move_average(averaged, model, 0.25, step)
        expected = decay * expected + (1 - decay) * value
        assert averaged.weight.item() == pytest.approx(expected)
        assert averaged.mean.item() == pytest.approx(10 * expected)
    assert model.weight.item() == 5
