"""Worker processes that crop ahead of training and hand over microbatches in shared memory.

The memory is a ring of places that are used again and again. torch's own way is new memory for each
microbatch, with which a crop takes a quarter more time. From a pack a place holds several
microbatches, where they are small: DataLoader takes half a millisecond or more to hand one over,
whatever is in it, and that is the time of a crop.
"""

import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain, cycle, islice, repeat
from types import TracebackType

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.command_line import UserError
from common.stop_request import SIGNALS
from train.config import TrainConfig
from train.crops.microbatches import Draw, MicrobatchSampler, TrainingCrops
from train.ranks.distributed import Ranks

PLACE_CROPS, PLACE_BYTES = 16, 1 << 22  # whichever is less, a place from a pack holds at least
PREFETCH = 2  # places that a worker is ahead
HELD = 2  # places that training may look at: of the microbatch in work and of the one before
DEAD_WORKER = "DataLoader worker (pid"  # as torch begins to say so

ADVICE = (
    "Most likely memory, or shared memory (/dev/shm), ran out: try loader_workers=0, a smaller"
    " batch_size or crop.size_px"
)


class MicrobatchLoader:
    """This rank's microbatches, from a step on to the run's end: images BHWC and masks BHW, uint8,
    on its device.

    What next() gives holds until the call after the next, which may fill its place anew.
    """

    def __init__(
        self, crops: TrainingCrops, config: TrainConfig, ranks: Ranks, first_step: int
    ) -> None:
        cv2.setNumThreads(1)  # a forked worker would wait for OpenCV's threads, not there in it
        size = config.batch.size // config.batch.num_microbatches
        most = num_in_place(crops, size) if config.loader_workers else 1
        num_places = config.loader_workers * PREFETCH + HELD
        self.ring = new_ring(crops, (num_places, most, size), config.loader_workers > 0)
        microbatches = MicrobatchSampler(len(crops), config, ranks, first_step)
        self.filled = iter(
            DataLoader(
                Filling(crops, self.ring),
                batch_size=None,
                sampler=zip(cycle(range(num_places)), by_place(microbatches, most), strict=False),
                num_workers=config.loader_workers,
                worker_init_fn=start_worker,
                prefetch_factor=PREFETCH if config.loader_workers else None,
            )
        )
        self.upload: Upload | None = None
        on_device: Callable[[int, int], list[Tensor]] = partial(parts_of, self.ring)
        if ranks.device.type == "cuda":
            try:
                self.upload = Upload(self.ring, ranks.device)
            except BaseException:
                self.close()
                raise
            on_device = self.upload.parts
        self.microbatches = one_by_one(self.filled, on_device, size)

    def __iter__(self) -> "MicrobatchLoader":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        return next(self.microbatches)

    def close(self) -> None:
        """End the workers by hand, and unpin their memory: after an error its traceback may keep
        the iterator alive.

        At its exit Python would wait for ever for workers that ignore the SIGTERM it sends.
        """
        if shut_down := getattr(self.filled, "_shutdown_workers", None):
            shut_down()
        if self.upload:
            self.upload.close()


def num_in_place(crops: TrainingCrops, size: int) -> int:
    """How many microbatches of this size a place has room for."""
    if crops.pixels.packed is None:  # decoding takes far longer than handing over
        return 1
    return math.ceil(min(PLACE_CROPS, PLACE_BYTES / crops.crop_bytes) / size)


def by_place(microbatches: Iterable[list[Draw]], most: int) -> Iterator[list[list[Draw]]]:
    """Lists of 1, 2, 3, ... and then of `most` microbatches, with what is left in the last.

    The first is there soon, and several workers come to take turns: if they began with as many
    each, they would all be done at once, and training would have a lot and then nothing.
    """
    left = iter(microbatches)
    for num in chain(range(1, most), repeat(most)):
        if not (place := list(islice(left, num))):
            return
        yield place


def one_by_one(
    filled: Iterable[tuple[int, int]],
    on_device: Callable[[int, int], list[Tensor]],
    size: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The microbatches of `size` crops in one filled place after the other."""
    for place, num in filled:
        image_BHWC, mask_BHW = on_device(place, num)
        yield from zip(torch.split(image_BHWC, size), torch.split(mask_BHW, size), strict=True)


def parts_of(ring: Sequence[Tensor], place: int, num: int) -> list[Tensor]:
    """What the crops of a place's first `num` microbatches consist of, (crops, ...) each."""
    return [part[place, :num].flatten(0, 1) for part in ring]


class Upload:
    """Copies places to a GPU while that computes.

    The ring's memory is pinned where it is, so that nothing is copied on the way, and has a stream
    of its own, so that no copy queues behind training's kernels. Raises UserError where it cannot
    be pinned.
    """

    def __init__(self, ring: Sequence[Tensor], device: torch.device) -> None:
        self.ring, self.device = ring, device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with ExitStack() as pinned:
            for part in ring:
                pin(part)
                pinned.callback(unpin, part)
            self.pinned = pinned.pop_all()

    def parts(self, place: int, num: int) -> list[Tensor]:
        """Those of a place; it may be filled anew after the call after this one."""
        self.copied.synchronize()  # or workers might fill the place before while it is copied
        with torch.cuda.stream(self.stream):
            parts = [
                part.to(self.device, non_blocking=True) for part in parts_of(self.ring, place, num)
            ]
            self.copied.record()
        training = torch.cuda.current_stream(self.device)
        training.wait_event(self.copied)
        for part in parts:  # or its memory would be used again while training still reads it
            part.record_stream(training)
        return parts

    def close(self) -> None:
        """Unpin the memory, before it is unmapped."""
        with suppress(RuntimeError):  # of a GPU that has failed, which is being told already
            self.copied.synchronize()
        self.pinned.close()


def pin(memory: Tensor) -> None:
    """Pin memory where it is. Raises UserError."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    try:
        torch.cuda.check_error(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    except RuntimeError as error:
        size_mb = memory.nbytes / 1e6
        raise UserError(f"cannot pin {size_mb:,.0f} MB for crops: {error}. {ADVICE}") from None


def unpin(memory: Tensor) -> None:
    """Undo `pin`."""
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())  # type: ignore[no-untyped-call]


def new_ring(crops: TrainingCrops, lengths: tuple[int, int, int], is_shared: bool) -> list[Tensor]:
    """Memory (places, microbatches, crops, ...) for each part of a crop. Raises UserError."""
    try:
        ring = [torch.empty(*lengths, *shape, dtype=dtype) for shape, dtype in crops.parts]
        if is_shared:
            for part in ring:
                part.share_memory_()  # type: ignore[no-untyped-call]
        return ring
    except RuntimeError as error:
        ring_mb = math.prod(lengths) * crops.crop_bytes / 1e6
        raise UserError(f"no {ring_mb:,.0f} MB for crops: {error} {ADVICE}") from None


class Filling(Dataset[tuple[int, int]]):
    """(place, microbatches) -> (place, their number), the place filled with their crops."""

    def __init__(self, crops: TrainingCrops, ring: list[Tensor]) -> None:
        self.crops, self.ring = crops, ring

    def __getitem__(self, filling: tuple[int, list[list[Draw]]]) -> tuple[int, int]:
        place, microbatches = filling
        draws = [draw for microbatch in microbatches for draw in microbatch]
        self.crops.fill(draws, [part[place].flatten(0, 1).numpy() for part in self.ring])
        return place, len(microbatches)


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
