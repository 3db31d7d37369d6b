"""Find the images to predict, as input= names them."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from common.command_line import UsageError
from data_prep.annotations.folders import IMAGE_FOLDERS, called, contents, holds_images
from data_prep.raw import IMAGE_SUFFIXES, by_name, list_files, several_of_one_name
from train.prediction.result_files import OUTPUTS, SMALL_MASK


def find_images(source: Path) -> list[Path]:
    """Return the image, or the images of the folder. Raises UsageError where there is none."""
    if not source.is_dir():
        return [source]
    paths = list_files(source, IMAGE_SUFFIXES)
    if not paths:
        nested = [folder for folder in called(source, IMAGE_FOLDERS) if holds_images(folder)]
        hint = f"; did you mean input={nested[0]}?" if nested else ""
        endings = ", ".join(IMAGE_SUFFIXES)
        raise UsageError(
            f"input={source}: no images ({endings}); it holds {contents(source)}{hint}"
        )
    images = by_name(paths)
    for files in images.values():
        if len(files) > 1:
            raise UsageError(f"input={source}: {several_of_one_name(files, 'images')}")
    check_results(source, images)
    return paths


def check_results(source: Path, images: Mapping[str, list[Path]]) -> None:
    """Refuse images of which a result would have the name of another's. Raises UsageError."""
    images_of = defaultdict(list)
    for name, (path,) in images.items():
        for ending in (SMALL_MASK, *OUTPUTS):
            images_of[name + ending].append(path.name)
    for name, given in images_of.items():
        if len(given) > 1:
            raise UsageError(
                f"input={source}: {' and '.join(given)} would both give {name}; rename one"
            )
