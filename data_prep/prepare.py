"""Turn a raw folder into a prepared data set: find, split, prepare what changed, publish.

dataset.json is taken away before the first file under it changes, and written last; what was
interrupted goes on where it was.
"""

import dataclasses
import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import UsageError, UserError, track
from data_prep import images, masks, records, split, tiles
from data_prep.config import PrepConfig
from data_prep.field import FieldResult, FieldTask, prepare_field
from data_prep.formats import READERS, check_occurring
from data_prep.manifest import FILES, Sample, unpublish, write_dataset
from data_prep.pack import remove_other_packs, write_pack
from data_prep.raw import BadFile, BadInputError, Field
from data_prep.records import RECORDS
from data_prep.tiles import Tile
from data_prep.workers import map_tasks

FOLDERS = (RECORDS, "images", "masks", "points")
Part = tuple[Field, Tile | None]
"""A field, or a tile of one."""
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class BadInputFilesError(UserError):
    """Raw files that cannot be used, listed with their reasons."""

    def __init__(self, bad: Sequence[BadFile]) -> None:
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in bad)
        super().__init__(
            f"{len(bad)} bad file(s):\n{listed}\nMend them, or leave them out with on_error=skip"
        )


@dataclass(frozen=True)
class Summary:
    """What a preparation did."""

    samples: list[Sample]
    bad: list[BadFile]
    num_reused: int
    num_glass: int
    """Tiles without tissue, left out."""
    content_sha256: str


def prepare(config: PrepConfig) -> Summary:
    """Prepare `config.raw` into `config.out`.

    Raises UsageError for what cannot be asked for, BadInputFilesError for bad raw files under
    on_error=stop, and WorkerError where a worker dies.
    """
    reader = READERS[config.annotations]
    config = dataclasses.replace(config, classes=reader.check_classes(config.classes))
    plan = make_plan(config)
    results, num_reused = run_tasks(plan.tasks, config.workers)
    bad = plan.bad + list(dict.fromkeys(entry for result in results for entry in result.bad))
    if bad and config.on_error == "stop":
        raise BadInputFilesError(bad)
    num_glass = sum(not result.samples and not result.bad for result in results)
    if config.share:
        return Summary([], bad, num_reused, num_glass, "")
    samples = [
        Sample(**sample, split=plan.splits[sample["case"]])
        for result in results
        for sample in result.samples
    ]
    check_splits(samples, plan.splits, bad)
    done = [task.name for task, result in zip(plan.tasks, results, strict=True) if not result.bad]
    content_sha256 = publish(config, samples, done, describe(config, plan.splits, bad, num_glass))
    return Summary(samples, bad, num_reused, num_glass, content_sha256)


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, or its share."""

    tasks: list[FieldTask]
    splits: dict[str, str]
    """Case -> split."""
    bad: list[BadFile]
    """Files that were seen to be bad before any field was prepared."""


def make_plan(config: PrepConfig) -> Plan:
    """Find the fields, split their cases, and make the output folder. Raises as prepare()."""
    return plan_of_share(config) if config.share else plan_of_whole(config)


def plan_of_whole(config: PrepConfig) -> Plan:
    """Every field; one picture under two cases is bad."""
    raw = Path(config.raw)
    fields, bad = find_fields(config)
    inputs, unreadable = hash_inputs(fields, config)
    fields, repeated = drop_repeated(fields, inputs, raw)
    bad += unreadable + repeated
    splits = split_cases(fields, bad, config)
    claim_folder(Path(config.out), raw)
    remove_temporaries(Path(config.out))
    return Plan(make_tasks(parts_of(fields, config), inputs, splits, config), splits, bad)


def plan_of_share(config: PrepConfig) -> Plan:
    """The fields of a share, which reads these only: what is bad among the others, or repeated, is
    for the join to find."""
    raw = Path(config.raw)
    fields, bad = find_fields(config)
    splits = split_cases(fields, bad, config)
    claim_folder(Path(config.out), raw)
    parts = [part for index, part in enumerate(parts_of(fields, config)) if config.share_of(index)]
    inputs, unreadable = hash_inputs(list(dict.fromkeys(field for field, _ in parts)), config)
    return Plan(make_tasks(parts, inputs, splits, config), splits, unreadable)


def find_fields(config: PrepConfig) -> tuple[list[Field], list[BadFile]]:
    """The raw fields, and what is none. Raises UsageError, also where an asked class is in none."""
    reader = READERS[config.annotations]
    fields, bad = reader.find_fields(Path(config.raw), config.case_regex)
    check_occurring(reader, fields, config.classes, Path(config.raw))
    return fields, bad


def make_tasks(
    parts: Iterable[Part],
    inputs: Mapping[Field, tuple[str, str]],
    splits: Mapping[str, str],
    config: PrepConfig,
) -> list[FieldTask]:
    """The tasks of those parts whose files could be read. Raises UsageError as check_names()."""
    tasks = [
        make_task(field, tile, config, splits[field.case], inputs[field])
        for field, tile in parts
        if field in inputs
    ]
    check_names(tasks)
    return tasks


def check_names(tasks: Sequence[FieldTask]) -> None:
    """Refuse a field that is called as another's tile. Raises UsageError."""
    images_of = defaultdict(list)
    for task in tasks:
        images_of[task.name].append(task.field.image.name)
    for name, files in images_of.items():
        if len(files) > 1:
            raise UsageError(f"{' and '.join(files)} both give a field {name}; rename one")


