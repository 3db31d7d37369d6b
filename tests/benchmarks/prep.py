"""Preparing a field with its variants: beside the classic recipe, and beside the floor.

    python -m tests.benchmarks.prep [--raw DIR] [--fields 162] [--rounds 3]

floor     nothing but decoding a field once and encoding sixteen images and masks; beside it, a
          field each in turn, a worker at work
naive     what scripts do: PIL and SciPy, noise as large as the image, a transform at a time, discs
          a point at a time; one field in each round
plain     the same variants by plain calls of albumentations 2.0.8, images and masks, OpenCV's
          files; no points, which take it seconds; its elastic noise exact, and approximate too,
          which is another variant for a sigma of 50: it cuts the Gaussian to 17 px
eosin     python -m data_prep, from its start to the published data set, on one and two workers, of
          as many fields as BreCaHAD has

Fields are drawn by data_prep.synthetic, and then taken from --raw too. For each: what the machine
itself gives two processes, by those that are at nothing but the floor; the memory of a worker after
4 and after 40 fields; and what a second run on unchanged fields takes. Writes some 10 GB, with
--raw 20; on ext4, wait five minutes before it is run again (see new_folder).
"""

import argparse
import dataclasses
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage

from common.malloc import keep_freed_memory
from common.workers import map_tasks
from data_prep.annotations.brecahad import decode_points
from data_prep.annotations.formats import READERS
from data_prep.augment.transforms import albumentations  # which does not ask the network
from data_prep.augment.variants import ORIGINAL, Variant, plan_variants
from data_prep.config import TRANSFORMS, AugmentConfig, PrepConfig, SplitConfig
from data_prep.field import FieldTask, prepare_field
from data_prep.image_files.open_image import read_image
from data_prep.images import encoding, masks
from data_prep.plan import hash_inputs, make_folders, make_task
from data_prep.raw import Field
from tests import ranks as real_ranks
from tests.benchmarks.side_by_side import compare

