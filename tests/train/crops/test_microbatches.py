"""Promise 2 for training: which crops, in which order, does not depend on ranks or workers."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.dataset.manifest import Dataset
from data_prep.dataset.pack import TrainingPixels
from data_prep.dataset.samples import read_sample
from tests.train.conftest import prepare_here
from train.config import TrainConfig
from train.crops.config import CropConfig
from train.crops.loader import load_microbatches
from train.crops.microbatches import (
    CropKey,
    MicrobatchSampler,
    TrainingCrops,
    mask_to_target,
)
from train.ranks.distributed import Ranks

NUM_CROPS = 22  # by 8: two steps an epoch, and 6 crops are left out
CONFIG = TrainConfig(data="", run="", epochs=3, batch_size=8, microbatches=4)
STEPS_PER_EPOCH, STEPS = 2, 6


def flat(lists: Iterable[list[CropKey]]) -> list[CropKey]:
    return list(chain.from_iterable(lists))


def steps_of(rank: Ranks, first_step: int = 0) -> list[list[CropKey]]:
    """What a rank draws at each step."""
    sampler = MicrobatchSampler(NUM_CROPS, CONFIG, rank, first_step)
    microbatches = list(sampler)
    assert len(microbatches) == len(sampler)
    assert {len(microbatch) for microbatch in microbatches} == {2}
    per_step = len(microbatches) // (STEPS - first_step)
    return [
        flat(microbatches[start : start + per_step])
        for start in range(0, len(microbatches), per_step)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_batches_make_up_the_same_global_batch_each_step(
    world_size: int, ranks: Callable[..., Ranks]
) -> None:
    alone = steps_of(ranks())
    parts = [steps_of(ranks(rank, world_size)) for rank in range(world_size)]
    assert [flat(step) for step in zip(*parts, strict=True)] == alone


@pytest.mark.parametrize("first_step", range(STEPS))
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (2, 3)])
def test_a_resumed_rank_goes_on_where_it_was(
    first_step: int, rank: int, world_size: int, ranks: Callable[..., Ranks]
) -> None:
    whole = steps_of(ranks(rank, world_size))
    assert steps_of(ranks(rank, world_size), first_step) == whole[first_step:]


def test_an_epoch_draws_each_crop_once_at_most_in_an_order_of_its_own(
    ranks: Callable[..., Ranks],
) -> None:
    steps = steps_of(ranks())
    epochs = [flat(steps[start : start + 2]) for start in range(0, STEPS, STEPS_PER_EPOCH)]
    orders = []
    for number, crop_keys in enumerate(epochs):
        assert {epoch for epoch, _ in crop_keys} == {number}
        indices = [index for _, index in crop_keys]
        assert len(set(indices)) == 16
        assert set(indices) < set(range(NUM_CROPS))
        orders.append(indices)
    assert all(before != after for before, after in pairwise(orders))
    # what was left over is not left over for ever
    assert set().union(*orders) == set(range(NUM_CROPS))


# Crops of a prepared data set


def global_batches(
    dataset: Dataset, config: TrainConfig, everyone: list[Ranks], first_step: int = 0
) -> list[bytes]:
    """The bytes of the images and masks of each step's global batch."""
    crops = TrainingCrops(TrainingPixels(dataset), config)
    loaded = [list(load_microbatches(crops, config, rank, first_step)) for rank in everyone]
    num_steps = sum(map(len, loaded)) // config.batch.num_microbatches
    batches = []
    for step in range(num_steps):
        parts = []
        for batch in loaded:
            each = len(batch) // num_steps
            parts += batch[step * each : (step + 1) * each]
        images_BHWC, masks_BHW = (torch.cat(part) for part in zip(*parts, strict=True))
        assert images_BHWC.shape == (config.batch.size, 32, 32, 3)
        assert images_BHWC.dtype == masks_BHW.dtype == torch.uint8
        batches.append(images_BHWC.numpy().tobytes() + masks_BHW.numpy().tobytes())
    return batches


@pytest.fixture(scope="module")
def reference(
    prepared: Dataset, tiny: Callable[..., TrainConfig], ranks: Callable[..., Ranks]
) -> list[bytes]:
    batches = global_batches(prepared, tiny(Path()), [ranks()])
    assert len(batches) == len(set(batches)) == 8  # two epochs of 16 crops by 4
    return batches


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("data", ["prepared", "with_pack"])  # of this 1, 2, 3, ... are handed over
@pytest.mark.parametrize(("workers", "world_size"), [(1, 1), (4, 1), (0, 2), (0, 3), (2, 4)])
def test_workers_ranks_and_a_pack_change_no_crop(
    workers: int,
    world_size: int,
    data: str,
    reference: list[bytes],
    tiny: Callable[..., TrainConfig],
    ranks: Callable[..., Ranks],
    request: pytest.FixtureRequest,
) -> None:
    config = tiny(Path(), f"loader_workers={workers}")
    everyone = [ranks(rank, world_size) for rank in range(world_size)]
    assert global_batches(request.getfixturevalue(data), config, everyone) == reference


