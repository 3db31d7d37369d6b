"""The drawn data set: repeatable, shaped like BreCaHAD, and neither trivial nor hopeless."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from common.command_line import UserError, run
from data_prep.annotations.brecahad import CLASSES
from data_prep.synthetic import main
from data_prep.tools import synthetic_files
from data_prep.tools.config import SyntheticConfig
from data_prep.tools.synthetic_fields import Points, make_field
from data_prep.tools.synthetic_files import write_dataset
from data_prep.tools.synthetic_layout import STAINS_SC

SMALL = {"width_px": 340, "height_px": 256}
ROOT = Path(__file__).parents[3]


def settings(out: Path, **others: int) -> list[str]:
    return [f"out={out}", *(f"{key}={value}" for key, value in {**SMALL, **others}.items())]


def exit_code(argv: list[str]) -> object:
    with pytest.raises(SystemExit) as caught:
        run(main, argv)
    return caught.value.code


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the data set."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".eosin" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def hematoxylin(image_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colour deconvolution with the published stain vectors, which no case has exactly."""
    stains_SC = STAINS_SC / np.linalg.norm(STAINS_SC, axis=1, keepdims=True)
    basis = np.vstack([stains_SC, np.cross(*stains_SC)])
    density_HWC = -np.log((image_HWC + 1.0) / 256) @ np.linalg.inv(basis)
    return np.asarray(density_HWC[..., 0])


def discs(
    pixels: list[tuple[int, int]], shape: tuple[int, ...], radius_px: int
) -> NDArray[np.bool_]:
    mask_HW = np.zeros(shape, np.uint8)
    for pixel in pixels:
        cv2.circle(mask_HW, pixel, radius_px, 1, -1)
    return mask_HW > 0


@pytest.fixture(scope="module")
def fields() -> list[tuple[NDArray[np.uint8], Points]]:
    config = SyntheticConfig(cases=4, fields=2, width_px=680, height_px=512)
    return [make_field(config, case, field) for case in range(1, 5) for field in (1, 2)]


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert main(settings(tmp_path / name, cases=1, fields=2, seed=seed)) == 0
    first, same, other = (contents(tmp_path / name) for name in "abc")
    assert first == same
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_progress_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    def track(items: list[object], **how: object) -> Iterator[object]:
        for number, item in enumerate(items):
            yield item
            shown.append((number, how, len(contents(tmp_path))))

    monkeypatch.setattr(synthetic_files, "track", track)
    main(settings(tmp_path, cases=1, fields=2))
    how = {"total": 2, "label": "make", "unit": "field"}
    assert shown == [(0, how, 2), (1, how, 4)]


def test_more_cases_and_fields_keep_the_earlier_ones(tmp_path: Path) -> None:
    main(settings(tmp_path, cases=1, fields=1))
    before = contents(tmp_path)
    main(settings(tmp_path, cases=2, fields=2))
    after = contents(tmp_path)
    assert len(after) == 8
    assert before.items() <= after.items()


def test_files_have_the_layout_of_brecahad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(settings(tmp_path, cases=2, fields=1))
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path} holds 2 fields of 2 cases"
    assert sorted(contents(tmp_path)) == [
        "groundTruth/Case_1-01.json",
        "groundTruth/Case_2-01.json",
        "images/Case_1-01.tif",
        "images/Case_2-01.tif",
    ]
    image_HWC = tifffile.imread(tmp_path / "images/Case_2-01.tif")
    assert image_HWC.shape == (256, 340, 3)
    assert image_HWC.dtype == np.uint8
    annotation = json.loads((tmp_path / "groundTruth/Case_2-01.json").read_text())
    assert tuple(annotation) == CLASSES
    config = SyntheticConfig(out=str(tmp_path), **SMALL)
    drawn_HWC, points = make_field(config, case=2, field=1)
    assert np.array_equal(image_HWC, drawn_HWC)
    for key, shares in annotation.items():
        assert all(set(share) == {"x", "y"} for share in shares)
        assert all(0 <= share[axis] <= 1 for share in shares for axis in "xy")
        assert [(int(s["x"] * 340), int(s["y"] * 256)) for s in shares] == points[key]


def test_points_lie_in_the_picture_and_scale_with_its_area(
    fields: list[tuple[NDArray[np.uint8], Points]],
) -> None:
    for image_HWC, points in fields:
        height, width, _ = image_HWC.shape
        pixels = np.array([pixel for key in CLASSES for pixel in points[key]])
        assert ((pixels >= 0) & (pixels < (width, height))).all()
        assert 60 / 4 * 0.7 <= len(points["tumor"]) <= 170 / 4 * 1.3  # a quarter of a full field
    for key in CLASSES:
        assert any(points[key] for _, points in fields), key


