"""Check data of Group 4, the fax code of pictures of 1 bit: damaged data still decodes to px."""

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from data_prep.raw import BadInputError

HEADER = struct.Struct("<2sHIH")
TAG = struct.Struct("<HHII")


def check_group_4(data: bytes, decoded_HW: npt.NDArray[Any]) -> None:
    """Raise BadInputError unless libtiff decodes data to the same px.

    Decoders that agree on sound data make different pictures of damaged data, of which none is
    right; most raise no error.
    """
    try:
        with PillowImage.open(io.BytesIO(as_tif(data, *decoded_HW.shape))) as image:
            seen_HW = np.asarray(image)
    except OSError as error:
        raise BadInputError(f"damaged: Group 4 data: {error}") from None
    if not np.array_equal(seen_HW, decoded_HW.astype(np.bool_)):
        raise BadInputError("damaged: Group 4 data with codes that are none, or of another width")


def has_end(data: bytes) -> bool:
    """Return whether data ends with Group 4's mark, twice a line's end."""
    bits = f"{int.from_bytes(data[-8:], 'big'):064b}".rstrip("0")
    return bits.endswith("000000000001" * 2)


def as_tif(data: bytes, height_px: int, width_px: int) -> bytes:
    """Return a TIF of one strip."""
    values = {256: width_px, 257: height_px, 258: 1, 259: 4, 262: 1, 273: 0, 277: 1}
    values |= {278: height_px, 279: len(data)}
    values[273] = HEADER.size + len(values) * TAG.size + 4
    tags = b"".join(TAG.pack(code, 4, 1, value) for code, value in values.items())
    return HEADER.pack(b"II", 42, 8, len(values)) + tags + bytes(4) + data