def split_cases(
    fields: Sequence[Field], bad: Sequence[BadFile], config: PrepConfig
) -> dict[str, str]:
    """Case -> split. Raises BadInputFilesError where that cannot be and files are bad."""
    if not fields:
        raise BadInputFilesError(bad)
    try:
        return split.split_cases(fields, config.split, config.seed)
    except UsageError:
        if bad:  # most likely the cause: too few cases are left
            raise BadInputFilesError(bad) from None
        raise


def publish(
    config: PrepConfig,
    samples: Sequence[Sample],
    done: Iterable[str],
    description: dict[str, Any],
) -> str:
    """Write the manifest and dataset.json, and the pack; returns the hash of the content."""
    out = Path(config.out)
    remove_stale(out, samples, done)
    content_sha256 = write_dataset(out, samples, description)
    remove_other_packs(out, content_sha256)
    if config.pack:
        write_pack(out, samples, content_sha256, config.workers)
    return content_sha256


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
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True, exist_ok=True)


def remove_temporaries(out: Path) -> None:
    """Remove what runs left that were killed in the middle of a file.

    Not in a share: other shares may be writing theirs.
    """
    for path in out.rglob(".*.tmp"):
        path.unlink()


def hash_inputs(
    fields: Sequence[Field], config: PrepConfig
) -> tuple[dict[Field, tuple[str, str]], list[BadFile]]:
    """sha256 of each field's image and annotation; fields that cannot be read come back as bad."""

    def hashes(field: Field) -> tuple[str, str] | BadFile:
        try:
            annotation = field.annotation_sha256 or records.file_sha256(field.annotation)
            return records.file_sha256(field.image), annotation
        except OSError as error:
            file = Path(error.filename).relative_to(config.raw)
            return BadFile(str(file), f"cannot be read: {error.strerror}")

    with ThreadPoolExecutor(config.workers) as pool:  # hashing lets go of Python's lock
        mapped = track(pool.map(hashes, fields), total=len(fields), label="read", unit="field")
        found = dict(zip(fields, mapped, strict=True))
    bad = [result for result in found.values() if isinstance(result, BadFile)]
    return {field: pair for field, pair in found.items() if not isinstance(pair, BadFile)}, bad


def drop_repeated(
    fields: Sequence[Field], inputs: Mapping[Field, tuple[str, str]], raw: Path
) -> tuple[list[Field], list[BadFile]]:
    """Leave out one picture under two cases: it would be trained on and tested on.

    Within a case a repeated picture (BreCaHAD has one, annotated twice) stays in one split.
    """
    by_content = defaultdict(list)
    for field in fields:
        if field in inputs and inputs[field][0] != EMPTY_SHA256:  # that has a reason of its own
            by_content[inputs[field][0]].append(field)
    bad, dropped = [], set()
    for group in by_content.values():
        if len({field.case for field in group}) > 1:
            names = ", ".join(field.name for field in group)
            reason = f"the same picture stands under two cases ({names}); keep it in one"
            bad += [BadFile(str(field.image.relative_to(raw)), reason) for field in group]
            dropped |= set(group)
    return [field for field in fields if field not in dropped], bad


