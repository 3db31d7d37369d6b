"""Load microbatches with torch's DataLoader, whose worker processes cut crops ahead of training.

The DataLoader takes half a millisecond or more to pass an item on, whatever is in it. That is as
long as a crop takes. So, from a pack, an item holds several small microbatches.
"""

import math
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import TracebackType

import cv2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from common.command_line import UserError
from common.stop_request import SIGNALS
from train.config import TrainConfig
from train.crops.microbatches import CropKey, MicrobatchSampler, TrainingCrops
from train.ranks.distributed import Ranks

ITEM_CROPS, ITEM_BYTES = 16, 1 << 22  # an item from a pack holds at least the smaller of the two
PREFETCH = 2  # items that a worker is ahead
NO_MEMORY = re.compile("allocate|file </torch_")  # in errors; the second is of shared memory
DEAD_WORKER = "DataLoader worker (pid"  # the beginning of torch's message

# Five lines at each start where workers outnumber cores. That is the user's choice: it is slower
# at worst, and changes no crop.
warnings.filterwarnings("ignore", message="This DataLoader will create")

ADVICE = (
    "Most likely memory, or shared memory (/dev/shm), ran out: try loader_workers=0, a smaller"
    " batch_size or crop.size_px"
)

Microbatch = tuple[Tensor, Tensor]
"""Images (B, H, W, 3) and masks (B, H, W), uint8."""


def load_microbatches(
    crops: TrainingCrops, config: TrainConfig, ranks: Ranks, first_step: int
) -> Generator[Microbatch, None, None]:
    """Yield this rank's microbatches on its device, from a step to the end of the run.

    Close the generator to end the workers. Raises UserError if an image cannot be read, or if there
    is no memory for crops.
    """
    cv2.setNumThreads(1)  # a forked worker would wait for OpenCV's threads, which it does not have
    size = config.batch.microbatch_size
    microbatches = MicrobatchSampler(len(crops), config, ranks, first_step)
    loader = DataLoader(
        Items(crops),
        batch_size=None,
        sampler=groups(microbatches, num_in_item(crops, size)),
        num_workers=config.loader_workers,
        worker_init_fn=start_worker,
        prefetch_factor=PREFETCH if config.loader_workers else None,
        pin_memory=ranks.device.type == "cuda",
    )
    try:
        for item in loader:
            if isinstance(item, UserError):
                raise item
            image_BHWC, mask_BHW = (tensor.to(ranks.device, non_blocking=True) for tensor in item)
            yield from zip(image_BHWC.split(size), mask_BHW.split(size), strict=True)
    except BaseException as error:
        forget_iterator(error)
        raise


class Items(Dataset[list[Tensor] | UserError]):
    """Cuts several crops: images (B, H, W, 3) and masks (B, H, W), uint8.

    It returns a UserError: if it raised one, torch would replace its text by the worker's
    traceback.
    """

    def __init__(self, crops: TrainingCrops) -> None:
        self.crops = crops

    def __getitem__(self, crop_keys: list[CropKey]) -> list[Tensor] | UserError:
        try:
            item: list[Tensor] = default_collate(self.crops.cut(crop_keys))
        except UserError as error:
            return error
        except (MemoryError, RuntimeError, cv2.error) as error:  # from numpy, torch and OpenCV
            if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
                return UserError(f"no memory for crops: {error}. {ADVICE}")
            raise
        return item


def num_in_item(crops: TrainingCrops, size: int) -> int:
    """Return how many microbatches of `size` crops an item holds."""
    # to decode a file takes far longer than to pass an item on; without workers nothing is passed
    if crops.pixels.packed is None or not crops.config.loader_workers:
        return 1
    return math.ceil(min(ITEM_CROPS, ITEM_BYTES / crops.crop_bytes) / size)


def groups(microbatches: Iterable[list[CropKey]], num: int) -> Iterator[list[CropKey]]:
    """Join the crops of each `num` microbatches; the last group may hold fewer."""
    left = iter(microbatches)
    while group := list(islice(left, num)):
        yield [crop_key for microbatch in group for crop_key in microbatch]


def forget_iterator(error: BaseException) -> None:
    """Clear the frames of an error's traceback, but keep its lines.

    torch's frames hold the DataLoader's iterator, which ends its workers when it is deleted. If the
    workers still ran when Python exits, it would wait for ever: they ignore its SIGTERM.
    """
    cause: BaseException | None = error
    while cause:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__context__


def start_worker(worker: int) -> None:
    """Make a loader worker ignore the signals that stop training: the last step needs its crops.

    The worker ends with its parent.
    """
    sys.excepthook = without_lost_parents
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    cv2.setNumThreads(1)


def without_lost_parents(
    kind: type[BaseException], error: BaseException, at: TracebackType | None
) -> None:
    """Print an error as Python does, except that of a worker whose parent was killed."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, at)


@contextmanager
def lost_worker_explained() -> Iterator[None]:
    """Raise UserError if a loader worker was killed; torch reports that at any point of training.

    An error that a worker raises itself is a bug, and keeps its traceback.
    """
    try:
        yield
    except RuntimeError as error:
        if DEAD_WORKER not in str(error):
            raise
        raise UserError(f"{error} {ADVICE}") from None
