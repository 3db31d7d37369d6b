"""Choose and cut the training crops of a rank, in an order that does not depend on the ranks.

The batch of a step is cut into microbatches; each rank computes consecutive ones. A crop's key is
(epoch, index). All random numbers of a crop come from (seed, epoch, index), so they do not depend
on ranks, workers or restarts.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from common import seeds
from data_prep.config import IGNORE_LABEL
from data_prep.dataset.pack import TrainingPixels
from data_prep.images.arrays import Image, Mask
from train.config import TrainConfig
from train.crops import nuclei
from train.crops.nuclei import TrainingNuclei
from train.crops.random_crop import NUM_UNIFORMS, CropPlan, Place, cut_crop, plan_crop
from train.ranks.distributed import Ranks
from train.ranks.tree import portions

CropKey = tuple[int, int]
"""(epoch, index of the crop within the epoch)."""


class TrainingCrops:
    """Image crops (H, W, 3) uint8 and their masks (H, W) uint8, one for each (epoch, index)."""

    def __init__(self, pixels: TrainingPixels, config: TrainConfig) -> None:
        self.pixels, self.config, self.pipeline = pixels, config, None
        self.nuclei = TrainingNuclei(pixels.dataset) if config.crop.centred else None
        if config.crop.pipeline:
            from data_prep.augment.pipeline import build  # it takes half a second

            self.pipeline = build(config.crop.pipeline, with_points=False)

    def __len__(self) -> int:
        return len(self.pixels) * self.config.crop.per_sample

    def cut(self, crop_keys: Sequence[CropKey]) -> list[tuple[Image, Mask]]:
        """Cut the image and the mask of each crop. Raises UserError if a sample is damaged."""
        # all plans first: Python is three times as fast while no pixels fill the CPU's cache
        plans = [self.plan(crop_key) for crop_key in crop_keys]
        crops = [
            cut_crop(self.pixels[number], self.pixels.is_binary, self.config.crop, plan)
            for number, plan in plans
        ]
        if self.pipeline is None:
            return crops
        return [self.augment(*crop, key) for crop, key in zip(crops, crop_keys, strict=True)]

    def augment(self, image_HWC: Image, mask_HW: Mask, crop_key: CropKey) -> tuple[Image, Mask]:
        """Apply crop.pipeline to a crop, from a seed for this crop alone."""
        from data_prep.augment import pipeline

        seed = seeds.derive_seed(self.config.seed, "crop pipeline", *crop_key)
        made = pipeline.seeded(self.pipeline, seed)(image=image_HWC, mask=mask_HW)
        return made["image"], made["mask"]

    def plan(self, crop_key: CropKey) -> tuple[int, CropPlan]:
        """Choose what is random in a crop; return the number of its sample too.

        Raises UserError if a sample's points are damaged.
        """
        epoch, index = crop_key
        number, around = self.place(crop_key)
        sample = self.pixels.samples[number]
        uniforms = seeds.uniforms(NUM_UNIFORMS, self.config.seed, "crop", epoch, index)
        shape_HW = sample.height_px, sample.width_px
        return number, plan_crop(shape_HW, self.config.crop, uniforms, around)

    def place(self, crop_key: CropKey) -> tuple[int, Place | None]:
        """Return the number of the sample that a crop is cut from, and the pixel of the nucleus
        that it is placed around (crop.centred), None for any place."""
        if self.nuclei:
            purpose = "crop around a nucleus", *crop_key
            chance, *drawn = seeds.uniforms(1 + nuclei.NUM_UNIFORMS, self.config.seed, *purpose)
            if chance < self.config.crop.centred:
                return self.nuclei.draw(drawn)
        _, index = crop_key
        return self.sample_of(index), None

    def sample_of(self, index: int) -> int:
        """Return the number of the sample whose turn it is."""
        return index // self.config.crop.per_sample

    @property
    def crop_bytes(self) -> int:
        """Bytes of memory for a crop: per pixel three bytes of colour, and one of label."""
        return 4 * self.config.crop.size_px**2


class MicrobatchSampler(Sampler[list[CropKey]]):
    """Yields this rank's microbatches from a step to the end of the run, each a list of crops."""

    def __init__(self, num_crops: int, config: TrainConfig, ranks: Ranks, first_step: int) -> None:
        self.num_crops, self.config, self.first_step = num_crops, config, first_step
        self.steps_per_epoch = num_crops // config.batch.size
        everyone = portions(config.batch.num_microbatches, ranks.world_size)
        self.mine = everyone[ranks.rank].microbatches

    def __len__(self) -> int:
        steps = self.steps_per_epoch * self.config.epochs - self.first_step
        return steps * len(self.mine)

    def __iter__(self) -> Iterator[list[CropKey]]:
        size = self.config.batch.microbatch_size
        order, epoch_of_order = np.empty(0, int), -1
        for step in range(self.first_step, self.steps_per_epoch * self.config.epochs):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != epoch_of_order:
                order = epoch_order(self.num_crops, self.config.seed, epoch)
                epoch_of_order = epoch
            for microbatch in self.mine:
                start = step_in_epoch * self.config.batch.size + microbatch * size
                yield [(epoch, int(index)) for index in order[start : start + size]]


def epoch_order(num_crops: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return a random order of an epoch's crops.

    The last crops, if they do not fill a batch, are not used; they are different in each epoch.
    """
    return seeds.generator(seed, "order", epoch).permutation(num_crops)


def valid_pixels(mask_BHW: Tensor) -> Tensor:
    """Return bool (B, 1, H, W): which pixels of uint8 labels the loss counts."""
    return (mask_BHW != IGNORE_LABEL).unsqueeze(1)


def mask_to_target(mask_BHW: Tensor, label_values: Sequence[int]) -> Tensor:
    """Convert uint8 labels to float (B, C, H, W): 1 where a pixel has the channel's label."""
    return torch.stack([mask_BHW == value for value in label_values], dim=1).float()
