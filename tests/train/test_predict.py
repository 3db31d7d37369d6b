"""Predictions of images of any size: the files, what is in them, and images that are none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from train import checkpoint, predict
from train.run_folder import read_run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images of odd sizes and kinds."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (50, 71, 3), "b.tif": (131, 33, 3), "c.jpg": (1, 1, 3)}.items():
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        if name.endswith("tif"):
            tifffile.imwrite(folder / name, image, photometric="rgb")
        else:
            cv2.imwrite(str(folder / name), image)
    return folder


def outputs(out: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, probability and overlay of an image, through other readers."""
    mask_HW = np.asarray(Image.open(out / f"{name}_mask.png"))
    overlay_HWC = np.asarray(Image.open(out / f"{name}_overlay.png"))
    return mask_HW, tifffile.imread(out / f"{name}_probability.tif"), overlay_HWC


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_every_image_gets_a_mask_a_probability_and_an_overlay(
    threshold: float, trained: Path, pictures: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    given = [f"run={trained}", f"input={pictures}", f"out={out}", f"threshold={threshold}"]
    outcome = cli(predict.main, *given)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(list(out.iterdir())) == 9
    for name, shape in (("a", (50, 71)), ("b", (131, 33)), ("c", (1, 1))):
        mask_HW, probability_HW, overlay_HWC = outputs(out, name)
        assert mask_HW.shape == probability_HW.shape == overlay_HWC.shape[:2] == shape
        assert probability_HW.dtype == np.float32
        assert ((probability_HW >= 0) & (probability_HW <= 1)).all()
        assert np.array_equal(mask_HW, np.where(probability_HW > threshold, 255, 0))


def test_the_network_sees_rgb_and_its_outline_is_drawn_on_the_image(
    trained: Path,
    raw: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A single file; a 'network' that says how little red there is finds the bluish discs."""

    def lack_of_red(model: object, image_HWC: np.ndarray, *settings: object) -> np.ndarray:
        return 1 - image_HWC[None, ..., 0].astype(np.float32) / 255

    monkeypatch.setattr(predict, "predict_probability", lack_of_red)
    field, out = raw / "Case_1-01.png", tmp_path / "out"
    given = [f"run={trained}", f"input={field}", f"out={out}", "threshold=0.5"]
    assert cli(predict.main, *given).code == 0
    mask_HW, probability_HW, overlay_HWC = outputs(out, "Case_1-01")
    image_HWC = np.asarray(Image.open(field))
    assert np.array_equal(probability_HW, lack_of_red(None, image_HWC)[0])
    assert np.array_equal(mask_HW, np.where(image_HWC[..., 0] < 128, 255, 0))
    outline_HW = (overlay_HWC == (0, 158, 115)).all(axis=-1)
    assert outline_HW.any()
    assert np.array_equal(overlay_HWC[~outline_HW], image_HWC[~outline_HW])


def test_the_threshold_is_the_checkpoints_unless_given(
    trained: Path, pictures: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    run = read_run(trained)
    path = checkpoint.find(run.checkpoints, "best")
    threshold = json.loads((path / "state.json").read_text())["metrics"]["val/threshold"]
    out = tmp_path / "out"
    outcome = cli(predict.main, f"run={trained}", f"input={pictures / 'b.tif'}", f"out={out}")
    assert outcome.code == 0
    assert f"threshold {threshold} (val)" in outcome.out
    mask_HW, probability_HW, _ = outputs(out, "b")
    assert np.array_equal(mask_HW, np.where(probability_HW > threshold, 255, 0))


def test_a_bad_image_is_named_and_the_rest_goes_on(
    trained: Path, pictures: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    (pictures / "a.png").write_bytes(b"no picture")
    content = (pictures / "b.tif").read_bytes()
    (pictures / "b.tif").write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    outcome = cli(predict.main, f"run={trained}", f"input={pictures}", f"out={out}")
    assert outcome.code == 1
    lines = outcome.err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"left out {pictures / 'a.png'}",
        f"left out {pictures / 'b.tif'}",
    ]
    assert {path.name[0] for path in out.iterdir()} == {"c"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input": "nowhere"}, ["input=", "no such file or folder"]),
        ({"input": "empty"}, ["input=", "no images", ".tif"]),
        ({"input": "double"}, ["images of one name: a"]),
        ({"run": "nowhere"}, ["run=", "not a run"]),
        ({"threshold": "0"}, ["threshold=0"]),
        ({"checkpoint": "9"}, ["checkpoint=9"]),
        ({"amp": "fp8"}, ["amp=fp8", "bf16"]),
        ({"device": "gpu"}, ["device=gpu", "cuda"]),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_a_line(
    given: dict[str, str],
    words: list[str],
    trained: Path,
    pictures: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "double").mkdir()
    for suffix in ("png", "tif"):
        (tmp_path / "double" / f"a.{suffix}").write_bytes(b"")
    paths = {key: str(tmp_path / value) for key, value in given.items() if key in ("input", "run")}
    settings = {"run": trained, "input": pictures, "out": tmp_path / "out"} | given | paths
    outcome = cli(predict.main, *(f"{key}={value}" for key, value in settings.items()))
    assert outcome.code == 2
    assert all(word in outcome.err for word in words), outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.5, [[0, 1, 2, 2]]), (0.3, [[1, 1, 2, 2]]), (0.85, [[0, 0, 2, 0]])],
)
def test_the_most_probable_class_has_the_pixel_where_it_is_above_the_threshold(
    threshold: float, expected: list[list[int]]
) -> None:
    probability_CHW = np.array([[[0.4, 0.7, 0.1, 0.6]], [[0.3, 0.2, 0.9, 0.8]]], np.float32)
    mask_HW = predict.to_mask(probability_CHW, [1, 2], threshold)
    assert (mask_HW.dtype, mask_HW.tolist()) == (np.uint8, expected)
