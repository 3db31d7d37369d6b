"""Read what the descriptions in a TIF say of its pages: OME and ImageJ.

A file's planes are colours only where it calls them red, green and blue in words: fluorescence
comes in two, three or four channels, too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from xml.parsers import expat

from tifffile import TiffPage

from data_prep.raw import BadInputError

COLOURS = ("red", "green", "blue")
MAX_XML = 2**22  # characters; what a file of a few pages says takes thousands
ASIDE_NAMES = re.compile(r"(?:^|[\s\[(_-])(?:label|macro|thumbnail|overview)(?: image)?[\])]?$")


class Role(Enum):
    """What a page is in its file."""

    PICTURE = "picture"
    COPY = "smaller copy"
    ASIDE = "label, macro, thumbnail or mask"


@dataclass(frozen=True)
class Told:
    """What a description says of the pages, by their numbers in the file's list."""

    roles: dict[int, Role] = field(default_factory=dict)
    planes: tuple[int, ...] = ()
    """Three grey pages that are the picture's red, green and blue."""


def told_by(pages: Sequence[TiffPage], file_name: str) -> Told:
    """Return what the first of a file's pages says of all of them.

    Raises BadInputError for channels that are no colours, stacks, series and files of a set that
    are no picture by themselves.
    """
    text = str(pages[0].description)
    if text.startswith("ImageJ="):
        return told_by_imagej(pages)
    if text.rstrip().endswith("OME>") or "<OME" in text[:1000]:
        return told_by_ome(parse_ome(text), pages, file_name)
    return Told()


def refuse_channels(names: Sequence[str], kind: str) -> BadInputError:
    """Return the refusal of channels that the file does not call colours."""
    named = ", ".join(name for name in names if name)
    return BadInputError(
        f"{len(names)} channels{f' ({named[:100]})' if named else ''} by its {kind}, which does not"
        " call them red, green and blue: expected grey, RGB or RGBA; make one RGB picture of"
        " them, in ImageJ by Image > Type > RGB Color"
    )


def refuse_stack(num_planes: int, what: str) -> BadInputError:
    """Return the refusal of a stack or series."""
    return BadInputError(
        f"holds {num_planes} {what}: expected one picture; keep one in a file, in ImageJ by"
        " Image > Stacks > Stack to Images"
    )


def in_order_of_colours(names: Sequence[str]) -> list[int] | None:
    """Return where the names red, green and blue stand; None unless these are the names."""
    lowered = [name.strip().lower() for name in names]
    return [lowered.index(name) for name in COLOURS] if sorted(lowered) == sorted(COLOURS) else None


def told_by_imagej(pages: Sequence[TiffPage]) -> Told:
    """Return what ImageJ's description says. Raises BadInputError for channels and stacks."""
    said = dict(
        re.findall(
            r"^(images|channels|slices|frames)=(\d{1,9})\s*$",
            str(pages[0].description),
            re.MULTILINE,
        )
    )
    sizes = {name: int(value) for name, value in said.items()}
    num_channels = sizes.get("channels", 1)
    for name, what in (("slices", "slices of a stack"), ("frames", "frames of a series")):
        if sizes.get(name, 1) > 1:
            raise refuse_stack(sizes[name], f"{what} by its ImageJ description")
    if num_channels > 1:
        about = pages[0].tags.valueof(50839)  # IJMetadata, as tifffile reads it
        labels = about.get("Labels", []) if isinstance(about, dict) else []
        order = in_order_of_colours([str(label) for label in labels])
        if order and num_channels == len(pages) == len(COLOURS):
            return Told(planes=tuple(order))
        raise refuse_channels(
            [*map(str, labels[:num_channels])] or [""] * num_channels, "ImageJ description"
        )
    if sizes.get("images", 1) > 1:
        raise refuse_stack(sizes["images"], "images by its ImageJ description")
    return Told()


@dataclass
class OmePlanes:
    """An element TiffData: pages of one file that hold planes of an image."""

    ifd: int
    count: int
    """0: all that the image has."""
    first_channel: int
    file_name: str = ""
    uuid: str = ""


@dataclass
class OmeImage:
    """An element Image."""

    name: str
    sizes: dict[str, int] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)
    planes: list[OmePlanes] = field(default_factory=list)


@dataclass
class Ome:
    """What an OME-XML says that decides which page is the picture."""

    uuid: str = ""
    images: list[OmeImage] = field(default_factory=list)


def parse_xml(text: str, parser: expat.XMLParserType, kind: str) -> None:
    """Run a parser over an XML, in bounded time. Raises BadInputError for what is no XML."""

    def refuse_types(*_: object) -> None:
        raise BadInputError(f"its {kind} declares types or entities; save it anew without them")

    if len(text) > MAX_XML:
        raise BadInputError(f"its {kind} has {len(text)} characters; at most {MAX_XML} are read")
    parser.StartDoctypeDeclHandler = refuse_types
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(
            f"its {kind} is damaged ({error}), so what its pages are is unknown; save it anew"
        ) from None