def parts_of(fields: Iterable[Field], config: PrepConfig) -> list[Part]:
    """Every field, or its tiles, one after the other."""
    return [(field, tile) for field in fields for tile in tiles_of(field, config)]


def tiles_of(field: Field, config: PrepConfig) -> list[Tile | None]:
    """The tiles that an image is cut into; [None] where it stays whole."""
    if not config.tile_px:
        return [None]
    try:
        height_px, width_px = images.read_size(field.image)
    except BadInputError:
        return [None]  # whoever reads it says why it cannot
    if max(height_px, width_px) <= config.tile_px:
        return [None]
    return [*tiles.cut(height_px, width_px, config.tile_px, config.tile_overlap_px)]


def make_task(
    field: Field, tile: Tile | None, config: PrepConfig, split: str, inputs: Sequence[str]
) -> FieldTask:
    """The task of one field: only training fields get variants."""
    copies = config.copies if split == "train" else 1
    key = records.field_key(field, tile, copies, config, inputs)
    return FieldTask(field, tile, copies, Path(config.out), config, key)


def run_tasks(tasks: Sequence[FieldTask], workers: int) -> tuple[list[FieldResult], int]:
    """Prepare the fields that do not stand as they should, on worker processes.

    Returns the results in the order of the tasks, and how many stood.
    """
    with ThreadPoolExecutor(workers) as pool:
        stood = pool.map(lambda task: records.read(task.out, task.name, task.key), tasks)
        done = {
            index: FieldResult(samples, [])
            for index, samples in enumerate(stood)
            if samples is not None
        }
    num_reused = len(done)
    todo = [index for index in range(len(tasks)) if index not in done]
    mapped = map_tasks(
        prepare_field, [tasks[index] for index in todo], workers, lambda task: task.name
    )
    for place, result in track(mapped, total=len(todo), label="prepare", unit="field"):
        done[todo[place]] = result
    return [done[index] for index in range(len(tasks))], num_reused


def check_splits(samples: Iterable[Sample], splits: dict[str, str], bad: list[BadFile]) -> None:
    """A split that lost all its fields to bad files is an error, not an empty split."""
    there = {sample.split for sample in samples}
    for name in sorted(set(splits.values()) - there):
        cases = ", ".join(case for case, split in splits.items() if split == name)
        listed = "\n".join(f"  {entry.file}: {entry.reason}" for entry in bad)
        raise UserError(f"every field of the {name} split ({cases}) is bad:\n{listed}")


def remove_stale(out: Path, samples: Iterable[Sample], names: Iterable[str]) -> None:
    """Remove files of fields, variants or settings that are no longer there."""
    kept = {getattr(sample, kind) for sample in samples for kind in FILES}
    kept |= {f"{RECORDS}/{name}.json" for name in names}
    stale = [
        path
        for folder in FOLDERS
        for path in (out / folder).iterdir()
        if f"{folder}/{path.name}" not in kept
    ]
    if stale:
        unpublish(out)
    for path in stale:
        path.unlink() if path.is_file() else shutil.rmtree(path)


def describe(
    config: PrepConfig, splits: dict[str, str], bad: list[BadFile], num_glass: int
) -> dict[str, Any]:
    """What dataset.json says beside counts; nothing of where or how fast it was made."""
    settings = dataclasses.asdict(config)
    for key in records.WHERE_AND_HOW:
        del settings[key]
    return {
        "classes": config.classes,
        "labels": masks.label_values(config.classes, config.labels),
        "split": {
            name: [case for case, split in splits.items() if split == name] for name in split.SPLITS
        },
        "skipped": [dataclasses.asdict(entry) for entry in bad],
        "glass_tiles": num_glass,
        "config": settings,
    }
