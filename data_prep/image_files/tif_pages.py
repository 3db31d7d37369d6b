"""Choose the page of a TIF that is the picture, and the smaller levels of its pyramid.

The pages are walked here and not by tifffile's series, which open other files of a set and follow
a ring of pages for ever. A slide's label, macro and thumbnail are left out where the file says
what they are; of several pictures none is chosen.
"""

import logging
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tifffile import TiffFile, TiffPage

from data_prep.image_files.slide_roles import plain_role, told_of
from data_prep.image_files.tif_descriptions import Role
from data_prep.raw import BadInputError

MAX_PAGES = 256
MAX_TAGS = 4096
LSM, STK, STK_PLANES, XMP = 34412, 33628, 33629, 700
NDPI, CAPTURE_MODE = 65420, 65441
BRIGHTFIELD = 6  # the largest CaptureMode of colours with 8 bits

# It logs each tag that it cannot read and goes on; tif_structure.py refuses those that matter
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Level:
    """A picture at one resolution."""

    pages: tuple[TiffPage, ...]
    """One page, or three grey ones that the file itself names red, green and blue."""

    @property
    def height_px(self) -> int:
        """Height, in px."""
        return int(self.pages[0].imagelength)

    @property
    def width_px(self) -> int:
        """Width, in px."""
        return int(self.pages[0].imagewidth)


def open_tif(file: BinaryIO) -> TiffFile:
    """Open a TIF by what is in it, whatever its name; no page but the first is read.

    Raises BadInputError, and tifffile's errors.
    """
    flags = {"is_ndpi": is_hamamatsu(file), "is_lsm": False, "is_scanimage": False}
    file.seek(0)
    return TiffFile(file, _multifile=False, **flags)


