"""`python -m train` with a loader on rank 1 that is slower than training."""

import os
import time
from collections.abc import Sequence

from data_prep.images.arrays import Image, Mask
from train.__main__ import main as train
from train.crops.microbatches import CropKey, TrainingCrops
from train.loop import trainer


class SlowCrops(TrainingCrops):
    """Crops of which a microbatch takes 200 ms."""

    def cut(self, crop_keys: Sequence[CropKey]) -> list[tuple[Image, Mask]]:
        time.sleep(0.2)
        return super().cut(crop_keys)


def main(argv: list[str]) -> int:
    """Train, with slow crops on rank 1."""
    if os.environ["RANK"] == "1":
        trainer.TrainingCrops = SlowCrops
    return train(argv)
