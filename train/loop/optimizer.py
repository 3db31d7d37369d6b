"""Build the optimizer, and compute its learning rate. To add an optimizer, change this file.

The learning rate is a pure function of the step: nothing to save, nothing to restore.
"""

import math

import torch
from torch import Tensor, nn

from train.config import AUTO, REFERENCE_BATCH, TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build Adam, with the state for every parameter that checkpoints hold, before any step."""
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    for parameter in model.parameters():
        optimizer.state[parameter] = state_before_the_first_step(parameter)
    return optimizer


def state_before_the_first_step(parameter: Tensor) -> dict[str, Tensor]:
    """Return Adam's state for a parameter, as torch makes it in the first step."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Compute the learning rate of a step (from 0), after scaling, warm-up and schedule."""
    rate, warmup_steps = scaled_rate(config), num_warmup_steps(total_steps, config)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if config.schedule == "constant":
        return rate * warmup
    after = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
    return rate * warmup * 0.5 * (1 + math.cos(math.pi * after))


def scaled_rate(config: TrainConfig) -> float:
    """Compute the learning rate for the run's batch."""
    exponent = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[config.lr_scale]
    return config.lr * (config.batch.size / REFERENCE_BATCH) ** exponent if exponent else config.lr


def num_warmup_steps(total_steps: int, config: TrainConfig) -> int:
    """Return the steps of the warm-up. auto: those of the first epoch if the rate is scaled."""
    if config.warmup_steps != AUTO:
        return config.warmup_steps
    return 0 if config.lr_scale == "none" else total_steps // config.epochs
