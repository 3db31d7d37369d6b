"""Find pictures that occur twice: trained on under another name, or annotated twice.

The hash of a picture has 64 bits: which of its 8 x 8 lowest frequencies are above their median
(pHash: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions").
Compression, noise and another size change a few bits. Hashes of all eight flips and quarter turns
find a picture that was flipped or turned; one that was cut or turned by other angles is not found.

In BreCaHAD's sample the two copies of one picture differ by 2 bits, any two other pictures (whole
fields, or quarters) by 18 or more.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from common.command_line import UserError
from data_prep.config import IGNORE_LABEL
from data_prep.dataset.manifest import Dataset, Sample, read_dataset
from data_prep.dataset.samples import read_image
from data_prep.images.arrays import Image, Mask, PointsN2
from data_prep.images.masks import channels_of
from train.fields.whole_fields import WholeField
from train.metrics.scores import Score, count_pixels, score
from train.ranks.distributed import Ranks
from train.runs.run_folder import Run

NEAR_BITS = 10
SIDE_PX, FREQUENCIES = 32, slice(1, 9)
SAME_LEVELS = 5  # mean difference: 2.1 in the sample; a field beside itself by 10 px, 7.6 and more


@dataclass(frozen=True)
class Fingerprint:
    """The hashes of a field's picture."""

    index: int
    """Number of the field in its list."""
    field: str
    case: str
    hashes: tuple[int, ...]
    """The hash of the picture as it is, then of its other flips and turns."""


def fingerprint(index: int, field: str, case: str, image_HWC: Image) -> Fingerprint:
    """Compute the fingerprint of a picture, HWC uint8 RGB."""
    grey = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    turned = [np.rot90(side, turns) for side in (small, small.T) for turns in range(4)]
    return Fingerprint(index, field, case, tuple(map(hash_of, turned)))


def hash_of(small_HW: npt.NDArray[np.float32]) -> int:
    """Compute the 64-bit hash of a grey picture of SIDE_PX."""
    low = cv2.dct(np.ascontiguousarray(small_HW))[FREQUENCIES, FREQUENCIES]
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def truth_sha256(
    truth_CHW: npt.NDArray[np.bool_],
    is_valid_HW: npt.NDArray[np.bool_],
    annotated: Sequence[PointsN2],
) -> str:
    """Hash the truth of a field: the masks and the annotated points of its classes, and what is
    ignored.

    train.compare sees from it that figures are against the same truth.
    """
    shape = str(truth_CHW.shape).encode()
    hashed = hashlib.sha256(shape + np.packbits(truth_CHW).tobytes())
    if not is_valid_HW.all():
        hashed.update(b"valid" + np.packbits(is_valid_HW).tobytes())
    for points_N2 in annotated:
        hashed.update(b"points" + np.asarray(points_N2, np.float64).tobytes())
    return hashed.hexdigest()


def near_duplicates(
    evaluated: Sequence[Fingerprint], trained: Sequence[Fingerprint]
) -> list[dict[str, Any]]:
    """Find evaluated fields that look like a training field of another case; the closest first."""
    trained_hashes = np.array([entry.hashes[0] for entry in trained], np.uint64)
    found = []
    for entry in evaluated:
        differing = np.array(entry.hashes, np.uint64)[:, None] ^ trained_hashes
        bits = np.bitwise_count(differing).min(axis=0)
        found += [
            {
                "field": entry.field,
                "trained_field": trained[number].field,
                "trained_case": trained[number].case,
                "bits": int(bits[number]),
            }
            for number in np.flatnonzero(bits <= NEAR_BITS).tolist()
            if trained[number].case != entry.case
        ]
    return sorted(found, key=lambda pair: (pair["bits"], pair["field"], pair["trained_field"]))


def compare_with_training(
    evaluated: Sequence[Fingerprint], run: Run, data: str, ranks: Ranks
) -> dict[str, Any]:
    """Look for near-duplicates among the fields that the run was trained on. Collective.

    `data` is where the prepared data set is, '' for where it was in training. If that of a member
    is missing or another one, the result holds the reason as `not_checked`.
    """
    about: dict[str, Any] = {"max_bits": NEAR_BITS}
    try:
        fields, reasons = ranks.first_does(lambda: training_fields(run, data))
        mine = ranks.items_of_rank(list(enumerate(fields.items())))
        prints = ranks.all_do(
            lambda: [of_sample(folder, number, sample) for number, ((folder, _), sample) in mine]
        )
    except UserError as error:
        return about | {"not_checked": str(error)}
    if reasons:
        about["not_checked"] = "; ".join(reasons)
        if not fields:
            return about
    trained = sorted(
        (entry for of_rank in prints for entry in of_rank), key=lambda entry: entry.index
    )
    found = near_duplicates(evaluated, trained)
    return about | {"num_training_fields": len(trained), "found": found}


