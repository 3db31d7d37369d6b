"""Trials of mutated annotations, beside what our own small parsers paint."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from tests.fuzz import painter, pictures
from tests.fuzz.picture_trials import POINTS, raw_folder
from tests.fuzz.pictures import HEIGHT_PX, WIDTH_PX
from tests.fuzz.reference import Reference
from tests.fuzz.running import Outcome
from tests.fuzz.text_mutations import mutate_json, mutate_table
from tests.fuzz.trials import (
    RADIUS_PX,
    REFUSED,
    RIGHT,
    WRONG,
    Trial,
    Verdict,
    prepared_fields,
    preparing,
    skipped,
)

SIZE = HEIGHT_PX, WIDTH_PX
TABLE = "file,x,y,class\nCase_1-01.png,20.5,15.5,tumor\nCase_1-01.png,70.25,30.75,tumor\n"
TABLE += "Case_1-01.png,50.5,60.5,lumen\nCase_2-01.png,30.5,40.5,tumor\n"


def brecahad_file() -> dict[str, Any]:
    """Annotate as BreCaHAD does."""
    return {name: [] for name in painter.CLASSES} | {
        "tumor": [{"x": 0.2, "y": 0.21}, {"x": 0.7, "y": 0.42}, {"x": 0.33, "y": 0.9}],
        "lumen": [{"x": 0.5, "y": 0.5}],
    }


def box(left: float, top: float, side: float) -> list[list[float]]:
    """Return the outline of a square."""
    right, bottom = left + side, top + side
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(kind: str, coordinates: Any, name: str = "tumor", **more: Any) -> dict[str, Any]:
    """Return an object as QuPath writes it."""
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "detection", "classification": {"name": name}} | more,
    }


def qupath_file() -> dict[str, Any]:
    """Annotate as QuPath does."""
    features = [
        feature("Point", [20.5, 15.5]),
        feature("MultiPoint", [[70.5, 30.5], [50.5, 10.5]]),
        feature("Polygon", [box(10.5, 40.5, 12), box(14.5, 44.5, 4)]),
        feature("MultiPolygon", [[box(60, 40, 10)], [box(80, 45, 9)]]),
        feature("Polygon", [box(30, 20, 10)], "lumen"),
        feature("Polygon", [box(40, 50, 8)], childObjects=[feature("Point", [90.5, 8.5])]),
        feature(
            "Polygon",
            [box(2, 2, 20)],
            objectType="annotation",
            childObjects=[
                feature("Polygon", [box(4, 30, 9)], objectType="cell")
                | {"nucleusGeometry": {"type": "Polygon", "coordinates": [box(5, 31, 4)]}},
                feature(
                    "Polygon",
                    [box(80, 2, 9)],
                    objectType="tile",
                    childObjects=[feature("MultiPoint", [[95.5, 60.5], [93.5, 65.5]])],
                ),
            ],
        ),
        feature("Polygon", [box(1, 60, 9)], objectType="tma_core"),
        feature("LineString", [[1, 1], [5, 5]], objectType="annotation"),
    ]
    return {"type": "FeatureCollection", "features": features}


def brecahad_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Prepare a field with a mutated JSON of BreCaHAD's."""
    content, about = mutate_json(json.dumps(brecahad_file()).encode(), rng)
    good = json.dumps(POINTS).encode()
    return per_field(rng, folder, ("brecahad",), ".json", (content, good), about, painter.brecahad)


def geojson_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Prepare a field with a mutated GeoJSON."""
    content, about = mutate_json(json.dumps(qupath_file()).encode(), rng)
    good = json.dumps([feature("Point", [30.5, 40.5])]).encode()
    types = (*painter.TYPES, "tile") if rng.random() < 0.3 else painter.TYPES
    settings = ("geojson", f"object_types=[{','.join(types)}]")
    paint = partial(painter.geojson, types=types)
    return per_field(rng, folder, settings, ".geojson", (content, good), about, paint)


def per_field(
    rng: np.random.Generator,
    folder: Path,
    settings: tuple[str, ...],
    ending: str,
    contents: tuple[bytes, bytes],
    about: str,
    paint: Callable[..., painter.Painted],
) -> Trial:
    """Prepare a mutated and a good field."""
    raw = with_images(folder)
    for stem, content in zip(("Case_1-01", "Case_2-01"), contents, strict=True):
        (raw / f"groundTruth/{stem}{ending}").write_bytes(content)
    goes_on = bool(rng.random() < 0.5)
    on_error = f"on_error={'skip' if goes_on else 'stop'}"
    command = preparing(folder, f"annotations={settings[0]}", *settings[1:], on_error)

    def judge(outcome: Outcome) -> Verdict:
        return judge_mask(
            folder / "out",
            outcome,
            f"Case_1-01{ending}",
            lambda: paint(contents[0], SIZE, RADIUS_PX),
        )

    return Trial(command, judge, about, goes_on)


def table_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Prepare two fields with a mutated table."""
    content, about = mutate_table(TABLE.encode(), rng)
    raw = with_images(folder)
    (raw / "groundTruth/table.csv").write_bytes(content)

    def judge(outcome: Outcome) -> Verdict:
        if "left out groundTruth/table.csv" in outcome.told:
            return Verdict(REFUSED)
        return judge_mask(
            folder / "out",
            outcome,
            "Case_1-01.png",
            lambda: painter.table(content, "Case_1-01", SIZE, RADIUS_PX),
        )

    skip = "skip" if rng.random() < 0.3 else "stop"
    return Trial(preparing(folder, "annotations=csv", f"on_error={skip}"), judge, about)


def with_images(folder: Path) -> Path:
    """Make a raw folder of two images."""
    raw = raw_folder(folder)
    for seed, stem in enumerate(("Case_1-01", "Case_2-01"), start=1):
        PillowImage.fromarray(pictures.drawn(seed)).save(raw / f"images/{stem}.png")
    return raw


def judge_mask(
    out: Path, outcome: Outcome, name: str, paint: Callable[[], painter.Painted]
) -> Verdict:
    """Judge the mask of the mutated field: painted alike, or left out and named.

    Objects that cannot be used may be passed over, with a word.
    """
    fields = prepared_fields(out)
    if "Case_1-01" not in fields:
        is_named = name in skipped(out)
        return Verdict(REFUSED) if is_named else Verdict(WRONG, "left out without a word")
    ours_HW = fields["Case_1-01"][1]
    try:
        right = paint()
    except (painter.Unclear, ValueError, TypeError, RecursionError, AttributeError) as error:
        return Verdict(WRONG, f"used, though {error!r:.200}; {(ours_HW > 0).sum()} px")
    if not np.array_equal(ours_HW, right.mask_HW):
        counts = int((ours_HW > 0).sum()), int((right.mask_HW > 0).sum())
        return Verdict(WRONG, f"the mask has {counts[0]} px, right {counts[1]}")
    if right.num_lost and "passed over" not in outcome.told:
        return Verdict(WRONG, f"{right.num_lost} objects passed over without a word")
    return Verdict(RIGHT)
