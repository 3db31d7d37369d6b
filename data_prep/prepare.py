"""Turn a raw folder into a prepared data set: convert, mask, split, augment, write.

A field is one task for one worker: read once, written `copies` times. What it wrote is kept as
`.records/<field>.json` under a key over everything that decided it (input bytes, settings, code
and library versions), so that running again redoes only what changed and an interrupted run goes
on. dataset.json is taken away before the first file under it changes, and written last.
"""

import dataclasses
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from command_line import UsageError, UserError, track
from data_prep import brecahad, images, masks, split
from data_prep.augment import apply_variant, plan_variants
from data_prep.brecahad import BadFile, BadInputError, Field
from data_prep.config import PrepConfig
from data_prep.manifest import DATASET, Sample, write_dataset
from data_prep.workers import map_tasks

VERSION = 1  # raise it when the same input and settings give other bytes
RECORDS = ".records"
# Libraries whose release may change a prepared byte
LIBRARIES = (
    "albumentations",
    "imagecodecs",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "tifffile",
)

WHERE_AND_HOW = ("raw", "out", "workers", "share")  # settings that change no prepared byte


class BadInputFilesError(UserError):
    """Raw files that cannot be used, listed with their reasons."""

    def __init__(self, bad: Sequence[BadFile]) -> None:
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in bad)
        super().__init__(
            f"{len(bad)} bad file(s):\n{listed}\nMend them, or leave them out with on_error=skip"
        )


@dataclass(frozen=True)
class FieldTask:
    """All that a worker needs to prepare one field."""

    field: Field
    copies: int
    out: Path
    config: PrepConfig


@dataclass(frozen=True)
class FieldResult:
    """The records of a field's samples (all of Sample but the split), or why there are none."""

    records: list[dict[str, Any]]
    bad: list[BadFile]
    reused: bool = False


@dataclass(frozen=True)
class Summary:
    """What a preparation did."""

    samples: list[Sample]
    bad: list[BadFile]
    num_reused: int
    content_sha256: str


def prepare(config: PrepConfig) -> Summary:
    """Prepare `config.raw` into `config.out`.

    Raises UsageError for what cannot be asked for, BadInputFilesError for bad raw files under
    on_error=stop, and WorkerError where a worker dies.
    """
    raw, out = Path(config.raw), Path(config.out)
    config = dataclasses.replace(config, classes=brecahad.check_classes(config.classes))
    fields, bad = brecahad.find_fields(raw, config.case_regex)
    fields, repeated = drop_repeated(fields, raw)
    bad += repeated
    if not fields:
        raise BadInputFilesError(bad)
    try:
        splits = split.split_cases(fields, config.split, config.seed)
    except UsageError:
        if bad:  # most likely the cause: too few cases are left
            raise BadInputFilesError(bad) from None
        raise
    claim_folder(out, raw)

    tasks = [
        FieldTask(field, config.copies if splits[field.case] == "train" else 1, out, config)
        for field in fields
    ]
    if config.share:
        return prepare_share(tasks, config)
    remove_temporaries(out)
    results = run_tasks(tasks, config.workers)
    bad += [entry for result in results for entry in result.bad]
    if bad and config.on_error == "stop":
        raise BadInputFilesError(bad)
    samples = [
        Sample(**record, split=splits[record["case"]])
        for result in results
        for record in result.records
    ]
    check_splits(samples, splits, bad)
    remove_stale(out, samples)
    content_sha256 = write_dataset(out, samples, describe(config, splits, bad))
    reused = sum(result.reused for result in results)
    return Summary(samples, bad, reused, content_sha256)


def prepare_share(tasks: Sequence[FieldTask], config: PrepConfig) -> Summary:
    """Prepare some of the fields; the run without `share` finds them done and joins them all."""
    mine = [task for index, task in enumerate(tasks) if config.share_of(index)]
    results = run_tasks(mine, config.workers)
    bad = [entry for result in results for entry in result.bad]
    if bad and config.on_error == "stop":
        raise BadInputFilesError(bad)
    return Summary([], bad, sum(result.reused for result in results), "")


