"""Crops a second that a loader worker gives, from a pack and from files; and the wait for them.

    python -m tests.benchmarks.loader [--raw DIR] [--rounds 5]

Augmented crops of 256 px in batches of 8, as training takes them, through torch's DataLoader:

files     train's own loader decoding whole JPGs and PNGs
pack      the same from the pack of `python -m data_prep ... pack=true`; with crop.on=device the
          loader only copies what the device will turn
zarr      the pack's pixels as a zarr 3 array in chunks of 256 px, compressed (blosc) or not
albumentations, files    its Affine and ColorJitter on decoded files, as scripts do
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import zarr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from zarr.codecs import BloscCodec

import command_line
from data_prep.manifest import read_dataset
from data_prep.pack import PACKED, DecodedSample, SamplePixels, TrainingPixels
from tests import ranks as real_ranks
from tests.benchmarks.side_by_side import compare, interleaved
from train.config import TrainConfig
from train.data import Draw, TrainingCrops
from train.distributed import Ranks, start_ranks
from train.loader import MicrobatchLoader

BATCH, WARM_UP = 8, 4


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
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(options.raw) if options.raw else None, Path(folder))
        side_by_side(data, Path(folder), options.rounds)
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
    """The table of crops a second."""
    config = command_line.load(TrainConfig, [f"data={data}", "run=none", "epochs=1000"])
    pixels = TrainingPixels(read_dataset(data))
    assert pixels.packed is not None, f"{data / PACKED}: no pack of this data set"
    unpacked = TrainingPixels(read_dataset(data))
    unpacked.packed = None
    one_batch = dataclasses.replace(config, microbatches=1)
    on_device = dataclasses.replace(one_batch, crop=dataclasses.replace(config.crop, on="device"))
    kinds = {
        "files": TrainingCrops(unpacked, one_batch),
        "pack": TrainingCrops(pixels, one_batch),
        "pack, microbatches of 2": TrainingCrops(pixels, config),
        "pack, crop.on=device": TrainingCrops(pixels, on_device),
        "zarr, not compressed": TrainingCrops(
            ZarrPixels(pixels, folder / "plain", None), one_batch
        ),
        "zarr, blosc": TrainingCrops(ZarrPixels(pixels, folder / "blosc", BloscCodec()), one_batch),
        "albumentations, files": AlbumentationsCrops(unpacked, one_batch),
    }
    with start_ranks("cpu") as ranks:
        ways: dict[str, Callable[[], float | None]] = {}
        for name, crops in kinds.items():
            num = 8 if "files" in name or "zarr" in name else 80  # batches: a second or so
            ways[name] = lambda crops=crops, num=num: seconds_a_crop(crops, num, ranks)
        seconds = interleaved(ways, rounds)
    print("| way | crops a second, one worker | times files |")
    print("| --- " * 3 + "|")
    for name, median_s, ratio in compare(seconds, "files"):
        print(f"| {name} | {1 / median_s:.0f} | {1 / ratio:.1f} |", flush=True)
    print()
    for on, crop_config in (("loader", one_batch), ("device", on_device)):
        rate = one_core(TrainingCrops(pixels, crop_config))
        print(f"from the pack in the process itself, crop.on={on}: {rate:.0f} crops a second")


def seconds_a_crop(crops: TrainingCrops, num_batches: int, ranks: Ranks) -> float:
    """Through the DataLoader with one worker, once it is warm."""
    batches = MicrobatchLoader(crops, crops.config, ranks, 0)
    for _ in islice(batches, WARM_UP):
        pass
    start_s, count = time.perf_counter(), 0
    for pixels_BHWC, *_ in islice(batches, num_batches):
        count += len(pixels_BHWC)
    taken_s = time.perf_counter() - start_s
    batches.close()
    return taken_s / count


def one_core(crops: TrainingCrops) -> float:
    """Crops a second without any DataLoader: what a core can do."""
    taken = []
    into = [torch.empty(BATCH, *shape, dtype=dtype).numpy() for shape, dtype in crops.parts]
    for batch in range(100):
        draws = [(batch, (batch * BATCH + place) % len(crops)) for place in range(BATCH)]
        start_s = time.perf_counter()
        crops.fill(draws, into)
        taken.append((time.perf_counter() - start_s) / BATCH)
    return 1 / statistics.median(taken)


class ZarrPixels(TrainingPixels):
    """The same pixels in a zarr 3 array a sample, read a chunk at a time."""

    def __init__(self, pixels: TrainingPixels, folder: Path, codec: BloscCodec | None) -> None:
        self.samples, self.is_binary, self.arrays = pixels.samples, pixels.is_binary, []
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

    array: zarr.Array

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

    def fill(self, draws: Sequence[Draw], into: Sequence[np.ndarray]) -> None:
        for number, (_, index) in enumerate(draws):
            sample = self.pixels[self.sample_of(index)]
            assert isinstance(sample, DecodedSample)
            moved = self.transform(image=sample.image_HWC, mask=sample.mask_HW)
            into[0][number], into[1][number] = moved["image"], moved["mask"]


def waiting(data: Path, run: Path) -> None:
    """A short training of the default network: the share of its time that waits for data."""
    settings = ["epochs=1", "log_every_steps=1", "crop.size_px=128"]
    real_ranks.run("train", f"data={data}", f"run={run}", *settings)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    shares = [event.value for event in events.Scalars("speed/data_wait_share")]
    print(
        f"the default network at 128 px on one rank waits {statistics.median(shares):.2%} of the"
        f" time of a step, {shares[0]:.2%} of the first"
    )


if __name__ == "__main__":
    main()