def is_hamamatsu(file: BinaryIO) -> bool:
    """Return whether a file is Hamamatsu's: a TIF but for offsets of 64 bits.

    Raises BadInputError for fluorescence, whose pages claim to be JPEGs of colours.
    """
    file.seek(0)
    start = file.read(12)
    if len(start) < 12 or start[:4] != b"II*\0":
        return False
    (offset,) = struct.unpack("<Q", start[4:])
    if offset >= file.seek(0, os.SEEK_END):
        return False
    file.seek(offset)
    num_tags = int.from_bytes(file.read(2), "little")
    content = file.read(12 * num_tags)
    entries = struct.iter_unpack("<HHII", content[: len(content) // 12 * 12])
    tags = {code: value for code, _, _, value in entries}
    if NDPI in tags and tags.get(CAPTURE_MODE, 0) > BRIGHTFIELD:
        raise BadInputError("a fluorescence scan (NDPI), whose channels are no colours")
    return NDPI in tags


def picture_levels(tif: TiffFile) -> list[Level]:
    """Return the picture that a file holds: its levels, largest first.

    Raises BadInputError where the file does not tell which of its pages is the picture.
    """
    trees = page_trees(tif)
    listed = [tree[0] for tree in trees]
    refuse_planes_within(listed[0])
    told = told_of(listed, Path(tif.filehandle.name).name)
    if told.planes:
        return [colour_planes([listed[number] for number in told.planes], listed)]
    roles = [
        both for number, tree in enumerate(trees) for both in with_roles(tree, told.roles[number])
    ]
    pictures = [page for page, role in roles if role is Role.PICTURE]
    copies = [page for page, role in roles if role is Role.COPY]
    if not pictures and len(roles) > 1:
        raise BadInputError("damaged: none of its pages is the picture of full resolution")
    base = max(pictures or listed, key=num_pixels)
    others = [page for page in pictures if page is not base and not is_unmarked_level(page, base)]
    others += [page for page in copies if page is not base and size_of(page) == size_of(base)]
    if others:
        raise BadInputError(several_pictures([base, *others]))
    if any(num_pixels(copy) > num_pixels(base) for copy in copies):
        raise BadInputError("damaged: a page that is called a smaller copy is larger than the rest")
    refuse_overlapping_tiles(listed[0], base)
    levels = [
        page
        for page, role in roles
        if role is not Role.ASIDE and page is not base and is_smaller_copy(page, base)
    ]
    return [Level((page,)) for page in [base, *sorted(levels, key=num_pixels, reverse=True)]]


def page_trees(tif: TiffFile) -> list[list[TiffPage]]:
    """Return the pages of the file's list, each with its SubIFDs after it. Raises BadInputError.

    Time and memory are bounded by MAX_PAGES and by the size of the file.
    """
    trees: list[list[TiffPage]] = []
    seen: set[int] = set()
    num_segments = 0
    for number, offset in enumerate(listed_offsets(tif)):
        tree: list[TiffPage] = []
        waiting: list[tuple[int, tuple[int, ...]]] = [(offset, (number,))]
        while waiting:
            at, index = waiting.pop(0)
            if at in seen:
                raise BadInputError("damaged: its list of pages runs in a ring")
            seen.add(at)
            if len(seen) > MAX_PAGES:
                raise BadInputError(f"holds more than {MAX_PAGES} pages: expected one picture")
            tif.filehandle.seek(at)
            page = TiffPage(tif, index)
            num_segments += len(page.dataoffsets)
            if 4 * num_segments > tif.filehandle.size:  # a segment is listed in 4 bytes or more
                raise BadInputError("damaged: its pages share their lists of strips or tiles")
            tree.append(page)
            waiting += [(start, (*index, child)) for child, start in enumerate(page.subifds or ())]
        trees.append(tree)
    return trees


def listed_offsets(tif: TiffFile) -> Iterator[int]:
    """Yield where each page begins. Raises BadInputError if the list leaves the file."""
    if not tif.pages:
        raise BadInputError("cut short: holds no picture")
    file, form = tif.filehandle, tif.tiff
    offset = int(tif.pages.first.offset)
    while offset:
        yield offset
        try:
            file.seek(offset)
            (num_tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
            file.seek(offset + form.tagnosize + num_tags * form.tagsize)
            (offset,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
        except struct.error:
            raise BadInputError("cut short: its list of pages ends beyond the file") from None
        if num_tags > MAX_TAGS or offset >= file.size:
            raise BadInputError("cut short: its list of pages goes on beyond the file's end")


def refuse_planes_within(page: TiffPage) -> None:
    """Raise BadInputError for a microscope's file that keeps several planes behind one page."""
    if LSM in page.tags:
        raise BadInputError(
            "a confocal scan (LSM), whose channels are no colours; export it as RGB"
        )
    planes = page.tags.get(STK_PLANES)
    if STK in page.tags and planes is not None and planes.count > 1:
        raise BadInputError(f"holds {planes.count} planes (MetaMorph STK): expected one picture")
    if page.imagedepth > 1:
        raise BadInputError(f"holds {page.imagedepth} planes of a volume: expected one picture")
    if re.search(r'"truncated": ?true', str(page.description)[:10_000]):
        raise BadInputError(
            "holds a stack behind one page (tifffile's 'truncate'): expected one picture"
        )


def with_roles(tree: Sequence[TiffPage], role: Role) -> list[tuple[TiffPage, Role]]:
    """Return a listed page and its SubIFDs, which are smaller copies unless they say otherwise."""
    roles = [(tree[0], role)]
    for page in tree[1:]:
        own = Role.ASIDE if role is Role.ASIDE else plain_role(page)
        if own is Role.PICTURE and is_smaller_copy(page, tree[0]):
            own = Role.COPY
        roles.append((page, own))
    return roles


def size_of(page: TiffPage) -> tuple[int, int]:
    """Return height and width, in px."""
    return int(page.imagelength), int(page.imagewidth)


def num_pixels(page: TiffPage) -> int:
    """Return height times width."""
    return int(page.imagelength) * int(page.imagewidth)


def is_smaller_copy(page: TiffPage, base: TiffPage) -> bool:
    """Return whether a page can be `base` shrunk: the same shape to a px, and the same samples."""
    least, most = 1.5, float("inf")  # by how much it is shrunk
    for length_px, base_px in zip(size_of(page), size_of(base), strict=True):
        least = max(least, base_px / (length_px + 1))
        most = min(most, base_px / (length_px - 1) if length_px > 1 else most)
    kinds = [(each.photometric, each.bitspersample, each.samplesperpixel) for each in (page, base)]
    return least <= most and kinds[0] == kinds[1]


def is_unmarked_level(page: TiffPage, base: TiffPage) -> bool:
    """Return whether a page that is not called a copy is one: pyramids are kept in tiles."""
    return bool(page.is_tiled and base.is_tiled) and is_smaller_copy(page, base)


def colour_planes(planes: Sequence[TiffPage], listed: Sequence[TiffPage]) -> Level:
    """Return the picture of three grey pages. Raises BadInputError if they are not alike."""
    kinds = {
        (*size_of(page), page.bitspersample, page.samplesperpixel, page.photometric.name)
        for page in planes
    }
    if len(kinds) > 1 or next(iter(kinds))[-2:] != (1, "MINISBLACK"):
        raise BadInputError("its pages of red, green and blue differ in size or kind")
    others = [page for page in listed if page not in planes and plain_role(page) is Role.PICTURE]
    if others:
        raise BadInputError(several_pictures([planes[0], *others]))
    return Level(tuple(planes))


def several_pictures(pages: Sequence[TiffPage]) -> str:
    """Return the reason why a file of several pictures cannot be used."""
    sizes = ", ".join(f"{page.imagewidth} x {page.imagelength}" for page in pages[:4])
    more = ", ..." if len(pages) > 4 else ""
    return (
        f"holds {len(pages)} pictures (pages of {sizes}{more} px), and nothing says which is meant:"
        " keep one in a file"
    )


def refuse_overlapping_tiles(first: TiffPage, base: TiffPage) -> None:
    """Raise BadInputError for scanners whose tiles overlap: every seam would show twice."""
    overlaps: list[str] = []
    if first.is_bif:
        about = str(first.tags.valueof(XMP)) + str(base.tags.valueof(XMP))
        overlaps = re.findall(r"\bOverlap[XY]=\"(-?\d{1,9})\"", about)
    elif str(first.software).startswith("MedScan"):  # Trestle
        overlaps = re.findall(r"\bOverlapsXY=([-\d. ]{1,100})", str(first.description))
    if any(re.search("[1-9]", overlap) for overlap in overlaps):
        raise BadInputError(
            "its tiles overlap, and are not put together here; convert it with QuPath, or with"
            " 'vips tiffsave --pyramid --tile', which reads it through OpenSlide"
        )
