"""Training crops for a rank, in an order that does not depend on the number of ranks.

The global batch of a step is cut into microbatches; each rank computes a run of them. A crop is
named (epoch, index), and everything random about it is drawn from a seed over
(seed, epoch, index): which ranks, workers or restarts there are makes no difference.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from common import seeds
from data_prep.dataset.pack import TrainingPixels
from data_prep.images.arrays import Image, Mask
from train.config import TrainConfig
from train.crops.random_crop import NUM_UNIFORMS, Plan, cut_crop, plan_crop
from train.ranks.distributed import Ranks

CropKey = tuple[int, int]
"""(epoch, index of the crop within the epoch)."""


class TrainingCrops:
    """Image crops (H, W, 3) uint8 and their masks (H, W) uint8, one for each (epoch, index)."""

    def __init__(self, pixels: TrainingPixels, config: TrainConfig) -> None:
        self.pixels, self.config = pixels, config

    def __len__(self) -> int:
        return len(self.pixels) * self.config.crop.per_sample

    def cut(self, crop_keys: Sequence[CropKey]) -> list[tuple[Image, Mask]]:
        """Return the image and the mask of each crop. Raises UserError for one that is damaged."""
        # planned together: Python is three times as fast while pixels do not take its cache
        plans = [self.plan(crop_key) for crop_key in crop_keys]
        return [
            cut_crop(
                self.pixels[self.sample_of(index)], self.pixels.is_binary, self.config.crop, plan
            )
            for (_, index), plan in zip(crop_keys, plans, strict=True)
        ]

    def plan(self, crop_key: CropKey) -> Plan:
        """What is drawn of a crop."""
        epoch, index = crop_key
        sample = self.pixels.samples[self.sample_of(index)]
        uniforms = seeds.uniforms(NUM_UNIFORMS, self.config.seed, "crop", epoch, index)
        return plan_crop((sample.height_px, sample.width_px), self.config.crop, uniforms)

    def sample_of(self, index: int) -> int:
        """The number of the sample that a crop of an epoch is of."""
        return index // self.config.crop.per_sample

    @property
    def crop_bytes(self) -> int:
        """What a crop takes in memory: three bytes of colour and a label a pixel."""
        return 4 * self.config.crop.size_px**2


class MicrobatchSampler(Sampler[list[CropKey]]):
    """This rank's microbatches from a step on to the end of the run, each a list of crops."""

    def __init__(self, num_crops: int, config: TrainConfig, ranks: Ranks, first_step: int) -> None:
        self.num_crops, self.config, self.first_step = num_crops, config, first_step
        self.steps_per_epoch = num_crops // config.batch.size
        num_microbatches = config.batch.num_microbatches
        self.mine = microbatches_of(ranks.rank, ranks.world_size, num_microbatches)

    def __len__(self) -> int:
        steps = self.steps_per_epoch * self.config.epochs - self.first_step
        return steps * len(self.mine)

    def __iter__(self) -> Iterator[list[CropKey]]:
        size = self.config.batch.size // self.config.batch.num_microbatches
        order, order_of = np.empty(0, int), -1
        for step in range(self.first_step, self.steps_per_epoch * self.config.epochs):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_of:
                order = epoch_order(self.num_crops, self.config.seed, epoch)
                order_of = epoch
            for microbatch in self.mine:
                start = step_in_epoch * self.config.batch.size + microbatch * size
                yield [(epoch, int(index)) for index in order[start : start + size]]


def epoch_order(num_crops: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of an epoch's crops. Those that fill no batch at its end are left out; they are
    others in each epoch."""
    return seeds.generator(seed, "order", epoch).permutation(num_crops)


def microbatches_of(rank: int, world_size: int, num_microbatches: int) -> range:
    """The consecutive microbatches that a rank computes; they differ by one at most."""
    first = rank * num_microbatches // world_size
    return range(first, (rank + 1) * num_microbatches // world_size)


def mask_to_target(mask_BHW: Tensor, label_values: Sequence[int]) -> Tensor:
    """uint8 labels -> float (B, C, H, W): 1 where the mask has the value of the channel's class."""
    return torch.stack([mask_BHW == value for value in label_values], dim=1).float()
