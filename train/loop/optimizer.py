"""Build the optimizer, and what a step does beside it: clip the gradient, average the weights.

To add an optimizer, change this file, and `optimizer` in train/config.py.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.build import ENCODER
from train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer, with the state for every parameter that checkpoints hold, before any
    step."""
    of_encoder: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        of_encoder[name.startswith(f"{ENCODER}.")].append(parameter)
    groups = [
        {"params": of_encoder[False], "lr_factor": 1.0},
        {"params": of_encoder[True], "lr_factor": config.encoder_lr_factor},
    ]
    optimizer = new_optimizer(groups, config)
    for parameter in model.parameters():
        optimizer.state[parameter] = state_before_the_first_step(parameter, config.optimizer)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of each group: times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]


def new_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer without a state. The kernels of fused=True compute each value of a weight
    by itself, so there is no order that bits could depend on."""
    rate, decay = config.lr, config.weight_decay
    if config.optimizer == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(
            groups, rate, momentum, weight_decay=decay, nesterov=momentum > 0, fused=True
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, lr=rate, weight_decay=decay, fused=True)


def state_before_the_first_step(parameter: Tensor, optimizer: str) -> dict[str, Tensor]:
    """Return an optimizer's state for a parameter, with which the first step is as torch's."""
    if optimizer == "sgd":
        return {"momentum_buffer": torch.zeros_like(parameter)}
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


@torch.no_grad()
def clip_gradient(model: nn.Module, largest_norm: float) -> None:
    """Scale the gradient down to a norm over all parameters together, if it is longer.

    The norm is of a copy in one piece. On a GPU, the order in which a norm is added up depends on
    where in memory a gradient begins, which is another place in a bucket of DDP's. A gradient that
    is not finite stays so: the scaler of fp16 has found it already, and leaves the step out.
    """
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    torch._foreach_mul_(gradients, (largest_norm / norm).clamp(max=1))


@torch.no_grad()
def move_average(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average of weights and running statistics towards those after a step (from 0).

    At first the decay is smaller, or the weights of the beginning would count for long:
    min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage.
    """
    means, values = (
        [each for each in (*of.parameters(), *of.buffers()) if each.is_floating_point()]
        for of in (averaged, model)
    )
    torch._foreach_lerp_(means, values, 1 - min(decay, (1 + step) / (10 + step)))
