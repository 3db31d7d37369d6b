"""Pictures that are there twice, made by hand and in the real sample."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep.image_files.open_image import read_image
from tests.train.conftest import with_other_content
from train.evaluation.duplicates import (
    NEAR_BITS,
    agreement,
    compare_with_training,
    duplicate_warnings,
    fingerprint,
    near_duplicates,
    split_warnings,
)
from train.fields.whole_fields import FieldContent, WholeField, raw_fields
from train.ranks.distributed import Ranks
from train.runs.ensemble import named_run
from train.runs.run_folder import read_run

Disguise = Callable[[np.ndarray], np.ndarray]


def blobs(seed: int) -> np.ndarray:
    """A picture of dark discs on a pale ground, HWC uint8."""
    rng = np.random.default_rng(seed)
    image_HWC = np.full((240, 320, 3), (225, 190, 215), np.uint8)
    for x, y, radius in rng.integers((0, 0, 6), (320, 240, 18), (40, 3)).tolist():
        cv2.circle(image_HWC, (x, y), radius, rng.integers(60, 150, 3).tolist(), cv2.FILLED)
    return image_HWC


def as_jpg(image_HWC: np.ndarray, quality: int) -> np.ndarray:
    """The picture compressed, with all that is lost by it."""
    _, encoded = cv2.imencode(".jpg", image_HWC, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def noisy(image_HWC: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, 8, image_HWC.shape)
    return np.clip(image_HWC + noise, 0, 255).astype(np.uint8)


DISGUISES: dict[str, Disguise] = {
    "the same": lambda image_HWC: image_HWC,
    "flipped, as JPG": lambda image_HWC: as_jpg(image_HWC[:, ::-1], 40),
    "turned, with noise": lambda image_HWC: noisy(np.rot90(image_HWC)),
    "on its head, smaller": lambda image_HWC: cv2.resize(image_HWC[::-1], (200, 150)),
    "transposed, paler": lambda image_HWC: (image_HWC.swapaxes(0, 1) * 0.8 + 50).astype(np.uint8),
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES.keys())
def test_a_copy_in_another_case_is_found_and_nothing_else(disguise: Disguise) -> None:
    trained = [fingerprint(n, f"Case_1-{n:02d}", "Case_1", blobs(n)) for n in range(20)]
    copy = np.ascontiguousarray(disguise(blobs(7)))
    evaluated = [fingerprint(0, "Case_2-01", "Case_2", copy)]
    evaluated += [fingerprint(n, f"Case_2-{n:02d}", "Case_2", blobs(100 + n)) for n in range(2, 20)]
    (found,) = near_duplicates(evaluated, trained)
    assert found.pop("bits") <= NEAR_BITS
    assert found == {
        "field": "Case_2-01",
        "trained_field": "Case_1-07",
        "trained_case": "Case_1",
    }


def test_a_case_is_not_compared_with_itself() -> None:
    """That it was trained on is another warning."""
    one = fingerprint(0, "Case_1-01", "Case_1", blobs(1))
    assert near_duplicates([one], [one]) == []


def field(name: str, image_HWC: np.ndarray, *points: tuple[int, int]) -> WholeField:
    """A field with discs of 10 px as its truth."""
    mask_HW = np.zeros(image_HWC.shape[:2], np.uint8)
    for point in points:
        cv2.circle(mask_HW, point, 10, 255, cv2.FILLED)
    return WholeField(name, name[:6], lambda: FieldContent(image_HWC, mask_HW, []))


def agreements(fields: list[WholeField]) -> list[dict[str, Any]]:
    prints = [
        fingerprint(index, field.name, field.case, field.read().image_HWC)
        for index, field in enumerate(fields)
    ]
    return agreement(fields, prints, [255])


def test_two_annotations_of_one_picture_are_compared() -> None:
    """Of two discs against the first of them: Dice 2 / (1 + 2)."""
    fields = [
        field("Case_1-01", blobs(1), (50, 50)),
        field("Case_2-01", blobs(2), (50, 50)),
        field("Case_3-01", as_jpg(blobs(1), 90), (50, 50), (150, 150)),
    ]
    (found,) = agreements(fields)
    assert found["fields"] == ["Case_1-01", "Case_3-01"]
    assert found["dice"] == pytest.approx(2 / 3)


def test_annotations_of_pictures_that_do_not_lie_on_each_other_are_not() -> None:
    """Flipped, of another size, or a little beside: their masks do not lie on each other either."""
    picture = blobs(1)
    shifted = np.roll(picture, 4, axis=1)
    others = [picture[:, ::-1].copy(), cv2.resize(picture, (160, 120)), shifted]
    for number, other in enumerate(others):
        fields = [field("Case_1-01", picture, (50, 50)), field("Case_2-01", other, (50, 50))]
        assert agreements(fields) == [], number


def test_the_real_sample_holds_one_picture_twice(real_data: Path, own_run: Path) -> None:
    """Case_10-07 and Case_10-08, whose discs of 20 px agree at Dice 0.594; no other two."""
    run = read_run(own_run)
    labelling = dataclasses.replace(run.data.labelling, radius_px=20)
    fields = raw_fields(real_data, labelling, run.description)
    (found,) = agreements(fields)
    assert found["fields"] == ["Case_10-07", "Case_10-08"]
    assert found["dice"] == pytest.approx(0.594, abs=0.0005)


def test_a_flipped_copy_of_a_real_field_is_found(real_data: Path) -> None:
    """Under another case, after JPG; only itself and the picture's second copy."""
    trained, evaluated = [], []
    for index, path in enumerate(sorted((real_data / "images").iterdir())):
        image_HWC = read_image(path, 65535)
        trained.append(fingerprint(index, path.stem, path.stem.split("-")[0], image_HWC))
        copy = as_jpg(np.ascontiguousarray(image_HWC[:, ::-1]), 60)
        evaluated.append(fingerprint(index, f"copy of {path.stem}", "Case_99", copy))
    pairs = {
        (found["field"], found["trained_field"]) for found in near_duplicates(evaluated, trained)
    }
    twins = {("copy of Case_10-07", "Case_10-08"), ("copy of Case_10-08", "Case_10-07")}
    assert pairs == {(f"copy of {entry.field}", entry.field) for entry in trained} | twins