def test_a_resume_changes_no_crop(
    reference: list[bytes],
    prepared: Dataset,
    tiny: Callable[..., TrainConfig],
    ranks: Callable[..., Ranks],
) -> None:
    assert global_batches(prepared, tiny(Path()), [ranks()], first_step=3) == reference[3:]


def test_another_seed_changes_order_and_crops(
    reference: list[bytes],
    prepared: Dataset,
    tiny: Callable[..., TrainConfig],
    ranks: Callable[..., Ranks],
) -> None:
    assert not set(global_batches(prepared, tiny(Path(), "seed=1"), [ranks()])) & set(reference)


def test_another_seed_draws_another_crop_of_the_same_image(
    prepared: Dataset, tiny: Callable[..., TrainConfig], cut: Callable[..., list[torch.Tensor]]
) -> None:
    """Not the same one at another time."""
    images = []
    for seed in (0, 1):
        crops = TrainingCrops(TrainingPixels(prepared), tiny(Path(), f"seed={seed}"))
        images.append(cut(crops, [(0, 3)])[0])
    assert not torch.equal(*images)


def test_an_image_is_cropped_anew_each_epoch_and_each_time_it_is_taken(
    prepared: Dataset, tiny: Callable[..., TrainConfig], cut: Callable[..., list[torch.Tensor]]
) -> None:
    config = tiny(Path(), "crop.per_sample=3")
    crops = TrainingCrops(TrainingPixels(prepared), config)
    assert len(crops) == 3 * len(prepared.split("train"))
    images, _ = cut(crops, [(0, 0), (0, 1), (0, 2), (1, 0), (0, 0)])
    *of_first_image, again = [image.numpy().tobytes() for image in images]
    assert len(set(of_first_image)) == 4
    assert again == of_first_image[0]


def test_crops_of_an_image_are_of_that_image(
    prepared: Dataset, tiny: Callable[..., TrainConfig], cut: Callable[..., list[torch.Tensor]]
) -> None:
    """Crops 2 and 3 of two an image are of the second image, wherever in the epoch."""
    crop = CropConfig(64, 2, False, 0, 1, 0, 0, 0)
    config = dataclasses.replace(tiny(Path()), crop=crop)
    crops = TrainingCrops(TrainingPixels(prepared), config)
    image_HWC, mask_HW = read_sample(prepared.folder, prepared.split("train")[1])
    for index in (2, 3):
        image, mask = (part[0].numpy() for part in cut(crops, [(5, index)]))
        assert np.array_equal(mask_HW[:, place_of(image, image_HWC)], mask)


def place_of(crop_HWC: np.ndarray, image_HWC: np.ndarray) -> slice:
    """The columns of an image, of 96, that a crop as high as it shows unchanged."""
    width = crop_HWC.shape[1]
    places = [slice(left, left + width) for left in range(96 - width + 1)]
    (place,) = (place for place in places if np.array_equal(image_HWC[:, place], crop_HWC))
    return place


@pytest.fixture(scope="module")
def of_two_classes(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The fields prepared with two of their four discs as tumor (1), the others as mitoses (2)."""
    folder = tmp_path_factory.mktemp("two_classes")
    fields = Path(shutil.copytree(raw, folder / "raw"))
    for path in fields.glob("*.json"):
        points = json.loads(path.read_text())["tumor"]
        path.write_text(json.dumps({"tumor": points[:2], "mitosis": points[2:]}))
    classes = ["classes=[tumor,mitosis]", "labels=per_class"]
    return prepare_here(fields, folder / "prepared", *classes)


def test_crops_of_several_classes_keep_their_labels(
    of_two_classes: Dataset,
    tiny: Callable[..., TrainConfig],
    cut: Callable[..., list[torch.Tensor]],
) -> None:
    """They are not bright, as the one label of a binary mask is."""
    crop = CropConfig(64, 1, False, 0, 1, 0, 0, 0)
    config = dataclasses.replace(tiny(Path()), crop=crop)
    crops = TrainingCrops(TrainingPixels(of_two_classes), config)
    seen: set[int] = set()
    for index, sample in enumerate(of_two_classes.split("train")[:4]):
        image_HWC, mask_HW = read_sample(of_two_classes.folder, sample)
        image, mask = (part[0].numpy() for part in cut(crops, [(0, index)]))
        assert np.array_equal(mask_HW[:, place_of(image, image_HWC)], mask)
        seen |= set(np.unique(mask).tolist())
    assert seen == {0, 1, 2}


def test_a_target_has_a_channel_for_each_value() -> None:
    mask_BHW = torch.tensor([[[0, 1, 2], [255, 1, 0]]], dtype=torch.uint8)
    target_BCHW = mask_to_target(mask_BHW, [1, 2])
    assert target_BCHW.dtype == torch.float32
    assert target_BCHW.tolist() == [[[[0, 1, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0]]]]
    assert mask_to_target(mask_BHW, [255]).tolist() == [[[[0, 0, 0], [1, 0, 0]]]]
