"""Give a data set one resolution: the one that its images agree on, or that they are rescaled to.

Discs have one radius in px. Where images have several resolutions, it is wrong for some of them.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median_low

from common.command_line import UsageError, counted
from data_prep.config import PrepConfig
from data_prep.image_files.open_image import open_image
from data_prep.images.rescaling import at_resolution
from data_prep.images.resolution import is_same
from data_prep.raw import BadInputError, Field


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are read."""

    mpp: float | None
    """Resolution that the file tells, in micrometres per px; None if it does not."""
    file_px: tuple[int, int]
    """Height and width in the file."""
    size_px: tuple[int, int]
    """Height and width at the resolution of the data set."""


@dataclass(frozen=True)
class SetResolution:
    """The resolution of a data set, and how it was found."""

    mpp: float | None
    """Micrometres per px of the prepared fields; None if it is not known."""
    num_told: int
    """Number of images that tell theirs."""
    notes: list[str]
    """What the user should know, a line each."""


def read_headers(fields: Sequence[Field], config: PrepConfig) -> dict[Field, Header]:
    """Read the header of each image; of those that cannot be read, preparing reports the error."""

    def read(field: Field) -> Header | None:
        try:
            with open_image(field.image) as file:
                image = at_resolution(file, config.mpp, otherwise_mpp=config.mpp)
                size_px = image.height_px, image.width_px
                return Header(file.mpp, (file.height_px, file.width_px), size_px)
        except BadInputError:
            return None

    with ThreadPoolExecutor(config.workers) as pool:
        found = zip(fields, pool.map(read, fields), strict=True)
        return {field: header for field, header in found if header}


def resolution_of_set(headers: Collection[Header], mpp: float) -> SetResolution:
    """Return the resolution of a data set from those that its images tell.

    `mpp`: the one to rescale to, 0 for none. Raises UsageError if images differ and there is none.
    """
    known = [header.mpp for header in headers if header.mpp is not None]
    num_unknown = len(headers) - len(known)
    if mpp:
        return SetResolution(mpp, len(known), notes_on_rescaling(known, num_unknown, mpp))
    if not known:
        return SetResolution(None, 0, [])
    if not is_same(min(known), max(known)):
        raise several_resolutions(known)
    common = median_low(known)
    if not num_unknown:
        return SetResolution(common, len(known), [])
    note = (
        f"resolution: {len(known)} of {counted(len(headers), 'image')} tell theirs"
        f" ({common:.4g} micrometres per px), the others do not, so the data set has none; give"
        f" mpp={common:.4g} if they have it, too"
    )
    return SetResolution(None, len(known), [note])


def notes_on_rescaling(known: list[float], num_unknown: int, mpp: float) -> list[str]:
    """Say how many images are rescaled, and of how many nothing is known."""
    notes = []
    factors = sorted(value / mpp for value in known if not is_same(value, mpp))
    if factors:
        notes.append(f"rescaled to mpp={mpp:g}: {counted(len(factors), 'image')}, {span(factors)}")
    if num_unknown:
        notes.append(
            f"resolution of {counted(num_unknown, 'image')} is not known: taken to be mpp={mpp:g}"
        )
    return notes


def span(factors: list[float]) -> str:
    """Name the factors of images, sorted, that are rescaled."""
    low, high = f"{factors[0]:.3g}", f"{factors[-1]:.3g}"
    return f"by {low}" if low == high else f"by {low} to {high}"


def several_resolutions(known: list[float]) -> UsageError:
    """Return the error for images that differ, with what to type."""
    counts = Counter(f"{value:.3g}" for value in known)
    listed = ", ".join(
        f"{mpp} ({counted(number, 'image')})"
        for mpp, number in sorted(counts.items(), key=lambda entry: float(entry[0]))
    )
    ((most, _),) = counts.most_common(1)
    return UsageError(
        f"mpp=0: the images have several resolutions, in micrometres per px: {listed}; radius_px"
        f" can be right for one only. Give mpp={most}, and all are rescaled to it"
    )
