"""Plan a preparation: find the fields of a raw folder, split them, cut tiles, take a share."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from common.command_line import MOST_NAMED, UsageError, UserError, make_output_folder
from common.files import file_sha256
from common.ownership import PRIVATE, make_private
from common.progress import track
from common.schema import json_sha256, short
from data_prep import records, split
from data_prep.annotations.folders import NoAnnotationsError
from data_prep.annotations.formats import READERS, check_occurring, other_formats, reader_of
from data_prep.cases.names import find_cases, unmatched_names
from data_prep.cases.similar import check_similar, similar_cases
from data_prep.cases.suggestions import check_cases
from data_prep.config import PrepConfig
from data_prep.dataset import manifest, pack
from data_prep.dataset.description import FORMAT, format_of
from data_prep.dataset.one_resolution import Header, SetResolution, read_headers, resolution_of_set
from data_prep.field import FieldTask
from data_prep.image_files.normalised import read_reference
from data_prep.images import tiles
from data_prep.images.tiles import Tile
from data_prep.raw import BadFile, BadInputFilesError, Field, files_of_image, name_problem
from data_prep.records import Inputs

FOLDERS = ("images", "masks", "points")
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

FieldTile = tuple[Field, Tile | None]
"""A field and one of its tiles; None if it is not cut."""


@dataclass(frozen=True)
class Plan:
    """What to prepare."""

    tasks: list[FieldTask]
    splits: dict[str, str]
    """Case -> split."""
    bad: list[BadFile]
    """Files that were found bad before any field was prepared."""
    resolution: SetResolution


def make_plan(config: PrepConfig, fields: list[Field], bad: list[BadFile]) -> Plan:
    """Split what find_fields() returned, and make the output folder. Raises as prepare()."""
    plan = plan_share if config.share else plan_whole
    return plan(config, fields, bad)


def plan_whole(config: PrepConfig, fields: list[Field], bad: list[BadFile]) -> Plan:
    """Plan every field, but no image that two cases have."""
    raw = Path(config.raw)
    inputs, unreadable = hash_inputs(fields, config)
    fields, repeated = drop_repeated(fields, inputs, raw)
    bad = bad + unreadable + repeated
    splits = split_cases(fields, bad, config)
    headers = read_headers(fields, config)
    resolution = resolution_of_set(headers.values(), config.mpp)
    make_folders(Path(config.out), raw)
    tasks = make_tasks(field_tiles(fields, headers, config), inputs, splits, config)
    return Plan(tasks, splits, bad, resolution)


def plan_share(config: PrepConfig, fields: list[Field], bad: list[BadFile]) -> Plan:
    """Plan the fields of a share, and read only these, but the headers of all images.

    The run that joins all shares finds bad and repeated files among the others.
    """
    splits = split_cases(fields, bad, config)
    headers = read_headers(fields, config)
    resolution = resolution_of_set(headers.values(), config.mpp)
    make_folders(Path(config.out), Path(config.raw))
    chosen = take_share(field_tiles(fields, headers, config), splits, config)
    inputs, unreadable = hash_inputs(list(dict.fromkeys(field for field, _ in chosen)), config)
    return Plan(make_tasks(chosen, inputs, splits, config), splits, unreadable, resolution)


def check_raw(config: PrepConfig) -> dict[str, str]:
    """Check names, classes and splits, without reading images; return case -> split. Raises
    UserError."""
    config = with_checked_classes(config)
    return split_cases(*find_fields(config), config)


def with_checked_classes(config: PrepConfig) -> PrepConfig:
    """Replace the classes by their usual names. Raises UsageError for an unknown class."""
    return replace(config, classes=READERS[config.annotations].check_classes(config.classes))


def with_pipeline_read(config: PrepConfig) -> PrepConfig:
    """The configuration with the content of augment.pipeline in place of its file. Raises
    UsageError where it cannot be used."""
    if not config.augment.pipeline:
        return config
    from data_prep.augment.pipeline import read_for_fields  # it takes half a second

    pipeline = read_for_fields(config.augment.pipeline)
    return replace(config, augment=replace(config.augment, pipeline=pipeline))


def with_reference_read(config: PrepConfig) -> PrepConfig:
    """Return the settings with the numbers of the stains' reference in place of its file, or of
    nothing. Raises UsageError where it cannot be used."""
    if config.stain_norm == "none":
        return config
    numbers = read_reference(config).text()
    if os.path.isfile(config.stain_reference):
        check_case_of_reference(config)
    return replace(config, stain_reference=numbers)


def check_case_of_reference(config: PrepConfig) -> None:
    """Raise UsageError if the reference is a field of a case that is not only for training."""
    fields, bad = find_fields(with_checked_classes(config))
    given = config.stain_reference
    cases = {field.case for field in fields if os.path.samefile(field.image, given)}
    splits = split_cases(fields, bad, config) if cases else {}
    for case in sorted(cases):
        if config.split.folds:
            reason, way_out = "every case is tested, with split.folds", "that is none of these"
        elif splits[case] != "train":
            first = next(name for name, split in splits.items() if split == "train")
            reason, way_out = f"it is in the {splits[case]} split", f"for training, as {first}"
        else:
            continue
        raise UsageError(
            f"stain_reference={given}: is of {case}, and {reason}, so training would know of it;"
            f" name an image of a case {way_out}, or leave it out for the published reference"
        )


def find_fields(config: PrepConfig) -> tuple[list[Field], list[BadFile]]:
    """Return usable fields, and the files that are not.

    Raises UsageError, also if one patient would be several cases, or a class is in no field.
    """
    reader = reader_of(config)
    raw = Path(config.raw)
    try:
        fields, bad = reader.find_fields(raw, config.case_regex)
    except NoAnnotationsError as error:
        others = other_formats(raw, config.case_regex)
        raise UsageError(f"{error} (annotations={config.annotations}){others}") from None
    names = [field.name for field in fields]
    check_cases(names, config.case_regex)
    if config.similar_cases == "stop":
        check_similar(names, config.case_regex)
    check_occurring(reader, fields, config.classes, raw)
    problems = {field: name_problem(field.name) or name_problem(field.case) for field in fields}
    bad += [
        BadFile(str(field.image.relative_to(raw)), problem)
        for field, problem in problems.items()
        if problem
    ]
    return [field for field in fields if not problems[field]], bad


def about_names(names: Sequence[str], case_regex: str) -> dict[str, Any]:
    """Return what dataset.json says of the names of fields."""
    unmatched = unmatched_names(names, case_regex)
    return {
        "not_matched": len(unmatched),
        "not_matched_first": unmatched[:MOST_NAMED],
        "similar_cases": similar_cases(find_cases(names, case_regex).values()),
    }


def make_tasks(
    chosen: Iterable[FieldTile],
    inputs: Mapping[Field, Inputs],
    splits: Mapping[str, str],
    config: PrepConfig,
) -> list[FieldTask]:
    """Make the tasks of fields whose files could be read. Raises UsageError as check_names()."""
    tasks = [
        make_task(field, tile, config, splits[field.case], inputs[field])
        for field, tile in chosen
        if field in inputs
    ]
    check_names(tasks)
    return tasks


def check_names(tasks: Sequence[FieldTask]) -> None:
    """Raise UsageError if a field has the name of another field's tile."""
    images_of = defaultdict(list)
    for task in tasks:
        images_of[task.name].append(task.field.image.name)
    for name, files in images_of.items():
        if len(files) > 1:
            raise UsageError(f"{' and '.join(files)} both give a field {name}; rename one")


