"""Read raw images to RGB uint8, whole or a part, and masks to their values.

What a file is, its first bytes decide and not its ending. What its values mean, `samples.py` says.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_prep.image_files.openslide_image import START_BYTES, is_slide, open_slide
from data_prep.image_files.png_jpg import JPG_START, PNG_START, DecodedImage
from data_prep.image_files.tif_image import TifImage
from data_prep.image_files.tif_pages import open_tif
from data_prep.images.arrays import Image
from data_prep.images.image_file import ImageFile, codec_errors_explained
from data_prep.raw import BadInputError

OTHER_STARTS = {
    rb"GIF8": "GIF",
    rb"BM": "BMP",
    rb"RIFF....WEBP": "WEBP",
    rb"(....jP  |\xff\x4f\xff\x51)": "JPEG 2000",
    rb"....ftyp": "HEIC or AVIF, or a film",
    rb"%PDF": "PDF",
    rb"\s*<(\?xml|svg|!DOCTYPE|html)": "web page or SVG",
    rb"(PK\x03\x04|\x1f\x8b|7z\xbc\xaf)": "packed archive",
    rb"\x89HDF": "HDF5 file",
}
"""First bytes of what is often found under another ending, and its name."""
TIF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@contextmanager
def open_image(path: Path, uint16_white: int = 65535) -> Iterator[ImageFile]:
    """Open an image file. Raises BadInputError if it is damaged or not an image."""
    with ExitStack() as stack:
        with codec_errors_explained():
            file = stack.enter_context(path.open("rb"))
            start = file.read(START_BYTES)
            num_bytes = path.stat().st_size
            file.seek(0)
            if start.startswith(TIF_STARTS):
                tif = stack.enter_context(open_tif(file))
                image: ImageFile = TifImage(tif, num_bytes, uint16_white)
            elif is_slide(path, start):
                image = stack.enter_context(open_slide(path))
            elif start.startswith((PNG_START, JPG_START)):
                image = DecodedImage(path, uint16_white)
            elif not start:
                raise BadInputError("is empty (0 bytes)")
            else:
                raise BadInputError(f"{kind_of(start)}: expected TIF, PNG or JPG")
        yield image


def kind_of(start: bytes) -> str:
    """Say what a file is by its first bytes."""
    for number, name in OTHER_STARTS.items():
        if re.match(number, start, re.DOTALL):
            return f"is a {name}"
    return "unreadable or cut short: begins as no TIF, PNG or JPG does"


def read_image(path: Path, uint16_white: int = 65535) -> Image:
    """Read a whole image, HWC uint8 RGB. Raises BadInputError."""
    with open_image(path, uint16_white) as image:
        return image.read(image.whole)


def read_size(path: Path) -> tuple[int, int]:
    """Read an image's height and width, in px. Raises BadInputError."""
    with open_image(path) as image:
        return image.height_px, image.width_px
