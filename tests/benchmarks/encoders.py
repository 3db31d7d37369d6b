"""Encoders of images and masks: milliseconds, size, and how near the result is.

    python -m tests.benchmarks.encoders [--raw DIR]

Of an elastic variant of each field, for a field that was a JPG itself would flatter the one encoder
that cuts it into the same blocks. Fields are drawn by data_prep.synthetic, or taken from --raw.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from imagecodecs import PNG

from data_prep.annotations import brecahad
from data_prep.annotations.formats import READERS
from data_prep.augment.moving import Annotated, apply
from data_prep.augment.variants import Variant
from data_prep.config import PrepConfig
from data_prep.image_files.open_image import read_image
from data_prep.images import encoding, masks
from data_prep.raw import Field
from tests import ranks as real_ranks

REPEATS, RADIUS_PX = 5, 20
Encode = Callable[[np.ndarray], bytes]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.encoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", help="fields in BreCaHAD's layout (drawn ones)")
    options = parser.parse_args()
    cv2.setNumThreads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(options.raw or folder)
        if not options.raw:
            real_ranks.run("data_prep.synthetic", f"out={raw}", "cases=2", "fields=2")
        variants = [variant_of(field) for field in fields_of(raw)]
    print("| image | ms | KB | PSNR, dB: mean | least |\n| --- | --- | --- | --- | --- |")
    for name, encode in image_encoders().items():
        print(line(name, encode, [variant.image_HWC for variant in variants]), flush=True)
    print("\n| mask | ms | KB | PSNR, dB: mean | least |\n| --- | --- | --- | --- | --- |")
    for name, encode in mask_encoders().items():
        found = [variant.mask_HW for variant in variants if variant.mask_HW is not None]
        print(line(name, encode, found), flush=True)


def fields_of(raw: Path) -> list[Field]:
    """The fields of a folder."""
    return READERS["brecahad"].find_fields(raw, PrepConfig(raw="", out="").case_regex)[0]


def variant_of(field: Field) -> Annotated:
    """A field, bent."""
    image_HWC = read_image(field.image)
    points = brecahad.decode_points(field.annotation.read_bytes(), *image_HWC.shape[:2])
    mask_HW = masks.paint_mask(points, {"tumor": 255}, RADIUS_PX, *image_HWC.shape[:2])
    elastic = Variant(1, "elastic", 1, {"rms_px": 3.0, "sigma_px": 10.0})
    (moved,) = apply(Annotated(image_HWC, points, mask_HW), [elastic], "mirror")
    return moved


def image_encoders() -> dict[str, Encode]:
    """Name -> RGB HWC uint8 to bytes."""

    def jpg(quality: int, subsampling: str) -> Encode:
        return lambda image: bytes(
            imagecodecs.jpeg8_encode(image, quality, subsampling=subsampling)
        )

    def opencv(ending: str, *options: int) -> Encode:
        return lambda image: cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[
            1
        ].tobytes()

    qualities = {
        f"JPG {quality}, {subsampling}": jpg(quality, subsampling)
        for quality in (90, 95, 98)
        for subsampling in ("420", "444")
    }
    return {
        "format=jpg": lambda image: encoding.encode_image(image, "jpg", 95),
        **qualities,
        "JPG 95, OpenCV": opencv(".jpg", cv2.IMWRITE_JPEG_QUALITY, 95),
        "format=png": lambda image: encoding.encode_image(image, "png", 95),
        "PNG, OpenCV": opencv(".png"),
    }


def mask_encoders() -> dict[str, Encode]:
    """Name -> HW uint8 to bytes."""

    def png(strategy: PNG.STRATEGY, chosen: PNG.FILTER) -> Encode:
        return lambda mask: bytes(imagecodecs.png_encode(mask, 1, strategy=strategy, filter=chosen))

    return {
        "as data_prep": encoding.encode_mask,
        **{
            f"level 1, {strategy.name}, filter {chosen.name}": png(strategy, chosen)
            for strategy in (PNG.STRATEGY.DEFAULT, PNG.STRATEGY.RLE)
            for chosen in (PNG.FILTER.NONE, PNG.FILTER.SUB)
        },
        "OpenCV": lambda mask: cv2.imencode(".png", mask)[1].tobytes(),
    }


def line(name: str, encode: Encode, pictures: list[np.ndarray]) -> str:
    """A row of the table."""
    taken_s, sizes, ratios = [], [], []
    for picture in pictures:
        for _ in range(REPEATS):
            start_s = time.perf_counter()
            content = encode(picture)
            taken_s.append(time.perf_counter() - start_s)
        sizes.append(len(content))
        ratios.append(psnr(picture, imagecodecs.imread(content)))
    cells = [1e3 * statistics.median(taken_s), statistics.mean(sizes) / 1e3]
    near = [statistics.mean(ratios), min(ratios)]
    return " | ".join([f"| {name}", *(f"{cell:.1f}" for cell in cells + near)]) + " |"


def psnr(picture: np.ndarray, decoded: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; infinite where nothing was lost."""
    error = float(np.mean(np.square(picture.astype(float) - decoded)))
    return 10 * float(np.log10(255**2 / error)) if error else float("inf")


if __name__ == "__main__":
    main()
