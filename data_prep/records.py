"""What has been prepared, so that running again redoes only what changed.

A field that is done has its samples in its record (`written`), under a key over everything that
decided their bytes: content of the inputs, settings, code, releases of libraries.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import seeds
from common.file_records import is_whole, owns
from common.ownership import Item
from data_prep.config import PrepConfig
from data_prep.images.tiles import Tile
from data_prep.raw import Field

KIND = "fields"  # private folder of the records
# Libraries whose release may change a prepared byte
LIBRARIES = (
    *("albumentations", "imagecodecs", "numpy", "opencv-python-headless", "pillow", "scipy"),
    *("tifffile", "zarr"),
)
# Folders and files of this package, and common/seeds.py, whose code may
CODE = ("annotations/[!_]*", "augment/[!_]*", "images/[!_]*", "config", "field", "raw")

# Settings that change no prepared byte
WHERE_AND_HOW = ("raw", "out", "config", "workers", "share", "pack")
OF_THE_WHOLE_SET = ("on_error", "split", "case_regex", "copies")  # nor these that of one field
OF_CUTTING = ("tile_px", "tile_overlap_px")  # they say where a tile is, which the key has
OF_VARIANTS = ("augment", "mask_mode", "seed")  # nor these that of an original


Stamp = tuple[int, int]
"""When a file was last written, in ns, and its size in bytes."""
Stamps = tuple[tuple[Path, Stamp], ...]


@dataclass(frozen=True)
class Inputs:
    """The files of a field as they were when its preparation was planned."""

    sha256: tuple[str, str]
    """Of the content of its image and of its annotation."""
    stamps: Stamps
    """Of these files; not of a table of all fields, of which a field has its own rows."""


def code_files() -> list[Path]:
    """The files of CODE, in order of their names."""
    here = Path(__file__).parent
    return sorted(path for name in CODE for path in here.glob(f"{name}.py"))


@cache
def made_by() -> list[Any]:
    """The code and the libraries that decide prepared bytes."""
    code = [path.read_bytes() for path in (Path(seeds.__file__), *code_files())]
    return [
        hashlib.sha256(b"".join(code)).hexdigest(),
        {library: version(library) for library in LIBRARIES},
    ]


def field_key(
    field: Field, tile: Tile | None, copies: int, config: PrepConfig, inputs: Inputs
) -> str:
    """A hash over everything that decides a field's prepared bytes."""
    settings = settings_of(config, tile is not None, copies)
    place = dataclasses.asdict(tile) if tile else None
    what = [field.name, field.case, field.image.suffix.lower(), place, copies, *inputs.sha256]
    return hashlib.sha256(json.dumps([made_by(), settings, what]).encode()).hexdigest()


def settings_of(config: PrepConfig, is_tile: bool, copies: int) -> dict[str, Any]:
    """The settings that a field's prepared bytes may rest on."""
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
    """The settings that decide a data set: all but where and how fast it is made."""
    settings = dataclasses.asdict(config)
    return {key: value for key, value in settings.items() if key not in WHERE_AND_HOW}


@dataclass(frozen=True)
class Found:
    """What stands of a field."""

    samples: list[dict[str, Any]] | None
    """As recorded, where the field is done and its files are all there."""
    key: str
    """What they were made under."""
    files: list[str]
    """All that it has or had, as paths in the data set."""
    changed: list[str]
    """Those that are there, and are not as they were written."""


def item_of(out: Path, name: str) -> Item:
    """The files of a field."""
    return Item(out, KIND, name)


def look(out: Path, name: str) -> Found:
    """Compare a field's files with its record."""
    record = item_of(out, name).read()
    there = {file for file in record.files if os.path.lexists(out / file)}
    whole = {file for file in there if is_whole(record, out, file)}
    is_done = bool(record.about) and len(whole) == len(record.files)
    return Found(
        record.about.get("samples") if is_done else None,
        str(record.about.get("key")),
        list(record.files),
        sorted(file for file in there - whole if not owns(record, out, file)),
    )


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file that is there now."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size
