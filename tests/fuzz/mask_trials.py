"""Trials of mutated masks, beside what independent readers see."""

from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from tests.fuzz import pictures
from tests.fuzz.picture_trials import compared, made, mutated_picture, raw_folder
from tests.fuzz.readers import label_readings
from tests.fuzz.reference import Reference
from tests.fuzz.running import Outcome
from tests.fuzz.trials import REFUSED, WRONG, Trial, Verdict, prepared_fields, preparing, skipped


def mask_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Prepare a field with a mutated mask, of one class or of two."""
    has_two = bool(rng.random() < 0.5)
    fixtures = pictures.CLASS_MASKS if has_two else pictures.MASKS
    raw = raw_folder(folder)
    mask = mutated_picture(fixtures, rng, folder, "raw/groundTruth/Case_1-01")
    for seed, stem in enumerate(("Case_1-01", "Case_2-01")):
        PillowImage.fromarray(pictures.drawn(seed)).save(raw / f"images/{stem}.png")
    (raw / "groundTruth/Case_2-01.png").write_bytes(made(fixtures["mask png"]))
    allowed = {0, 1, 2} if has_two else {0, 1, 255}

    def judge(outcome: Outcome) -> Verdict:
        fields = prepared_fields(folder / "out")
        if "Case_2-01" not in fields:
            return Verdict(WRONG, "the good field is missing")
        if "Case_1-01" not in fields:
            is_named = mask.path.name in skipped(folder / "out")
            return Verdict(REFUSED) if is_named else Verdict(WRONG, "left out without a word")
        masks = [
            labels_HW if has_two else np.where(labels_HW > 0, np.uint8(255), np.uint8(0))
            for labels_HW in label_readings(mask.path) or label_readings(mask.intact)
            if {*np.unique(labels_HW).tolist()} <= allowed
        ]
        return compared(fields["Case_1-01"][1], masks, np.array_equal)

    def is_read_by_others() -> bool:
        (before, *_), found = label_readings(mask.intact), label_readings(mask.path)
        return len(found) > 1 and all(np.array_equal(before, labels_HW) for labels_HW in found)

    goes_on = bool(rng.random() < 0.5)
    settings = ["annotations=masks", f"on_error={'skip' if goes_on else 'stop'}"]
    if has_two:
        settings += ["classes=[tumor,lumen]", "labels=per_class"]
    return Trial(preparing(folder, *settings), judge, mask.about, goes_on, is_read_by_others)
