"""Write synthetic fields as a raw data set in BreCaHAD's layout."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from common.command_line import UserError
from common.ownership import PRIVATE, Item, clear_temporaries
from common.progress import track
from data_prep.tools.config import SyntheticConfig
from data_prep.tools.synthetic_fields import Points, make_field

MARK = "data_prep.synthetic"  # in the header of every image, to distinguish it from BreCaHAD's
KIND = "synthetic"  # private folder of the records


def annotation_bytes(points: Points, width_px: int, height_px: int) -> bytes:
    """Encode the JSON of a field; half a pixel is added, so that int(x * width_px) returns x."""
    fractions = {
        key: [{"x": (x + 0.5) / width_px, "y": (y + 0.5) / height_px} for x, y in pixels]
        for key, pixels in points.items()
    }
    return json.dumps(fractions, indent=2).encode()


def image_bytes(image_HWC: NDArray[np.uint8]) -> bytes:
    """Encode an uncompressed RGB TIFF, like BreCaHAD's, with this generator's mark."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, image_HWC, photometric="rgb", metadata=None, software=MARK)
    return buffer.getvalue()


def field_paths(config: SyntheticConfig) -> Iterator[tuple[int, int, Path, Path]]:
    """Yield (case, field, image file, annotation file), with cases and fields from 1."""
    out = Path(config.out)
    for case in range(1, config.cases + 1):
        for field in range(1, config.fields + 1):
            name = f"Case_{case}-{field:02d}"
            yield case, field, out / "images" / f"{name}.tif", out / "groundTruth" / f"{name}.json"


def item_of(config: SyntheticConfig, image: Path) -> Item:
    """Return the item with the files of a field."""
    return Item(Path(config.out), KIND, image.stem)


def refuse_foreign_files(config: SyntheticConfig) -> None:
    """Raise UserError if the folder holds anything that this data set would not replace."""
    out = Path(config.out)
    known = {out / folder for folder in (PRIVATE, "images", "groundTruth")}
    for _, _, image, annotation in field_paths(config):
        item = item_of(config, image)
        conflicts = item.conflicts(str(path.relative_to(out)) for path in (image, annotation))
        known |= {image, annotation} - {out / name for name in conflicts}
    found = (path for path in out.rglob("*") if out / PRIVATE not in path.parents)
    foreign = min((path for path in found if path not in known), default=None)
    if foreign:
        raise UserError(
            f"{out} holds {foreign.relative_to(out)}, which this data set would not replace; "
            "name a new or an empty folder as out="
        )


def write_dataset(config: SyntheticConfig) -> int:
    """Make and write every field; return their number. Raises UserError for a foreign folder."""
    refuse_foreign_files(config)
    clear_temporaries(Path(config.out), KIND)
    for folder in ("images", "groundTruth"):
        Path(config.out, folder).mkdir(parents=True, exist_ok=True)
    tasks = list(field_paths(config))
    for case, field, image_path, annotation_path in track(
        tasks, total=len(tasks), label="make", unit="field"
    ):
        image_HWC, points = make_field(config, case, field)
        contents = {
            image_path: image_bytes(image_HWC),
            annotation_path: annotation_bytes(points, config.width_px, config.height_px),
        }
        with item_of(config, image_path) as item:
            for path, content in contents.items():
                item.write(str(path.relative_to(config.out)), content)
            item.publish()
    return len(tasks)
