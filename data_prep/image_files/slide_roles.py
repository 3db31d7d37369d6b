"""Tell a slide's picture from its label, macro and thumbnail, by the words of who made it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

from tifffile import TiffPage

from data_prep.image_files.tif_descriptions import Role, Told, parse_xml, refuse_stack, told_by
from data_prep.raw import BadInputError

REDUCED, MASK = 1, 4  # bits of NewSubfileType
SOURCE_LENS = 65421


def told_of(listed: Sequence[TiffPage], file_name: str) -> Told:
    """Return what the pages of a file's list are: a role for each, and which are planes of colours.

    Raises BadInputError for what is no picture: channels, stacks, files of a set, several regions.
    """
    first = listed[0]
    text = str(first.description)
    told = told_by_scn(text) if text.rstrip().endswith("</scn>") else told_by(listed, file_name)
    if first.is_svs and first.is_tiled:
        role_of = aperio_role
    elif first.is_ndpi:
        role_of = hamamatsu_role
    elif first.is_philips:
        role_of = philips_role
    elif first.is_bif:
        role_of = ventana_role
    elif first.is_qpi:
        role_of = perkin_elmer_role
    else:
        role_of = plain_role
    roles = {number: role_of(page) for number, page in enumerate(listed)}
    return Told(roles | told.roles, told.planes)


def plain_role(page: TiffPage) -> Role:
    """Return what NewSubfileType says of a page."""
    if page.subfiletype & MASK:
        return Role.ASIDE
    return Role.COPY if page.subfiletype & REDUCED else Role.PICTURE


def level_role(page: TiffPage) -> Role:
    """Return the role of a level where the file's first page is the full resolution."""
    return Role.COPY if page.index else Role.PICTURE


def aperio_role(page: TiffPage) -> Role:
    """Aperio's SVS: levels are in tiles; thumbnail, label and macro are in strips."""
    named = re.search(r"^(label|macro)\b", str(page.description), re.MULTILINE)
    return Role.ASIDE if named or page.is_reduced or not page.is_tiled else level_role(page)


def hamamatsu_role(page: TiffPage) -> Role:
    """Hamamatsu's NDPI: the magnification is -1 for the macro and -2 for the map."""
    return level_role(page) if page.tags.valueof(SOURCE_LENS, 0) > 0 else Role.ASIDE


def philips_role(page: TiffPage) -> Role:
    """Philips' TIFF: levels are in tiles; label and macro are named."""
    named = str(page.description).startswith(("Label", "Macro"))
    return Role.ASIDE if named or not page.is_tiled else level_role(page)


def ventana_role(page: TiffPage) -> Role:
    """Ventana's BIF: levels are numbered."""
    number = re.search(r"\blevel=(\d+)\b", str(page.description))
    if number is None:
        return Role.ASIDE
    return Role.COPY if int(number[1]) else Role.PICTURE


def perkin_elmer_role(page: TiffPage) -> Role:
    """PerkinElmer's QPTIFF: an XML names the kind of each page."""
    kind = re.search(r"<ImageType>(\w{1,40})</ImageType>", str(page.description))
    roles = {"FullResolution": Role.PICTURE, "ReducedResolution": Role.COPY}
    return roles.get(kind[1], Role.ASIDE) if kind else plain_role(page)


@dataclass
class ScnImage:
    """An element image of Leica's: a scanned region, or the whole slide (its macro)."""

    is_macro: bool = False
    numbers: list[int] = field(default_factory=list)
    """Its pages, the full resolution first."""
    num_planes: int = 1


def told_by_scn(text: str) -> Told:
    """Return what Leica's XML says. Raises BadInputError for several regions, and for stacks."""
    slide: list[tuple[str, ...]] = []
    images: list[ScnImage] = []

    def start(name: str, given: dict[str, str]) -> None:
        match name:
            case "collection":
                slide.append((given.get("sizeX", ""), given.get("sizeY", ""), "0", "0"))
            case "image":
                images.append(ScnImage())
            case "view" if images:
                keys = ("sizeX", "sizeY", "offsetX", "offsetY")
                images[-1].is_macro = tuple(given.get(key, "0") for key in keys) in slide
            case "dimension" if images:
                planes = (1 + int(given.get("z", 0))) * (1 + int(given.get("c", 0)))
                images[-1].num_planes = max(images[-1].num_planes, planes)
                images[-1].numbers.append(int(given.get("ifd", -1)))

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parse_xml(text, parser, "SCN description")
    regions = [image for image in images if image.numbers and not image.is_macro]
    if len(regions) > 1:
        raise BadInputError(
            f"holds {len(regions)} scanned regions: expected one picture; export each by itself,"
            " with QuPath"
        )
    for image in regions:
        if image.num_planes > 1:
            what = "focal planes or channels by its SCN description"
            raise refuse_stack(image.num_planes, what)
    told: dict[int, Role] = {}
    for image in images:
        told |= dict.fromkeys(image.numbers, Role.ASIDE if image.is_macro else Role.COPY)
        if image.numbers and not image.is_macro:
            told[image.numbers[0]] = Role.PICTURE
    return Told(told)
