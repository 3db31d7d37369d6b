"""Read raw images to RGB uint8, whole or a part, and masks to their values.

What a file is, its first bytes decide and not its ending. What its values mean, `samples.py` says.
"""

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
                raise BadInputError("unreadable or cut short: begins as no TIF, PNG or JPG does")
        yield image


def read_image(path: Path, uint16_white: int = 65535) -> Image:
    """Read a whole image, HWC uint8 RGB. Raises BadInputError."""
    with open_image(path, uint16_white) as image:
        return image.read(image.whole)


def read_size(path: Path) -> tuple[int, int]:
    """Read an image's height and width, in px. Raises BadInputError."""
    with open_image(path) as image:
        return image.height_px, image.width_px
