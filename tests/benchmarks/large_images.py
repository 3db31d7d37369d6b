"""Predicts an image larger than memory should hold: time, peak memory, seams, and after kills.

    python -m tests.benchmarks.large_images [--raw DIR] [--side 20000] [--glass 0] [--kills 2]

Runs `python -m train.predict` on a slide, once to its end and once killed by SIGKILL on the way and
started again, and compares the bytes of all results. A part of the probability map that lies on two
bands is held against the same tiles blended in memory, and against the network over the part in one
piece; what it may differ by there is what the network itself gives when it sees the part 1 px off.
Wants Linux.
"""

import itertools
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch

from data_prep.image_files.open_image import open_image, read_size
from data_prep.images.arrays import Box
from data_prep.images.tiles import tile_starts
from model.precision import choose_precision
from tests.benchmarks.slides import arguments, write_inputs
from train.prediction.predictor import BAND_PX
from train.prediction.result_files import OUTPUTS
from train.prediction.tiles import Plane, blend_weight, cut_into_bands, stride_of, tile_probability
from train.ranks.distributed import Ranks
from train.runs.run_folder import read_run

SHRINKS = [4, 16, 32]
PART_PX = 3000
Floats = npt.NDArray[np.floating[Any]]
MARGIN_PX = 1024
"""What a pixel's probability depends on around it, and more."""
CPU = torch.device("cpu")


def read_part(path: Path, box: Box) -> np.ndarray:
    """A part of an image file."""
    with open_image(path) as image:
        return image.read(box)


def main() -> None:
    """Print the table."""
    parser = arguments("tests.benchmarks.large_images", __doc__, side=20_000)
    parser.add_argument("--kills", type=int, default=2, help="on the way (2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, image = write_inputs(folder, options, SHRINKS)
        command = [sys.executable, "-m", "train.predict", f"run={run}", f"input={image}"]
        straight, killed = folder / "straight", folder / "killed"
        taken_s, peak_mib = measure([*command, f"out={straight}"])
        mpx = options.side**2 / 1e6
        print(f"{options.side} x {options.side} px, {options.glass:.0%} glass, {run.name}")
        print(f"{taken_s:.0f} s, {taken_s / mpx * 1000:.0f} ms/Mpx")
        print(f"peak memory {peak_mib:.0f} MiB")
        print_seams(run, image, straight / "slide_probability.tif")
        for number in range(1, options.kills + 1):
            measure([*command, f"out={killed}"], taken_s * number / (options.kills + 1))
        if options.kills:
            measure([*command, f"out={killed}"])
            print(f"after {options.kills} kills: {differing(straight, killed) or 'the same'}")


def measure(command: list[str], kill_after_s: float = float("inf")) -> tuple[float, float]:
    """Seconds that a command took, and its peak memory in MiB. It may be killed on the way."""
    start_s, peak_kib = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if "VmHWM:" in status:  # not of one that has just ended
                peak_kib = int(status.split("VmHWM:")[1].split()[0])
            if time.monotonic() - start_s > kill_after_s:
                process.kill()
            time.sleep(0.2)
    expected = (0,) if kill_after_s == float("inf") else (0, -signal.SIGKILL)
    assert process.returncode in expected, process.returncode
    return time.monotonic() - start_s, peak_kib / 1024


@torch.no_grad()
def print_seams(run_folder: Path, image: Path, probability: Path) -> None:
    """Hold a part over several tiles and two bands, as it was stored, against other ways to it."""
    run = read_run(run_folder)
    model, _, _ = run.load_model("best", Ranks(0, 1, CPU))
    precision = choose_precision(CPU, "auto", run.config.memory_format)
    tile, side = run.config.tile, read_size(image)[0]
    stride = stride_of(model)
    first, *_ = cut_into_bands(side, side, tile, stride, BAND_PX)
    top = max(0, min(side, first.bottom + PART_PX // 2) - PART_PX) // stride * stride
    part = Box(0, top, PART_PX, PART_PX)

    def network(box: Box) -> Plane:
        input_BCHW = precision.image_to_input(torch.from_numpy(read_part(image, box)[None]))
        return tile_probability(model.eval(), input_BCHW, precision)[0, 0].numpy()

    def compare(name: str, one_HW: Floats, other_HW: Floats) -> None:
        inner = slice(MARGIN_PX, -MARGIN_PX)
        difference_HW = np.abs(one_HW - other_HW)[inner, inner]
        print(f"{name}: {difference_HW.max():.4f} at most, {difference_HW.mean():.5f} in the mean")

    total_HW, weight_HW = np.zeros((2, PART_PX + 2 * tile.size_px, PART_PX + 2 * tile.size_px))
    starts = tile_starts(side, tile.size_px, tile.overlap_px, stride)
    for y, x in itertools.product(starts, repeat=2):
        if x < PART_PX and top - tile.size_px < y < top + PART_PX:
            down = y - top + tile.size_px
            place = slice(down, down + tile.size_px), slice(x, x + tile.size_px)
            weight = blend_weight((tile.size_px, tile.size_px), tile.overlap_px)
            total_HW[place] += weight * network(Box(x, y, tile.size_px, tile.size_px))
            weight_HW[place] += weight
    blended_HW = (total_HW / np.maximum(weight_HW, 1e-9))[tile.size_px :][:PART_PX, :PART_PX]
    stored_HW = read_part(probability, part)[..., 0] / np.float32(255)
    whole_HW = network(part)
    moved_HW = network(Box(1, top, PART_PX - 1, PART_PX))
    compare("as stored, and the same tiles blended in one piece", stored_HW, blended_HW)
    compare("as stored, and the network over the part in one piece", stored_HW, whole_HW)
    compare("the latter, and the same moved by 1 px", whole_HW[:, 1:], moved_HW)


def differing(one: Path, other: Path) -> list[str]:
    """The results that differ: of TIFs, in any level's pixels, for each has a name of its own."""
    names = [f"slide{ending}" for ending in OUTPUTS]
    return [name for name in names if not is_same(one / name, other / name)]


def is_same(one: Path, other: Path) -> bool:
    """Whether two files hold the same."""
    if one.suffix != ".tif":
        return one.read_bytes() == other.read_bytes()
    with tifffile.TiffFile(one) as first, tifffile.TiffFile(other) as second:
        levels = itertools.zip_longest(first.series[0].levels, second.series[0].levels)
        return all(segments(first, mine) == segments(second, its) for mine, its in levels)


def segments(tif: tifffile.TiffFile, level: tifffile.TiffPageSeries) -> list[int]:
    """A hash of each of a level's tiles, as they are stored."""
    page, file = level.keyframe, tif.filehandle
    hashes = []
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        hashes.append(hash(file.read(count)))
    return hashes


if __name__ == "__main__":
    main()
