"""Give each class the same colour in every picture, and name the classes in legends.

The colours are those of Okabe & Ito that stand out from the pink and purple of H&E, and white: told
apart with every kind of colour vision. A class has the colour of its number, in the order of the
mask values. Classes beyond the palette have its colours again, darker, and then start over.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from data_prep.config import IGNORE_LABEL
from data_prep.images.arrays import Image, Mask

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

YELLOW, SKY, VERMILION, GREEN = (240, 228, 66), (86, 180, 233), (213, 94, 0), (0, 158, 115)
WHITE, BLUE, ORANGE = (255, 255, 255), (0, 114, 178), (230, 159, 0)
PALETTE: tuple[Colour, ...] = (YELLOW, SKY, VERMILION, GREEN, WHITE, BLUE, ORANGE)
SHADES = (1.0, 0.6)
IGNORED: Colour = (128, 128, 128)
"""What no loss and no metric counts."""
HALO: Colour = (20, 20, 20)
"""What lines and dots are edged with, so that they are seen on any ground."""
INK, PAPER, FRAME = (40, 40, 40), (255, 255, 255), (110, 110, 110)


def colour_of(number: int) -> Colour:
    """Return the colour of a class; the first has number 0."""
    colours = [(shade, colour) for shade, colour in product(SHADES, PALETTE)]
    shade, (red, green, blue) = colours[number % len(colours)]
    return round(shade * red), round(shade * green), round(shade * blue)


def coloured(class_HW: Mask, num_classes: int) -> Image:
    """Paint each pixel in the colour of its class, HWC uint8; a single class is white.

    `class_HW` is 0, which becomes black, or 1 for the first class and so on, or IGNORE_LABEL.
    """
    colours = [WHITE] if num_classes == 1 else [colour_of(n) for n in range(num_classes)]
    table = np.zeros((256, 3), np.uint8)
    table[1 : 1 + num_classes], table[IGNORE_LABEL] = colours, IGNORED
    return table[class_HW]


def veiled(image_HWC: Image, is_ignored_HW: npt.NDArray[np.bool_]) -> Image:
    """Lay a grey veil over the ignored pixels of an image, HWC uint8; it stays itself without."""
    veil = np.array(IGNORED, np.uint8) // 2
    is_ignored_HW1 = is_ignored_HW[..., None]
    return np.where(is_ignored_HW1, image_HWC // 2 + veil, image_HWC)


def legend(width_px: int, names: Sequence[str], title: str = "", font_px: int = 14) -> Image:
    """Draw a strip with a title and, of several classes, each with its colour; HWC uint8.

    It is as high as it needs to be, and 0 px where there is nothing to say.
    """
    font, line_px = font_of(font_px), 2 * font_px
    placed = place(width_px, names, font_px) if len(names) > 1 else []
    top = line_px if title else 0
    height_px = top + max((y + line_px for _, _, y in placed), default=0)
    if not height_px:
        return np.zeros((0, width_px, 3), np.uint8)
    strip = PilImage.new("RGB", (width_px, height_px), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((font_px // 2, line_px // 2), as_line(title), INK, font, anchor="lm")
    for number, (name, x, y) in enumerate(placed):
        corner = x, top + y + font_px // 2
        side = corner[0] + font_px, corner[1] + font_px
        draw.rectangle([corner, side], colour_of(number), FRAME)
        draw.text((x + 1.5 * font_px, top + y + line_px // 2), name, INK, font, anchor="lm")
    return np.asarray(strip)


def place(width_px: int, names: Sequence[str], font_px: int) -> list[tuple[str, int, int]]:
    """Place the entries of a legend in as many rows as they need: name, left and top in px."""
    font, placed = font_of(font_px), list[tuple[str, int, int]]()
    x = y = 0
    for name in map(as_line, names):
        needed_px = round(2.5 * font_px + font.getlength(name))
        if x and x + needed_px > width_px:
            x, y = 0, y + 2 * font_px
        placed.append((name, x + font_px // 2, y))
        x += needed_px
    return placed


def as_line(text: str) -> str:
    """Make a text from elsewhere one that can be drawn: in one line, and of valid characters."""
    return " ".join(text.encode("utf-8", "replace").decode().splitlines())


@cache
def font_of(size_px: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which matplotlib brings along; Pillow's own font has ASCII only."""
    spec = find_spec("matplotlib")
    assert spec
    assert spec.origin
    folder = Path(spec.origin).parent / "mpl-data/fonts/ttf"
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size_px)
