"""What is to be prepared: the fields of a raw folder, their splits, their tiles; all or a share."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from common.command_line import UsageError, UserError, make_output_folder
from common.files import file_sha256, is_plain
from common.ownership import PRIVATE, make_private
from common.progress import track
from data_prep import records, split
from data_prep.annotations.formats import READERS, check_occurring
from data_prep.cases.suggestions import check_cases
from data_prep.config import PrepConfig
from data_prep.dataset import manifest, pack
from data_prep.field import FieldTask
from data_prep.images import image_files, tiles
from data_prep.images.tiles import Tile
from data_prep.raw import BadFile, BadInputError, BadInputFilesError, Field
from data_prep.records import Inputs

FOLDERS = ("images", "masks", "points")
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()

Part = tuple[Field, Tile | None]
"""A field, or a tile of one."""


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, or its share."""

    tasks: list[FieldTask]
    splits: dict[str, str]
    """Case -> split."""
    bad: list[BadFile]
    """Files that were seen to be bad before any field was prepared."""


def make_plan(config: PrepConfig, fields: list[Field], bad: list[BadFile]) -> Plan:
    """Split the cases of what find_fields() gave, and make the output folder. Raises as
    prepare()."""
    plan_of = plan_of_share if config.share else plan_of_whole
    return plan_of(config, fields, bad)


def plan_of_whole(config: PrepConfig, fields: list[Field], bad: list[BadFile]) -> Plan:
    """Every field; one picture under two cases is bad."""
    raw = Path(config.raw)
    inputs, unreadable = hash_inputs(fields, config)
    fields, repeated = drop_repeated(fields, inputs, raw)
    bad = bad + unreadable + repeated
    splits = split_cases(fields, bad, config)
    claim_folder(Path(config.out), raw)
    return Plan(make_tasks(parts_of(fields, config), inputs, splits, config), splits, bad)


def plan_of_share(config: PrepConfig, fields: list[Field], bad: list[BadFile]) -> Plan:
    """The fields of a share, which reads these only: what is bad among the others, or repeated, is
    for the join to find."""
    splits = split_cases(fields, bad, config)
    claim_folder(Path(config.out), Path(config.raw))
    parts = parts_of_share(parts_of(fields, config), splits, config)
    inputs, unreadable = hash_inputs(list(dict.fromkeys(field for field, _ in parts)), config)
    return Plan(make_tasks(parts, inputs, splits, config), splits, unreadable)


def check_raw(config: PrepConfig) -> None:
    """Refuse what names and annotations alone show that cannot be prepared. Raises UserError."""
    config = with_checked_classes(config)
    split_cases(*find_fields(config), config)


def with_checked_classes(config: PrepConfig) -> PrepConfig:
    """The configuration with its classes as the annotations name them. Raises UsageError."""
    return replace(config, classes=READERS[config.annotations].check_classes(config.classes))


def find_fields(config: PrepConfig) -> tuple[list[Field], list[BadFile]]:
    """The raw fields, and what is none. Raises UsageError, also where one patient would be several
    cases, or an asked class is in none."""
    reader = READERS[config.annotations]
    raw = Path(config.raw)
    fields, bad = reader.find_fields(raw, config.case_regex)
    check_cases([field.name for field in fields], config.case_regex)
    check_occurring(reader, fields, config.classes, raw)
    nameable = [field for field in fields if is_plain(field.name) and is_plain(field.case)]
    reason = "its name, or its case's, has control characters or is '..'; rename it"
    bad += [
        BadFile(str(field.image.relative_to(raw)), reason)
        for field in fields
        if not (is_plain(field.name) and is_plain(field.case))
    ]
    return nameable, bad