COPIES, RADIUS_PX, QUALITY = 16, 20, 95
WHOLE_BRECAHAD = 162
AT_THE_FLOOR = 96  # fields


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.prep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", help="real fields, in BreCaHAD's layout (none)")
    parser.add_argument(
        "--fields",
        type=int,
        default=WHOLE_BRECAHAD,
        help=f"fields of a run ({WHOLE_BRECAHAD}, a whole BreCaHAD)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, interleaved (3)")
    parser.add_argument("--worker-memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker_memory:
        raw, out = map(Path, options.worker_memory)
        print(json.dumps(worker_memory_mb(raw, out)))
        return
    if options.raw and not Path(options.raw).is_dir():
        parser.error(f"--raw {options.raw}: no such folder")
    cv2.setNumThreads(1)  # as in a worker
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        sources = {"drawn": drawn(Path(folder) / "raw")}
        if options.raw:
            sources["real"] = Path(options.raw)
        for name, source in sources.items():
            print(f"\n{name} fields\n")
            measure(source, Path(folder) / name, options.fields, options.rounds)


def measure(source: Path, folder: Path, number: int, rounds: int) -> None:
    """Print the table of one raw data set."""
    raw = many_fields(source, folder / "raw", number)
    worker_beside_floor(raw, folder / "worker")
    prepared = side_by_side(raw, folder, number, rounds)
    memory(raw, folder / "memory")
    again(raw, prepared, number)


def drawn(folder: Path) -> Path:
    """A raw data set of the usual size."""
    real_ranks.run("data_prep.synthetic", f"out={folder}", "cases=3", "fields=2")
    return folder


def many_fields(source: Path, raw: Path, number: int) -> Path:
    """A raw folder of as many fields, each with the pixels of one of the source's.

    An annotation is written anew, so that inputs are not the same bytes.
    """
    for folder in ("images", "groundTruth"):
        (raw / folder).mkdir(parents=True)
    fields, _ = READERS["brecahad"].find_fields(source, PrepConfig(raw="", out="").case_regex)
    for index, field in enumerate(islice(cycle(fields), number)):
        name = f"Case_1-{index:03d}"  # one case: a repeated picture may be in one
        (raw / f"images/{name}{field.image.suffix}").symlink_to(field.image.resolve())
        (raw / f"groundTruth/{name}.json").write_bytes(field.annotation.read_bytes())
    return raw


def side_by_side(raw: Path, folder: Path, number: int, rounds: int) -> Path:
    """The table of seconds a field and ratios; returns the data set of the last run."""
    fields, _ = READERS["brecahad"].find_fields(raw, PrepConfig(raw="", out="").case_regex)
    turn, latest = cycle(fields), folder

    def new_folder() -> Path:
        """All of them are kept to the end: ext4 does not use a removed file's place again for five
        minutes, but looks at it for every new file, which for some thousands takes 1 ms.
        """
        return Path(tempfile.mkdtemp(dir=folder))

    def naive() -> float:
        return seconds_of(lambda field: naive_recipe(field, folder / "naive"), next(turn))

    def plain(is_approximate: bool) -> float:
        recipe = partial(plain_albumentations, out=folder / "naive", is_approximate=is_approximate)
        return seconds_of(recipe, next(turn))

    def eosin(workers: int) -> float:
        nonlocal latest
        latest = new_folder() / "out"
        return seconds_of(partial(run_data_prep, raw, workers), latest) / number

    def floor(workers: int) -> float:
        return floor_on([*islice(cycle(fields), AT_THE_FLOOR)], workers)

    (folder / "naive").mkdir()
    naive()
    plain(True)
    eosin(2)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        seconds.setdefault("naive", []).append(naive())
        seconds.setdefault("albumentations, exact", []).append(plain(False))
        seconds.setdefault("albumentations, approximate", []).append(plain(True))
        for way, one, two in (
            ("eosin, workers={}, start to end", *before_and_after(eosin)),
            ("the floor, processes={}", *before_and_after(floor)),
        ):
            seconds.setdefault(way.format(1), []).append(one)
            seconds.setdefault(way.format(2), []).append(two)
    print("| way | ms a field | naive is slower by |")
    print("| --- " * 3 + "|")
    for name, median_s, ratio in compare(seconds, "naive"):
        print(f"| {name} | {1e3 * median_s:.0f} | {1 / ratio:.1f} x |")
    ours, machine = gain(seconds, "workers"), gain(seconds, "processes")
    print(
        f"\ntwo workers are {ours:.2f} times as fast as one; two processes at the floor,"
        f" {machine:.2f} times",
        flush=True,
    )
    return latest


def run_data_prep(raw: Path, workers: int, out: Path) -> None:
    """`python -m data_prep` with every field for training."""
    command = [sys.executable, "-m", "data_prep", f"raw={raw}", f"out={out}"]
    settings = [f"workers={workers}", "split.val=0", "split.test=0"]
    subprocess.run([*command, *settings], check=True, capture_output=True)


def floor_on(fields: list[Field], workers: int) -> float:
    """Seconds a field of so many processes that only decode and encode, once each is at work."""
    done = map_tasks(decode_and_encode, fields, workers, lambda field: field.name)
    for _ in islice(done, workers):
        pass
    left = len(fields) - workers
    return seconds_of(deque, done) / left


def before_and_after(run: Callable[[int], float]) -> tuple[float, float]:
    """Seconds on one process, and on two: the mean of a run before that and one after it, so that a
    machine that becomes faster or slower meanwhile does so for both."""
    before = run(2)
    return run(1), (before + run(2)) / 2


def gain(seconds: dict[str, list[float]], kind: str) -> float:
    """How many times as fast two workers or processes are, by the median of the rounds."""
    one, two = (ways_of(seconds, f"{kind}={number}") for number in (1, 2))
    return statistics.median(a / b for a, b in zip(one, two, strict=True))


def tasks_of(fields: list[Field], config: PrepConfig) -> list[FieldTask]:
    """The task of each field as one for training."""
    inputs, _ = hash_inputs(fields, config)
    return [make_task(field, None, config, "train", inputs[field]) for field in fields]


def worker_beside_floor(raw: Path, out: Path) -> None:
    """What a worker at work takes, and the floor, a field each in turn."""
    config = training_config(raw, out)
    make_folders(out, raw)
    fields, _ = READERS["brecahad"].find_fields(raw, config.case_regex)
    tasks = tasks_of(fields, config)
    seconds_of(decode_and_encode, fields[-1])  # warm
    seconds_of(prepare_field, tasks[-1])
    floor_s, worker_s = [], []
    for field, task in islice(zip(fields, tasks, strict=True), AT_THE_FLOOR):
        floor_s.append(seconds_of(decode_and_encode, field))
        worker_s.append(seconds_of(prepare_field, task))
    ratio = statistics.median(a / b for a, b in zip(worker_s, floor_s, strict=True))
    print(
        f"a worker at work: {1e3 * statistics.median(worker_s):.0f} ms a field, the floor:"
        f" {1e3 * statistics.median(floor_s):.0f} ms, {ratio:.2f} times\n",
        flush=True,
    )


def seconds_of(do: Callable[[Any], object], what: object) -> float:
    """What it takes to do something."""
    start_s = time.perf_counter()
    do(what)
    return time.perf_counter() - start_s


def ways_of(seconds: dict[str, list[float]], part: str) -> list[float]:
    """The seconds of the way with this in its name."""
    return next(taken for name, taken in seconds.items() if part in name)


def training_config(raw: Path, out: Path) -> PrepConfig:
    """Defaults, every field for training."""
    config = PrepConfig(raw=str(raw), out=str(out))
    return dataclasses.replace(config, split=SplitConfig(val=0, test=0))


def decode_and_encode(field: Field) -> None:
    """The least that must be done."""
    image_HWC = read_image(field.image)
    points = decode_points(field.annotation.read_bytes(), *image_HWC.shape[:2])
    mask_HW = masks.paint_mask(points, {"tumor": 255}, RADIUS_PX, *image_HWC.shape[:2])
    for _ in range(COPIES):
        encoding.encode_image(image_HWC, "jpg", QUALITY)
        encoding.encode_mask(mask_HW)


def naive_recipe(field: Field, out: Path) -> None:
    """The classic script."""
    image_HWC = np.asarray(Image.open(field.image).convert("RGB"))
    mask_HW = naive_mask(image_HWC, json.loads(field.annotation.read_text()))
    rng = np.random.default_rng(0)
    for index in range(COPIES):
        name = (TRANSFORMS * 2)[index - 1] if index else "original"
        moved_image, moved_mask = naive_transform(name, image_HWC, mask_HW, rng)
        Image.fromarray(moved_image).save(out / f"{index}.jpg", quality=QUALITY)
        Image.fromarray(moved_mask).save(out / f"{index}.png")


def plain_albumentations(field: Field, out: Path, is_approximate: bool) -> None:
    """The script of who knows albumentations."""
    image_HWC = cv2.cvtColor(cv2.imread(str(field.image)), cv2.COLOR_BGR2RGB)
    mask_HW = naive_mask(image_HWC, json.loads(field.annotation.read_text()))
    for variant in plan_variants(field.name, COPIES, AugmentConfig(), 0):
        moved = {"image": image_HWC, "mask": mask_HW}
        if variant.transform != ORIGINAL:
            transform = plain_transform(variant, is_approximate)
            moved = albumentations.Compose([transform], seed=variant.seed)(**moved)
        image_BGR = cv2.cvtColor(moved["image"], cv2.COLOR_RGB2BGR)
        quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        cv2.imwrite(str(out / f"{variant.index}.jpg"), image_BGR, quality)
        cv2.imwrite(str(out / f"{variant.index}.png"), moved["mask"])


def plain_transform(variant: Variant, is_approximate: bool) -> albumentations.DualTransform:
    """albumentations' own, with the parameters of a variant."""
    drawn, mirror = variant.parameters, cv2.BORDER_REFLECT
    match variant.transform:
        case "horizontal_flip":
            return albumentations.HorizontalFlip(p=1)
        case "vertical_flip":
            return albumentations.VerticalFlip(p=1)
        case "rotation":
            angles = (drawn["angle_deg"],) * 2
            return albumentations.Affine(rotate=angles, border_mode=mirror, p=1)
        case "scale":
            return albumentations.Affine(scale=(drawn["factor"],) * 2, border_mode=mirror, p=1)
        case "barrel" | "pincushion":
            limits = (drawn["k"],) * 2
            return albumentations.OpticalDistortion(limits, mode="camera", p=1)
    alpha = drawn["rms_px"] * math.sqrt(3) * 2 * math.sqrt(math.pi) * drawn["sigma_px"]
    return albumentations.ElasticTransform(
        alpha,
        drawn["sigma_px"],
        approximate=is_approximate,
        noise_distribution="uniform",
        p=1,
    )


def naive_mask(image_HWC: np.ndarray, annotation: dict[str, list[dict[str, float]]]) -> np.ndarray:
    """A disc at a time, in its bounding box."""
    height, width = image_HWC.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for point in annotation["tumor"]:
        cx, cy = int(point["x"] * width), int(point["y"] * height)
        top, left = max(cy - RADIUS_PX, 0), max(cx - RADIUS_PX, 0)
        part = mask[top : cy + RADIUS_PX + 1, left : cx + RADIUS_PX + 1]
        y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        part[(x - cx) ** 2 + (y - cy) ** 2 <= RADIUS_PX**2] = 255
    return mask


def naive_transform(
    name: str, image_HWC: np.ndarray, mask_HW: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One transform with PIL, or by coordinates with SciPy."""
    height, width = mask_HW.shape
    if name == "original":
        return image_HWC, mask_HW
    if name == "horizontal_flip":
        return image_HWC[:, ::-1], mask_HW[:, ::-1]
    if name == "vertical_flip":
        return image_HWC[::-1], mask_HW[::-1]
    image, mask = Image.fromarray(image_HWC), Image.fromarray(mask_HW)
    if name == "rotation":
        angle = rng.uniform(-180, 180)
        turned = image.rotate(angle, Image.Resampling.BILINEAR)
        return np.asarray(turned), np.asarray(mask.rotate(angle))
    if name == "scale":
        factor = rng.uniform(0.7, 1.4)
        across, down = (side / 2 * (1 - 1 / factor) for side in (width, height))
        matrix = (1 / factor, 0, across, 0, 1 / factor, down)
        method = Image.Transform.AFFINE
        scaled = image.transform(image.size, method, matrix, Image.Resampling.BILINEAR)
        return np.asarray(scaled), np.asarray(mask.transform(image.size, method, matrix))
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    if name in ("elastic", "gaussian"):
        sigma, rms = (10, 3) if name == "elastic" else (50, 8)
        scale = rms * 2 * math.sqrt(math.pi) * sigma
        x = x + scale * ndimage.gaussian_filter(rng.standard_normal((height, width)), sigma)
        y = y + scale * ndimage.gaussian_filter(rng.standard_normal((height, width)), sigma)
    else:
        k = rng.uniform(0.1, 0.3) * (1 if name == "barrel" else -1)
        dx, dy = (x - width / 2) / width, (y - height / 2) / height
        squared = dx**2 + dy**2
        stretch = 1 + k * squared + k * squared**2
        x, y = width / 2 + dx * stretch * width, height / 2 + dy * stretch * height
    channels = [
        ndimage.map_coordinates(image_HWC[..., channel], (y, x), order=1, mode="mirror")
        for channel in range(3)
    ]
    return np.stack(channels, axis=-1), ndimage.map_coordinates(mask_HW, (y, x), order=0)


def memory(raw: Path, out: Path) -> None:
    """How a worker's peak memory grows with the number of fields."""
    command = [sys.executable, "-m", __spec__.name, "--worker-memory", str(raw), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    few, many = json.loads(done.stdout)
    print(f"peak memory of a worker: {few:.0f} MB after 4 fields, {many:.0f} MB after 40")


def worker_memory_mb(raw: Path, out: Path) -> list[float]:
    """Peak memory after 4 and after 40 fields, in a process of its own."""
    config = training_config(raw, out)
    make_folders(out, raw)
    fields, _ = READERS["brecahad"].find_fields(raw, config.case_regex)
    peaks = []
    for number, task in enumerate(islice(cycle(tasks_of(fields, config)), 40), start=1):
        prepare_field(task)
        if number in (4, 40):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    return peaks


def again(raw: Path, out: Path, number: int) -> None:
    """A second run on what is prepared, and one after a change."""

    def seconds() -> float:
        return seconds_of(partial(run_data_prep, raw, 2), out)

    second_s = statistics.median(seconds() for _ in range(5))
    changed = raw / "groundTruth/Case_1-000.json"
    annotation = json.loads(changed.read_text())
    annotation["tumor"] = annotation["tumor"][1:]
    changed.write_text(json.dumps(annotation))
    print(
        f"{number} fields again, unchanged: {second_s:.2f} s; one JSON changed: {seconds():.2f} s"
    )


if __name__ == "__main__":
    main()
