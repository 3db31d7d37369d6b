"""Record prepared fields, so that running again redoes only what changed.

The record of a finished field has its samples and a key: a hash of everything that decided their
bytes, which is the inputs' content, settings, code and releases of libraries.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import seeds
from common.file_records import is_whole, owns
from common.ownership import Item
from data_prep.config import PrepConfig
from data_prep.images.tiles import Tile
from data_prep.raw import Field

KIND = "fields"  # private folder of the records
# Libraries whose releases may change a prepared byte
LIBRARIES = (
    *("albumentations", "imagecodecs", "numpy", "opencv-python-headless", "pillow", "scipy"),
    *("openslide-bin", "openslide-python", "tifffile"),
)
# Folders and files of this package whose code may change one; common/seeds.py may too
CODE = (
    "annotations/[!_]*",
    "augment/[!_]*",
    "images/[!_]*",
    "image_files/[!_]*",
    "config",
    "field",
    "raw",
)

# Settings that do not affect any prepared byte
WHERE_AND_HOW = ("raw", "out", "config", "workers", "share", "pack")
# Settings that do not affect a field's bytes
OF_THE_WHOLE_SET = ("on_error", "split", "case_regex", "similar_cases", "copies")
OF_CUTTING = ("tile_px", "tile_overlap_px")  # the key has the tile's box instead
# Settings that do not affect an original's bytes
OF_VARIANTS = ("augment", "mask_mode", "seed")


Stamp = tuple[int, int]
"""When a file was last written, in ns, and its size in bytes."""
Stamps = tuple[tuple[Path, Stamp], ...]


@dataclass(frozen=True)
class Inputs:
    """The files of a field as they were when its preparation was planned."""

    sha256: tuple[str, str]
    """Hashes of the content of its image and of its annotation."""
    stamps: Stamps
    """Stamps of these files, but not of a table that annotates several fields."""


def code_files() -> list[Path]:
    """List the files of CODE, sorted by name."""
    here = Path(__file__).parent
    return sorted(path for name in CODE for path in here.glob(f"{name}.py"))


@cache
def code_and_libraries() -> list[Any]:
    """Return the hash of the code, and the releases of libraries, that decide prepared bytes."""
    code = [path.read_bytes() for path in (Path(seeds.__file__), *code_files())]
    return [
        hashlib.sha256(b"".join(code)).hexdigest(),
        {library: release_of(library) for library in LIBRARIES},
    ]


def release_of(library: str) -> str:
    """Return the release of a library; '' for one of an extra that is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def field_key(
    field: Field, tile: Tile | None, copies: int, config: PrepConfig, inputs: Inputs
) -> str:
    """Hash everything that decides a field's prepared bytes."""
    settings = settings_of_field(config, tile is not None, copies)
    box = dataclasses.asdict(tile) if tile else None
    what = [field.name, field.case, field.image.suffix.lower(), box, copies, *inputs.sha256]
    return hashlib.sha256(json.dumps([code_and_libraries(), settings, what]).encode()).hexdigest()


def settings_of_field(config: PrepConfig, is_tile: bool, copies: int) -> dict[str, Any]:
    """Return the settings that may affect a field's prepared bytes."""
    settings = dataclasses.asdict(config)
    idle = [*WHERE_AND_HOW, *OF_THE_WHOLE_SET, *OF_CUTTING]
    if not is_tile:
        idle.append("min_tissue")
    if copies == 1:
        idle += OF_VARIANTS
    if config.format == "png":
        idle.append("jpg_quality")
    for key in idle:
        del settings[key]
    return settings


def settings_of_set(config: PrepConfig) -> dict[str, Any]:
    """Return the settings that decide a data set: all but where and how fast it is made."""
    settings = dataclasses.asdict(config)
    return {key: value for key, value in settings.items() if key not in WHERE_AND_HOW}


@dataclass(frozen=True)
class FieldState:
    """What an earlier preparation of a field left on the disk."""

    samples: list[dict[str, Any]] | None
    """The recorded samples; None unless all their files exist unchanged."""
    findings: dict[str, Any]
    """What the field's annotation holds, as recorded."""
    largest_uint16: int
    """Recorded, as ImageFile.largest_uint16."""
    not_normalised: str
    """Recorded, as ImageFile.not_normalised."""
    key: str
    """The recorded key."""
    files: list[str]
    """Every recorded file, as a path in the data set."""
    changed: list[str]
    """Recorded files that exist but are not as they were written."""


def item_of(out: Path, name: str) -> Item:
    """Return the item with the files of a field."""
    return Item(out, KIND, name)


def read_state(out: Path, name: str) -> FieldState:
    """Compare a field's files with its record."""
    record = item_of(out, name).read()
    existing = {file for file in record.files if os.path.lexists(out / file)}
    whole = {file for file in existing if is_whole(record, out, file)}
    is_done = bool(record.about) and len(whole) == len(record.files)
    return FieldState(
        record.about.get("samples") if is_done else None,
        record.about.get("findings", {}),
        int(record.about.get("largest_uint16", 0)),
        str(record.about.get("not_normalised", "")),
        str(record.about.get("key")),
        list(record.files),
        sorted(file for file in existing - whole if not owns(record, out, file)),
    )


def stamp_of(path: Path) -> Stamp:
    """Return the current stamp of a file."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
