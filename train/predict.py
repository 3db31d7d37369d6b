"""Predict images of any size: masks, probability maps and overlays.

    python -m train.predict run=DIR input=FILE|DIR out=DIR [checkpoint=best threshold=auto]

Writes for each image NAME_mask.png (the data set's mask values), NAME_probability.tif (float32
from 0 to 1, one plane a class) and NAME_overlay.png (outlines on the image).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from omegaconf import MISSING

import command_line
from command_line import EXIT_FAILED, UsageError, track
from data_prep import images
from data_prep.brecahad import IMAGE_SUFFIXES, BadInputError
from train.distributed import start_ranks
from train.figures import outline_picture
from train.precision import choose_precision
from train.run_folder import check_threshold, choose_threshold, load_model, read_run
from train.tiles import predict_probability


@dataclass(frozen=True)
class PredictConfig:
    """Everything `python -m train.predict` can be told."""

    run: str = MISSING
    """Folder of the run, or a model.safetensors that train.export wrote."""
    input: str = MISSING
    """An image, or a folder of images (.tif, .png, .jpg)."""
    out: str = MISSING
    """Folder of the results; made if it is not there."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    threshold: str = "auto"
    """Probability above which a pixel counts as predicted, 0 to 1; auto: the best on the validation
    split, which the checkpoint knows, or 0.5 where there was none."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto asks the hardware, as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        check_threshold(self.threshold)


def main(argv: list[str]) -> int:
    """Predict every image; a bad one is named and the rest goes on."""
    if command_line.wants_help(argv):
        print(command_line.help_text(PredictConfig, __doc__ or ""))
        return 0
    config = command_line.load(PredictConfig, argv)
    run = read_run(Path(config.run))
    paths = find_images(Path(config.input))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    bad = []
    with start_ranks(config.device) as ranks:
        model, _, state = load_model(run, config.checkpoint, ranks)
        threshold, chosen_on = choose_threshold(config.threshold, state)
        model.eval()
        precision = choose_precision(ranks.device, config.amp, run.config.memory_format)
        mine = ranks.share(paths)
        for path in track(mine, total=len(mine), label="predict", unit="image"):
            try:
                image_HWC = images.read_image(path, run.data.labelling.uint16_white)
            except BadInputError as error:
                bad.append(f"{path}: {error}")
                continue
            probability_CHW = predict_probability(model, image_HWC, run.config.tile, precision)
            write(out, path.stem, image_HWC, probability_CHW, run.label_values, threshold)
    for line in bad:
        print(f"left out {line}", file=sys.stderr)
    if ranks.is_first:
        print(
            f"predicted {len(paths) - len(bad)} of {len(paths)} images into {out},"
            f" threshold {threshold:g} ({chosen_on})"
        )
    return EXIT_FAILED if bad else 0


def find_images(source: Path) -> list[Path]:
    """The image, or the images of the folder. Raises UsageError where there is none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"input={source}: no such file or folder")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UsageError(f"input={source}: no images ({', '.join(IMAGE_SUFFIXES)})")
    stems = [path.stem for path in paths]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UsageError(f"input={source}: images of one name: {', '.join(repeated)}")
    return paths


def write(
    out: Path,
    name: str,
    image_HWC: images.Image,
    probability_CHW: npt.NDArray[np.float32],
    label_values: list[int],
    threshold: float,
) -> None:
    """Write the mask, the probability map and the overlay of an image."""
    mask_HW = to_mask(probability_CHW, label_values, threshold)
    images.write_atomically(out / f"{name}_mask.png", images.encode_mask(mask_HW))
    planes = probability_CHW[0] if len(probability_CHW) == 1 else probability_CHW
    tifffile.imwrite(
        out / f"{name}_probability.tif",
        planes,
        photometric="minisblack",
        compression="deflate",
        predictor=True,
    )
    overlay = outline_picture(image_HWC, mask_HW > 0)
    cv2.imwrite(str(out / f"{name}_overlay.png"), cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))


def to_mask(
    probability_CHW: npt.NDArray[np.float32], label_values: list[int], threshold: float
) -> images.Mask:
    """HW uint8: the value of the most probable class, where it is above the threshold; else 0."""
    values = np.array(label_values, np.uint8)[probability_CHW.argmax(axis=0)]
    return np.where(probability_CHW.max(axis=0) > threshold, values, np.uint8(0))


if __name__ == "__main__":
    command_line.run(main)
