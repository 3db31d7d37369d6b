"""Say what becomes of images whose resolution is not the model's."""

from collections.abc import Mapping

from common.command_line import counted, named
from data_prep.dataset.one_resolution import span
from data_prep.images.resolution import is_same, mpp_text


def notes_on_resolution(
    told: Mapping[str, float | None], model_mpp: float | None, given_mpp: float
) -> list[str]:
    """Return a line about rescaled images and one about images of unknown resolution.

    `told`: image -> what it tells, in micrometres per px; `given_mpp`: that of the others, 0 for
    unknown.
    """
    known = [mpp for each in told.values() if (mpp := each or given_mpp)]
    unknown = [image for image, mpp in told.items() if not (mpp or given_mpp)]
    if not model_mpp:
        if not known:
            return []
        low, high = (f"{mpp:.4g}" for mpp in (min(known), max(known)))
        images = f"{counted(len(known), 'image')}: {low if low == high else f'{low} to {high}'}"
        return [
            "the resolution of the model's training data is not known, so the images are used as"
            f" they are ({images} micrometres per px); mpp= of data_prep gives data one"
        ]
    notes = []
    if factors := sorted(mpp / model_mpp for mpp in known if not is_same(mpp, model_mpp)):
        notes.append(
            f"rescaled to the model's {mpp_text(model_mpp)}: {counted(len(factors), 'image')},"
            f" {span(factors)}"
        )
    if unknown:
        notes.append(
            f"resolution of {counted(len(unknown), 'image')} is not known (model:"
            f" {mpp_text(model_mpp)}): {named(unknown)}; used without rescaling; give it with"
            " mpp=..."
        )
    return notes
