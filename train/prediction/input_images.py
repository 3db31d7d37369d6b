"""Find the images to predict, as input= names them."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.command_line import UsageError
from data_prep.raw import IMAGE_SUFFIXES
from train.prediction.result_files import OUTPUTS, SMALL_MASK


def find_images(source: Path) -> list[Path]:
    """Return the image, or the images of the folder. Raises UsageError where there is none."""
    if source.is_file():
        return [source]
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        nested = source / "images"
        hint = f"; did you mean input={nested}?" if nested.is_dir() else ""
        raise UsageError(f"input={source}: no images ({', '.join(IMAGE_SUFFIXES)}){hint}")
    stems = [path.stem for path in paths]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UsageError(f"input={source}: images of one name: {', '.join(repeated)}")
    check_results(source, paths)
    return paths


def check_results(source: Path, paths: Sequence[Path]) -> None:
    """Refuse images of which a result would have the name of another's. Raises UsageError."""
    images_of = defaultdict(list)
    for path in paths:
        for ending in (SMALL_MASK, *OUTPUTS):
            images_of[path.stem + ending].append(path.name)
    for name, given in images_of.items():
        if len(given) > 1:
            raise UsageError(
                f"input={source}: {' and '.join(given)} would both give {name}; rename one"
            )
