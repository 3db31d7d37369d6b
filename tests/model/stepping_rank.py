"""A rank that trains each network for two steps, and prints digests of weights and their average.

On two ranks or more, the second step is taken by what was saved after the first.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from common import seeds
from model.config import ModelConfig
from model.precision import Precision
from tests.model.networks import NETWORKS
from train.checkpoints.digests import model_sha256
from train.checkpoints.state import State
from train.config import TrainConfig
from train.loop.batch_step import BatchStep
from train.loop.curves import Interval
from train.loop.initial_state import build_state
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.tree import portions

NUM_MICROBATCHES, NUM_STEPS, SIZE_PX = 4, 2, 64


def main(argv: Sequence[str]) -> int:
    """Train the named networks."""
    with start_ranks("cpu", 60) as ranks:
        for name in argv:
            digest = weights_after_steps(NETWORKS[name], ranks)
            if ranks.rank == 0:
                print(f"{name} {digest}", flush=True)
    return 0


def weights_after_steps(network: ModelConfig, ranks: Ranks) -> str:
    """Train on noise, and hash weights and running statistics."""
    size = 2 * NUM_MICROBATCHES
    config = TrainConfig(batch_size=size, microbatches=NUM_MICROBATCHES, model=network, ema=0.5)
    precision = Precision(torch.device("cpu"), "off", "contiguous")
    state = build_state(config, 1, precision)
    for number in range(NUM_STEPS):
        if number and ranks.world_size > 1:
            saved, state = state, build_state(config, 1, precision)
            take_over(saved, state)
        step = BatchStep(state, config, precision, [255], False, ranks)
        microbatches = noise(state.progress.step, ranks)
        step.compute_gradients(
            lambda given=microbatches: next(given), Interval.empty(1, precision.device)
        )
        step.update(0.01)
    assert state.averaged
    return f"{model_sha256(state.model)} {model_sha256(state.averaged)}"


def take_over(saved: State, state: State) -> None:
    """Load what a checkpoint holds into a state as it is built."""

    def fill(tensors: dict[str, Any], given: dict[str, Any]) -> None:
        for name, value in given.items():
            if isinstance(value, dict):
                fill(tensors[name], value)
            else:
                tensors[name].copy_(value)

    with torch.no_grad():
        fill(state.tensors(), saved.tensors())
    state.progress = saved.progress


def noise(step: int, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's microbatches: images BHWC and masks BHW, uint8."""
    for microbatch in portions(NUM_MICROBATCHES, ranks.world_size)[ranks.rank].microbatches:
        rng = seeds.generator(0, "noise", step, microbatch)
        image_BHWC = rng.integers(256, size=(2, SIZE_PX, SIZE_PX, 3), dtype="uint8")
        mask_BHW = rng.integers(2, size=(2, SIZE_PX, SIZE_PX), dtype="uint8") * 255
        yield torch.from_numpy(image_BHWC), torch.from_numpy(mask_BHW)