def claim_folder(out: Path, raw: Path) -> None:
    """Make the output folder; refuse one that holds something else."""
    if out.resolve() == raw.resolve():
        raise UsageError(f"out={out}: is the raw folder; name another")
    # Looked at in this order: another share may be making the folder at this moment, .records first
    is_used = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if is_used and not (out / RECORDS).is_dir():
        raise UsageError(
            f"out={out}: holds something that is not a prepared data set; name another"
        )
    for folder in (RECORDS, "images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)


def remove_temporaries(out: Path) -> None:
    """Remove what runs left that were killed in the middle of a file.

    Not in a share: other shares may be writing theirs.
    """
    for path in out.rglob(".*.tmp"):
        path.unlink()


def drop_repeated(fields: Sequence[Field], raw: Path) -> tuple[list[Field], list[BadFile]]:
    """Leave out one picture under two cases: it would be trained on and tested on.

    Within a case a repeated picture (BreCaHAD has one, annotated twice) stays in one split.
    """
    same_size = defaultdict(list)
    for field in fields:
        same_size[field.image.stat().st_size].append(field)
    by_content = defaultdict(list)
    for size, group in same_size.items():
        if size and len({field.case for field in group}) > 1:  # an empty file has its own reason
            for field in group:
                by_content[hashlib.sha256(field.image.read_bytes()).digest()].append(field)
    bad, dropped = [], set()
    for group in by_content.values():
        if len({field.case for field in group}) > 1:
            names = ", ".join(field.name for field in group)
            reason = f"the same picture stands under two cases ({names}); keep it in one"
            bad += [BadFile(str(field.image.relative_to(raw)), reason) for field in group]
            dropped |= {field.name for field in group}
    return [field for field in fields if field.name not in dropped], bad


def run_tasks(tasks: Sequence[FieldTask], workers: int) -> list[FieldResult]:
    """Prepare the fields on worker processes; results in the order of the tasks."""
    done: dict[int, FieldResult] = {}
    mapped = map_tasks(prepare_field, tasks, workers, lambda task: task.field.name)
    for index, result in track(mapped, total=len(tasks), label="prepare", unit="field"):
        done[index] = result
    return [done[index] for index in range(len(tasks))]


def prepare_field(task: FieldTask) -> FieldResult:
    """Prepare one field, or find that it stands as it should."""
    field, raw = task.field, Path(task.config.raw)
    bad = []
    try:
        annotation = field.annotation.read_bytes()
        points = brecahad.select_classes(brecahad.parse_points(annotation), task.config.classes)
    except (BadInputError, OSError) as error:
        bad.append(BadFile(str(field.annotation.relative_to(raw)), str(error)))
    try:
        content = field.image.read_bytes()
        key = "" if bad else task_key(task, content, annotation)
        if key and (records := read_records(task, key)):
            return FieldResult(records, [], reused=True)
        image = images.decode_image(content, field.image.suffix.lower(), task.config.uint16_white)
    except (BadInputError, OSError) as error:
        bad.append(BadFile(str(field.image.relative_to(raw)), str(error)))
    if bad:
        return FieldResult([], bad)
    unpublish(task.out)
    records = write_variants(task, image, points)
    record = json.dumps({"key": key, "samples": records}) + "\n"
    images.write_atomically(record_path(task), record.encode())
    return FieldResult(records, [])


def unpublish(out: Path) -> None:
    """Take dataset.json away before the first file under it changes."""
    (out / DATASET).unlink(missing_ok=True)


def write_variants(
    task: FieldTask, image: images.Image, points: brecahad.Points
) -> list[dict[str, Any]]:
    """Write every variant's image and mask; returns their records."""
    config, field = task.config, task.field
    values = masks.label_values(config.classes, config.labels)
    mask = masks.draw_mask(points, values, config.radius_px, *image.shape[:2])
    records = []
    for variant in plan_variants(field.name, task.copies, config.augment, config.seed):
        moved_image, moved_mask = apply_variant(image, mask, variant)
        sample_id = f"{field.name}_v{variant.index:02d}_{variant.transform}"
        encoded = {
            "image": images.encode_image(moved_image, config.format, config.jpg_quality),
            "mask": images.encode_mask(moved_mask),
        }
        paths = {"image": f"images/{sample_id}.{config.format}", "mask": f"masks/{sample_id}.png"}
        for kind, content in encoded.items():
            images.write_atomically(task.out / paths[kind], content)
        records.append(
            {
                "id": sample_id,
                "case": field.case,
                "field": field.name,
                "variant": variant.index,
                "transform": variant.transform,
                "parameters": variant.parameters,
                "seed": variant.seed,
                **paths,
                "height_px": mask.shape[0],
                "width_px": mask.shape[1],
                "foreground_px": int(np.count_nonzero(moved_mask)),
                **{f"{kind}_bytes": len(content) for kind, content in encoded.items()},
                **{
                    f"{kind}_sha256": hashlib.sha256(content).hexdigest()
                    for kind, content in encoded.items()
                },
            }
        )
    return records


def task_key(task: FieldTask, image: bytes, annotation: bytes) -> str:
    """A hash over everything that decides a field's prepared bytes."""
    settings = dataclasses.asdict(task.config)
    for key in (*WHERE_AND_HOW, "on_error", "split", "case_regex", "copies"):
        del settings[key]
    decided_by = [
        VERSION,
        {library: version(library) for library in LIBRARIES},
        settings,
        task.copies,
        [task.field.name, task.field.case, task.field.image.suffix.lower()],
        hashlib.sha256(image).hexdigest(),
        hashlib.sha256(annotation).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()


def record_path(task: FieldTask) -> Path:
    """Where a field's record is kept."""
    return task.out / RECORDS / f"{task.field.name}.json"


def read_records(task: FieldTask, key: str) -> list[dict[str, Any]]:
    """A field's records where they were made under this key and the files stand; else none."""
    try:
        record = json.loads(record_path(task).read_text())
        if record["key"] != key:
            return []
        for sample in record["samples"]:
            for kind in ("image", "mask"):
                if (task.out / sample[kind]).stat().st_size != sample[f"{kind}_bytes"]:
                    return []
        samples: list[dict[str, Any]] = record["samples"]
        return samples
    except (OSError, ValueError, KeyError, TypeError):
        return []


def check_splits(samples: Iterable[Sample], splits: dict[str, str], bad: list[BadFile]) -> None:
    """A split that lost all its fields to bad files is an error, not an empty split."""
    there = {sample.split for sample in samples}
    for name in sorted(set(splits.values()) - there):
        cases = ", ".join(case for case, split in splits.items() if split == name)
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in bad)
        raise UserError(f"every field of the {name} split ({cases}) is bad:\n{listed}")


def remove_stale(out: Path, samples: Iterable[Sample]) -> None:
    """Remove files of fields, variants or settings that are no longer there."""
    kept = {path for sample in samples for path in (sample.image, sample.mask)}
    kept |= {f"{RECORDS}/{sample.field}.json" for sample in samples}
    stale = [
        path
        for folder in ("images", "masks", RECORDS)
        for path in (out / folder).iterdir()
        if f"{folder}/{path.name}" not in kept
    ]
    if stale:
        unpublish(out)
    for path in stale:
        path.unlink() if path.is_file() else shutil.rmtree(path)


def describe(config: PrepConfig, splits: dict[str, str], bad: list[BadFile]) -> dict[str, Any]:
    """What dataset.json says beside counts; nothing of where or how fast it was made."""
    settings = dataclasses.asdict(config)
    for key in WHERE_AND_HOW:
        del settings[key]
    return {
        "classes": config.classes,
        "labels": masks.label_values(config.classes, config.labels),
        "split": {
            name: [case for case, split in splits.items() if split == name] for name in split.SPLITS
        },
        "skipped": [dataclasses.asdict(entry) for entry in bad],
        "config": settings,
    }
