"""Write TIFs tag by tag, sound ones and others, without a library that would forbid it."""

import struct
from collections.abc import Mapping, Sequence

import numpy as np

SHORT, LONG = 3, 4
FORMATS = {1: "B", 2: "B", SHORT: "H", LONG: "I"}
LONGS = {256, 257, 273, 278, 279, 322, 323, 324, 325}


def packed(pixels_HWC: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of samples of so many bits, each row filled up to a byte."""
    height = len(pixels_HWC)
    if bits in (8, 16):
        return pixels_HWC.astype(f"{order}u{bits // 8}").tobytes()
    single = (pixels_HWC.reshape(height, -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.astype(np.uint8).reshape(height, -1), axis=1).tobytes()


def tif_bytes(
    tags: Mapping[int, Sequence[int]],
    segments: Sequence[bytes],
    order: str = "<",
    tiled: bool = False,
) -> bytes:
    """A TIF of one page. `tags` without offsets and counts, which are added."""
    mark = {"<": b"II", ">": b"MM"}[order]
    offsets = np.cumsum([8, *map(len, segments)]).tolist()
    counts = [*map(len, segments)]
    places = {324: offsets[:-1], 325: counts} if tiled else {273: offsets[:-1], 279: counts}
    all_tags = dict(sorted({**places, **tags}.items()))
    start = offsets[-1] + offsets[-1] % 2
    values_at = start + 2 + 12 * len(all_tags) + 4
    entries, values = b"", b""
    for code, numbers in all_tags.items():
        kind = LONG if code in LONGS else SHORT
        content = struct.pack(f"{order}{len(numbers)}{FORMATS[kind]}", *numbers)
        if len(content) > 4:
            field = struct.pack(f"{order}I", values_at + len(values))
            values += content + b"\0" * (len(content) % 2)
        else:
            field = content.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", code, kind, len(numbers)) + field
    body = b"".join(segments)
    header = mark + struct.pack(f"{order}HI", 42, start)
    directory = struct.pack(f"{order}H", len(all_tags)) + entries + struct.pack(f"{order}I", 0)
    return (header + body).ljust(start, b"\0") + directory + values
