"""The learning rate of each step, and what a change of a run's epochs does to it; needs no torch.

The learning rate is a pure function of the step: nothing to save, nothing to restore.
"""

import dataclasses
import math

from common.command_line import counted
from train.config import AUTO, REFERENCE_BATCH, TrainConfig

POLY_POWER = 0.9


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Compute the learning rate of a step (from 0), after scaling, warm-up and schedule."""
    num_steps = steps_per_epoch * config.scheduled_epochs
    if config.schedule != "constant":
        step = min(step, num_steps - 1)
    warmup_steps = num_warmup_steps(steps_per_epoch, config)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    rate = scaled_rate(config) * warmup
    if config.schedule == "constant":
        return rate
    after = max(0, step - warmup_steps) / max(1, num_steps - warmup_steps)
    if config.schedule == "poly":
        return rate * (1 - after) ** POLY_POWER
    return rate * 0.5 * (1 + math.cos(math.pi * after))


def scaled_rate(config: TrainConfig) -> float:
    """Compute the learning rate for the run's batch."""
    exponent = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[config.lr_scale]
    return config.lr * (config.batch.size / REFERENCE_BATCH) ** exponent if exponent else config.lr


def num_warmup_steps(steps_per_epoch: int, config: TrainConfig) -> int:
    """Return the steps of the warm-up. auto: those of the first epoch if the rate is scaled."""
    if config.warmup_steps != AUTO:
        return config.warmup_steps
    return 0 if config.lr_scale == "none" else steps_per_epoch


def about_schedule(
    config: TrainConfig, begun: TrainConfig | None, steps_per_epoch: int, step: int
) -> str:
    """Say what becomes of the learning rate where epochs and schedule are not of one length, or
    where the schedule has another length now; '' if there is nothing to say.

    `begun`: the configuration of the start before this one, None for a new run. `step`: steps done.
    """
    epochs, length = config.epochs, config.scheduled_epochs
    before = begun.scheduled_epochs if begun else length
    is_changed = not begun or (epochs, length) != (begun.epochs, before)
    if config.schedule == "constant" or not is_changed or epochs == length == before:
        return ""

    def rate(step: int, schedule_epochs: int = length) -> str:
        as_if = dataclasses.replace(config, schedule_epochs=schedule_epochs)
        return f"{learning_rate(step, steps_per_epoch, as_if):.1e}"

    over = f"schedule over {counted(length, 'epoch')}"
    if length != before:
        said = (
            f"the learning rate follows a {over} in place of {before}: {rate(step)} at the next"
            f" step, in place of {rate(step, before)}"
        )
    elif epochs < length:
        last = rate(steps_per_epoch * epochs - 1)
        said = f"the learning rate follows its {over}, and is {last} at the last step"
    elif step >= steps_per_epoch * length:
        said = f"the learning rate stays at {rate(step)}, where its {over} ended"
    else:
        last = rate(steps_per_epoch * length)
        said = f"the learning rate follows its {over}, and then stays at {last}"
    if epochs != length:
        verb = "stretches" if epochs > length else "shortens"
        said += f"; schedule_epochs={epochs} {verb} the schedule instead"
        said += f": {rate(step, epochs)} at the next step" if begun else ""
    return f"{what_differs(config, begun)}: {said}"


def what_differs(config: TrainConfig, begun: TrainConfig | None) -> str:
    """Name the setting by which epochs and schedule came apart."""
    if begun is None:
        return f"epochs={config.epochs} schedule_epochs={config.scheduled_epochs}"
    if config.epochs != begun.epochs:
        return f"epochs: {begun.epochs} -> {config.epochs}"
    return f"schedule_epochs: {begun.scheduled_epochs} -> {config.scheduled_epochs}"
