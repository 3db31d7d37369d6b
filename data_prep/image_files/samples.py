"""Say what the values of a picture mean: RGB uint8 for images, whole numbers for masks.

- Grey and colour tables become RGB. Grey whose 0 is white is turned round.
- Values of `bits` bits: v -> round(255 v / (2^bits - 1)); of 16 bits: round(255 v / white), at most
  255, `white` being a setting (65535 by default).
- Alpha: the picture is laid over white, the colour of an empty slide. A further sample of which the
  file does not tell what it is changes nothing.
- The picture is turned as its orientation says.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import Box, Image
from data_prep.raw import BadInputError


class Extra(Enum):
    """What the sample behind the colours is."""

    NONE = "none"
    ALPHA = "alpha"
    PREMULTIPLIED = "alpha that the colours were multiplied by"
    UNKNOWN = "a sample of unknown meaning"


@dataclass(frozen=True)
class Meaning:
    """What the samples of a picture stand for."""

    colours: Literal["grey", "rgb", "palette", "ycbcr"]
    bits: int
    """Bits a sample."""
    is_inverted: bool = False
    """Whether 0 is white; only grey."""
    is_agreed: bool = True
    """Whether programs agree on what is white."""
    extra: Extra = Extra.NONE
    palette: Image | None = None
    """Colours by value, (2^bits, 3)."""


def to_rgb(stored_HWC: npt.NDArray[Any], meaning: Meaning, uint16_white: int) -> Image:
    """Return the picture, HWC uint8 RGB. Raises BadInputError for values of a type unknown."""
    if stored_HWC.dtype not in (np.bool_, np.uint8, np.uint16):
        raise BadInputError(f"pixels of type {stored_HWC.dtype}: expected 8 or 16 bit unsigned")
    if meaning.palette is not None:
        return meaning.palette[stored_HWC[..., 0].astype(np.uint8)]
    has_extra = meaning.extra is not Extra.NONE
    colours = stored_HWC[..., :-1] if has_extra else stored_HWC
    colours = to_uint8(colours, meaning.bits, uint16_white)
    if meaning.colours == "ycbcr":
        return ycbcr_to_rgb(colours)
    if meaning.is_inverted:
        colours = 255 - colours
    if has_extra:  # whatever white is, alpha has all of its bits
        colours = with_extra(colours, to_uint8(stored_HWC[..., -1:], meaning.bits), meaning.extra)
    if colours.shape[-1] == 1:
        colours = np.repeat(colours, 3, axis=-1)
    return np.ascontiguousarray(colours)


def largest_uint16(stored_HWC: npt.NDArray[Any], meaning: Meaning) -> int:
    """Return the largest value of the colours of a 16-bit picture; 0 if it is of other bits."""
    if meaning.bits != 16 or not stored_HWC.size:
        return 0
    colours = stored_HWC if meaning.extra is Extra.NONE else stored_HWC[..., :-1]
    return int(colours.max())


def with_extra(colours: Image, alpha: Image, extra: Extra) -> Image:
    """Lay colours over white, by what the extra sample is."""
    if extra is Extra.ALPHA:
        return over_white(colours, alpha)
    if extra is Extra.PREMULTIPLIED:
        # a colour above its alpha cannot be: it would be brighter than white
        return np.minimum(colours, alpha) + (255 - alpha)
    return colours


def to_uint8(pixels: npt.NDArray[Any], bits: int, uint16_white: int = 65535) -> Image:
    """Scale values so that white is 255."""
    if bits == 8:
        return pixels
    white = uint16_white if bits == 16 else 2**bits - 1
    table = np.minimum(np.rint(np.arange(2**bits) * (255.0 / white)), 255).astype(np.uint8)
    return np.take(table, pixels)


def over_white(colours: Image, alpha: Image) -> Image:
    """Lay colours over white."""
    over = colours * alpha.astype(np.uint16) + 255 * (255 - alpha.astype(np.uint16))
    return ((over + 127) // 255).astype(np.uint8)


def ycbcr_to_rgb(pixels: Image) -> Image:
    """Convert by the weights of ITU-R BT.601, full range, rounded as libtiff rounds."""
    luma, blue, red = np.moveaxis(pixels.astype(np.int32), -1, 0)
    blue, red = blue - 128, red - 128
    half = 1 << 15
    converted = (
        luma + ((91881 * red + half) >> 16),
        luma + ((-22553 * blue - 46802 * red + half) >> 16),
        luma + ((116130 * blue + half) >> 16),
    )
    return np.clip(np.stack(converted, axis=-1), 0, 255).astype(np.uint8)


def to_labels(stored_HWC: npt.NDArray[Any], meaning: Meaning) -> npt.NDArray[Any]:
    """Return a mask's values, HW; of a colour table the numbers of the colours.

    Raises BadInputError if a px has several values, or if it is not clear which is background.
    """
    if stored_HWC.shape[-1] != 1:
        raise BadInputError(
            f"{stored_HWC.shape[-1]} channels: a mask has one value per pixel; save it as grey"
        )
    values = stored_HWC[..., 0]
    if not meaning.is_inverted:
        return values
    if meaning.is_agreed:
        return ~values.astype(np.bool_)
    raise BadInputError(
        "says that 0 is white (MINISWHITE), where programs disagree on what is background: save"
        " it with 0 as black (ImageJ: without an inverting LUT; Python: as uint8, not bool)"
    )


def turned(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn stored pixels, HW or HWC, as an orientation (1 to 8, as in TIF and EXIF) says."""
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if orientation >= 5 else pixels


def stored_box(box: Box, orientation: int, height_px: int, width_px: int) -> Box:
    """Return where a box of the picture lies in the stored pixels, of this height and width."""
    x, y, width, height = box.x, box.y, box.width, box.height
    if orientation >= 5:
        x, y, width, height = y, x, height, width
    if orientation in (2, 3, 7, 8):
        x = width_px - x - width
    if orientation in (3, 4, 6, 7):
        y = height_px - y - height
    return Box(x, y, width, height)
