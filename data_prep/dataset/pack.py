"""Write and read the pack: the decoded training split in one file that is mapped into memory.

A pack holds the samples one after the other, in the manifest's order, as the decoder returns them:
H x W x 4 bytes each, red, green, blue and the mask's label of every pixel. Its name is a hash of
the data set's content, this layout and the decoder's release, so that an outdated pack is never
used. All processes of a machine use the same pages: while these are in the page cache, reading a
crop copies its bytes; without enough memory, it reads them from the disk.
"""

import errno
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from common.command_line import UserError
from common.files import sync
from common.ownership import Item
from common.progress import track
from common.workers import map_tasks
from data_prep.dataset.manifest import Dataset, Sample
from data_prep.dataset.samples import read_sample
from data_prep.images.arrays import Image, Mask
from data_prep.images.masks import BINARY_LABEL

KIND = "pack"  # private folder of the record
PACKED = "packed"
LAYOUT = "RGBL"  # the bytes of a pixel; L is its label
DECODER = "opencv-python-headless"  # whose releases may decode a JPG differently

Labelled = npt.NDArray[np.uint8]
"""RGB and the label of every pixel, HW4 uint8."""


@dataclass(frozen=True)
class PackTask:
    """A sample to decode, and its offset in the pack in bytes."""

    folder: Path
    sample: Sample
    pack: Path
    offset: int


class SamplePixels(Protocol):
    """A sample that crops are cut from."""

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Height and width in px."""

    def window(self, rows: slice, columns: slice) -> Labelled:
        """Copy a window of the sample."""


@dataclass(frozen=True)
class DecodedSample:
    """A sample from its files: image HWC uint8 RGB and mask HW uint8."""

    image_HWC: Image
    mask_HW: Mask

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Height and width in px."""
        height, width = self.mask_HW.shape
        return height, width

    def window(self, rows: slice, columns: slice) -> Labelled:
        """Copy a window of the sample, labels beside the colours."""
        window_HW4 = cv2.cvtColor(self.image_HWC[rows, columns], cv2.COLOR_RGB2RGBA)
        return cv2.insertChannel(self.mask_HW[rows, columns], window_HW4, 3)


@dataclass(frozen=True)
class PackedSample:
    """A sample in a pack: a view of the mapped file."""

    pixels_HW4: Labelled
    file: BinaryIO
    """The pack."""
    offset: int
    """The offset of the sample in the pack, in bytes."""

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Height and width in px."""
        height, width, _ = self.pixels_HW4.shape
        return height, width

    def window(self, rows: slice, columns: slice) -> Labelled:
        """Copy a window of the sample.

        The copy is contiguous: rotating a view of the whole image, where each row is in another
        page of memory, takes twice as long.
        """
        self.ask_for(rows)
        return self.pixels_HW4[rows, columns].copy()

    def ask_for(self, rows: slice) -> None:
        """Ask the system to load rows that are not in its page cache, all at once.

        Without that, copying loads them bit by bit, with their surroundings, and takes twice as
        long. If the first byte of the middle row is in the cache, all rows count as cached: asking
        for cached rows would take a tenth of a crop's time.
        """
        height, width, depth = self.pixels_HW4.shape
        row_bytes = width * depth
        first, end, _ = rows.indices(height)
        if not is_cached(self.file.fileno(), self.offset + (first + end) // 2 * row_bytes):
            start, size = self.offset + first * row_bytes, (end - first) * row_bytes
            os.posix_fadvise(self.file.fileno(), start, size, os.POSIX_FADV_WILLNEED)


def is_cached(file: int, offset: int) -> bool:
    """Return whether a byte of a file is in the page cache; True if the system cannot tell."""
    if not hasattr(os, "RWF_NOWAIT"):  # macOS
        return True
    try:
        os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # the file system cannot tell
        pass
    return True


class TrainingPixels:
    """The pixels of the training split, by the number of the sample.

    They come from the pack, or if it is missing from the files, decoded at each call. The bytes are
    the same.
    """

    def __init__(self, dataset: Dataset, pack: Path | None = None) -> None:
        """`pack`: a copy of the data set's pack to use in place of it."""
        self.dataset, self.folder, self.pack = dataset, dataset.folder, pack
        self.samples = dataset.split("train")
        self.has_ignored = any(sample.ignored_px for sample in self.samples)
        values = set(dataset.description.labelling.labels.values())
        # labels may be interpolated like colours if 255 is the only one
        self.is_binary = values == {BINARY_LABEL} and not self.has_ignored
        path = pack or packed_path(dataset.folder, dataset.description.content_sha256)
        offsets = offsets_of(dataset.packed_samples)
        self.offsets = [
            offset
            for offset, sample in zip(offsets, dataset.packed_samples, strict=False)
            if sample.split == "train"
        ]
        self.packed = None
        if path.is_file() and path.stat().st_size == offsets[-1]:
            self.file = path.open("rb")
            self.packed = np.memmap(self.file, np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.samples)

    def __reduce__(self) -> tuple[type["TrainingPixels"], tuple[Dataset, Path | None]]:
        """Map the pack anew in a loader worker that was not forked."""
        return TrainingPixels, (self.dataset, self.pack)

    def advice_on_pack(self) -> str:
        """Say how to get a usable pack."""
        again = "`python -m data_prep` again with the same settings and pack=true"
        if any((self.folder / PACKED).glob("*.u8")):
            again += " (its pack was made by another release of OpenCV or Eosin, or is not whole)"
        return again

    def __getitem__(self, number: int) -> SamplePixels:
        sample = self.samples[number]
        if self.packed is None:
            return DecodedSample(*read_sample(self.folder, sample))
        shape = sample.height_px, sample.width_px, len(LAYOUT)
        start = self.offsets[number]
        end = start + math.prod(shape)
        # as a plain array: np.memmap's own type costs more time than a crop
        pixels_HW4 = np.asarray(self.packed[start:end]).reshape(shape)
        return PackedSample(pixels_HW4, self.file, start)


