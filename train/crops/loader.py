"""Worker processes that crop ahead of training: torch's DataLoader, several microbatches an item.

To hand an item over takes the DataLoader half a millisecond or more, whatever is in it, and that is
the time of a crop. So an item from a pack holds several microbatches, where they are small.
"""

import math
import re
import signal
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import TracebackType

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from common.command_line import UserError
from common.stop_request import SIGNALS
from train.config import TrainConfig
from train.crops.microbatches import CropKey, MicrobatchSampler, TrainingCrops
from train.ranks.distributed import Ranks

ITEM_CROPS, ITEM_BYTES = 16, 1 << 22  # an item from a pack holds at least the smaller of the two
PREFETCH = 2  # items that a worker is ahead
NO_MEMORY = re.compile("allocate|file </torch_")  # in errors; the second is shared memory's
DEAD_WORKER = "DataLoader worker (pid"  # as torch begins to say so

ADVICE = (
    "Most likely memory, or shared memory (/dev/shm), ran out: try loader_workers=0, a smaller"
    " batch_size or crop.size_px"
)

Microbatch = tuple[Tensor, Tensor]
"""Images (B, H, W, 3) and masks (B, H, W), uint8."""


def load_microbatches(
    crops: TrainingCrops, config: TrainConfig, ranks: Ranks, first_step: int
) -> Generator[Microbatch, None, None]:
    """Yield this rank's microbatches on its device, from a step on to the run's end.

    Close the generator to end the workers. Raises UserError for an image that cannot be read, and
    where there is no memory for crops.
    """
    cv2.setNumThreads(1)  # a forked worker would wait for OpenCV's threads, which it has not got
    size = config.batch.size // config.batch.num_microbatches
    microbatches = MicrobatchSampler(len(crops), config, ranks, first_step)
    loader = DataLoader(
        Items(crops),
        batch_size=None,
        sampler=groups(microbatches, num_in_item(crops, size)),
        num_workers=config.loader_workers,
        worker_init_fn=start_worker,
        prefetch_factor=PREFETCH if config.loader_workers else None,
        pin_memory=ranks.device.type == "cuda",
        generator=torch.Generator(),  # else it draws from that of the layers
    )
    try:
        for item in loader:
            if isinstance(item, UserError):
                raise item
            image_BHWC, mask_BHW = (part.to(ranks.device, non_blocking=True) for part in item)
            yield from zip(image_BHWC.split(size), mask_BHW.split(size), strict=True)
    except BaseException as error:
        forget_iterator(error)
        raise


class Items(Dataset[list[Tensor] | UserError]):
    """Several crops at once: images (B, H, W, 3) and masks (B, H, W), uint8, in a worker in shared
    memory.

    A UserError is returned: raised, torch would make its text a worker's traceback.
    """

    def __init__(self, crops: TrainingCrops) -> None:
        self.crops = crops

    def __getitem__(self, crop_keys: list[CropKey]) -> list[Tensor] | UserError:
        try:
            item: list[Tensor] = default_collate(self.crops.cut(crop_keys))
        except UserError as error:
            return error
        except (MemoryError, RuntimeError, cv2.error) as error:  # of numpy, torch and OpenCV
            if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
                return UserError(f"no memory for crops: {error}. {ADVICE}")
            raise
        return item


def num_in_item(crops: TrainingCrops, size: int) -> int:
    """How many microbatches of `size` crops an item holds."""
    # a file takes far longer to decode than an item to hand over; and no worker, no handing over
    if crops.pixels.packed is None or not crops.config.loader_workers:
        return 1
    return math.ceil(min(ITEM_CROPS, ITEM_BYTES / crops.crop_bytes) / size)


def groups(microbatches: Iterable[list[CropKey]], num: int) -> Iterator[list[CropKey]]:
    """Yield the crops of `num` microbatches at a time, and of those that are left at the end."""
    left = iter(microbatches)
    while group := list(islice(left, num)):
        yield [crop_key for microbatch in group for crop_key in microbatch]


def forget_iterator(error: BaseException) -> None:
    """Clear the frames that an error came through, but not their lines in its traceback.

    Those of torch hold the DataLoader's iterator, which ends its workers when it is dropped. Else
    they would be there as Python exits, and it waits for ever for processes that ignore the SIGTERM
    it sends them.
    """
    cause: BaseException | None = error
    while cause:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__


def start_worker(worker: int) -> None:
    """Have a loader worker outlive the signals that stop training, so that the last step gets its
    crops; it ends with its parent."""
    sys.excepthook = without_lost_parents
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    cv2.setNumThreads(1)


def without_lost_parents(
    kind: type[BaseException], error: BaseException, at: TracebackType | None
) -> None:
    """Report an error as Python does, but for that of a worker whose parent was killed."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, at)


@contextmanager
def lost_worker_explained() -> Iterator[None]:
    """Explain the error of a killed loader worker, which torch raises wherever training just is.

    A worker's own error is a bug, and keeps its traceback.
    """
    try:
        yield
    except RuntimeError as error:
        if DEAD_WORKER not in str(error):
            raise
        raise UserError(f"{error} {ADVICE}") from None
