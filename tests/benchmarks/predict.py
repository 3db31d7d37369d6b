"""What an image costs beside the network: reading, tiling, blending, and writing the results.

    python -m tests.benchmarks.predict [--preset unet] [--raw DIR] [--side 4000] [--glass 0.8]

Takes turns, in one process, at an image's tiles of noise through the network and nothing else, at
all of `train.predict`, and at its parts: reading, tiling and blending what a network that does
nothing gives, and writing the results. CPU seconds count, not seconds on a clock: what is done
while a core would be idle costs as well.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.benchmarks.side_by_side import interleaved
from tests.benchmarks.slides import arguments, write_inputs
from train.prediction.config import PredictConfig
from train.prediction.predictor import Predictor
from train.ranks.distributed import start_ranks
from train.runs.run_folder import read_run

SHRINKS = [4, 16]
NETWORK, ALL = "network", "all of train.predict"


def main() -> None:
    """Print the table."""
    parser = arguments("tests.benchmarks.predict", __doc__, side=4000)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turn (3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, start_ranks("cpu") as ranks:
        folder = Path(name)
        run, image = write_inputs(folder, options, SHRINKS)
        given = PredictConfig(run=str(run), input=str(image), out=str(folder))
        predictor = Predictor(given, read_run(run), ranks)
        seconds = interleaved(ways(predictor, image), options.rounds)
    least_s = {way: min(taken) for way, taken in seconds.items()}
    least_s["tiling, blending, bands to disk"] -= least_s["reading"]
    mpx = options.side**2 / 1e6
    print(f"{mpx:.1f} Mpx, {options.glass:.0%} glass, {options.run or options.preset}\n")
    print("| | CPU ms/Mpx | of all |\n| --- | --- | --- |")
    for part, part_s in least_s.items():
        print(f"| {part} | {part_s / mpx * 1000:.1f} | {part_s / least_s[ALL]:.1%} |")
    print(f"\nbeside the network: {1 - least_s[NETWORK] / least_s[ALL]:.1%}")


class Nothing(nn.Module):
    """A network that costs nothing."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, H, W)."""
        return image_BCHW[:, :1]


def ways(predictor: Predictor, image: Path) -> dict[str, Callable[[], float | None]]:
    """What is compared; each gives its CPU seconds."""
    task, model = predictor.task(image), predictor.model
    num_tiles = sum(len(predictor.reader.read(task, band)[1]) for band in task.bands)

    def whole() -> None:
        for name in task.outputs:
            (task.out / name).unlink(missing_ok=True)
        predictor.reader.source = None  # as if the image had not been seen
        list(predictor.predict(predictor.plan([image]).tasks))

    def reading() -> None:
        predictor.reader.source = None
        for band in task.bands:
            predictor.reader.read(task, band)

    def bands(network: nn.Module) -> None:
        predictor.model, predictor.reader.source = network, None
        task.store.begin(task.settings)
        list(predictor.predict_bands(predictor.missing_bands([task])))
        predictor.model = model

    def tiling() -> float:
        taken_s = counted(lambda: bands(Nothing()))()
        task.store.remove()
        return taken_s

    def results() -> float:
        bands(model)
        return counted(lambda: predictor.write([task]))()

    return {
        NETWORK: counted(lambda: through_network(predictor, num_tiles)),
        "reading": counted(reading),
        "tiling, blending, bands to disk": tiling,
        "results": results,
        ALL: counted(whole),
    }


def counted(action: Callable[[], None]) -> Callable[[], float]:
    """The action, giving the CPU seconds of all threads."""

    def act() -> float:
        start_s = time.process_time()
        action()
        return time.process_time() - start_s

    return act


@torch.no_grad()
def through_network(predictor: Predictor, num_tiles: int) -> None:
    """As many tiles of noise through the network as the image has with tissue, nothing else."""
    size, at_once = predictor.run.config.tile.size_px, predictor.tiles_at_once
    precision = predictor.precision
    noise_BHWC = torch.randint(0, 256, (at_once, size, size, 3), dtype=torch.uint8)
    input_BCHW = precision.image_to_input(noise_BHWC)
    for _ in range(0, num_tiles, at_once):
        with precision.autocast():
            predictor.model(input_BCHW)


if __name__ == "__main__":
    main()
