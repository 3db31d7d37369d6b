"""A class that val and test do not hold: no score of it is a number, and none chooses anything."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import jobs
from tests.train.conftest import TINY, prepare_here
from tests.train.curves import read_curve
from train import __main__ as train_main
from train import evaluate, export, predict, show
from train.checkpoints.published import find_checkpoint
from train.evaluation.duplicates import agreement_of
from train.evaluation.overlays import Overlay, worst_and_best
from train.evaluation.summary import summarise
from train.fields.measured_fields import FieldResult
from train.metrics.detection import Detections
from train.metrics.scores import best_threshold, bootstrap_pooled, scores
from train.runs.history import read_metrics
from train.runs.run_folder import read_run

Cli = Callable[..., Any]
SCORES = ("iou", "dice", "precision", "recall")
THRESHOLDS = "threshold of pixels 0.5, of nuclei 0.5 (both default, nothing annotated in val)"


@pytest.fixture(scope="module")
def annotated(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw fields with a second class, mitosis, in Case_1 and Case_5-01 only."""
    folder = shutil.copytree(raw, tmp_path_factory.mktemp("rare") / "raw")
    for path in folder.glob("*.json"):
        points = json.loads(path.read_text())["tumor"]
        rare = points[:2] if path.name.startswith(("Case_1", "Case_5")) else []
        path.write_text(json.dumps({"tumor": points[2:], "mitosis": rare}))
    return Path(folder)


def trained_on(annotated: Path, folder: Path, *settings: str) -> Path:
    """A run of two epochs, on data prepared with these settings."""
    prepare_here(annotated, folder / "prepared", *settings)
    run = folder / "run"
    assert train_main.main([f"data={folder / 'prepared'}", f"run={run}", *TINY]) == 0
    return run