def split_cases(
    fields: Sequence[Field], bad: Sequence[BadFile], config: PrepConfig
) -> dict[str, str]:
    """Return case -> split. Raises BadInputFilesError if bad files leave too few fields."""
    if not fields:
        raise BadInputFilesError(bad, missed="no fields")
    try:
        return split.split_cases(fields, config.split, config.seed)
    except UsageError:
        if bad:  # most likely the cause
            raise BadInputFilesError(bad, missed="too few cases for the splits") from None
        raise


def make_folders(out: Path, raw: Path) -> None:
    """Make the output folder and its folders. Raises UserError if it holds something else."""
    if out.resolve() == raw.resolve():
        raise UsageError(f"out={out}: is the raw folder; name another")
    # In this order, since another share may make the folder at this moment, .eosin first
    own = out / PRIVATE / records.KIND
    if out.is_dir() and set(os.listdir(out)) - {PRIVATE} and not own.is_dir():
        raise UsageError(f"out={out}: {why_refused(out)}; name another")
    make_output_folder(out)
    for kind in (records.KIND, manifest.KIND, pack.KIND):
        make_private(out, kind)
    for folder in FOLDERS:
        if (out / folder).is_symlink():
            raise UserError(f"{out / folder}: is a link; make it a folder, or name another out=")
        make_output_folder(out / folder)


