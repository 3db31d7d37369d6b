"""The contact sheet: every variant of one field, with outlines where its mask is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep import preview
from data_prep.config import AugmentConfig, PrepConfig, SplitConfig
from data_prep.dataset.manifest import read_dataset
from data_prep.images.class_colours import colour_of, legend
from data_prep.prepare import prepare
from data_prep.tools.contact_sheet import GAP_PX, LABEL_PX

pytestmark = pytest.mark.usefixtures("warm_workers")
WIDTH_PX, HEIGHT_PX = 160, 120  # of raw_folder's fields, which are shown as they are
HEAD_PX = 28  # a line with the field's name


@pytest.fixture
def data(raw_folder: Callable[..., Path], tmp_path: Path) -> Path:
    split = SplitConfig(val_cases=["2"], test_cases=["3"])
    augment = AugmentConfig(transforms=["rotation"])
    config = PrepConfig(
        raw=str(raw_folder()),
        out=str(tmp_path / "data"),
        copies=5,
        radius_px=12,
        split=split,
        augment=augment,
        format="png",
        workers=2,
    )
    prepare(config)
    return tmp_path / "data"


def test_every_variant_is_shown_with_its_outlines(
    data: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Five cells of three columns in two rows; what is coloured lies on the masks' edges."""
    sheet_path = tmp_path / "some/where/sheet.png"
    given = [f"data={data}", f"out={sheet_path}", "columns=3", f"width_px={WIDTH_PX}"]
    outcome = cli(preview.main, *given)
    assert outcome.out == f"5 variants of Case_1-01: {sheet_path}\n"
    sheet = cv2.imread(str(sheet_path), cv2.IMREAD_COLOR_RGB)
    assert sheet is not None
    cell_height, cell_width = LABEL_PX + HEIGHT_PX + GAP_PX, WIDTH_PX + GAP_PX
    assert sheet[:HEAD_PX].min() < 128, "the field is not named"
    sheet = sheet[HEAD_PX:]
    assert sheet.shape == (2 * cell_height, 3 * cell_width, 3)
    samples = [sample for sample in read_dataset(data).samples if sample.field == "Case_1-01"]
    for number, sample in enumerate(samples):
        top, left = divmod(number, 3)[0] * cell_height, number % 3 * cell_width
        label = sheet[top : top + LABEL_PX, left : left + WIDTH_PX]
        assert label.min() < 128, "the variant is not named"
        shown = sheet[top + LABEL_PX :, left:][:HEIGHT_PX, :WIDTH_PX]
        mask = cv2.imread(str(data / sample.mask), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        framed = np.pad(mask, 1)  # a disc that is cut ends at the picture's edge
        gradient = cv2.morphologyEx(framed, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        edge = gradient[1:-1, 1:-1] > 0
        image = cv2.imread(str(data / sample.image), cv2.IMREAD_COLOR_RGB)
        is_line = ((shown == colour_of(0)) & (shown != image)).all(axis=-1)
        near = cv2.dilate(edge.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert is_line.sum() > 0.5 * edge.sum()
        is_dot = dots_of(data / sample.points)
        assert near[is_line & ~is_dot].all()
        assert is_line[is_dot].any()
    assert (sheet[cell_height:, 2 * cell_width :] == 255).all(), "a sixth cell is shown"


def dots_of(path: Path) -> np.ndarray:
    """Where the dots of a file's points may be."""
    is_dot = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    for points in json.loads(path.read_text()).values():
        for point in points:
            center = int(point["x"] * WIDTH_PX), int(point["y"] * HEIGHT_PX)
            cv2.circle(is_dot, center, 2, 1, cv2.FILLED)
    return is_dot > 0


def test_each_class_has_its_colour_and_the_sheet_says_which(
    raw_folder: Callable[..., Path], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """A point of the first class on the left, one of the second on the right."""
    raw = raw_folder()
    annotation = {"tumor": [{"x": 0.2, "y": 0.5}], "non_tumor": [{"x": 0.8, "y": 0.5}]}
    (raw / "groundTruth/Case_1-01.json").write_text(json.dumps(annotation))
    settings = {"classes": ["tumor", "non_tumor"], "labels": "per_class", "format": "png"}
    split = SplitConfig(val_cases=["2"], test_cases=["3"])
    data, path = tmp_path / "data", tmp_path / "sheet.png"
    settings |= {"raw": str(raw), "out": str(data), "copies": 1, "radius_px": 12}
    prepare(PrepConfig(split=split, **settings))
    outcome = cli(preview.main, f"data={data}", f"out={path}", "columns=1", f"width_px={WIDTH_PX}")
    assert outcome.code == 0, outcome.err
    sheet = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    head = legend(WIDTH_PX + GAP_PX, settings["classes"], "Case_1-01   Case_1   train")
    assert (sheet[: len(head)] == head).all()
    cell = sheet[len(head) + LABEL_PX :, :WIDTH_PX]
    for number, left in ((0, 0), (1, WIDTH_PX // 2)):
        _, x = np.nonzero((cell == colour_of(number)).all(axis=-1))
        assert len(x) > 40
        assert ((x >= left) & (x < left + WIDTH_PX // 2)).all()


def test_another_field_by_name(data: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    outcome = cli(preview.main, f"data={data}", f"out={tmp_path / 's.jpg'}", "field=Case_2-01")
    assert outcome.out.startswith("1 variant of Case_2-01")


def test_what_cannot_be_shown_is_said(data: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    for given, message in (
        ("field=Case_9-01", "field=Case_9-01: not in the data set; it has Case_1-01,"),
        ("out=sheet.tif", "out=sheet.tif: name a .jpg or .png file"),
        ("columns=0", "columns=0 must be at least 1"),
    ):
        outcome = cli(preview.main, f"data={data}", f"out={tmp_path / 's.png'}", given)
        assert outcome.code == 2
        assert message in outcome.err
        assert "Traceback" not in outcome.err


def test_a_missing_or_damaged_file_of_points_is_named(
    data: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    path = data / "points/Case_1-01_v00_original.json"
    for content in (b"{", b"[]", b"{}", b'{"tumor": [{"x": 1}]}', None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        outcome = cli(preview.main, f"data={data}", f"out={tmp_path / 's.png'}")
        assert outcome.code == 1
        assert f"error: {path}: missing or damaged" in outcome.err
        assert "run data_prep again" in outcome.err


def test_only_a_sheet_of_before_is_replaced(
    data: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    sheet, given = tmp_path / "sheet.png", [f"data={data}", f"out={tmp_path / 'sheet.png'}"]
    sheet.write_bytes(b"mine")
    outcome = cli(preview.main, *given)
    assert outcome.code == 1
    assert outcome.err == (
        f"error: {tmp_path}: 1 file in the way, not written by this command or"
        " changed since: sheet.png; move away what is yours and run again, or name another out=\n"
    )
    assert sheet.read_bytes() == b"mine"
    sheet.unlink()
    assert cli(preview.main, *given).code == 0
    first = sheet.read_bytes()
    assert cli(preview.main, *given, "columns=1").code == 0
    assert sheet.read_bytes() != first