def parse_ome(text: str) -> Ome:
    """Read an OME-XML. Raises BadInputError."""
    ome = Ome()
    written: list[str] = []

    def start(name: str, given: dict[str, str]) -> None:
        match name.rpartition(":")[2]:
            case "OME":
                ome.uuid = given.get("UUID", "").lower()
            case "BinaryOnly":
                raise BadInputError(
                    "its OME-XML is in another file"
                    f" ({given.get('MetadataFile', '')[:100]!r}): what its pages are is unknown;"
                    " save it as one OME-TIFF by itself, with Bio-Formats or QuPath"
                )
            case "Image":
                ome.images.append(OmeImage(given.get("Name", "")))
            case "Pixels" if ome.images:
                sizes = {axis: int(given.get(f"Size{axis}", 1)) for axis in "CZT"}
                ome.images[-1].sizes = sizes
            case "Channel" if ome.images:
                ome.images[-1].channels.append(given.get("Name", ""))
            case "TiffData" if ome.images:
                count = int(given.get("PlaneCount", "IFD" in given))
                planes = OmePlanes(int(given.get("IFD", 0)), count, int(given.get("FirstC", 0)))
                ome.images[-1].planes.append(planes)
            case "UUID" if ome.images and ome.images[-1].planes:
                ome.images[-1].planes[-1].file_name = given.get("FileName", "")
                parser.CharacterDataHandler = written.append

    def end(name: str) -> None:
        if parser.CharacterDataHandler:
            ome.images[-1].planes[-1].uuid = "".join(written).strip().lower()
            parser.CharacterDataHandler = None
            written.clear()

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parse_xml(text, parser, "OME-XML")
    return ome


def told_by_ome(ome: Ome, pages: Sequence[TiffPage], file_name: str) -> Told:
    """Return what an OME-XML says of the pages of this file, which may be one of a set."""
    files = {(part.uuid, part.file_name) for image in ome.images for part in image.planes} - {
        ("", "")
    }

    def is_own(part: OmePlanes) -> bool:
        if len(files) < 2 or not (part.uuid or part.file_name):
            return True
        return part.uuid == ome.uuid if ome.uuid else part.file_name == file_name

    told: dict[int, Role] = {}
    pictures: list[tuple[int, ...]] = []
    for image in ome.images:
        own = [part for part in image.planes if is_own(part)]
        if image.planes and not own:
            continue  # in another file of the set
        if len(own) < len(image.planes):
            raise BadInputError(
                "its OME-XML says that planes of its picture are in other files; save them as one"
                " RGB OME-TIFF, with Bio-Formats or QuPath"
            )
        numbers = numbers_of(image, own, pages)
        if ASIDE_NAMES.search(image.name.lower()) and len(ome.images) > 1:
            told |= dict.fromkeys(numbers, Role.ASIDE)
        else:
            pictures.append(picture_planes(image, numbers, pages))
    if ome.images and not (pictures or told):
        raise BadInputError("its OME-XML says that its pictures are in other files; give those")
    planes = next((picture for picture in pictures if len(picture) > 1), ())
    return Told(told, planes if len(pictures) == 1 else ())


def numbers_of(image: OmeImage, parts: Sequence[OmePlanes], pages: Sequence[TiffPage]) -> list[int]:
    """Return the pages of an image, by channel. Raises BadInputError for stacks and series."""
    for axis, what in (("Z", "planes of a stack"), ("T", "time points")):
        if image.sizes.get(axis, 1) > 1:
            raise refuse_stack(image.sizes[axis], f"{what} by its OME-XML")
    parts = parts or [OmePlanes(0, 0, 0)]
    first = parts[0].ifd
    samples = pages[first].samplesperpixel if 0 <= first < len(pages) else 1
    num_planes = max(1, image.sizes.get("C", 1) // max(1, samples))
    numbers: dict[int, int] = {}
    for part in parts:
        num_here = min(part.count or num_planes, num_planes)
        if not 0 <= part.ifd <= part.ifd + num_here <= len(pages):
            raise BadInputError(
                f"its OME-XML names page {part.ifd + num_here}, the file holds {len(pages)};"
                " a file of a set, or one cut short, cannot be used by itself"
            )
        numbers |= {part.first_channel + step: part.ifd + step for step in range(num_here)}
    return [numbers[channel] for channel in sorted(numbers)]


def picture_planes(
    image: OmeImage, numbers: Sequence[int], pages: Sequence[TiffPage]
) -> tuple[int, ...]:
    """Return the page of a picture, or those of its red, green and blue. Raises BadInputError."""
    num_planes = max(len(numbers), image.sizes.get("C", 1) // pages[numbers[0]].samplesperpixel)
    if num_planes == 1:
        return (numbers[0],)
    names = (image.channels + [""] * num_planes)[:num_planes]
    order = in_order_of_colours(names)
    if order is None or len(set(numbers)) < len(COLOURS):
        raise refuse_channels(names, "OME-XML")
    return tuple(numbers[index] for index in order)
