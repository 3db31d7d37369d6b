"""Read the resolution of an image from its tags: micrometres a px.

Images tell it in many ways, and mostly tell the resolution of print (72 or 300 dots an inch), which
says nothing about a specimen. So what is told counts only if a microscope may have it.
"""

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from data_prep.config import LARGEST_MPP, SMALLEST_MPP
from data_prep.raw import BadInputError

if TYPE_CHECKING:  # launch/ compares resolutions, and reads no image
    import tifffile
    from PIL import Image as PillowImage

SAME = 0.02
"""Resolutions, or the sides of a px, that differ by no more than this fraction are one."""
X, Y, UNIT, XMP = 282, 283, 296, 700  # tags of TIF, the first three of EXIF, too
INCH_UM = 25_400.0
UNITS_UM = {
    **{"pm": 1e-6, "å": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3, "mm": 1e3},
    **{"um": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0},
    **{"millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "dm": 1e5, "m": 1e6, "meter": 1e6},
    **{"in": INCH_UM, "inch": INCH_UM, "inches": INCH_UM},
}
"""Names of units in OME's and ImageJ's text, in lower case -> micrometres."""
UNITS_OF_TAG_UM = {2: INCH_UM, 3: 1e4, 4: 1e3, 5: 1.0}
# Texts may be long and from anyone: each of these patterns takes time in proportion to the text
PIXELS = re.compile(r"<(?:\w+:)?Pixels\s([^<>]*)>")
ATTRIBUTE = re.compile(r"""(?<!\w)(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
PHILIPS = re.compile(
    r'"DICOM_PIXEL_SPACING"[^<>]{0,200}>\s{0,20}(?:"|&quot;)([0-9.eE+-]{1,40})(?:"|&quot;)'
    r'\s{1,20}(?:"|&quot;)([0-9.eE+-]{1,40})(?:"|&quot;)'
)
VENTANA = re.compile(r'\bScanRes="([0-9.eE+-]+)"')
APERIO = re.compile(r"(?:^|\|)[ \t]*MPP[ \t]*=[ \t]*([0-9.eE+-]+)", re.MULTILINE)
IMAGEJ_UNIT = re.compile(r"^unit=(.*)$", re.MULTILINE)

Told = tuple[object, object]
"""Micrometres a px along x and y, as a file has them: perhaps no numbers."""


def mpp_text(mpp: float | None) -> str:
    """Write a resolution to be read."""
    return f"{mpp:.4g} micrometres per px" if mpp else "not known"


def is_same(one: float, other: float) -> bool:
    """Return whether two resolutions are one."""
    return max(one, other) <= (1 + SAME) * min(one, other)


def mpp_of_tif(tif: "tifffile.TiffFile", page: "tifffile.TiffPage") -> float | None:
    """Return the micrometres a px of a page; None if the file does not tell. Raises BadInputError
    as `believed`."""
    described, own = (str(each.description) for each in (tif.pages.first, page))
    xmp = tif.pages.first.tags.valueof(XMP)
    scanner = xmp.decode("latin-1") if isinstance(xmp, bytes) else ""
    return believed(told_by_tif(described, own, scanner, page))


def mpp_of_picture(image: "PillowImage.Image") -> float | None:
    """Return the micrometres a px of a PNG or JPG; None if the file does not tell. Raises
    BadInputError as `believed`."""
    told: list[Told] = []
    match image.info.get("dpi"):  # of JFIF or a PNG's pHYs
        case (x, y):
            told.append((of_density(x, INCH_UM), of_density(y, INCH_UM)))
    with suppress(Exception):  # a damaged EXIF raises whatever it likes, and only tells nothing
        exif = image.getexif()
        told.append(of_tags(exif.get(X), exif.get(Y), exif.get(UNIT, 2)))
    return believed(told)


def believed(told: Iterable[Told]) -> float | None:
    """Return the first resolution that a microscope may have; None if there is none.

    Raises BadInputError if its px are not square: a disc of a radius in px would be none.
    """
    for pair in told:
        x, y = (number(value) for value in pair)
        if not all(SMALLEST_MPP <= value <= LARGEST_MPP for value in (x, y)):
            continue
        if not is_same(x, y):
            raise BadInputError(
                f"its tags say that a px is {x:.4g} x {y:.4g} micrometres, which is not square:"
                " resample it to square ones, or correct the tags"
            )
        return math.sqrt(x * y) if x != y else x
    return None


def number(value: object) -> float:
    """Return a number of a file; NaN if it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return math.nan


def told_by_tif(
    described: str, own: str, scanner: str, page: "tifffile.TiffPage"
) -> Iterator[Told]:
    """Yield what a TIF tells, the surest first. `described`: the text of its first page; `own`:
    that of the page; `scanner`: what Ventana's scanners write of themselves."""
    if "<" in described:
        yield from told_by_ome(described, page)
        if found := PHILIPS.search(described):  # of the largest level, in mm
            yield number(found[1]) * 1e3, number(found[2]) * 1e3
    if found := VENTANA.search(scanner):
        yield found[1], found[1]
    if found := APERIO.search(own):
        yield found[1], found[1]
    x, y, unit = (tag.value if (tag := page.tags.get(code)) else None for code in (X, Y, UNIT))
    if described.startswith("ImageJ=") and (named := IMAGEJ_UNIT.search(described)):
        yield of_density(x, unit_um(named[1])), of_density(y, unit_um(named[1]))
    yield of_tags(x, y, 2 if unit is None else unit)


def told_by_ome(text: str, page: "tifffile.TiffPage") -> Iterator[Told]:
    """Yield the physical sizes that OME's XML gives for an image of the page's size."""
    for found in PIXELS.finditer(text):
        values = {name: html.unescape(a or b) for name, a, b in ATTRIBUTE.findall(found[1])}
        size = number(values.get("SizeX")), number(values.get("SizeY"))
        if size == (page.imagewidth, page.imagelength):
            x, y = (
                number(values.get(f"PhysicalSize{axis}"))
                * unit_um(values.get(f"PhysicalSize{axis}Unit", "um"))
                for axis in "XY"
            )
            yield x, y


def unit_um(name: str) -> float:
    """Return the micrometres of a unit; NaN if it is unknown."""
    plain = name.strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ")
    return UNITS_UM.get(unicodedata.normalize("NFKC", plain).lower(), math.nan)


def of_tags(x: object, y: object, unit: object) -> Told:
    """Return the micrometres a px that tags give as px a unit; unit 2 is an inch, 3 a cm."""
    code = number(unit)
    unit_in_um = UNITS_OF_TAG_UM.get(int(code), math.nan) if code in UNITS_OF_TAG_UM else math.nan
    return of_density(x, unit_in_um), of_density(y, unit_in_um)


def of_density(value: Any, unit_in_um: float) -> float:
    """Return the micrometres a px of a number of px a unit, which may be a fraction (n, d)."""
    pair = value if isinstance(value, tuple) and len(value) == 2 else (value, 1)
    top, bottom = (number(part) for part in pair)
    return unit_in_um * bottom / top if top else math.nan
