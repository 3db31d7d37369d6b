"""The files of a sample are read as they were written; bad and changed ones are named."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from common.command_line import UserError
from data_prep.dataset.manifest import Dataset
from data_prep.dataset.samples import read_points, read_sample

pytestmark = pytest.mark.usefixtures("warm_workers")


def test_images_are_read_as_rgb_and_masks_as_labels(
    prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    """Against the raw field, through another reader."""
    dataset = prepared()
    sample = dataset.split("train")[0]
    image_HWC, mask_HW = read_sample(dataset.folder, sample)
    assert np.array_equal(image_HWC, tifffile.imread(tmp_path / "raw/images/Case_1-01.tif"))
    assert np.array_equal(mask_HW, np.asarray(Image.open(dataset.folder / sample.mask)))
    assert np.count_nonzero(mask_HW) == sample.foreground_px > 0


@pytest.mark.parametrize("kind", ["image", "mask", "points"])
def test_a_file_that_was_changed_since_is_refused(
    kind: str, prepared: Callable[..., Dataset]
) -> None:
    """A mask that somebody mended would be trained on, and measured against, under the hash of the
    one that was prepared."""
    dataset = prepared()
    sample = dataset.split("train")[0]
    victim = dataset.folder / getattr(sample, kind)
    if kind == "points":
        victim.write_text(victim.read_text().replace("]", "] ", 1))
    else:
        pixels = cv2.imread(str(victim), cv2.IMREAD_UNCHANGED)
        pixels[:9, :9] = 255 - pixels[:9, :9]
        cv2.imwrite(str(victim), pixels)
    read = partial(read_points, classes=["tumor"]) if kind == "points" else read_sample
    with pytest.raises(UserError, match=r"is not as data_prep wrote it; move it away"):
        read(dataset.folder, sample)


@pytest.mark.parametrize(
    ("kind", "damage", "reason"),
    [
        ("image", "missing", "No such file or directory"),
        ("mask", "empty", "damaged, cannot be decoded"),
        ("image", "garbage", "damaged, cannot be decoded"),
        ("mask", "other size", "9 x 8 px, its manifest says 160 x 120"),
    ],
)
def test_a_bad_file_is_named(
    kind: str, damage: str, reason: str, prepared: Callable[..., Dataset]
) -> None:
    dataset = prepared()
    sample = dataset.split("train")[0]
    victim = dataset.folder / getattr(sample, kind)
    if damage == "missing":
        victim.unlink()
    elif damage == "other size":
        cv2.imwrite(str(victim), np.zeros((8, 9, 3), np.uint8))
    else:
        victim.write_bytes(b"no picture" if damage == "garbage" else b"")
    with pytest.raises(UserError) as caught:
        read_sample(dataset.folder, sample)
    assert str(caught.value) == f"{victim}: {reason}; run data_prep again"


def test_points_are_read_as_the_pixels_of_the_raw_field(
    prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = prepared(classes=["non_tumor", "tumor"])
    sample = dataset.split("train")[0]
    listed = json.loads((tmp_path / "raw/groundTruth/Case_1-01.json").read_text())
    expected = {
        name: [[int(point["x"] * 160), int(point["y"] * 120)] for point in listed[name]]
        for name in ("non_tumor", "tumor")
    }
    found = read_points(dataset.folder, sample, ["non_tumor", "tumor"])
    assert {name: points_N2.tolist() for name, points_N2 in found.items()} == expected
    assert expected["tumor"]
