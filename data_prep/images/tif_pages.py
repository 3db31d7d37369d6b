"""Choose the page of a TIF that is the picture, and the smaller levels of its pyramid."""

from dataclasses import dataclass

from tifffile import TiffFile, TiffPage

from data_prep.raw import BadInputError


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


def picture_levels(tif: TiffFile) -> list[Level]:
    """Return the picture that a file holds: its levels, largest first.

    Raises BadInputError where the file does not tell which of its pages is the picture.
    """
    levels = [Level((page,)) for page in tif.pages if isinstance(page, TiffPage)]
    if not levels:
        raise BadInputError("holds no picture")
    return sorted(levels, key=lambda level: level.height_px * level.width_px, reverse=True)
