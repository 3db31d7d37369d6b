"""What an image costs beside the network: reading, tiling, blending, nuclei, pyramids.

    python -m tests.benchmarks.predict [--preset unet] [--side 1472] [--rounds 2] [--device auto]

Predicts a drawn image, with random weights, by `train.predict`, and sends as many tiles of noise
through the network alone; both in turn, in one run.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile
import torch

import command_line
from data_prep.manifest import Description, Labelling
from data_prep.synthetic import SyntheticConfig, draw_field
from model import build_model
from tests.benchmarks.side_by_side import interleaved
from train import predict
from train.config import PRESETS, TrainConfig
from train.distributed import start_ranks
from train.predict import PredictConfig, Predictor
from train.run_folder import Run

RADIUS_PX = 20


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="brecahad-cpu", help="of train: the network")
    parser.add_argument("--side", type=int, default=1472, help="of the image, in px (1472)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, in turn (2)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, start_ranks(options.device) as ranks:
        folder, image = Path(name), Path(name) / "image.tif"
        write_image(image, options.side)
        given = ["data=none", "run=none", f"preset={options.preset}"]
        config = command_line.load(TrainConfig, given, preset_folder=PRESETS)
        labelling = Labelling({"tumor": 255}, RADIUS_PX, 65535, "(?P<case>.+)")
        run = Run(folder, config, Description(labelling, {}, ""))
        torch.manual_seed(0)
        model = build_model(config.model, 1).to(ranks.device)
        predict.load_model = lambda *_: (model, Path("random"), {"metrics": {}})  # type: ignore[assignment]
        settings = PredictConfig(run="", input=str(image), out=str(folder), min_tissue=0)
        predictor = Predictor(settings, run, ranks)
        num_tiles = sum(len(band.corners) for band in predictor.task(image).bands)

        def whole() -> None:
            (folder / "image_settings.json").unlink(missing_ok=True)
            list(predictor.predict(predictor.plan([image]).tasks))

        def alone() -> float:
            return network_seconds(predictor, num_tiles)

        alone()
        seconds = interleaved({"the network alone": alone, "train.predict": whole}, options.rounds)
    network_s, whole_s = (min(taken) for taken in seconds.values())
    print(f"{num_tiles} tiles of an image of {options.side} px a side, preset {options.preset}")
    for name, taken_s in (("the network alone", network_s), ("train.predict", whole_s)):
        print(f"{name}: {taken_s:.2f} s, {taken_s / num_tiles * 1000:.0f} ms a tile")
    print(f"beside the network: {1 - network_s / whole_s:.1%} of the time")


def write_image(path: Path, side: int) -> None:
    """A drawn field repeated, as slides are stored."""
    field_HWC, _ = draw_field(SyntheticConfig(out=""), case=1, field=1)
    height, width = field_HWC.shape[:2]
    repeated = np.tile(field_HWC, (-(-side // height), -(-side // width), 1))[:side, :side]
    tifffile.imwrite(path, repeated, photometric="rgb", tile=(256, 256), compression="jpeg")


@torch.no_grad()
def network_seconds(predictor: Predictor, num_tiles: int) -> float:
    """As many tiles through the network as the image has, nothing else."""
    size, at_once = predictor.run.config.tile.size_px, predictor.tiles_at_once
    precision = predictor.precision
    noise_BHWC = torch.randint(0, 256, (at_once, size, size, 3), dtype=torch.uint8)
    input_BCHW = precision.image_to_input(noise_BHWC)
    start_s = time.perf_counter()
    for _ in range(0, num_tiles, at_once):
        with precision.autocast():
            logits = predictor.model(input_BCHW)
    float(logits.sum())  # waits for a GPU
    return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
