"""Trials of mutated pictures and masks, beside what independent readers see."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image as PillowImage

from tests.fuzz import pictures
from tests.fuzz.pictures import Pixels
from tests.fuzz.readers import label_readings, look_alike, readings
from tests.fuzz.reference import Reference
from tests.fuzz.running import Outcome
from tests.fuzz.text_mutations import mutate_bytes
from tests.fuzz.tif_mutations import flip, mutate
from tests.fuzz.trials import (
    REFUSED,
    RIGHT,
    WRONG,
    Command,
    Trial,
    Verdict,
    prepared_fields,
    preparing,
    skipped,
)

GOOD = pictures.drawn(7)
POINTS = {"tumor": [{"x": 0.205, "y": 0.215}, {"x": 0.705, "y": 0.425}]}
TILE_PX = 64
OUTLINE_PX = 4  # how far an outline of the overlay may reach
Fixtures = dict[str, Callable[[], bytes]]


@cache
def made(fixture: Callable[[], bytes]) -> bytes:
    """Return a picture, drawn once."""
    return fixture()


def mutated_picture(fixtures: Fixtures, rng: np.random.Generator) -> tuple[bytes, bytes, str, str]:
    """Draw a fixture and mutate it: its bytes, the mutated ones, its ending, and what was done."""
    name = str(rng.choice([*fixtures]))
    content = made(fixtures[name])
    is_tif = content[:2] in (b"II", b"MM")
    ending = ".tif" if is_tif else f".{name.removeprefix('mask ')[:3]}"
    if rng.random() < 0.1:
        ending = str(rng.choice((".tif", ".png", ".jpg")))
    if is_tif:
        others = [made(fixture) for fixture in pictures.TIFS.values()]
        changed, what = mutate(content, rng, others)
    elif rng.random() < 0.3:
        changed, what = flip(content[:120], rng)
        changed += content[120:]
    else:
        changed, what = mutate_bytes(content, rng)
    if rng.random() < 0.03:
        changed, what = content, "as it is"
    return content, changed, ending, f"{name}{ending}: {what}"


def write_good(raw: Path, stem: str) -> None:
    """Write a field that is as it should be."""
    PillowImage.fromarray(GOOD).save(raw / "images" / f"{stem}.png")
    (raw / "groundTruth" / f"{stem}.json").write_text(json.dumps(POINTS))


def raw_folder(folder: Path) -> Path:
    """Make the folders of raw fields."""
    raw = folder / "raw"
    for name in ("images", "groundTruth"):
        (raw / name).mkdir(parents=True)
    return raw


class PictureTrials:
    """Makes trials of some fixtures."""

    def __init__(self, fixtures: Fixtures) -> None:
        self.fixtures = fixtures

    def __call__(self, rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
        """Draw a fixture, a mutation and a command."""
        content, changed, ending, about = mutated_picture(self.fixtures, rng)
        intact = folder / f"intact{ending}"
        intact.write_bytes(content)
        way = rng.random()
        if way < 0.35:
            return self.predicted(changed, ending, about, folder, reference)
        raw = raw_folder(folder)
        path = raw / "images" / f"Case_1-01{ending}"
        path.write_bytes(changed)
        (raw / "groundTruth/Case_1-01.json").write_text(json.dumps(POINTS))
        if way < 0.5:
            tiled = (f"tile_px={TILE_PX}", "min_tissue=0")
            judge = lambda outcome: judge_tiles(folder / "out", path, intact)  # noqa: E731
            return Trial(preparing(folder, *tiled), judge, about)
        if way < 0.75:
            write_good(raw, "Case_2-01")
            judge = lambda outcome: judge_with_good(folder / "out", path, intact)  # noqa: E731
            return Trial(preparing(folder, "on_error=skip"), judge, about, goes_on=True)
        judge = lambda outcome: judge_field(folder / "out", path, intact)  # noqa: E731
        return Trial(preparing(folder), judge, about)

    def predicted(
        self, changed: bytes, ending: str, about: str, folder: Path, reference: Reference
    ) -> Trial:
        """Predict a mutated picture."""
        path = folder / f"picture{ending}"
        path.write_bytes(changed)
        arguments = (f"run={reference.run}", f"input={path}", f"out={folder / 'out'}", "amp=off")
        judge = lambda outcome: judge_overlay(  # noqa: E731
            folder / "out", path, folder / f"intact{ending}"
        )
        return Trial(Command("train.predict", arguments), judge, about)


def expected(path: Path, intact: Path) -> list[Pixels]:
    """Return what independent readers see; where none reads it, what it was before."""
    return readings(path) or readings(intact)


def compared(
    ours: Pixels, theirs: list[Pixels], alike: Callable[..., bool] = look_alike
) -> Verdict:
    """Judge a picture by the others' readings."""
    if any(alike(ours, reading) for reading in theirs):
        return Verdict(RIGHT)
    sizes = [reading.shape for reading in theirs] or "none"
    far = [int(np.abs(ours.astype(int) - reading).max()) for reading in theirs
           if reading.shape == ours.shape]  # fmt: skip
    return Verdict(WRONG, f"{ours.shape}, others {sizes}, differ by {far}")


