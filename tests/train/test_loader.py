"""Microbatches in places of shared memory that are used again and again."""

import dataclasses
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import UserError
from data_prep.manifest import Dataset
from data_prep.pack import TrainingPixels
from train.config import TrainConfig
from train.data import MicrobatchSampler, TrainingCrops
from train.distributed import Ranks
from train.loader import HELD, PREFETCH, MicrobatchLoader

Tiny = Callable[..., TrainConfig]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("a_place", [1, 3])  # microbatches; 3 divides no epoch
def test_a_microbatch_holds_until_the_call_after_the_next(
    a_place: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    prepared: Dataset,
    tiny: Tiny,
    ranks: Callable[..., Ranks],
    cut: Callable[..., Any],
) -> None:
    """Looked at late, when workers have long filled what they may."""
    config = tiny(Path(), f"loader_workers={workers}", "microbatches=2", "epochs=16")
    monkeypatch.setattr("train.loader.PLACE_CROPS", 2 * a_place)
    crops = TrainingCrops(TrainingPixels(prepared), config)
    loader = MicrobatchLoader(crops, config, ranks(), 0)
    drawn = list(MicrobatchSampler(len(crops), config, ranks(), 0))
    num_places = len(loader.ring[0])
    assert num_places == workers * PREFETCH + HELD
    assert len(drawn) > 2 * num_places * a_place
    held = zip(drawn, loader, strict=True)
    for number, (before, now) in enumerate(pairwise(held)):
        if number < 2 * num_places * a_place:
            time.sleep(0.01)
        for draws, microbatch in (before, now):
            by_itself = [cut(crops, [draw]) for draw in draws]
            for part, expected in zip(microbatch, zip(*by_itself, strict=True), strict=True):
                assert torch.equal(part, torch.cat(expected))
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_shared_only_with_workers(
    workers: int, prepared: Dataset, tiny: Tiny, ranks: Callable[..., Ranks]
) -> None:
    """Shared memory may be short, and loader_workers=0 is the way out."""
    config = tiny(Path(), f"loader_workers={workers}")
    loader = MicrobatchLoader(TrainingCrops(TrainingPixels(prepared), config), config, ranks(), 0)
    assert {part.is_shared() for part in loader.ring} == {bool(workers)}
    loader.close()


@pytest.mark.parametrize(
    ("size_px", "size", "a_place"),
    [
        (256, 2, 8),  # 16 crops, and 4 MiB
        (32, 2, 8),  # 16 crops, of 4 KiB
        (512, 1, 4),  # 4 MiB, in 4 crops
        (256, 6, 3),
        (256, 32, 1),
        (2048, 1, 1),  # 16 MiB each
    ],
)
def test_a_place_holds_as_many_microbatches_as_make_it_worth_handing_over(
    size_px: int,
    size: int,
    a_place: int,
    prepared: Dataset,
    tiny: Tiny,
    ranks: Callable[..., Ranks],
) -> None:
    config = tiny(Path(), "loader_workers=0", f"batch_size={size}", "microbatches=1")
    config = dataclasses.replace(config, crop=dataclasses.replace(config.crop, size_px=size_px))
    loader = MicrobatchLoader(TrainingCrops(TrainingPixels(prepared), config), config, ranks(), 0)
    assert [part.shape[1:3] for part in loader.ring] == [(a_place, size)] * 2


@pytest.mark.parametrize("on", ["loader", "device"])
def test_crops_fill_the_whole_of_their_parts(on: Any, prepared: Dataset, tiny: Tiny) -> None:
    """OpenCV would leave a destination of another size as it was, without a word."""
    crops = TrainingCrops(TrainingPixels(prepared), tiny(Path(), f"crop.on={on}"))
    filled = []
    for value in (1, 77):
        parts = [torch.full((3, *shape), value, dtype=dtype) for shape, dtype in crops.parts]
        crops.fill([(0, 0), (0, 5), (1, 2)], [part.numpy() for part in parts])
        filled.append(parts)
    for one, other in zip(*filled, strict=True):
        assert torch.equal(one, other)


def test_memory_that_cannot_be_had_is_an_error_that_says_what_to_try(
    prepared: Dataset, tiny: Tiny, ranks: Callable[..., Ranks]
) -> None:
    """Two places of four crops: of 2^24 px a side, 4 bytes a pixel."""
    config = tiny(Path(), "microbatches=1")
    config = dataclasses.replace(config, crop=dataclasses.replace(config.crop, size_px=2**24))
    crops = TrainingCrops(TrainingPixels(prepared), config)
    advice = "try loader_workers=0, a smaller batch_size or crop.size_px, or with crop.on=device a"
    with pytest.raises(UserError, match=f"^no 9,007,199,255 MB for crops: .*{advice} .*scale$"):
        MicrobatchLoader(crops, config, ranks(), 0)
