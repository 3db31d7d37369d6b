"""The learning rate, a pure function of the step: nothing to save, nothing to restore."""

import math

from train.config import TrainConfig


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate of a step (0 is the first), after warm-up and schedule."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.lr * warmup
    after = max(0, step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * after))
