"""Encode prepared images and masks."""

import imagecodecs
from imagecodecs import PNG

from data_prep.images.arrays import Image, Mask

FAST_PNG = {"level": 1, "strategy": PNG.STRATEGY.RLE}


def encode_image(image: Image, format: str, jpg_quality: int) -> bytes:
    """HWC uint8 RGB -> the bytes of a JPG or a lossless PNG."""
    if format == "jpg":
        return bytes(imagecodecs.jpeg8_encode(image, level=jpg_quality, subsampling="420"))
    return bytes(imagecodecs.png_encode(image, **FAST_PNG, filter=PNG.FILTER.PAETH))


def encode_mask(mask: Mask) -> bytes:
    """HW uint8 -> the bytes of a PNG: runs without filters are smallest and fastest for discs."""
    return bytes(imagecodecs.png_encode(mask, **FAST_PNG, filter=PNG.FILTER.NONE))
