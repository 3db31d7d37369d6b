"""Trials of mutated settings: a resolution in the tags, a file of keys, a file of a pipeline."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from tests.fuzz import pictures
from tests.fuzz.picture_trials import POINTS, raw_folder, write_good
from tests.fuzz.reference import Reference
from tests.fuzz.running import Outcome
from tests.fuzz.text_mutations import mutate_yaml
from tests.fuzz.tif_mutations import EDGES, set_resolution
from tests.fuzz.tif_structure import Tif
from tests.fuzz.trials import RIGHT, WRONG, Trial, Verdict, prepared_fields, preparing

X, Y, UNIT = 282, 283, 296
UNITS_UM = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}
SMALLEST_MPP, LARGEST_MPP = 0.01, 10.0
TOLD_MPP = 0.25
FAR = 20.0  # mean difference to a picture that OpenCV has rescaled
CONFIG = """\
radius_px: 5
copies: 2
seed: 3
classes: [tumor]
labels: binary
min_tissue: 0.2
case_regex: (?P<case>.+)-\\d+
split:
  val: 0.0
  test: 0.0
  test_cases: []
augment:
  border: mirror
  transforms: [rotation, scale]
  rotation:
    max_deg: 90.0
  scale: {min: 0.8, max: 1.2}
"""
PIPELINE = """\
transform:
  __class_fullname__: Compose
  p: 1.0
  transforms:
  - __class_fullname__: HorizontalFlip
    p: 0.5
  - __class_fullname__: OneOf
    p: 0.9
    transforms:
    - __class_fullname__: GaussianBlur
      blur_limit: [3, 5]
      p: 0.5
    - __class_fullname__: ColorJitter
      brightness: [0.8, 1.2]
      hue: [-0.05, 0.05]
  - __class_fullname__: GaussNoise
    std_range: [0.02, 0.05]
"""


def resolution_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Prepare a TIF that tells its resolution at another one."""
    raw = raw_folder(folder)
    resolution = {"resolution": (1e4 / TOLD_MPP,) * 2, "resolutionunit": 3}
    content = pictures.tif(pictures.RGB, photometric="rgb", **resolution)
    done = []
    for _ in range(int(rng.integers(1, 3))):
        content, what = with_other_resolution(content, rng)
        done.append(what)
    (raw / "images/Case_1-01.tif").write_bytes(content)
    (raw / "groundTruth/Case_1-01.json").write_text(json.dumps(POINTS))
    wanted = float(rng.choice((0.1, 0.25, 0.5, 2.0)))

    def judge(outcome: Outcome) -> Verdict:
        image_HWC, mask_HW = prepared_fields(folder / "out")["Case_1-01"]
        tif = Tif(content)
        factor = told_mpp(tif, wanted) / wanted
        if not factor:
            return Verdict(WRONG, "used, though its px are not square")
        factor = 1.0 if abs(factor - 1) < 0.01 else factor
        height, width = (round(side * factor) for side in pictures.RGB.shape[:2])
        if image_HWC.shape != (height, width, 3) or mask_HW.shape != (height, width):
            return Verdict(WRONG, f"{image_HWC.shape}, right {(height, width)}")
        way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        rescaled_HWC = cv2.resize(pictures.RGB, (width, height), interpolation=way)
        far = float(np.abs(image_HWC.astype(int) - rescaled_HWC).mean())
        return Verdict(RIGHT) if far < FAR else Verdict(WRONG, f"another picture, by {far:.1f}")

    return Trial(preparing(folder, f"mpp={wanted}"), judge, f"to {wanted}: {', '.join(done)}")