@pytest.fixture(scope="module")
def rare(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on mitosis, of which val and test (Case_4) have none."""
    settings = ("classes=[mitosis]", "split.train_cases=[1,2,5]", "split.test_cases=[4]")
    return trained_on(annotated, tmp_path_factory.mktemp("rare"), *settings)


@pytest.fixture
def run(rare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rare, tmp_path / "run"))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def numbers_of(tree: Any, names: tuple[str, ...]) -> list[Any]:
    """Everything under one of these names, however deep."""
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key in names and not isinstance(value, dict):
            found += value if isinstance(value, list) else [value]
        elif isinstance(value, dict | list):
            found += numbers_of(value, names)
    return found


def test_training_says_so_and_takes_the_newest_for_the_best(run: Path, cli: Cli) -> None:
    metrics = read_metrics(run)
    assert [line["step"] for line in metrics] == [5, 10]
    for line in metrics:
        for name in (*SCORES, "threshold", "nuclei_threshold", "nuclei_f1"):
            assert line[f"val/{name}"] is None, name
        assert 0 < line["val/accuracy"] <= 1
    assert read_curve(run, "val/dice") == []
    assert len(read_curve(run, "val/accuracy")) == 2
    assert find_checkpoint(run / "checkpoints", "best").name == "step_00000010"
    (best,) = [line for line in jobs.progress(run) if line.startswith("best")]
    assert best == "best      the newest checkpoint: nothing annotated in val"
    shown = cli(show.main, f"run={run}")
    assert shown.code == 0
    assert re.search(r"^val/dice +nothing annotated$", shown.out, re.MULTILINE)
    assert "best          val/dice" not in shown.out


def test_what_training_prints(
    annotated: Path, rare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = rare.parent / "prepared"
    train_main.main([f"data={data}", f"run={tmp_path / 'run'}", *TINY, "epochs=1"])
    out = capsys.readouterr().out
    (epoch,) = [line for line in out.splitlines() if line.startswith("epoch 1")]
    assert "nothing annotated for val/iou, val/dice, val/precision, val/recall" in epoch
    assert "nothing annotated in val: the newest checkpoint counts as the best" in out


def test_no_score_of_the_evaluation_is_a_number(run: Path, cli: Cli) -> None:
    outcome = cli(evaluate.main, f"run={run}")
    assert outcome.code == 0
    text = (run / "evaluation/test/summary.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    names = (*SCORES, "f1", "average_precision", "mean")
    for part in ("all_pixels", "per_class", "per_field", "detection", "baselines", "sensitivity"):
        found = numbers_of(summary[part], names)
        accuracies = {
            source["mean_over_fields"]["accuracy"]["mean"]
            for source in summary["baselines"].values()
        }
        assert set(found) - accuracies == {None}, part
    assert summary["mean_over_fields"]["dice"] == {"mean": None, "num_fields": 0, "interval": None}
    assert summary["mean_over_fields"]["accuracy"]["num_fields"] == 2
    assert summary["threshold"] == {"value": 0.5, "chosen_on": "empty_val"}
    assert summary["detection"]["threshold_chosen_on"] == "empty_val"
    assert "null" in summary["empty_rule"]

    rows = {line[:20].strip(): line[20:].split("  ") for line in outcome.out.splitlines()}
    for name in ("pixels dice", "pixels recall", "mean dice of fields", "nuclei f1", "nuclei AP"):
        assert [cell.strip() for cell in rows[name] if cell] == ["nothing annotated"] * 2, name
    assert THRESHOLDS in outcome.out
    html = (run / "evaluation/test/report.html").read_text()
    tiles = html[html.index('<dl class="figures">') :].partition("</dl>")[0]
    assert tiles.count("nothing annotated</span>") == 4
    assert not re.search(r"\d\.\d{3}", tiles)
    assert "nan" not in re.sub(r"data:image[^\"]*", "", html).lower().split()


def test_what_reads_a_checkpoint_reads_this_one(
    run: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    model = tmp_path / "model.safetensors"
    assert cli(export.main, f"run={run}", f"out={model}").code == 0
    outcome = cli(
        predict.main, f"run={model}", f"input={raw / 'Case_4-01.png'}", f"out={tmp_path / 'p'}"
    )
    assert outcome.code == 0
    assert THRESHOLDS in outcome.out
    given = [f"run={model}", f"data={read_run(run).config.data}", "figures=0"]
    assert cli(evaluate.main, *given).code == 0
    # nothing was chosen on val, so nothing is warned of
    of_val = cli(evaluate.main, *given, "split=val")
    assert of_val.code == 0
    assert "warning" not in of_val.out


def test_of_two_classes_each_has_a_line(annotated: Path, tmp_path: Path, cli: Cli) -> None:
    """Mitosis is in one of three fields of the test split, and not in val."""
    settings = ("classes=[tumor,mitosis]", "labels=per_class")
    run = trained_on(annotated, tmp_path, *settings)
    outcome = cli(evaluate.main, f"run={run}", "cases=[4]", "figures=1", f"out={tmp_path / 'out'}")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    of_pixels, of_nuclei = ([*line.split()] for line in lines if line.startswith("mitosis"))
    assert of_pixels == ["mitosis", "nothing", "annotated"]
    assert of_nuclei[:4] == ["mitosis", "nothing", "annotated", "0"]
    of_pixels, of_nuclei = (line.split() for line in lines if line.startswith("tumor"))
    assert "nothing" not in of_pixels + of_nuclei
    assert of_nuclei[5] == "4"  # two fields of two nuclei


# Worked out by hand


def result(name: str, case: str, counts: list[int], nuclei: list[int]) -> FieldResult:
    """A field of one class."""
    hit, false_alarm, miss, _ = nuclei
    is_hit = np.array([True] * hit + [False] * false_alarm, bool)
    found = Detections(np.full(len(is_hit), 0.9, np.float32), is_hit, hit + miss)
    return FieldResult(
        0, name, case, np.array([counts]), np.array([nuclei]), np.zeros((2, 100)), [found], 0.1
    )


def test_a_mean_is_over_fields_with_something_annotated() -> None:
    """Dice 4/6 of the first field and 0 of the third; in the second are false alarms alone."""
    results = [
        result("a", "1", [2, 1, 1, 6], [1, 0, 0, 0]),
        result("b", "2", [0, 5, 0, 5], [0, 2, 0, 0]),
        result("c", "3", [0, 0, 4, 6], [0, 0, 1, 0]),
    ]
    summary = summarise(results, ["tumor"], seed=0)
    mean = summary["mean_over_fields"]
    assert mean["dice"]["mean"] == pytest.approx((4 / 6 + 0) / 2)
    assert mean["dice"]["num_fields"] == 2
    assert mean["dice"]["interval"] == pytest.approx((0, 4 / 6))
    assert mean["accuracy"]["mean"] == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert mean["accuracy"]["num_fields"] == 3
    # false alarms of a field without annotation count among all pixels
    assert summary["all_pixels"]["dice"] == pytest.approx(4 / (4 + 6 + 5))
    assert [row["dice"] for row in summary["per_field"]] == [pytest.approx(4 / 6), None, 0]
    nuclei = summary["detection"]
    assert [row["f1"] for row in nuclei["per_field"]] == [1, None, 0]
    assert [row["predicted"] for row in nuclei["per_field"]] == [1, 2, 0]
    assert nuclei["f1"] == pytest.approx(2 / (2 + 2 + 1))


def test_resamples_without_annotation_are_left_out() -> None:
    """Of the 27 draws of three cases one has the empty case alone; hits and misses of the others
    are 1/1 and 0/1, so a draw's recall is the share of the first among the two."""
    counts = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 9]])
    intervals = bootstrap_pooled(counts, ["a", "b", "c"], scores, 2000, 0)
    assert intervals["recall"] == (0, 1)
    assert intervals["accuracy"] is not None