def test_the_training_fields_are_read_from_the_prepared_set(
    own_run: Path, raw: Path, ranks: Callable[..., Ranks]
) -> None:
    """Originals only: Case_1 and Case_2 have two each."""
    run = read_run(own_run)
    copy = cv2.imread(str(raw / "Case_2-01.png"), cv2.IMREAD_COLOR_RGB)[::-1].copy()
    evaluated = [fingerprint(0, "new-01", "new", copy)]
    compared = compare_with_training(evaluated, run, "", ranks())
    assert compared["num_training_fields"] == 4
    assert compared["max_bits"] == NEAR_BITS
    assert [pair["trained_field"] for pair in compared["found"]] == ["Case_2-01"]
    (warning,) = duplicate_warnings(compared)
    assert "new-01 like Case_2-01" in warning


def test_where_the_prepared_set_is_gone_that_is_said(
    own_run: Path, tmp_path: Path, ranks: Callable[..., Ranks]
) -> None:
    run = read_run(own_run)
    compared = compare_with_training([], run, str(tmp_path / "gone"), ranks())
    assert "found" not in compared
    (warning,) = duplicate_warnings(compared)
    assert warning.startswith("not checked")
    assert "gone: no such folder" in warning


def test_another_prepared_set_is_not_taken_for_it(
    own_run: Path, tmp_path: Path, ranks: Callable[..., Ranks]
) -> None:
    data = Path(read_run(own_run).config.data)
    other = shutil.copytree(data, tmp_path / "other")
    about = json.loads((own_run / "dataset.json").read_text())
    (own_run / "dataset.json").write_text(json.dumps(about | {"content_sha256": "0" * 64}))
    compared = compare_with_training([], read_run(own_run), other, ranks())
    assert "not the content" in compared["not_checked"]


def test_other_data_that_is_measured_is_compared_with_the_data_of_training(
    trained: Path, own_run: Path, tmp_path: Path, ranks: Callable[..., Ranks]
) -> None:
    """data=OTHER; of several members, those whose data is there."""
    other = with_other_content(read_run(trained).config.data, tmp_path / "other")
    about = json.loads((own_run / "dataset.json").read_text())
    compared = compare_with_training([], read_run(trained), str(other), ranks())
    assert (compared["num_training_fields"], "not_checked" in compared) == (4, False)
    (own_run / "dataset.json").write_text(json.dumps(about | {"content_sha256": "1" * 64}))
    both = named_run("", [str(trained), str(own_run)])
    compared = compare_with_training([], both, str(other), ranks())
    assert compared["num_training_fields"] == 4
    (warning,) = duplicate_warnings(compared)
    assert warning.startswith("not checked whether these pictures were trained on by some members")


def test_a_case_in_two_splits_is_named() -> None:
    cases = {"train": ["Case_1", "Case_2"], "val": ["Case_3"], "test": ["Case_2", "Case_4"]}
    assert split_warnings(cases) == ["in two splits, train and test: Case_2"]
    assert split_warnings({"train": ["Case_1"], "test": ["Case_2"]}) == []
