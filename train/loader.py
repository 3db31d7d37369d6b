"""Worker processes that crop ahead of training and hand over microbatches in shared memory.

The memory is a ring of places that are used again and again. torch's own way is new memory for each
microbatch, with which a crop takes a quarter more time.
"""

import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from types import TracebackType

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from command_line import UserError
from train.config import TrainConfig
from train.data import Draw, MicrobatchSampler, TrainingCrops
from train.distributed import Ranks
from train.preemption import SIGNALS

PREFETCH = 4  # microbatches that a worker is ahead
HELD = 2  # places that training may look at: of the microbatch in work and of the one before
DEAD_WORKER = "DataLoader worker (pid"  # as torch begins to say so

ADVICE = (
    "Most likely memory, or shared memory (/dev/shm), ran out: try loader_workers=0, a smaller"
    " batch_size or crop.size_px, or with crop.on=device a smaller crop.scale"
)


class MicrobatchLoader:
    """This rank's microbatches for TrainingCrops.on_device(), from a step on to the run's end.

    What next() gives holds until the call after the next, which may fill its place anew.
    """

    def __init__(
        self, crops: TrainingCrops, config: TrainConfig, ranks: Ranks, first_step: int
    ) -> None:
        cv2.setNumThreads(1)  # a forked worker would wait for OpenCV's threads, not there in it
        microbatches = MicrobatchSampler(len(crops), config, ranks, first_step)
        num_places = config.loader_workers * PREFETCH + HELD
        self.ring = new_ring(
            crops, num_places, config.batch_size // config.microbatches, config.loader_workers > 0
        )
        self.filled = iter(
            DataLoader(
                Filling(crops, self.ring),
                batch_size=None,
                sampler=zip(cycle(range(num_places)), microbatches, strict=False),
                num_workers=config.loader_workers,
                worker_init_fn=start_worker,
                prefetch_factor=PREFETCH if config.loader_workers else None,
            )
        )

    def __iter__(self) -> "MicrobatchLoader":
        return self

    def __next__(self) -> list[Tensor]:
        place = next(self.filled)
        return [part[place] for part in self.ring]

    def close(self) -> None:
        """End the workers by hand: after an error its traceback may keep the iterator alive.

        At its exit Python would wait for ever for workers that ignore the SIGTERM it sends.
        """
        if shut_down := getattr(self.filled, "_shutdown_workers", None):
            shut_down()


def new_ring(crops: TrainingCrops, num_places: int, size: int, is_shared: bool) -> list[Tensor]:
    """Memory (num_places, size, ...) for each part of a crop. Raises UserError."""
    crop_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in crops.parts)
    try:
        ring = [torch.empty(num_places, size, *shape, dtype=dtype) for shape, dtype in crops.parts]
        if is_shared:
            for part in ring:
                part.share_memory_()  # type: ignore[no-untyped-call]
        return ring
    except RuntimeError as error:
        ring_mb = num_places * size * crop_bytes / 1e6
        raise UserError(f"no {ring_mb:,.0f} MB for crops: {error} {ADVICE}") from None


class Filling(Dataset[int]):
    """(place, draws) -> the place, filled with the crops of the draws."""

    def __init__(self, crops: TrainingCrops, ring: list[Tensor]) -> None:
        self.crops, self.ring = crops, ring

    def __getitem__(self, filling: tuple[int, list[Draw]]) -> int:
        place, draws = filling
        self.crops.fill(draws, [part[place].numpy() for part in self.ring])
        return place


def start_worker(worker: int) -> None:
    """A loader worker outlives the signals that stop training, so that the last step gets its
    crops; it ends with its parent."""
    sys.excepthook = without_lost_parents
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    cv2.setNumThreads(1)


def without_lost_parents(
    kind: type[BaseException], error: BaseException, at: TracebackType | None
) -> None:
    """Python's report of an error, but for that of a worker whose training process was killed."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, at)


@contextmanager
def lost_worker_explained() -> Iterator[None]:
    """The error of a killed loader worker, which torch raises wherever training just is.

    A worker's own error is a bug, and keeps its traceback.
    """
    try:
        yield
    except RuntimeError as error:
        if DEAD_WORKER not in str(error):
            raise
        raise UserError(f"{error} {ADVICE}") from None
