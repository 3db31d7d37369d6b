"""Microbatches through torch's DataLoader: when workers end, and what is said where memory ends."""

import dataclasses
import gc
import multiprocessing
import resource
from collections.abc import Callable
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest

from common.command_line import UserError
from data_prep.dataset.manifest import Dataset
from data_prep.dataset.pack import TrainingPixels
from train.config import TrainConfig
from train.crops import loader as loader_module
from train.crops.loader import groups, load_microbatches, num_in_item
from train.crops.microbatches import TrainingCrops
from train.ranks.distributed import Ranks

Tiny = Callable[..., TrainConfig]


def test_an_item_holds_the_crops_of_microbatches_in_a_row_and_the_last_what_is_left() -> None:
    microbatches = [[(0, index), (1, index)] for index in range(7)]
    items = list(groups(microbatches, 3))
    assert [len(item) for item in items] == [6, 6, 2]
    assert list(chain.from_iterable(items)) == list(chain.from_iterable(microbatches))


@pytest.mark.parametrize(
    ("size_px", "size", "num"),
    [
        (256, 2, 8),  # 16 crops, and 4 MiB
        (32, 2, 8),  # 16 crops, of 4 KiB
        (512, 1, 4),  # 4 MiB, in 4 crops
        (256, 6, 3),
        (2048, 1, 1),  # 16 MiB each
    ],
)
def test_an_item_from_a_pack_holds_what_makes_it_worth_handing_over(
    size_px: int, size: int, num: int, prepared: Dataset, with_pack: Dataset, tiny: Tiny
) -> None:
    config = tiny(Path(), f"crop.size_px={size_px}", "loader_workers=1")
    assert num_in_item(TrainingCrops(TrainingPixels(with_pack), config), size) == num
    assert num_in_item(TrainingCrops(TrainingPixels(prepared), config), size) == 1
    alone = dataclasses.replace(config, loader_workers=0)
    assert num_in_item(TrainingCrops(TrainingPixels(with_pack), alone), size) == 1


def test_workers_end_when_the_loader_is_closed(
    prepared: Dataset, tiny: Tiny, ranks: Callable[..., Ranks]
) -> None:
    """At its exit Python would wait for those for ever."""
    config = tiny(Path(), "loader_workers=2", "epochs=9")
    crops = TrainingCrops(TrainingPixels(prepared), config)
    gc.disable()  # a cycle would be found sooner or later
    try:
        with closing(load_microbatches(crops, config, ranks(), 0)) as loader:
            next(loader)
            assert len(multiprocessing.active_children()) == 2
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def test_memory_that_cannot_be_had_is_an_error_that_says_what_to_try_and_ends_the_workers(
    prepared: Dataset, tiny: Tiny, ranks: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file, and no shared memory, of more than 1 KiB can be made in these workers."""

    def start_poor(worker: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    monkeypatch.setattr(loader_module, "start_worker", start_poor)
    config = tiny(Path(), "loader_workers=1")
    crops = TrainingCrops(TrainingPixels(prepared), config)
    advice = "try loader_workers=0, a smaller batch_size or crop.size_px"
    with (
        pytest.raises(UserError, match=f"^no memory for crops: .*{advice}$") as caught,
        closing(load_microbatches(crops, config, ranks(), 0)) as loader,
    ):
        next(loader)
    assert caught.tb  # which keeps alive what it was raised in
    assert not multiprocessing.active_children()


def test_a_worker_that_fails_ends_with_the_others_while_its_error_is_kept(
    prepared: Dataset, tiny: Tiny, ranks: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's frames hold the iterator, and with it the workers; the traceback still names them."""

    def has_a_bug(*given: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("train.crops.microbatches.cut_crop", has_a_bug)
    config = tiny(Path(), "loader_workers=2", "epochs=9")
    loader = load_microbatches(
        TrainingCrops(TrainingPixels(prepared), config), config, ranks(), first_step=0
    )
    with pytest.raises(ZeroDivisionError, match="in has_a_bug") as caught:
        next(loader)
    assert len(caught.traceback) > 2
    assert not multiprocessing.active_children()
