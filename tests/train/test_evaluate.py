"""Evaluation against numbers counted by hand, on fields whose prediction is known."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep.manifest import Dataset
from train import evaluate, fields
from train.baselines import otsu_on_hematoxylin
from train.metrics import EMPTY_RULE

Evaluate = Callable[..., dict[str, Any]]


def left_half(model: object, image_HWC: np.ndarray, *settings: object) -> np.ndarray:
    """A 'network' that is sure of the left half and doubts the right."""
    probability_CHW = np.full((1, *image_HWC.shape[:2]), 0.2, np.float32)
    probability_CHW[..., : image_HWC.shape[1] // 2] = 0.9
    return probability_CHW


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "predict_probability", left_half)


@pytest.fixture
def evaluated(own_run: Path, tmp_path: Path, cli: Callable[..., Any]) -> Evaluate:
    """evaluated("split=val") is the summary.json of `python -m train.evaluate`."""

    def call(*settings: str, figures: int = 0) -> dict[str, Any]:
        out = tmp_path / "results"
        shutil.rmtree(out, ignore_errors=True)
        given = [f"run={own_run}", f"out={out}", "amp=off", f"figures={figures}", *settings]
        outcome = cli(evaluate.main, *given)
        assert outcome.code == 0, outcome.err
        assert str(out) in outcome.out
        return json.loads((out / "summary.json").read_text())

    return call


def truth(dataset: Dataset, field: str) -> np.ndarray:
    """The mask of a field as another reader sees it."""
    with Image.open(next((dataset.folder / "masks").glob(f"{field}_v00_*.png"))) as picture:
        return np.asarray(picture) > 0


def expected_scores(
    truth_HW: np.ndarray, predicted_HW: np.ndarray | None = None
) -> dict[str, float]:
    """Scores by their definitions as sets of pixels."""
    if predicted_HW is None:
        predicted_HW = np.arange(truth_HW.shape[1]) < truth_HW.shape[1] // 2
        predicted_HW = np.broadcast_to(predicted_HW, truth_HW.shape)
    both = (truth_HW & predicted_HW).sum()
    return {
        "accuracy": (truth_HW == predicted_HW).mean(),
        "iou": both / (truth_HW | predicted_HW).sum(),
        "dice": 2 * both / (truth_HW.sum() + predicted_HW.sum()),
        "precision": both / predicted_HW.sum(),
        "recall": both / truth_HW.sum(),
    }


@pytest.mark.usefixtures("known")
def test_the_summary_is_what_one_counts(evaluated: Evaluate, prepared: Dataset) -> None:
    summary = evaluated()
    names = ["Case_4-01", "Case_4-02", "Case_5-01"]
    truths = [truth(prepared, name) for name in names]

    assert summary["num_fields"] == 3
    assert summary["cases"] == ["Case_4", "Case_5"]
    assert [(field["field"], field["case"]) for field in summary["per_field"]] == [
        (name, name[:6]) for name in names
    ]
    each = [expected_scores(mask_HW) for mask_HW in truths]
    for field, expected in zip(summary["per_field"], each, strict=True):
        assert {name: field[name] for name in expected} == pytest.approx(expected)

    # over all pixels: the fields laid one under the other
    assert summary["all_pixels"] == pytest.approx(expected_scores(np.vstack(truths)))
    assert summary["per_class"] == {"tumor": summary["all_pixels"]}
    for name, entry in summary["mean_over_fields"].items():
        values = [scores[name] for scores in each]
        assert entry["mean"] == pytest.approx(np.mean(values))
        # of two cases, three draws in four hold either or both: the ends are the cases' means
        ends = sorted([np.mean(values[:2]), values[2]])
        assert entry["interval"] == pytest.approx(ends)
    assert set(summary["mean_over_fields"]) == set(each[0])


@pytest.mark.usefixtures("known")
def test_the_summary_says_what_was_measured_and_how(evaluated: Evaluate, own_run: Path) -> None:
    summary = evaluated("checkpoint=latest")
    assert summary["run"] == own_run.name
    assert (summary["checkpoint"], summary["step"], summary["epoch"]) == ("step_00000008", 8, 2)
    assert summary["data"] == {"split": "test"}
    assert summary["threshold"] == 0.5
    assert summary["empty_rule"] == EMPTY_RULE
    assert summary["bootstrap"] == {"over": "cases", "resamples": 2000, "confidence": 0.95}
    assert summary["warnings"] == []


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("threshold", "share"), [(0.1, 1.0), (0.5, 0.5), (0.95, 0.0)])
def test_a_pixel_counts_above_the_threshold(
    threshold: float, share: float, evaluated: Evaluate, prepared: Dataset
) -> None:
    """0.9 on the left and 0.2 on the right: everything, the left half, or nothing."""
    scores = evaluated(f"threshold={threshold}")["all_pixels"]
    truths = np.vstack([truth(prepared, name) for name in ("Case_4-01", "Case_4-02", "Case_5-01")])
    predicted_HW = np.broadcast_to(np.arange(96) < 96 * share, truths.shape)
    assert scores["accuracy"] == pytest.approx((predicted_HW == truths).mean())
    assert scores["recall"] == pytest.approx(truths[predicted_HW].sum() / truths.sum())


def test_a_raw_folder_gives_what_its_split_gives(evaluated: Evaluate, raw: Path) -> None:
    """The network itself, on images that were prepared without loss."""
    of_split = evaluated("split=test")
    of_raw = evaluated(f"raw={raw}", "cases=[4,5]")
    assert of_raw.pop("data") == {"raw": raw.name}
    assert of_split.pop("data") == {"split": "test"}
    assert of_raw == of_split
    assert 0 < of_raw["all_pixels"]["dice"] < 1


@pytest.mark.usefixtures("known")
def test_augmented_copies_do_not_count(evaluated: Evaluate, prepared: Dataset) -> None:
    assert len(prepared.split("train")) == 16
    summary = evaluated("split=train")
    assert [field["field"] for field in summary["per_field"]] == [
        "Case_1-01",
        "Case_1-02",
        "Case_2-01",
        "Case_2-02",
    ]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("cases", "trained_on"),
    [("[]", "Case_1, Case_2"), ("[2,4]", "Case_2"), ("[3,4]", ""), ("[Case_5]", "")],
)
def test_cases_that_were_trained_on_are_warned_of(
    cases: str, trained_on: str, evaluated: Evaluate, raw: Path
) -> None:
    warnings = evaluated(f"raw={raw}", f"cases={cases}")["warnings"]
    assert len(warnings) == bool(trained_on)
    assert not warnings or warnings[0].startswith(f"trained on: {trained_on};")


@pytest.mark.usefixtures("known")
def test_one_case_has_no_interval(
    evaluated: Evaluate, own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = evaluated("split=val")
    assert all(entry["interval"] is None for entry in summary["mean_over_fields"].values())


def test_otsu_stands_beside_the_model(evaluated: Evaluate, raw: Path) -> None:
    """Blue discs on a pale ground are easy for it: nearly all that is annotated, and no more."""
    baseline = evaluated()["baselines"]["otsu_hematoxylin"]
    assert baseline["all_pixels"]["dice"] > 0.9
    assert baseline["mean_over_fields"]["dice"]["mean"] > 0.9
    image_HWC = cv2.imread(str(raw / "Case_4-01.png"), cv2.IMREAD_COLOR_RGB)
    assert otsu_on_hematoxylin(image_HWC).shape == image_HWC.shape[:2]


def test_another_case_is_refused_with_those_there_are(
    own_run: Path, raw: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli(evaluate.main, f"run={own_run}", f"raw={raw}", "cases=[4,9]")
    assert outcome.code == 2
    assert outcome.err == (
        "error: cases: no Case_9; there are: Case_1, Case_2, Case_3, Case_4, Case_5\n"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["split=testing"], ["split=testing", "train, val, test"]),
        (["threshold=1"], ["threshold=1"]),
        (["raw=nowhere"], ["nowhere"]),
        (["checkpoint=7"], ["checkpoint=7", "step_00000008"]),
        (["data=nowhere"], ["data=nowhere"]),
        (["amp=fp8"], ["amp=fp8", "bf16"]),
        (["device=gpu"], ["device=gpu", "cuda"]),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_line(
    settings: list[str], words: list[str], own_run: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli(evaluate.main, f"run={own_run}", *settings)
    assert outcome.code in (1, 2)
    assert all(word in outcome.err for word in words), outcome.err
    assert outcome.err.count("\n") == 1
    assert not (own_run / "evaluation").exists()


def test_a_damaged_checkpoint_is_not_evaluated(own_run: Path, cli: Callable[..., Any]) -> None:
    best = own_run / "checkpoints" / (own_run / "checkpoints" / "best").read_text().strip()
    with (best / "__0_0.distcp").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\x00\xff")
    outcome = cli(evaluate.main, f"run={own_run}")
    assert outcome.code == 1
    assert "__0_0.distcp is damaged" in outcome.err


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "invalid JSON"), ('{"lumen": [{"x": 0, "y": 0}]}', "'tumor'")]
)
def test_a_bad_raw_field_is_named(
    content: str, reason: str, own_run: Path, raw: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Not left out: a metric over fewer fields than asked for would be another metric."""
    own_raw = shutil.copytree(raw, tmp_path / "raw")
    (own_raw / "Case_4-02.json").write_text(content)
    outcome = cli(evaluate.main, f"run={own_run}", f"raw={own_raw}", "cases=[4]", "figures=0")
    assert outcome.code == 1
    assert "Case_4-02.json" in outcome.err
    assert reason in outcome.err
    assert not (own_run / "evaluation" / "raw-4" / "summary.json").exists()


def test_figures_are_drawn_of_as_many_fields_as_asked(own_run: Path, cli: Callable) -> None:
    """Into the run's own folder where none is named."""
    assert cli(evaluate.main, f"run={own_run}", "figures=1", "cases=[4]").code == 0
    assert sorted(path.name for path in (own_run / "evaluation" / "test-4").iterdir()) == [
        "Case_4-01_outcome.png",
        "Case_4-01_panels.png",
        "learning_curves.png",
        "summary.json",
    ]
