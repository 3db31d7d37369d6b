"""Microbatches in places of shared memory that are used again and again."""

import dataclasses
import gc
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.command_line import UserError
from data_prep.dataset.manifest import Dataset
from data_prep.dataset.pack import TrainingPixels
from train.config import TrainConfig
from train.crops.loader import HELD, PREFETCH, MicrobatchLoader, Upload, by_place, num_in_place
from train.crops.microbatches import MicrobatchSampler, TrainingCrops
from train.ranks.distributed import Ranks

Tiny = Callable[..., TrainConfig]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("most", [1, 3])  # microbatches a place; 3 divides no epoch
def test_a_microbatch_holds_until_the_call_after_the_next(
    most: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    with_pack: Dataset,
    tiny: Tiny,
    ranks: Callable[..., Ranks],
    cut: Callable[..., list[torch.Tensor]],
) -> None:
    """Looked at late, when workers have long filled what they may."""
    settings = (f"loader_workers={workers}", "microbatches=2", "epochs=16")
    config = tiny(Path(), *settings)
    monkeypatch.setattr("train.crops.loader.PLACE_CROPS", 2 * most)
    crops = TrainingCrops(TrainingPixels(with_pack), config)
    with closing(MicrobatchLoader(crops, config, ranks(), 0)) as loader:
        drawn = list(MicrobatchSampler(len(crops), config, ranks(), 0))
        num_places, room = loader.ring[0].shape[:2]
        assert (num_places, room) == (workers * PREFETCH + HELD, most if workers else 1)
        assert len(drawn) > 2 * num_places * most
        held = zip(drawn, loader, strict=True)
        for number, (before, now) in enumerate(pairwise(held)):
            if number < 2 * num_places * most:
                time.sleep(0.01)
            for draws, microbatch in (before, now):
                for part, expected in zip(microbatch, cut(crops, draws), strict=True):
                    assert torch.equal(part, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_shared_only_with_workers(
    workers: int, prepared: Dataset, tiny: Tiny, ranks: Callable[..., Ranks]
) -> None:
    """Shared memory may be short, and loader_workers=0 is the way out."""
    config = tiny(Path(), f"loader_workers={workers}")
    crops = TrainingCrops(TrainingPixels(prepared), config)
    with closing(MicrobatchLoader(crops, config, ranks(), 0)) as loader:
        assert {part.is_shared() for part in loader.ring} == {bool(workers)}


def test_places_grow_to_their_size_and_the_last_has_what_is_left() -> None:
    """So that the first is there soon, and workers of equal speed take turns."""
    microbatches = [[(0, index)] for index in range(12)]
    places = list(by_place(microbatches, 3))
    assert [len(place) for place in places] == [1, 2, 3, 3, 3]
    assert [draws for place in places for draws in place] == microbatches
    assert [len(place) for place in by_place(microbatches[:8], 3)] == [1, 2, 3, 2]
    assert [len(place) for place in by_place(microbatches[:2], 1)] == [1, 1]


def test_a_loader_that_is_dropped_leaves_no_worker(
    prepared: Dataset, tiny: Tiny, ranks: Callable[..., Ranks]
) -> None:
    """At its exit Python would wait for that for ever."""
    config = tiny(Path(), "loader_workers=1")
    loader = MicrobatchLoader(TrainingCrops(TrainingPixels(prepared), config), config, ranks(), 0)
    next(loader)
    assert multiprocessing.active_children()
    gc.disable()  # a cycle would be found sooner or later
    try:
        del loader
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def test_nor_does_one_whose_memory_a_gpu_refuses(
    prepared: Dataset, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise UserError("cannot pin")

    monkeypatch.setattr("train.crops.loader.Upload", refuse)
    config = tiny(Path(), "loader_workers=1")
    crops = TrainingCrops(TrainingPixels(prepared), config)
    with pytest.raises(UserError, match="cannot pin") as caught:
        MicrobatchLoader(crops, config, Ranks(0, 1, torch.device("cuda", 0)), 0)
    assert caught.tb  # which keeps alive what it was raised in
    assert not multiprocessing.active_children()


class PretendRuntime:
    """Notes the addresses that are pinned, and refuses some; there is no GPU here."""

    def __init__(self, refused: Sequence[int]) -> None:
        self.refused, self.pinned = refused, list[int]()

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        if address in self.refused:
            return 2
        self.pinned.append(address)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        self.pinned.remove(address)
        return 0


def check_error(code: int) -> None:
    if code:
        raise RuntimeError("out of memory (2)")


@pytest.mark.parametrize("is_refused", [False, True])
def test_memory_is_pinned_until_the_end_or_not_at_all(
    is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = [torch.zeros(2, 1, 3, 250_000, dtype=torch.uint8) for _ in range(2)]
    runtime = PretendRuntime([ring[1].data_ptr()] if is_refused else [])
    pretended = {
        "Stream": lambda device: None,
        "Event": lambda: SimpleNamespace(synchronize=lambda: None),
        "cudart": lambda: runtime,
        "check_error": check_error,
    }
    for name, function in pretended.items():
        monkeypatch.setattr(torch.cuda, name, function)
    device = torch.device("cuda", 0)
    if is_refused:
        with pytest.raises(UserError, match=r"^cannot pin 2 MB for crops: out of .*loader_workers"):
            Upload(ring, device)
    else:
        upload = Upload(ring, device)
        assert runtime.pinned == [part.data_ptr() for part in ring]
        upload.close()
    assert runtime.pinned == []


@pytest.mark.parametrize(
    ("size_px", "size", "num"),
    [
        (256, 2, 8),  # 16 crops, and 4 MiB
        (32, 2, 8),  # 16 crops, of 4 KiB
        (512, 1, 4),  # 4 MiB, in 4 crops
        (256, 6, 3),
        (256, 32, 1),
        (2048, 1, 1),  # 16 MiB each
    ],
)
def test_a_place_from_a_pack_has_room_for_what_makes_it_worth_handing_over(
    size_px: int, size: int, num: int, prepared: Dataset, with_pack: Dataset, tiny: Tiny
) -> None:
    config = tiny(Path())
    config = dataclasses.replace(config, crop=dataclasses.replace(config.crop, size_px=size_px))
    assert num_in_place(TrainingCrops(TrainingPixels(with_pack), config), size) == num
    assert num_in_place(TrainingCrops(TrainingPixels(prepared), config), size) == 1


def test_crops_fill_the_whole_of_their_parts(prepared: Dataset, tiny: Tiny) -> None:
    """OpenCV would leave a destination of another size as it was, without a word."""
    crops = TrainingCrops(TrainingPixels(prepared), tiny(Path()))
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
    advice = "try loader_workers=0, a smaller batch_size or crop.size_px"
    with pytest.raises(UserError, match=f"^no 9,007,199,255 MB for crops: .*{advice}$"):
        MicrobatchLoader(crops, config, ranks(), 0)
