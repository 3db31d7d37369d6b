"""Images and networks to measure predictions with: fields repeated, glass, and random weights."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
import torch

from common import command_line
from data_prep.annotations.folders import find_image_folder
from data_prep.dataset.description import Description, Labelling
from data_prep.image_files.open_image import read_image
from data_prep.images.arrays import Image
from data_prep.raw import IMAGE_SUFFIXES, list_files
from data_prep.tools.config import SyntheticConfig
from data_prep.tools.synthetic_fields import make_field
from model import build_model
from train.config import PRESETS, TrainConfig
from train.exchange import exported_model

RADIUS_PX = 20
TILE_PX = 256
GLASS = 244


def arguments(name: str, about: str | None, side: int) -> argparse.ArgumentParser:
    """What every benchmark of predictions can be told; `side` is of the image, by default."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="brecahad-cpu", help="of train: the network")
    parser.add_argument("--run", help="a run, in place of a preset with random weights")
    parser.add_argument("--raw", default="", help="BreCaHAD's folder; a drawn field without")
    parser.add_argument("--side", type=int, default=side, help=f"of the image, in px ({side})")
    parser.add_argument("--glass", type=float, default=0.0, help="share of the image (0)")
    return parser


def write_inputs(
    folder: Path, options: argparse.Namespace, shrinks: list[int]
) -> tuple[Path, Path]:
    """The run and the slide that the arguments ask for; made in a folder where need be."""
    slide, network = folder / "slide.tif", folder / "model.safetensors"
    write_slide(slide, read_fields(options.raw), options.side, options.glass, shrinks)
    if options.run:
        return Path(options.run), slide
    write_network(network, options.preset)
    return network, slide


def read_fields(raw: str) -> Image:
    """The fields of a folder beside one another, four in a row; without one, a drawn field."""
    if not raw:
        return make_field(SyntheticConfig(out=""), case=1, field=1)[0]
    fields = [read_image(path) for path in list_files(find_image_folder(Path(raw)), IMAGE_SUFFIXES)]
    rows = [np.hstack(fields[start : start + 4]) for start in range(0, len(fields) // 4 * 4, 4)]
    return np.vstack(rows or fields[:1])


def write_slide(path: Path, fields_HWC: Image, side: int, glass: float, shrinks: list[int]) -> None:
    """A square pyramid as scanners write them: fields repeated on its left, glass on its right.

    `glass` is glass's share of it. Memory holds a row of tiles.
    """
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for shrink in [1, *shrinks]:
            height, width = (length // shrink for length in fields_HWC.shape[:2])
            small_HWC = cv2.resize(fields_HWC, (width, height), interpolation=cv2.INTER_AREA)
            length = -(-side // shrink)
            tif.write(
                tiles(small_HWC, length, round(length * (1 - glass))),
                shape=(length, length, 3),
                dtype=np.uint8,
                photometric="rgb",
                tile=(TILE_PX, TILE_PX),
                compression="jpeg",
                compressionargs={"level": 85},
                **({"subifds": len(shrinks)} if shrink == 1 else {"subfiletype": 1}),
            )


def tiles(fields_HWC: Image, length: int, tissue_px: int) -> Iterator[Image]:
    """The tiles of one level, row by row."""
    columns = np.arange(tissue_px) % fields_HWC.shape[1]
    strip = np.full((TILE_PX, -(-length // TILE_PX) * TILE_PX, 3), GLASS, np.uint8)
    for top in range(0, length, TILE_PX):
        rows = np.arange(top, top + TILE_PX) % fields_HWC.shape[0]
        strip[:, :tissue_px] = fields_HWC[rows][:, columns]
        for left in range(0, length, TILE_PX):
            yield np.ascontiguousarray(strip[:, left : left + TILE_PX])


def write_network(path: Path, preset: str) -> None:
    """A preset's network with random weights, as train.export writes them."""
    given = ["data=none", "run=none", f"preset={preset}", "model.weights=none"]
    given.append("encoder_lr_factor=1")
    config = command_line.load(TrainConfig, given, preset_folder=PRESETS)
    torch.manual_seed(0)
    model = build_model(config.model, 1)
    labelling = Labelling({"tumor": 255}, RADIUS_PX, 65535, "(?P<case>.+)")
    state = {"step": 0, "epochs": 0, "metrics": {}}
    about = exported_model.describe(
        config, Description(labelling, {}, "", {}), state, [0.5], model, [], None
    )
    path.write_bytes(exported_model.encode([model], about))