def offsets_of(samples: Sequence[Sample]) -> list[int]:
    """Return the offset of each sample in the pack, and the end of the last one, in bytes."""
    sizes = [len(LAYOUT) * sample.height_px * sample.width_px for sample in samples]
    return list(accumulate(sizes, initial=0))


def packed_path(folder: Path, content_sha256: str) -> Path:
    """Return the path of the pack of this content, as this installation decodes it."""
    made_of = f"{content_sha256} {LAYOUT} {DECODER} {version(DECODER)}"
    return folder / PACKED / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.u8"


def write_pack(folder: Path, samples: Sequence[Sample], content_sha256: str, workers: int) -> None:
    """Decode the training split into its pack, unless it exists.

    Raises UserError, also if another file has the pack's name. An error or Ctrl-C removes the
    unfinished pack; after a kill, the next run does.
    """
    path = packed_path(folder, content_sha256)
    training = [sample for sample in samples if sample.split == "train"]
    offsets = offsets_of(training)
    if path.is_file() and path.stat().st_size == offsets[-1]:
        return
    name = str(path.relative_to(folder))
    with item_of(folder) as item:
        item.check([name])
        path.parent.mkdir(exist_ok=True)
        temporary = item.make(name, is_by_ends=True)
        tasks = [
            PackTask(folder, sample, temporary, offset)
            for sample, offset in zip(training, offsets, strict=False)
        ]
        reserve(temporary, offsets[-1], path.parent)
        packed = map_tasks(pack_sample, tasks, workers, lambda task: task.sample.id)
        for _ in track(packed, total=len(tasks), label="pack", unit="sample"):
            pass
        sync(temporary)  # it has its full size before it is whole
        item.publish()


def item_of(folder: Path) -> Item:
    """Return the item with the pack of a data set."""
    return Item(folder, KIND, "pack")


def reserve(path: Path, num_bytes: int, folder: Path) -> None:
    """Make a file of this size, so that a full disk fails now.

    Raises UserError that names the pack's `folder`.
    """
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            else:  # macOS: a full disk fails later
                file.truncate(num_bytes)
    except OSError as error:
        room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UserError(
            f"{folder}: {error.strerror}; the pack takes {num_bytes / 1e6:.1f} MB:"
            f" {room}prepare with pack=false"
        ) from None


def pack_sample(task: PackTask) -> None:
    """Decode a sample into the pack."""
    decoded = DecodedSample(*read_sample(task.folder, task.sample))
    with task.pack.open("r+b") as file:
        file.seek(task.offset)
        file.write(decoded.window(slice(None), slice(None)).data)


def remove_other_packs(folder: Path, content_sha256: str) -> None:
    """Remove packs that data_prep wrote from other content or with another decoder."""
    kept, item = packed_path(folder, content_sha256), item_of(folder)
    if str(kept.relative_to(folder)) not in item.read().files:
        item.remove()