def with_other_resolution(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Change a number of the resolution's fractions, or its tags."""
    tif = Tif(content)
    (page,) = tif.pages()
    if rng.random() < 0.4:
        return set_resolution(tif, page, rng)
    tag = int(rng.choice((X, Y)))
    entry = next((entry for entry in page.entries if entry.tag == tag), None)
    if entry is None or (entry.kind, entry.count) != (5, 1):
        return set_resolution(tif, page, rng)
    place = int.from_bytes(entry.raw, "little") + 4 * int(rng.integers(2))
    factor = float(rng.choice((0.0, 0.5, 0.985, 1.01, 1.03, 2.0, 4.0, 100.0)))
    before = int.from_bytes(content[place : place + 4], "little")
    value = int(rng.choice(EDGES)) if rng.random() < 0.3 else int(before * factor) % 2**32
    changed = content[:place] + value.to_bytes(4, "little") + content[place + 4 :]
    return changed[: len(content)], f"a number of tag {tag} becomes {value}"


def told_mpp(tif: Tif, otherwise_mpp: float) -> float:
    """Return the micrometres per px that the tags tell; 0 for px that are not square."""
    (page,) = tif.pages()
    unit = tif.value(page, UNIT)
    unit_um = UNITS_UM.get(2 if unit is None else unit, 0.0)
    told = [tif.fraction(page, tag) or (0, 1) for tag in (X, Y)]
    x, y = (unit_um * bottom / top if top else 0.0 for top, bottom in told)
    if not all(SMALLEST_MPP <= value <= LARGEST_MPP for value in (x, y)):
        return otherwise_mpp
    return float(np.sqrt(x * y)) if max(x, y) <= 1.02 * min(x, y) else 0.0


def config_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Prepare by a mutated file of keys."""
    content, about = mutate_yaml(CONFIG.encode(), rng)
    path = folder / "keys.yaml"
    path.write_bytes(content)
    write_good(raw_folder(folder), "Case_1-01")
    given = [f"{key}={folder / key}" for key in ("raw", "out")]
    command = preparing(folder)
    arguments = (*given, "workers=1", "format=png", f"config={path}")

    def judge(outcome: Outcome) -> Verdict:
        used = json.loads((folder / "out/dataset.json").read_bytes())["config"]
        wrong = differing(yaml.safe_load(content), used)
        return Verdict(WRONG, f"other settings: {wrong}") if wrong else Verdict(RIGHT)

    return Trial(type(command)(command.module, arguments), judge, about)


def differing(given: Any, used: dict[str, Any], above: str = "") -> list[str]:
    """Return the keys of a file that were used with another value than it gives them."""
    wrong = []
    for key, value in given.items() if isinstance(given, dict) else ():
        other = used.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            wrong += differing(value, other, f"{above}{key}.")
        elif key in used and not is_same(value, other):
            wrong.append(f"{above}{key}: {value!r:.60} as {other!r:.60}")
    return wrong


def is_same(given: Any, used: Any) -> bool:
    """Whether a value of YAML was taken for what it is."""
    if isinstance(given, list) and isinstance(used, list):
        return [str(entry) for entry in given] == [str(entry) for entry in used]
    if isinstance(used, float) and not isinstance(given, list | dict | None):
        return float(given) == used
    return str(given) == str(used)


def pipeline_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Prepare with a mutated pipeline of albumentations."""
    content, about = mutate_yaml(PIPELINE.encode(), rng)
    path = folder / "pipeline.yaml"
    path.write_bytes(content)
    write_good(raw_folder(folder), "Case_1-01")
    settings = (f"augment.pipeline={path}", "augment.transforms=[]", "copies=3")

    def judge(outcome: Outcome) -> Verdict:
        config = json.loads((folder / "out/dataset.json").read_bytes())["config"]
        used = json.loads(config["augment"]["pipeline"])
        given = yaml.safe_load(content)
        is_used = used["transform"] == json.loads(json.dumps(given["transform"]))
        samples = len((folder / "out/manifest.jsonl").read_text().splitlines())
        if not is_used or samples != 3:
            return Verdict(WRONG, f"{samples} samples of {config['augment']['pipeline']:.300}")
        return Verdict(RIGHT)

    return Trial(preparing(folder, *settings), judge, about)
