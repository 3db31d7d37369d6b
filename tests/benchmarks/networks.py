"""Which network is best on patients that it has not seen.

    python -m tests.benchmarks.networks --raw BreCaHAD --out DIR [--weights DIR] [--only NAME ...]

Each case is a fold. Each network is trained without it, two folds at a time with a core each, and
measured on it at thresholds that no case chose for itself. The table has a row for each network:
Dice of pixels by case, pooled Dice, F1 and average precision of nuclei, and the minutes that the
steps of each fold took on its core. Then come the differences from the first network, by a paired
bootstrap over cases. Started again, it goes on where it was killed, and trains nothing twice.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from common import command_line
from data_prep.dataset.description import DATASET, read_description
from model.encoder_cache import IMAGENET
from train.comparison.facts import read_facts
from train.config import PRESETS, TrainConfig
from train.runs.several import fold_name, members_of

PREPARED = "prepared"  # folder of the data set in that of the results
PRESET = "preset=brecahad-cpu"
RANDOM = ("encoder_lr_factor=1", "model.weights=none")
"""For an encoder that begins with random weights."""
NETWORKS = {
    "own-unet": (
        *("epochs=14", "lr=2e-3", "schedule=cosine", "warmup_steps=20", "loss.dice_weight=1"),
        *("model.width=16", "model.downsample=2", "crop.size_px=512", "crop.rotation_deg=180"),
        *("crop.scale=1.25", "crop.stain=0.25", "crop.stain_shift=0.05", "crop.brightness=0.15"),
        *("tile.size_px=1024", "tile.overlap_px=128"),
    ),
    "Unet": (PRESET,),
    "FPN": (PRESET, "model.arch=FPN"),
    "DeepLabV3Plus": (PRESET, "model.arch=DeepLabV3Plus"),
    "UnetPlusPlus": (PRESET, "model.arch=UnetPlusPlus"),
    "Unet-scse": (PRESET, "model.attention=scse"),
    "Unet-lite2": (PRESET, "model.encoder=tu-tf_efficientnet_lite2"),
    "Unet-without-weights": (PRESET, *RANDOM),
    "Unet-seed-1": (PRESET, "seed=1"),
    "Unet-scse-seed-1": (PRESET, "model.attention=scse", "seed=1"),
    "Unet-7-epochs": (PRESET, "epochs=7"),
    "Unet-28-epochs": (PRESET, "epochs=28"),
    "Unet-centred": (PRESET, "crop.centred=0.5"),
    "Unet-quarter": (PRESET, "model.downsample=4", "crop.size_px=512"),
}
"""Settings of train by name; the first is the network of brecahad-cpu until December 2026, for as
many epochs as the others."""


def main() -> None:
    """Train and evaluate what is not there yet; print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", required=True, help="the BreCaHAD folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of data set and runs")
    parser.add_argument(
        "--weights",
        type=Path,
        help="folder with ENCODER.safetensors, as tests.model.efficientnet_lite writes it (weights"
        " from the cache)",
    )
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=[*NETWORKS], metavar="NAME")
    options = parser.parse_args()
    data = options.out / PREPARED
    settings = [f"raw={options.raw}", f"out={data}", "split.folds=cases", "split.val=0"]
    run("data_prep", *settings, "pack=true", "workers=2")
    folds = range(len(read_description(data / DATASET).folds))
    names, numbers = zip(*product(options.only, folds), strict=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        # map, which leaves out what waits once one has failed
        for _ in pool.map(partial(train, options.out, options.weights), names, numbers):
            pass
    folders = {name: options.out / name for name in options.only}
    for folder in folders.values():
        run("train.evaluate", f"run={folder}")
    print_table(folders)
    first, *others = folders.values()
    for folder in others:
        run("train.compare", f"runs=[{first},{folder}]")


def run(module: str, *settings: str) -> None:
    """Run a command of Eosin on one thread."""
    command = [sys.executable, "-m", module, *settings]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def train(out: Path, weights: Path | None, name: str, fold: int) -> None:
    """Train a fold as two ranks would; go on where it was killed."""
    settings = NETWORKS[name]
    given = [f"data={out / PREPARED}", f"run={out / name / fold_name(fold)}", f"fold={fold}"]
    config = command_line.load(TrainConfig, settings, preset_folder=PRESETS)
    if weights and config.model.weights == IMAGENET:
        settings = (*settings, f"model.weights={weights / config.model.encoder}.safetensors")
    run("train", *given, *settings, "microbatches=2")


def print_table(folders: dict[str, Path]) -> None:
    """Print a row of the evaluation of each network."""
    cases = [each["case"] for each in summary(next(iter(folders.values())))["per_case"]]
    print("| network | " + " | ".join(cases) + " | Dice | F1 | AP | minutes |")
    print("| --- " * (len(cases) + 5) + "|")
    for name, folder in folders.items():
        found = summary(folder)
        by_case = [f"{each['dice']:.3f}" for each in found["per_case"]]
        dice = with_interval(found["all_pixels"]["dice"], found["all_pixels_interval"]["dice"])
        nuclei = found["detection"]
        f1 = with_interval(nuclei["f1"], nuclei["interval"]["f1"])
        hours = [read_facts(fold).hours for fold in members_of(folder)]
        taken = ", ".join("?" if each is None else f"{60 * each:.1f}" for each in hours)
        row = [name, *by_case, dice, f1, f"{nuclei['average_precision']:.3f}", taken]
        print("| " + " | ".join(row) + " |")


def summary(folder: Path) -> dict[str, Any]:
    """Read the evaluation of the folds together."""
    content: dict[str, Any] = json.loads((folder / "evaluation/test/summary.json").read_text())
    return content


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """Return a figure and its interval as text."""
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


if __name__ == "__main__":
    main()
