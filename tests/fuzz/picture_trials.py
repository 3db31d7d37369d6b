"""Trials of mutated pictures, beside what independent readers see."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image as PillowImage

from tests.fuzz import pictures
from tests.fuzz.pictures import Pixels
from tests.fuzz.readers import look_alike, readings
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
OUTLINE_PX, DOT_PX = 4, 4  # how far an outline and a dot of the overlay may reach
ROUNDED = 0.02  # how far figures may differ, since others round a picture otherwise
Fixtures = dict[str, Callable[[], bytes]]


@cache
def made(fixture: Callable[[], bytes]) -> bytes:
    """Return a picture, drawn once."""
    return fixture()


@dataclass(frozen=True)
class Picture:
    """A picture as it was and as it is, in two files."""

    name: str
    path: Path
    intact: Path
    about: str
    """What was mutated, and how."""

    @property
    def page(self) -> int | None:
        """The number of the page that is the picture; None for the largest."""
        return pictures.WRITERS[self.name][2] if self.name in pictures.WRITERS else None

    @property
    def is_intact(self) -> bool:
        """Whether nothing was changed."""
        return self.path.read_bytes() == self.intact.read_bytes()

    def before(self) -> list[Pixels]:
        """Return what is to be seen in the picture as it was."""
        if self.name in pictures.KNOWN:
            return [pictures.KNOWN[self.name]()]
        return readings(self.intact, self.page)

    def expected(self) -> list[Pixels]:
        """Return what independent readers see; where none reads it, what it was before."""
        if self.is_intact:
            return self.before()
        return readings(self.path, self.page) or self.before()

    def is_read_by_others(self) -> bool:
        """Whether two readers see in it what it was."""
        (before, *_), found = self.before(), readings(self.path, self.page)
        return len(found) > 1 and all(look_alike(before, reading) for reading in found)


def mutated_picture(
    fixtures: Fixtures, rng: np.random.Generator, folder: Path, place: str
) -> Picture:
    """Draw a fixture and a mutation, and write both in a folder; `place`: the path to be, without
    its ending."""
    name = str(rng.choice([*fixtures]))
    content = made(fixtures[name])
    is_tif = content[:2] in (b"II", b"MM")
    ending = ".tif" if is_tif else f".{name.removeprefix('mask ')[:3]}"
    if rng.random() < 0.1:
        ending = str(rng.choice((".tif", ".png", ".jpg")))
    if place.startswith("raw/groundTruth") and ending == ".jpg":
        ending = ".png"
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
    path, intact = folder / f"{place}{ending}", folder / f"intact{ending}"
    path.write_bytes(changed)
    intact.write_bytes(content)
    return Picture(name, path, intact, f"{name}{ending}: {what}")


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
        raw, out, way = raw_folder(folder), folder / "out", rng.random()
        if way < 0.3:
            picture = mutated_picture(self.fixtures, rng, folder, "picture")
            given = (f"run={reference.run}", f"input={picture.path}", f"out={out}", "amp=off")
            command = Command("train.predict", given)
            return self.trial(command, lambda _: judge_overlay(out, picture), picture)
        picture = mutated_picture(self.fixtures, rng, folder, "raw/images/Case_1-01")
        (raw / "groundTruth/Case_1-01.json").write_text(json.dumps(POINTS))
        if way < 0.38:
            judge = lambda _: judge_evaluation(folder, picture, reference)  # noqa: E731
            return self.trial(evaluating(raw, out, reference), judge, picture)
        if way < 0.5:
            tiled = (f"tile_px={TILE_PX}", "min_tissue=0")
            command = preparing(folder, *tiled)
            return self.trial(command, lambda _: judge_tiles(out, picture), picture)
        if way < 0.75:
            write_good(raw, "Case_2-01")
            judge = lambda _: judge_with_good(out, picture)  # noqa: E731
            command = preparing(folder, "on_error=skip")
            return self.trial(command, judge, picture, goes_on=True)
        return self.trial(preparing(folder), lambda _: judge_field(out, picture), picture)

    def trial(
        self,
        command: Command,
        judge: Callable[[Outcome], Verdict],
        picture: Picture,
        goes_on: bool = False,
    ) -> Trial:
        """Make the trial of a picture."""
        return Trial(command, judge, picture.about, goes_on, picture.is_read_by_others)


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


def judge_field(out: Path, picture: Picture) -> Verdict:
    """Judge the prepared image of a field."""
    image_HWC, _ = prepared_fields(out)["Case_1-01"]
    return compared(image_HWC, picture.expected())


def judge_tiles(out: Path, picture: Picture) -> Verdict:
    """Judge the prepared image of every tile."""
    theirs = picture.expected()
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


def judge_with_good(out: Path, picture: Picture) -> Verdict:
    """Judge a set of a mutated and a good field: the one read or named, the other there."""
    fields = prepared_fields(out)
    if "Case_2-01" not in fields or not look_alike(fields["Case_2-01"][0], GOOD):
        return Verdict(WRONG, "the good field is missing or another")
    if "Case_1-01" in fields:
        return compared(fields["Case_1-01"][0], picture.expected())
    is_named = picture.path.name in skipped(out)
    return Verdict(REFUSED) if is_named else Verdict(WRONG, "left out without a word")


def judge_overlay(out: Path, picture: Picture) -> Verdict:
    """Judge what was predicted: the overlay is the picture, but for outlines and dots."""
    overlay_HWC = np.asarray(PillowImage.open(out / "picture_overlay.png"))
    mask_HW = tifffile.imread(out / "picture_mask.tif", key=0)
    kernel = np.ones((2 * OUTLINE_PX + 1,) * 2, np.uint8)
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}  # areas end at the edge
    is_near_HW = cv2.dilate(mask_HW, kernel) != cv2.erode(mask_HW, kernel, **outside)
    for nucleus in json.loads((out / "picture_nuclei.geojson").read_bytes())["features"]:
        x, y = (int(value) for value in nucleus["geometry"]["coordinates"])
        near = slice(max(0, y - DOT_PX), y + DOT_PX + 1), slice(max(0, x - DOT_PX), x + DOT_PX + 1)
        is_near_HW[near] = True

    def alike(ours: Pixels, theirs: Pixels) -> bool:
        if ours.shape != theirs.shape or mask_HW.shape != ours.shape[:2]:
            return False
        theirs = np.where(is_near_HW[..., None], ours, theirs)
        return look_alike(ours, theirs)

    return compared(overlay_HWC, picture.expected(), alike)


def evaluating(raw: Path, out: Path, reference: Reference) -> Command:
    """Return the command that measures the run on raw fields."""
    given = (f"run={reference.run}", f"raw={raw}", f"out={out}", "figures=0", "amp=off")
    return Command("train.evaluate", given)


def judge_evaluation(folder: Path, picture: Picture, reference: Reference) -> Verdict:
    """Judge an evaluation: the figures are those of the same picture as a PNG."""
    ours, theirs = figures_of(folder / "out"), []
    for number, reading in enumerate(picture.expected()):
        again = folder / "log" / str(number)  # what the command itself wrote is looked at later
        raw = raw_folder(again)
        PillowImage.fromarray(reading).save(raw / "images/Case_1-01.png")
        (raw / "groundTruth/Case_1-01.json").write_text(json.dumps(POINTS))
        with suppress(SystemExit):
            evaluating(raw, again / "out", reference)()
        theirs.append(figures_of(again / "out"))
        if np.allclose(ours, theirs[-1], rtol=0, atol=ROUNDED, equal_nan=True):
            return Verdict(RIGHT)
    return Verdict(WRONG, f"figures {ours}, as a PNG {theirs}")


def figures_of(out: Path) -> list[float]:
    """Return what was measured of all px, NaN where that is no number."""
    measured = json.loads((out / "summary.json").read_bytes())["all_pixels"]
    return [math.nan if value is None else value for _, value in sorted(measured.items())]
