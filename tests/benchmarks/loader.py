"""Crops a second that a loader worker gives, from a pack and from files; and the wait for them.

    python -m tests.benchmarks.loader [--raw DIR] [--rounds 5]

Augmented crops of 256 px through torch's DataLoader, in microbatches of 2, as 4 ranks take them:

files     train's own loader decoding whole JPGs and PNGs
pack      the same from the pack of `python -m data_prep ... pack=true`, which is in the page cache
pack, cold                 none of it is in the page cache, and no sample is taken twice
zarr      the pack's pixels as a zarr 3 array in chunks of 256 px, compressed (blosc) or not
albumentations, files    its Affine and ColorJitter on decoded files, as scripts do

Then what the DataLoader leaves of what a process makes by itself, and which share of its time a
consumer waits that asks for so many crops a second, as a GPU may.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zarr.codecs import BloscCodec

from common import command_line
from data_prep.dataset.manifest import Dataset, read_dataset
from data_prep.dataset.pack import PACKED, DecodedSample, SamplePixels, TrainingPixels, packed_path
from tests import ranks as real_ranks
from tests.benchmarks.side_by_side import compare, interleaved
from train.config import TrainConfig
from train.crops.loader import load_microbatches
from train.crops.microbatches import CropKey, TrainingCrops
from train.ranks.distributed import Ranks, start_ranks

WARM_UP = 4  # microbatches
COLD = 32  # crops of a cold pack: with those to warm up and those ahead, an epoch of drawn fields
ASKED = (10, 30, 100, 300, 1000, 3000)  # crops a second
CONSUMED_S = 3.0  # how long each of these is asked for


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", help="fields in BreCaHAD's layout (drawn ones)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way, interleaved (5)")
    options = parser.parse_args()
    if options.raw and not Path(options.raw).is_dir():
        parser.error(f"--raw {options.raw}: no such folder")
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(options.raw) if options.raw else None, Path(folder))
        side_by_side(data, Path(folder), options.rounds)
        asked(data)
        waiting(data, Path(folder) / "run")


def prepared(raw: Path | None, folder: Path) -> Path:
    """A data set for training with its pack; of drawn fields it has 48 samples."""
    if raw is None:
        raw = folder / "raw"
        real_ranks.run("data_prep.synthetic", f"out={raw}", "cases=3", "fields=1")
    settings = ["pack=true", "split.val=0", "split.test=0"]
    real_ranks.run("data_prep", f"raw={raw}", f"out={folder / 'data'}", *settings)
    return folder / "data"


def side_by_side(data: Path, folder: Path, rounds: int) -> None:
    """The tables of crops a second."""
    config = settings_for(data)
    dataset = read_dataset(data)
    pixels, unpacked = TrainingPixels(dataset), TrainingPixels(dataset)
    assert pixels.packed is not None, f"{data / PACKED}: no pack of this data set"
    unpacked.packed = None
    plain = ZarrPixels(TrainingPixels(dataset), folder / "plain", None)
    blosc = ZarrPixels(TrainingPixels(dataset), folder / "blosc", BloscCodec())
    kinds = {
        "files": TrainingCrops(unpacked, config),
        "pack": TrainingCrops(pixels, config),
        "zarr, not compressed": TrainingCrops(plain, config),
        "zarr, blosc": TrainingCrops(blosc, config),
        "albumentations, files": AlbumentationsCrops(unpacked, config),
    }
    with start_ranks("cpu") as ranks:
        ways: dict[str, Callable[[], float | None]] = {}
        for name, crops in kinds.items():
            num = 64 if "files" in name or "zarr" in name else 640  # crops: a second or so
            ways[name] = partial(seconds_a_crop, crops, num, ranks)
        ways["pack, cold"] = lambda: cold_seconds_a_crop(dataset, config, ranks)
        ways["pack, no DataLoader"] = lambda: alone_seconds_a_crop(kinds["pack"])
        seconds = interleaved(ways, rounds)
    print("| way | crops a second, one worker | times files |")
    print("| --- " * 3 + "|")
    for name, median_s, ratio in compare(seconds, "files"):
        print(f"| {name} | {1 / median_s:.0f} | {1 / ratio:.1f} |", flush=True)


def settings_for(data: Path) -> TrainConfig:
    """The settings of a training that does not end, on 4 ranks."""
    given = [f"data={data}", "run=none", "epochs=1000", "batch_size=8", "microbatches=4"]
    return command_line.load(TrainConfig, given)


def seconds_a_crop(crops: TrainingCrops, num_crops: int, ranks: Ranks) -> float:
    """Through the DataLoader with one worker, once it is warm."""
    batches = load_microbatches(crops, crops.config, ranks, 0)
    for _ in islice(batches, WARM_UP):
        pass
    start_s, count = time.perf_counter(), 0
    while count < num_crops:
        count += len(next(batches)[0])
    taken_s = time.perf_counter() - start_s
    batches.close()
    return taken_s / count


def cold_seconds_a_crop(dataset: Dataset, config: TrainConfig, ranks: Ranks) -> float:
    """The same where the pack has to come from the disk."""
    with packed_path(dataset.folder, dataset.description.content_sha256).open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet is kept
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        taken_s = seconds_a_crop(TrainingCrops(TrainingPixels(dataset), config), COLD, ranks)
        while file.read(1 << 24):  # back into the page cache, for the other ways
            pass
    return taken_s


def alone_seconds_a_crop(crops: TrainingCrops) -> float:
    """The same without any DataLoader: what a core can do."""
    size = crops.config.batch.size // crops.config.batch.num_microbatches
    num_microbatches = 400
    start_s = time.perf_counter()
    for first in range(0, num_microbatches * size, size):
        crops.cut([(0, (first + number) % len(crops)) for number in range(size)])
    return (time.perf_counter() - start_s) / (num_microbatches * size)


def asked(data: Path) -> None:
    """The table of what a consumer waits."""
    print("\n| crops a second asked for | waits, one worker | waits, two workers |")
    print("| --- " * 3 + "|")
    pixels = TrainingPixels(read_dataset(data))
    with start_ranks("cpu") as ranks:
        for rate in ASKED:
            shares = []
            for workers in (1, 2):
                config = dataclasses.replace(settings_for(data), loader_workers=workers)
                shares.append(share_waited(TrainingCrops(pixels, config), rate, ranks))
            print(
                f"| {rate} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True
            )
    print()


def share_waited(crops: TrainingCrops, rate: float, ranks: Ranks) -> float:
    """The share of its time that waits, of a consumer that takes as long for each microbatch as one
    that gets `rate` crops a second without waiting."""
    batches = load_microbatches(crops, crops.config, ranks, 0)
    size = crops.config.batch.size // crops.config.batch.num_microbatches
    for _ in islice(batches, WARM_UP):
        pass
    waited_s, start_s = 0.0, time.perf_counter()
    while (asked_s := time.perf_counter()) < start_s + CONSUMED_S:
        next(batches)
        waited_s += time.perf_counter() - asked_s
        time.sleep(size / rate)
    share = waited_s / (asked_s - start_s)
    batches.close()
    return share


class ZarrPixels(TrainingPixels):
    """The same pixels in a zarr 3 array a sample, read a chunk at a time."""

    def __init__(self, pixels: TrainingPixels, folder: Path, codec: BloscCodec | None) -> None:
        self.samples, self.is_binary, self.arrays = pixels.samples, pixels.is_binary, []
        self.packed = np.memmap(pixels.file, np.uint8, mode="r")  # handed over as a pack's are
        for number in range(len(pixels)):
            array = zarr.create_array(
                folder / str(number),
                data=pixels[number].window(slice(None), slice(None)),
                chunks=(256, 256, 4),
                compressors=codec,
            )
            self.arrays.append(array)

    def __getitem__(self, number: int) -> SamplePixels:
        return ZarrSample(self.arrays[number])


@dataclasses.dataclass(frozen=True)
class ZarrSample:
    """A sample of which a window is read."""

    array: "zarr.Array[Any]"

    @property
    def shape_hw(self) -> tuple[int, int]:
        height, width, _ = self.array.shape
        return height, width

    def window(self, rows: slice, columns: slice) -> np.ndarray:
        return np.asarray(self.array[rows, columns])


class AlbumentationsCrops(TrainingCrops):
    """What scripts do: decode, then albumentations' transforms on a crop."""

    def __init__(self, pixels: TrainingPixels, config: TrainConfig) -> None:
        import albumentations as A

        super().__init__(pixels, config)
        size = config.crop.size_px
        self.transform = A.Compose(
            [
                A.RandomCrop(size, size),
                A.HorizontalFlip(),
                A.VerticalFlip(),
                A.Affine(scale=(1 / 1.2, 1.2), rotate=(-180, 180), p=1, border_mode=4),
                A.ColorJitter(0.1, 0.1, 0.1, 0.02, p=1),
            ],
            seed=0,
        )

    def cut(self, crop_keys: Sequence[CropKey]) -> list[tuple[np.ndarray, np.ndarray]]:
        crops = []
        for _, index in crop_keys:
            sample = self.pixels[self.sample_of(index)]
            assert isinstance(sample, DecodedSample)
            moved = self.transform(image=sample.image_HWC, mask=sample.mask_HW)
            crops.append((moved["image"], moved["mask"]))
        return crops


def waiting(data: Path, run: Path) -> None:
    """A short training of the default network: the share of its time that waits for data."""
    settings = ["epochs=1", "log_every_steps=1", "crop.size_px=128"]
    real_ranks.run("train", f"data={data}", f"run={run}", *settings)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    shares = [event.value for event in events.Scalars("speed/data_wait_share")]
    print(
        f"the default network at 128 px on one CPU rank waits {statistics.median(shares):.2%} of"
        f" the time of a step, {shares[0]:.2%} of the first"
    )


if __name__ == "__main__":
    main()