def training_fields(run: Run, data: str) -> tuple[dict[tuple[Path, str], Sample], list[str]]:
    """Return the fields that any member of a run was trained on, by folder and id; and why those of
    other members are not known: their data set is missing or another one."""
    found, reasons = {}, dict[str, None]()
    for member in run.members:
        try:
            dataset = trained_on(member, data)
        except UserError as error:
            reasons[str(error)] = None
            continue
        for sample in dataset.split("train", originals_only=True):
            found[dataset.folder, sample.id] = sample
    return found, [*reasons]


def trained_on(run: Run, data: str) -> Dataset:
    """Read the data set that a run was trained on: `data` if it is that one, else where it was in
    training. Raises UserError where it is at neither."""
    places = [place for place in (data, run.config.data) if place]
    if not places:
        raise UserError("an exported model does not know where its data set is; give data=")
    for place in places:
        dataset = read_dataset(Path(place))
        if dataset.description.content_sha256 == run.data.content_sha256:
            break
    else:
        raise UserError(f"data={places[-1]}: not the content that the run was trained on")
    trained = set(run.data.cases["train"])
    samples = [sample for sample in dataset.samples if sample.case in trained]
    return replace(dataset, samples=samples)


def of_sample(folder: Path, index: int, sample: Sample) -> Fingerprint:
    """Compute the fingerprint of a prepared sample."""
    image_HWC = read_image(folder, sample)
    return fingerprint(index, sample.field, sample.case, image_HWC)


def agreement(
    fields: Sequence[WholeField], evaluated: Sequence[Fingerprint], label_values: Sequence[int]
) -> list[dict[str, Any]]:
    """Compute the Dice between the two annotations of each picture that occurs twice.

    `evaluated` are the fingerprints of `fields`, in their order.
    """
    hashes = np.array([entry.hashes[0] for entry in evaluated], np.uint64)
    found = []
    for number, entry in enumerate(evaluated):
        later = evaluated[number + 1 :]
        is_near = np.bitwise_count(hashes[number + 1 :] ^ hashes[number]) <= NEAR_BITS
        for other in (later[index] for index in np.flatnonzero(is_near).tolist()):
            pair = fields[entry.index], fields[other.index]
            one, other_one = (field.read() for field in pair)
            if is_same_picture(one.image_HWC, other_one.image_HWC):
                dice = agreement_of(one.mask_HW, other_one.mask_HW, label_values)
                found.append({"fields": [field.name for field in pair], "dice": dice})
    return found


def is_same_picture(image_HWC: Image, other_HWC: Image) -> bool:
    """Whether two images of near hashes are one picture, pixel by pixel."""
    if image_HWC.shape != other_HWC.shape:
        return False
    return float(cv2.absdiff(image_HWC, other_HWC).mean()) <= SAME_LEVELS


def agreement_of(mask_HW: Mask, other_HW: Mask, label_values: Sequence[int]) -> Score:
    """Compute the Dice of two masks over all classes, where neither is ignored; None if both are
    empty."""
    is_valid_HW = (mask_HW != IGNORE_LABEL) & (other_HW != IGNORE_LABEL)
    masks = (channels_of(each, label_values) & is_valid_HW for each in (mask_HW, other_HW))
    # neither is the truth: one that is empty is taken for the prediction
    truth_BCHW = torch.from_numpy(np.stack(sorted(masks, key=np.count_nonzero)))
    return score(count_pixels(truth_BCHW[:1], truth_BCHW[1:]).numpy())["dice"]


def duplicate_warnings(compared: dict[str, Any]) -> list[str]:
    """Say what `compare_with_training` found, and could not check; nothing where it found none."""
    warnings = []
    if reason := compared.get("not_checked"):
        of_some = "by some members " if "found" in compared else ""
        warnings.append(
            f"not checked whether these pictures were trained on {of_some}under other names:"
            f" {reason}"
        )
    if not compared.get("found"):
        return warnings
    pairs = ", ".join(
        f"{pair['field']} like {pair['trained_field']} ({pair['bits']} of 64 bits differ)"
        for pair in compared["found"]
    )
    return [*warnings, f"pictures that look like ones trained on, of other cases: {pairs}"]


def split_warnings(cases: dict[str, list[str]]) -> list[str]:
    """Name cases that are in two splits, a line for two splits; `cases`: split -> its cases."""
    warnings = []
    for (name, members), (other, others) in combinations(cases.items(), 2):
        if both := sorted(set(members) & set(others)):
            warnings.append(f"in two splits, {name} and {other}: {', '.join(both)}")
    return warnings