def why_refused(out: Path) -> str:
    """Say why data_prep does not write into an existing folder."""
    found = format_of(out)
    if found is None:
        return "holds something that is not a prepared data set"
    if found != FORMAT:
        return (
            f"was prepared by another version of data_prep (format {short(found)}; this"
            f" one writes {FORMAT})"
        )
    return f"holds a prepared data set without {PRIVATE}/, where data_prep keeps what it wrote"


def hash_inputs(
    fields: Sequence[Field], config: PrepConfig
) -> tuple[dict[Field, Inputs], list[BadFile]]:
    """Hash the files of each field; also return the files that cannot be read."""

    def read(field: Field) -> Inputs | BadFile:
        path, own = field.annotation, [] if field.annotation_sha256 else [field.annotation]
        try:  # stamps first: a file that is written later has another one
            images = files_of_image(field.image)
            stamps = tuple((file, records.stamp_of(file)) for file in [*images, *own])
            annotation = field.annotation_sha256 or file_sha256(path)
            path = field.image
            hashes = [file_sha256(file) for file in images]
            image = hashes[0] if len(hashes) == 1 else json_sha256({"files": hashes})
            return Inputs((image, annotation), stamps)
        except OSError as error:  # it has no file name if reading failed
            file = Path(error.filename or path).relative_to(config.raw)
            return BadFile(str(file), f"cannot be read: {error.strerror}")

    with ThreadPoolExecutor(config.workers) as pool:  # hashing releases Python's lock
        mapped = track(pool.map(read, fields), total=len(fields), label="read", unit="field")
        found = dict(zip(fields, mapped, strict=True))
    bad = [result for result in found.values() if isinstance(result, BadFile)]
    return {field: files for field, files in found.items() if isinstance(files, Inputs)}, bad


def drop_repeated(
    fields: Sequence[Field], inputs: Mapping[Field, Inputs], raw: Path
) -> tuple[list[Field], list[BadFile]]:
    """Leave out an image that two cases have: it would be trained on and tested on.

    Within a case, an image that occurs twice (BreCaHAD has one, annotated twice) stays in one
    split. Returns the other fields, and the files left out.
    """
    by_content = defaultdict(list)
    for field in fields:
        image_sha256 = inputs[field].sha256[0] if field in inputs else EMPTY_SHA256
        if image_sha256 != EMPTY_SHA256:  # reported as empty when it is prepared
            by_content[image_sha256].append(field)
    bad, dropped = [], set()
    for group in by_content.values():
        if len({field.case for field in group}) > 1:
            names = ", ".join(field.name for field in group)
            reason = f"two cases have the same picture ({names}); keep it in one"
            bad += [BadFile(str(field.image.relative_to(raw)), reason) for field in group]
            dropped |= set(group)
    return [field for field in fields if field not in dropped], bad


def field_tiles(
    fields: Iterable[Field], headers: Mapping[Field, Header], config: PrepConfig
) -> list[FieldTile]:
    """List every field, or its tiles, one after the other."""
    return [(field, tile) for field in fields for tile in tiles_of(headers.get(field), config)]


def take_share(
    listed: Sequence[FieldTile], splits: Mapping[str, str], config: PrepConfig
) -> list[FieldTile]:
    """Return the fields and tiles of the share k/n.

    They follow each other in the list, so that few shares read and hash the same image. All shares
    write about the same number of copies.
    """
    k, n = config.share_numbers()
    copies = [copies_of(splits[field.case], config) for field, _ in listed]
    total = sum(copies)
    return [
        entry
        for entry, count, end in zip(listed, copies, accumulate(copies), strict=True)
        # the middle of its copies, end - count / 2, lies in the k-th of n intervals
        if (2 * end - count) * n // (2 * total) == k - 1
    ]


def tiles_of(header: Header | None, config: PrepConfig) -> list[Tile | None]:
    """Cut an image into tiles; return [None] if it stays whole, or cannot be read."""
    if not header or not config.tile_px or max(header.size_px) <= config.tile_px:
        return [None]
    overlap_px = config.tile_overlap_px
    return [*tiles.cut(*header.size_px, config.tile_px, overlap_px, header.file_px)]


def make_task(
    field: Field, tile: Tile | None, config: PrepConfig, split: str, inputs: Inputs
) -> FieldTask:
    """Make the task of one field."""
    copies = copies_of(split, config)
    key = records.field_key(field, tile, copies, config, inputs)
    return FieldTask(field, tile, copies, Path(config.out), config, key, inputs.stamps)


def copies_of(split: str, config: PrepConfig) -> int:
    """Return how often a field of a split is written: only training fields get variants."""
    return config.copies if split == "train" else 1