def test_one_case_with_annotation_is_no_interval() -> None:
    """Whatever is drawn, its recall is 1: an interval from 1 to 1 would promise too much."""
    counts = np.array([[1, 0, 0, 0], [0, 2, 0, 9], [0, 0, 0, 9]])
    intervals = bootstrap_pooled(counts, ["a", "b", "c"], scores, 2000, 0)
    assert intervals["recall"] is None
    assert intervals["dice"] is None
    assert intervals["accuracy"] is not None


def test_no_threshold_is_the_best_where_nothing_is_annotated() -> None:
    counts = np.tile([0, 3, 0, 5], (99, 1))
    assert best_threshold(counts) is None


def overlay(index: int, dice: float | None) -> Overlay:
    return Overlay(index, f"f{index}", "1", dice, 1, 1, "", [], [])


@pytest.mark.parametrize(
    ("dices", "num_each", "expected"),
    [
        ([0.5, None, 0.1, 0.9, None], 1, [2, 3]),
        ([0.5, None, 0.1, 0.9, None], 2, [2, 0, 3, 1]),
        ([None, 0.2, None], 1, [1, 0]),
        ([None, None, None], 1, [0, 1]),
        ([None, 0.5, 0.1], 3, [2, 1, 0]),
        ([0.5, None], 0, []),
    ],
)
def test_a_field_without_annotation_is_neither_worst_nor_best(
    dices: list[float | None], num_each: int, expected: list[int]
) -> None:
    overlays = [overlay(index, dice) for index, dice in enumerate(dices)]
    shown = worst_and_best(overlays, num_each)
    assert [each.index for each in shown] == expected
    # looked at one by one, as they come
    kept: list[Overlay] = []
    for each in overlays:
        kept = worst_and_best([*kept, each], num_each)
    assert [each.index for each in kept] == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([0, 0, 0], [0, 0, 0], None),
        ([0, 0, 0], [255, 0, 0], 0),
        ([255, 0, 0], [0, 0, 0], 0),
        ([255, 255, 0], [255, 0, 0], 2 / 3),
    ],
)
def test_two_annotations_agree_whichever_is_first(
    one: list[int], other: list[int], expected: float | None
) -> None:
    masks = np.array([one], np.uint8), np.array([other], np.uint8)
    assert agreement_of(*masks, [255]) == (expected and pytest.approx(expected))