def make_tasks(
    parts: Iterable[Part],
    inputs: Mapping[Field, Inputs],
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
        raise BadInputFilesError(bad, missed="no fields")
    try:
        return split.split_cases(fields, config.split, config.seed)
    except UsageError:
        if bad:  # most likely the cause: too few cases are left
            raise BadInputFilesError(bad, missed="too few cases for the splits") from None
        raise


def claim_folder(out: Path, raw: Path) -> None:
    """Make the output folder; refuse one that holds something else."""
    if out.resolve() == raw.resolve():
        raise UsageError(f"out={out}: is the raw folder; name another")
    # Looked at in this order: another share may be making the folder at this moment, .eosin first
    begun = out / PRIVATE / records.KIND
    if out.is_dir() and set(os.listdir(out)) - {PRIVATE} and not begun.is_dir():
        raise UsageError(f"out={out}: {what_stands(out)}; name another")
    make_output_folder(out)
    for kind in (records.KIND, manifest.KIND, pack.KIND):
        make_private(out, kind)
    for folder in FOLDERS:
        if (out / folder).is_symlink():
            raise UserError(f"{out / folder}: is a link; make it a folder, or name another out=")
        make_output_folder(out / folder)


def what_stands(out: Path) -> str:
    """Why a folder that is there is not prepared into."""
    found = manifest.format_of(out)
    if found is None:
        return "holds something that is not a prepared data set"
    if found != manifest.FORMAT:
        return (
            f"was prepared by another version of data_prep (format {manifest.short(found)}; this"
            f" one writes {manifest.FORMAT})"
        )
    return f"holds a prepared data set without {PRIVATE}/, where data_prep keeps what it wrote"


def hash_inputs(
    fields: Sequence[Field], config: PrepConfig
) -> tuple[dict[Field, Inputs], list[BadFile]]:
    """What stands in each field's files; fields that cannot be read come back as bad."""

    def read(field: Field) -> Inputs | BadFile:
        path, files = field.annotation, (field.image, field.annotation)
        try:  # stamps first: what is written later has another
            own = files[: 1 if field.annotation_sha256 else 2]
            stamps = tuple((file, records.stamp_of(file)) for file in own)
            annotation = field.annotation_sha256 or file_sha256(path)
            path = field.image
            return Inputs((file_sha256(path), annotation), stamps)
        except OSError as error:  # its own file name is missing where reading failed
            file = Path(error.filename or path).relative_to(config.raw)
            return BadFile(str(file), f"cannot be read: {error.strerror}")

    with ThreadPoolExecutor(config.workers) as pool:  # hashing lets go of Python's lock
        mapped = track(pool.map(read, fields), total=len(fields), label="read", unit="field")
        found = dict(zip(fields, mapped, strict=True))
    bad = [result for result in found.values() if isinstance(result, BadFile)]
    return {field: files for field, files in found.items() if isinstance(files, Inputs)}, bad


def drop_repeated(
    fields: Sequence[Field], inputs: Mapping[Field, Inputs], raw: Path
) -> tuple[list[Field], list[BadFile]]:
    """Leave out one picture under two cases: it would be trained on and tested on.

    Within a case a repeated picture (BreCaHAD has one, annotated twice) stays in one split.
    """
    by_content = defaultdict(list)
    for field in fields:
        image_sha256 = inputs[field].sha256[0] if field in inputs else EMPTY_SHA256
        if image_sha256 != EMPTY_SHA256:  # that has a reason of its own
            by_content[image_sha256].append(field)
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


def parts_of_share(
    parts: Sequence[Part], splits: Mapping[str, str], config: PrepConfig
) -> list[Part]:
    """Those of the share: a run of parts, since each share reads and hashes the images it has parts
    of; every share's run is written about as many copies."""
    k, n = config.share_numbers()
    copies = [copies_of(splits[field.case], config) for field, _ in parts]
    total = sum(copies)
    return [
        part
        for part, count, end in zip(parts, copies, accumulate(copies), strict=True)
        # the middle of its copies, end - count / 2, lies in the k-th n-th of all
        if (2 * end - count) * n // (2 * total) == k - 1
    ]


def tiles_of(field: Field, config: PrepConfig) -> list[Tile | None]:
    """The tiles that an image is cut into; [None] where it stays whole."""
    if not config.tile_px:
        return [None]
    try:
        height_px, width_px = image_files.read_size(field.image)
    except BadInputError:
        return [None]  # whoever reads it says why it cannot
    if max(height_px, width_px) <= config.tile_px:
        return [None]
    return [*tiles.cut(height_px, width_px, config.tile_px, config.tile_overlap_px)]


def make_task(
    field: Field, tile: Tile | None, config: PrepConfig, split: str, inputs: Inputs
) -> FieldTask:
    """The task of one field."""
    copies = copies_of(split, config)
    key = records.field_key(field, tile, copies, config, inputs)
    return FieldTask(field, tile, copies, Path(config.out), config, key, inputs.stamps)


def copies_of(split: str, config: PrepConfig) -> int:
    """How often a field of a split is written: only training fields get variants."""
    return config.copies if split == "train" else 1
