"""A user's own albumentations pipeline, for variants of fields and for training crops.

A setting names a file in albumentations' serialised form, or holds the same content as one line of
JSON. Data sets and runs record the line, so they need the file no more. The file is data of others:
class names are looked up among albumentations' own, and every transform is tried out first.
"""

import json
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common import plain_yaml
from common.command_line import UsageError
from data_prep.augment.transforms import albumentations

REGISTRY = albumentations.core.serialization.SERIALIZABLE_REGISTRY  # name -> class
MAX_CHARACTERS = 32_768  # as JSON it may be an argument of a program, 128 KiB at most
NAME = "__class_fullname__"
COMPOSITIONS = ("Compose", "OneOf", "OneOrOther", "RandomOrder", "Sequential", "SomeOf")
# What a Compose takes beside an image and a mask is not the file's to say
OF_TARGETS = ("additional_targets", "bbox_params", "is_check_shapes", "keypoint_params")
NEEDS_MORE = {
    "Lambda": "runs code",
    "TextImage": "reads a font",
    **dict.fromkeys(
        ("FDA", "HistogramMatching", "Mosaic", "OverlayElements", "PixelDistributionAdaptation"),
        "needs other images",
    ),
}
# The only ones that move points, and move them as the pixels
EXACT = ("HorizontalFlip", "VerticalFlip", "NoOp")
FIELD_SHAPE_HW = 64, 96  # of a field to try transforms on: no square
NUM_TRIALS = 2
LABELS = (0, 255)


def read_for_fields(given: str) -> str:
    """Return the content of augment.pipeline as JSON, of transforms that know where points go.

    Raises UsageError, which names the transform that cannot be taken.
    """
    return read("augment.pipeline", given, FIELD_SHAPE_HW, with_points=True)


def read_for_crops(given: str, size_px: int) -> str:
    """Return the content of crop.pipeline as JSON, of transforms that keep a crop's size.

    Raises UsageError, which names the transform that cannot be taken.
    """
    return read("crop.pipeline", given, (size_px, size_px), with_points=False)


def read(key: str, given: str, shape_HW: tuple[int, int], *, with_points: bool) -> str:
    """Read, check and try out a pipeline. Raises UsageError."""
    is_file = not given.startswith("{")
    try:
        content = parse(given, is_file)
        text = json.dumps(
            {"transform": content["transform"]},
            allow_nan=False,
            sort_keys=True,
            separators=(",", ":"),
        )
        try_out(build(text, with_points=with_points), shape_HW)
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{key}={given}: {reason}" if is_file else f"{key}: {reason}") from None
    return text


def parse(given: str, is_file: bool) -> dict[str, Any]:
    """Parse a file, or JSON. Raises OSError, ValueError and YAMLError."""
    text = given
    if is_file:
        with Path(given).open() as file:
            text = file.read(MAX_CHARACTERS + 1)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"holds more than {MAX_CHARACTERS} characters: no pipeline")
    plain_yaml.parse(text)  # refuses aliases and deep nesting, in JSON too
    content = yaml.safe_load(text) if is_file else json.loads(text)
    if not isinstance(content, dict) or "transform" not in content:
        raise ValueError(
            "holds no 'transform'; albumentations.save(pipeline, FILE, data_format='yaml') writes"
            " such a file"
        )
    return content


def build(text: str, *, with_points: bool) -> albumentations.Compose:
    """The pipeline of a line of JSON, for `image` and `mask`, and `keypoints` as in transforms.

    Raises ValueError, which names the transform that cannot be taken.
    """
    root = build_one(json.loads(text)["transform"], with_points)
    if not with_points:
        return albumentations.Compose([root])
    # NoOp takes keypoints: albumentations warns of keypoints that no transform takes
    keypoints = albumentations.KeypointParams("xy", remove_invisible=False)
    return albumentations.Compose([albumentations.NoOp(), root], keypoint_params=keypoints)


def build_one(given: Any, with_points: bool) -> Any:
    """A transform, or a composition with all in it. Raises ValueError."""
    name = given.get(NAME) if isinstance(given, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"a transform without {NAME}")
    arguments = {key: value for key, value in given.items() if key != NAME}
    if name in COMPOSITIONS:
        children = arguments.get("transforms")
        if not isinstance(children, list):
            raise ValueError(f"{name}: has no list of transforms")
        arguments = {key: value for key, value in arguments.items() if key not in OF_TARGETS}
        arguments["transforms"] = [build_one(child, with_points) for child in children]
    else:
        check_name(name, with_points)
    with explained(name):
        return REGISTRY[name](**arguments)


def check_name(name: str, with_points: bool) -> None:
    """Raise ValueError for a transform that is unknown, or cannot be taken."""
    if why := NEEDS_MORE.get(name):
        raise ValueError(f"{name}: {why}, which a pipeline in a file cannot have")
    # Dots are in the names of classes that are not albumentations' own
    kind = None if "." in name else REGISTRY.get(name)
    if kind is None or not issubclass(kind, albumentations.BasicTransform):
        version = albumentations.__version__
        raise ValueError(f"{name}: no transform of albumentations {version} that can be taken")
    if (
        with_points
        and not issubclass(kind, albumentations.ImageOnlyTransform)
        and name not in EXACT
    ):
        raise ValueError(
            f"{name}: moves points, in albumentations not always as the pixels; of such only"
            f" {' and '.join(EXACT[:2])} are taken. augment.transforms has rotation and others, and"
            " crop.pipeline takes it"
        )


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn every error and warning of albumentations into a ValueError that names the transform."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of unknown arguments, among others
            yield
    except Exception as error:  # any at all: an argument may be anything
        reason = re.sub(r" \[type=.*|For further information.*", "", str(error))  # pydantic's
        raise ValueError(f"{name}: {reason or type(error).__name__}") from None


def try_out(pipeline: albumentations.Compose, shape_HW: tuple[int, int]) -> None:
    """Raise ValueError for a transform that fails, or changes size, type or set of labels."""
    image_HWC = np.random.default_rng(0).integers(0, 256, (*shape_HW, 3), np.uint8)
    mask_HW = np.where(np.indices(shape_HW).sum(axis=0) // 8 % 2, *LABELS[::-1]).astype(np.uint8)
    for transform in [*leaves(pipeline), pipeline]:
        name = type(transform).__name__
        for seed in range(NUM_TRIALS):
            with explained(name):
                seeded(transform, seed)
                made = transform(force_apply=True, image=image_HWC.copy(), mask=mask_HW.copy())
            for before, after in ((image_HWC, made["image"]), (mask_HW, made["mask"])):
                if (before.shape, before.dtype) != (after.shape, after.dtype):
                    raise ValueError(
                        f"{name}: makes {after.shape} {after.dtype} of {before.shape}"
                        f" {before.dtype}; size and type must stay"
                    )
            if not np.isin(made["mask"], LABELS).all():
                raise ValueError(f"{name}: mixes labels in the mask; give mask_interpolation: 0")


def leaves(transform: Any) -> Iterator[Any]:
    """Yield the transforms in a composition, and in those in it."""
    if not isinstance(transform, albumentations.BaseCompose):
        yield transform
        return
    for child in transform.transforms:
        yield from leaves(child)


def seeded(pipeline: Any, seed: int) -> Any:
    """Return the pipeline, set to draw from a seed.

    The transforms share two generators: set_random_seed would give each the same random numbers.
    """
    pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return pipeline