def test_tumour_nuclei_are_paler_and_larger_than_the_others(
    fields: list[tuple[NDArray[np.uint8], Points]],
) -> None:
    for image_HWC, points in fields:
        stain_HW = hematoxylin(image_HWC)
        core = {
            key: np.median(stain_HW[discs(points[key], stain_HW.shape, 4)])
            for key in ("tumor", "non_tumor")
        }
        assert core["tumor"] < 0.9 * core["non_tumor"]


def test_otsu_on_hematoxylin_is_no_solution(
    fields: list[tuple[NDArray[np.uint8], Points]],
) -> None:
    scores = []
    for image_HWC, points in fields:
        stain_HW = np.clip(100 * hematoxylin(image_HWC), 0, 255).astype(np.uint8)
        otsu_HW = cv2.threshold(stain_HW, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] > 0
        truth_HW = discs(points["tumor"], stain_HW.shape, 20)
        assert 0.01 < truth_HW.mean() < 0.3
        scores.append(2 * (otsu_HW & truth_HW).sum() / (otsu_HW.sum() + truth_HW.sum()))
    assert max(scores) < 0.6
    assert 0.3 < np.mean(scores) < 0.55


def test_cases_differ_in_colour_more_than_their_fields_do(
    fields: list[tuple[NDArray[np.uint8], Points]],
) -> None:
    colours = [
        np.median(image_HWC[discs(points["non_tumor"], image_HWC.shape[:2], 4)], axis=0)
        for image_HWC, points in fields
    ]
    colour = np.reshape(colours, (4, 2, 3))  # (case, field, channel) of the dark small nuclei
    assert colour.mean(axis=1).std(axis=0).mean() > 2 * colour.std(axis=1).mean()


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("cases=0", "cases"),
        ("fields=100", "fields"),
        ("width_px=191", "width_px"),
        ("height_px=8193", "height_px"),
        ("seed=-1", "seed"),
        ("seed=soon", "seed"),
        ("colour=red", "colour"),
    ],
)
def test_a_bad_setting_is_a_usage_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, key: str
) -> None:
    assert exit_code([f"out={tmp_path / 'new'}", setting]) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_out_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["cases=1"]) == 2
    assert "out=..." in capsys.readouterr().err


def test_help_names_every_key() -> None:
    command = [sys.executable, "-m", "data_prep.synthetic", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"  {key}=" in text for key in SyntheticConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    "foreign", ["notes.txt", "images/Case_1-01.tif", "groundTruth/Case_1-01.json", "images/x.png"]
)
def test_a_folder_with_other_content_is_left_alone(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"real data")
    with pytest.raises(UserError, match=foreign):
        write_dataset(SyntheticConfig(out=str(tmp_path), cases=1, fields=1, **SMALL))
    assert contents(tmp_path) == {foreign: b"real data"}


def test_an_annotation_that_was_corrected_is_left_alone(tmp_path: Path) -> None:
    """Beside the image that was drawn with it."""
    main(settings(tmp_path, cases=1, fields=1))
    annotation = tmp_path / "groundTruth/Case_1-01.json"
    annotation.write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds groundTruth/Case_1-01\.json, which"):
        main(settings(tmp_path, cases=1, fields=1, seed=1))
    assert contents(tmp_path) == before
    annotation.unlink()
    main(settings(tmp_path, cases=1, fields=1, seed=1))
    assert contents(tmp_path) != before


def test_a_smaller_data_set_does_not_mix_with_a_larger_one(tmp_path: Path) -> None:
    main(settings(tmp_path, cases=1, fields=2))
    with pytest.raises(UserError, match="Case_1-02"):
        main(settings(tmp_path, cases=1, fields=1))


def test_a_run_cut_short_can_be_repeated(tmp_path: Path) -> None:
    main(settings(tmp_path / "whole", cases=1, fields=2))
    main(settings(tmp_path / "cut", cases=1, fields=1))
    (tmp_path / "cut/.eosin/synthetic/.0123456789abcdef.tmp").write_bytes(b"half a file")
    main(settings(tmp_path / "cut", cases=1, fields=2))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_an_out_that_is_a_file_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert exit_code(settings(tmp_path / "file", cases=1, fields=1)) == 2
    assert "out=" in capsys.readouterr().err