def judge_field(out: Path, path: Path, intact: Path) -> Verdict:
    """Judge the prepared image of a field."""
    image_HWC, _ = prepared_fields(out)["Case_1-01"]
    return compared(image_HWC, expected(path, intact))


def judge_tiles(out: Path, path: Path, intact: Path) -> Verdict:
    """Judge the prepared image of every tile."""
    theirs = expected(path, intact)
    fields = prepared_fields(out)
    for name, (image_HWC, _) in fields.items():
        x, y = (int(part[1:]) for part in name.split("_")[-2:]) if "_x" in name else (0, 0)
        cut = [reading[y : y + TILE_PX, x : x + TILE_PX] for reading in theirs]
        verdict = compared(image_HWC, cut)
        if verdict.name != RIGHT:
            return Verdict(WRONG, f"{name}: {verdict.about}")
    # all of it: as many tiles as its sides need
    needed = {
        -(-max(height, 1) // TILE_PX) * -(-max(width, 1) // TILE_PX)
        for height, width, _ in (reading.shape for reading in theirs)
    }
    return Verdict(RIGHT) if len(fields) in needed else Verdict(WRONG, f"{len(fields)} tiles")


def judge_with_good(out: Path, path: Path, intact: Path) -> Verdict:
    """Judge a set of a mutated and a good field: the one read or named, the other there."""
    fields = prepared_fields(out)
    if "Case_2-01" not in fields or not look_alike(fields["Case_2-01"][0], GOOD):
        return Verdict(WRONG, "the good field is missing or another")
    if "Case_1-01" in fields:
        return compared(fields["Case_1-01"][0], expected(path, intact))
    is_named = path.name in skipped(out)
    return Verdict(REFUSED) if is_named else Verdict(WRONG, "left out without a word")


def judge_overlay(out: Path, path: Path, intact: Path) -> Verdict:
    """Judge what was predicted: the overlay is the picture, but at the outlines of the mask."""
    overlay_HWC = np.asarray(PillowImage.open(out / "picture_overlay.png"))
    mask_HW = tifffile.imread(out / "picture_mask.tif", key=0)
    kernel = np.ones((2 * OUTLINE_PX + 1,) * 2, np.uint8)
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}  # areas end at the edge
    is_near_HW = cv2.dilate(mask_HW, kernel) != cv2.erode(mask_HW, kernel, **outside)

    def alike(ours: Pixels, theirs: Pixels) -> bool:
        if ours.shape != theirs.shape or mask_HW.shape != ours.shape[:2]:
            return False
        theirs = np.where(is_near_HW[..., None], ours, theirs)
        return look_alike(ours, theirs)

    return compared(overlay_HWC, expected(path, intact), alike)


def mask_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Prepare a field with a mutated mask."""
    content, changed, ending, about = mutated_picture(pictures.MASKS, rng)
    raw = raw_folder(folder)
    ending = ".png" if ending == ".jpg" else ending
    path, intact = raw / f"groundTruth/Case_1-01{ending}", folder / f"intact{ending}"
    path.write_bytes(changed)
    intact.write_bytes(content)
    for seed, stem in enumerate(("Case_1-01", "Case_2-01")):
        PillowImage.fromarray(pictures.drawn(seed)).save(raw / f"images/{stem}.png")
    (raw / "groundTruth/Case_2-01.png").write_bytes(made(pictures.MASKS["mask png"]))

    def judge(outcome: Outcome) -> Verdict:
        fields = prepared_fields(folder / "out")
        if "Case_2-01" not in fields:
            return Verdict(WRONG, "the good field is missing")
        if "Case_1-01" not in fields:
            is_named = path.name in skipped(folder / "out")
            return Verdict(REFUSED) if is_named else Verdict(WRONG, "left out without a word")
        masks = [
            np.where(labels_HW > 0, np.uint8(255), np.uint8(0))
            for labels_HW in label_readings(path) or label_readings(intact)
            if {*np.unique(labels_HW).tolist()} <= {0, 1, 255}
        ]
        return compared(fields["Case_1-01"][1], masks)

    goes_on = bool(rng.random() < 0.5)
    settings = ("annotations=masks", f"on_error={'skip' if goes_on else 'stop'}")
    return Trial(preparing(folder, *settings), judge, about, goes_on)
