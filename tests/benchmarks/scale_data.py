"""What a data set costs for each field and sample: seconds, memory and bytes. See scale.py."""

import dataclasses
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from data_prep import prepare as preparing
from data_prep.config import PrepConfig
from data_prep.dataset.description import DATASET
from data_prep.dataset.manifest import MANIFEST, Sample, read_dataset, write_dataset
from data_prep.dataset.pack import offsets_of
from data_prep.plan import find_fields, make_plan
from train.crops.microbatches import epoch_order

Result = TypeVar("Result")
FIELDS_A_CASE, SIDE_PX, VARIANTS = 10, 16, 16


def draw_fields(raw: Path, num_fields: int) -> None:
    """Write tiny fields, each another picture; their annotation is one file of many names."""
    for folder in ("images", "groundTruth"):
        (raw / folder).mkdir(parents=True)
    annotation = b""
    for number in range(num_fields):
        name = f"Case_{number // FIELDS_A_CASE}-{number % FIELDS_A_CASE:02d}"
        picture = np.full((SIDE_PX, SIDE_PX, 3), 200, np.uint8)
        picture.flat[:4] = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
        (raw / "images" / f"{name}.tif").write_bytes(cv2.imencode(".tif", picture)[1].tobytes())
        annotation = annotation or b'{"tumor": [{"x": 0.5, "y": 0.5}]}'
        (raw / "groundTruth" / f"{name}.json").write_bytes(annotation)


class Table:
    """Prints a row for each stage: seconds and bytes, of all and of one."""

    def __init__(self, num: int, of: str) -> None:
        self.num, self.of = num, of

    def stage(self, name: str, work: Callable[[], Result]) -> Result:
        """Do the work, and print what it took, and what its result holds of memory."""
        gc.collect()
        held, start_s = resident_bytes("VmRSS"), time.process_time()
        result = work()
        taken_s = time.process_time() - start_s
        gc.collect()
        self.tell(name, taken_s, resident_bytes("VmRSS") - held)
        return result

    def tell(self, name: str, seconds: float, num_bytes: float) -> None:
        """Print a row."""
        print(
            f"| {name} | {self.num} {self.of}s | {seconds:.2f} | {seconds / self.num * 1e6:.0f}"
            f" | {num_bytes / 1e6:.0f} | {num_bytes / self.num:.0f} |",
            flush=True,
        )


def resident_bytes(key: str) -> int:
    """Return this process's memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def measure_fields(folder: Path, num_fields: int, copies: int) -> None:
    """Prepare once, then look at each stage of a second, unchanged run."""
    raw, out = folder / "raw", folder / "out"
    draw_fields(raw, num_fields)
    config = PrepConfig(
        raw=str(raw), out=str(out), copies=copies, pack=False, workers=os.cpu_count() or 1
    )
    table = Table(num_fields, "field")

    def run(name: str) -> None:
        before, start_s = resident_bytes("VmHWM"), time.process_time()
        preparing.prepare(config)
        peak = resident_bytes("VmHWM") - before
        table.tell(f"{name}, at most", time.process_time() - start_s, peak)

    in_a_child(lambda: run("first run"))
    in_a_child(lambda: run("second run"))
    fields, bad = table.stage("find", lambda: find_fields(config))
    plan = table.stage("plan", lambda: make_plan(config, fields, bad))
    states = table.stage("read records", lambda: preparing.read_states(plan.tasks, config))
    table.stage("look for conflicts", lambda: preparing.check_conflicts(plan.tasks, states, out))
    records = [entry.stat().st_size for entry in os.scandir(out / ".eosin" / "fields")]
    print(f"record: {sum(records) / len(records):.0f} bytes a field; {copies} variants")


def measure_samples(folder: Path, num_samples: int) -> None:
    """Write a manifest of made-up samples and read it, as each rank does."""
    table = Table(num_samples, "sample")
    in_a_child(lambda: write_samples(folder, num_samples, table))
    before = resident_bytes("VmHWM")
    dataset = table.stage("read manifest", lambda: read_dataset(folder))
    table.tell("read manifest, at most", 0, resident_bytes("VmHWM") - before)
    table.stage("training split and offsets", lambda: offsets_of(dataset.packed_samples))
    table.stage("order of an epoch", lambda: epoch_order(num_samples, 0, 0))
    for name in (MANIFEST, DATASET):
        print(f"{name}: {(folder / name).stat().st_size / num_samples:.1f} bytes a sample")


def in_a_child(work: Callable[[], None]) -> None:
    """Work in a process of its own, whose memory does not count here."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert status == 0
        return
    work()
    sys.stdout.flush()
    os._exit(0)


def write_samples(folder: Path, num_samples: int, table: Table) -> None:
    """Write the manifest of made-up samples, of as many cases as there would be."""
    samples = [sample_of(number) for number in range(num_samples)]
    cases = {sample.case: None for sample in samples}
    about = {
        "labels": {"tumor": 255},
        "split": {"train": [*cases], "val": [], "test": []},
        "mpp": None,
        "config": dataclasses.asdict(PrepConfig()),
    }
    folder.mkdir()
    before, start_s = resident_bytes("VmHWM"), time.process_time()
    write_dataset(folder, samples, about)
    peak = resident_bytes("VmHWM") - before
    table.tell("write manifest, at most", time.process_time() - start_s, peak)


def sample_of(number: int) -> Sample:
    """Make up a sample with a name, a hash and counts of its own."""
    field, variant = divmod(number, VARIANTS)
    name = f"Case_{field // FIELDS_A_CASE}-{field % FIELDS_A_CASE:02d}"
    stem = f"{name}_v{variant:02d}_elastic"
    sha256 = f"{number:064x}"
    return Sample(
        id=stem,
        case=f"Case_{field // FIELDS_A_CASE}",
        field=name,
        variant=variant,
        transform="elastic",
        parameters={"alpha_px": 61.5 + number, "sigma_px": 9.25},
        seed=2**62 + number,
        split="train",
        image=f"images/{stem}.png",
        mask=f"masks/{stem}.png",
        points=f"points/{stem}.json",
        height_px=1024,
        width_px=1360,
        foreground_px=300 * 1000 + number,
        ignored_px=0,
        nuclei={"tumor": 700 + number},
        image_bytes=2 * 10**6 + number,
        mask_bytes=10**4 + number,
        points_bytes=10**5 + number,
        image_sha256=sha256,
        mask_sha256=sha256[::-1],
        points_sha256=sha256[8:] + sha256[:8],
    )
