"""Folds measured on the cases that each was not trained on, at thresholds chosen on the others."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from data_prep.dataset.manifest import read_dataset
from model.precision import choose_precision
from tests.forked_ranks import ForkedRanks
from train import evaluate
from train.evaluation import out_of_fold
from train.evaluation.config import EvaluateConfig
from train.fields.whole_fields import prepared_fields
from train.metrics.detection import Detections, detect
from train.prediction.tiles import predict_probability
from train.ranks.distributed import Ranks
from train.runs.run_folder import read_run
from train.runs.thresholds import ClassThresholds

Cli = Callable[..., Any]
STEPS = [number / 100 for number in range(1, 100)]


@pytest.fixture
def own_cv(cv: Path, tmp_path: Path) -> Path:
    """The folds, to do with as one likes."""
    return Path(shutil.copytree(cv, tmp_path / "cv"))


def evaluated(cli: Cli, *given: str) -> dict[str, Any]:
    """The summary of an evaluation into out=..., the last argument."""
    outcome = cli(evaluate.main, *given[:-1], f"out={given[-1]}", "amp=off", "figures=0")
    assert outcome.code == 0, outcome.err
    return json.loads((Path(given[-1]) / "summary.json").read_text())


class Predicted(NamedTuple):
    """What a fold predicts of a field that it tests, and what is annotated there."""

    case: str
    probability_HW: np.ndarray
    truth_HW: np.ndarray
    nuclei: Detections


def dice(fields: list[Predicted], threshold: float) -> float:
    """Dice of the maps of several fields together, by its definition."""
    both = total = 0
    for field in fields:
        predicted = field.probability_HW > np.float32(threshold)
        both += int((predicted & field.truth_HW).sum())
        total += int(predicted.sum() + field.truth_HW.sum())
    return 2 * both / total


def f1(fields: list[Predicted], threshold: float) -> float:
    """F1 of nuclei found above a threshold in several fields together."""
    hits = found = annotated = 0
    for field in fields:
        is_above = field.nuclei.scores > np.float32(threshold)
        hits += int((is_above & field.nuclei.is_hit).sum())
        found += int(is_above.sum())
        annotated += field.nuclei.num_annotated
    return 2 * hits / (found + annotated)


def best(score: Callable[[float], float]) -> float:
    """The best of all thresholds, as a loop finds it; the nearest to 0.5 of several."""
    scored = [(score(step), step) for step in STEPS]
    highest = max(value for value, _ in scored)
    return min(
        (step for value, step in scored if value == highest), key=lambda s: (abs(s - 0.5), s)
    )


@pytest.fixture(scope="module")
def of_folds(cv: Path) -> list[list[Predicted]]:
    """What each fold predicts of its test cases, through nothing of the evaluation."""
    return [list(predicted_by(cv / f"fold-{fold}", fold)) for fold in range(3)]


def predicted_by(path: Path, fold: int) -> Iterator[Predicted]:
    run = read_run(path)
    model = run.load_model("best", Ranks(0, 1, torch.device("cpu"))).model.eval()
    precision = choose_precision(torch.device("cpu"), "off", run.config.memory_format)
    data = read_dataset(Path(run.config.data)).of_fold(fold)
    for field in prepared_fields(data, "test"):
        read = field.read()
        (probability_HW,) = predict_probability(model, read.image_HWC, run.config.tile, precision)
        (points,) = read.annotated
        nuclei = detect(probability_HW, points, 8, 8, read.mask_HW < 254)
        yield Predicted(field.case, probability_HW, read.mask_HW > 0, nuclei)


@pytest.fixture(scope="module")
def measured(cv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folds after an evaluation of their folder. Copy it before changing it."""
    folder = Path(shutil.copytree(cv, tmp_path_factory.mktemp("measured") / "cv"))
    assert evaluate.main([f"run={folder}", "amp=off"]) == 0
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation/test/summary.json").read_text())


def test_each_fold_is_measured_at_the_thresholds_that_are_best_on_the_others(
    measured: Path, of_folds: list[list[Predicted]]
) -> None:
    """And those that are best on all are kept for the ensemble, with what they were chosen for."""
    summary = summary_of(measured)
    assert summary["runs"] == ["fold-0", "fold-1", "fold-2"]
    assert summary["cases"] == [f"Case_{number}" for number in range(1, 6)]
    assert summary["num_fields"] == 9
    for number, fold in enumerate(summary["folds"]):
        others = [f for other, each in enumerate(of_folds) if other != number for f in each]
        threshold = best(lambda step, others=others: dice(others, step))
        of_nuclei = best(lambda step, others=others: f1(others, step))
        assert fold["threshold"] == {"value": threshold, "chosen_on": "out of fold"}
        assert fold["detection"]["threshold"] == of_nuclei
        assert fold["detection"]["threshold_chosen_on"] == "out of fold"
        assert fold["all_pixels"]["dice"] == pytest.approx(dice(of_folds[number], threshold))
        assert fold["detection"]["f1"] == pytest.approx(f1(of_folds[number], of_nuclei))
    every = [field for each in of_folds for field in each]
    chosen = {
        "threshold": best(lambda step: dice(every, step)),
        "nuclei_threshold": best(lambda step: f1(every, step)),
    }
    assert summary["out_of_fold"] == chosen
    kept = json.loads((measured / "ensemble.json").read_text())
    assert {key: kept[key] for key in chosen} == chosen
    assert [*kept["members"]] == summary["runs"]
    assert [each["model_sha256"] for each in kept["members"].values()] == [
        fold["model_sha256"] for fold in summary["folds"]
    ]
    assert [*kept] == ["members", "threshold", "nuclei_threshold", "tta"]
    assert not [path for path in measured.rglob("*.tmp")]
    page = (measured / "evaluation/test/report.html").read_text()
    assert page.count("Settings of the training") == 3
    assert "Training of fold-2" in page


def test_the_scores_of_each_case_stand_beside_those_of_all(
    cv: Path, of_folds: list[list[Predicted]], tmp_path: Path, cli: Cli
) -> None:
    given = (f"runs=[{cv}/fold-*]", f"out={tmp_path / 'out'}", "amp=off", "figures=0")
    told = cli(evaluate.main, *given).out
    assert "\nfold-1, step_" in told
    assert "Case_3" in told
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    threshold_of = {
        case: fold["threshold"]["value"] for fold in summary["folds"] for case in fold["cases"]
    }
    for row in summary["per_case"]:
        fields = [f for each in of_folds for f in each if f.case == row["case"]]
        assert row["num_fields"] == len(fields)
        expected = dice(fields, threshold_of[row["case"]])
        assert row["dice"] == pytest.approx(expected)
    assert [row["case"] for row in summary["per_case"]] == summary["cases"]
    assert not (cv / "ensemble.json").exists(), "runs= are no folder of folds"


def test_a_given_threshold_of_pixels_is_taken_for_every_fold(
    own_cv: Path, tmp_path: Path, cli: Cli
) -> None:
    summary = evaluated(cli, f"runs=[{own_cv}]", "threshold=0.3", tmp_path / "out")
    for fold in summary["folds"]:
        assert fold["threshold"] == {"value": 0.3, "chosen_on": "given"}
        assert fold["detection"]["threshold_chosen_on"] == "out of fold"


def test_each_class_is_measured_at_the_threshold_that_is_best_for_it_on_the_others() -> None:
    """Both others are right from 0.33 to 0.35, and from 0.73 to 0.75: the nearest to a half. Where
    only the first is known, which has no lumen, that is measured at the threshold of all."""
    shares = {"tumor": (0.31, 0.31, 0.33), "lumen": (None, 0.71, 0.73)}
    groups = [
        out_of_fold.Predicted(MODEL, {}, *2 * [np.stack([parted_at(each) for each in of_group])])
        for of_group in zip(*shares.values(), strict=True)
    ]
    others = out_of_fold.best_of(groups[1:], EvaluateConfig())
    assert others.pixels.values == others.nuclei.values == (0.35, 0.73)
    alone = out_of_fold.best_of(groups[:1], EvaluateConfig(threshold="0.4"))
    assert alone.pixels == ClassThresholds((0.4, 0.4), "given")
    assert alone.nuclei == ClassThresholds((0.35, 0.35), "out of fold")


MODEL: Any = None  # which best_of() does not look at


def parted_at(step: float | None) -> np.ndarray:
    """(99, 4) counts of one nucleus: below this threshold there is a false alarm beside it, at up
    to 0.04 more it is found alone, and then missed. None: nothing is annotated or predicted."""
    counts = np.zeros((99, 4), np.int64)
    if step is not None:
        first = round(100 * step) - 1  # of 0.01, 0.02, ...
        counts[:first] = 1, 1, 0, 0
        counts[first : first + 5] = 1, 0, 0, 0
        counts[first + 5 :] = 0, 0, 1, 0
    return counts


def test_what_is_predicted_is_on_disk_no_longer_than_needed(
    own_cv: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an error in between."""

    def stop(*given: object) -> None:
        waiting = list((tmp_path / "out/.eosin/evaluation").glob(".*.tmp"))
        assert len(waiting) == 9
        raise KeyboardInterrupt

    monkeypatch.setattr(out_of_fold, "best_of", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main([f"run={own_cv}", f"out={tmp_path / 'out'}", "amp=off"])
    assert not list(tmp_path.rglob(".*.tmp"))
    assert not (own_cv / "ensemble.json").exists()


def test_ranks_measure_folds_as_one_does(own_cv: Path, measured: Path, tmp_path: Path) -> None:
    given = [f"run={own_cv}", f"out={tmp_path / 'two'}", "amp=off", "figures=0"]
    ranks = ForkedRanks("train.evaluate", given, 2, tmp_path / "log")
    assert ranks.end(patience_s=60) == [0, 0], ranks.output
    assert json.loads((tmp_path / "two/summary.json").read_text()) == summary_of(measured)
    kept = (measured / "ensemble.json").read_bytes()
    assert (own_cv / "ensemble.json").read_bytes() == kept


def test_runs_that_test_the_same_cases_are_one_ensemble_and_folds_of_these_are_pooled(
    own_cv: Path, measured: Path, tmp_path: Path, cli: Cli
) -> None:
    """Copies of the runs: the mean of equal probabilities is the probability."""
    again = shutil.copytree(own_cv, tmp_path / "again")
    both = evaluated(cli, f"runs=[{own_cv}/fold-1,{again}/fold-1]", tmp_path / "one")
    assert [member["run"] for member in both["members"]] == ["fold-1", "fold-1"]
    assert both["run"] == "again/fold-1, cv/fold-1"
    assert "folds" not in both
    pooled = evaluated(cli, f"runs=[{own_cv},{again}]", tmp_path / "pooled")
    singles = summary_of(measured)
    assert [len(fold["members"]) for fold in pooled["folds"]] == [2, 2, 2]
    for key in ("all_pixels", "per_case", "out_of_fold", "per_field", "detection"):
        assert pooled[key] == singles[key]
    page = (tmp_path / "pooled/report.html").read_text()
    assert "3 ensembles, each on cases of its own" in page
    assert page.count("Settings of the training") == 6


def with_other_data(run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run, as if it had been trained on a data set with another dataset.json."""
    config = read_run(run).config
    data, other = folder / "data", folder / "other"
    shutil.copytree(config.data, data)
    shutil.copytree(run, other)
    about = json.loads((data / "dataset.json").read_text())
    change(about)
    for place in (data, other):
        (place / "dataset.json").write_text(json.dumps(about))
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace(config.data, str(data)))
    return other


def test_a_case_that_a_run_of_its_group_was_trained_on_is_refused(
    own_run: Path, tmp_path: Path, cli: Cli
) -> None:
    """Promise 1, over runs: what one of an ensemble was trained on, the ensemble does not test,
    however the case was written there."""
    leaking = with_other_data(
        own_run, tmp_path, lambda about: about["split"]["train"].append("case-04")
    )
    outcome = cli(evaluate.main, f"runs=[{own_run},{leaking}]", f"out={tmp_path / 'out'}")
    assert outcome.code == 2
    assert f"runs: {leaking} was trained on Case_4, which it and others test" in outcome.err


def test_runs_whose_cases_overlap_in_part_are_refused(cv: Path, tmp_path: Path, cli: Cli) -> None:
    """The other set has a case of the second fold in the first one."""
    moved: list[str] = []

    def deal_anew(about: dict[str, Any]) -> None:
        moved.append(about["folds"][1].pop())
        about["folds"][0] += moved

    other = with_other_data(cv / "fold-0", tmp_path, deal_anew)
    for folds in ("fold-1", "fold-*"):
        outcome = cli(evaluate.main, f"runs=[{cv}/{folds},{other}]", f"out={tmp_path / 'out'}")
        assert outcome.code == 2
        assert "is tested by" in outcome.err
        assert "but not all of their cases" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "unfinished", "other fold", "other deal"])
def test_a_folder_without_all_of_its_folds_gives_no_figure(
    kind: str, own_cv: Path, cli: Cli
) -> None:
    """Where cases would be tested by no fold, or a fold by half a training."""
    fold = own_cv / "fold-1"
    config = fold / "config.yaml"
    if kind == "missing":
        shutil.rmtree(fold)
    elif kind == "empty":
        shutil.rmtree(fold / "checkpoints")
    elif kind == "unfinished":
        now = json.loads((fold / "progress.json").read_text())
        unfinished = now | {"is_finished": False, "step": 1, "total_steps": 9}
        (fold / "progress.json").write_text(json.dumps(unfinished))
    elif kind == "other deal":  # a case that fold-1 tested moves to fold 0: none tests it
        about = json.loads((fold / "dataset.json").read_text())
        about["folds"][0].append(about["folds"][1].pop())
        (fold / "dataset.json").write_text(json.dumps(about))
    else:
        config.write_text(config.read_text().replace("fold: 1", "fold: 2"))
    outcome = cli(evaluate.main, f"run={own_cv}", "amp=off")
    assert outcome.code in (1, 2)
    words = {
        "missing": [
            f"run={own_cv}: of 3 folds 2 are there, without fold-1; train it: python -m train"
            f" fold=1 run={fold} data=",
            f"'runs=[{own_cv}/fold-*]'",
        ],
        "empty": [str(fold / "checkpoints")],
        "unfinished": [
            f"run={fold}: its training is at step 1 of 9; go on with it: python -m train"
            f" config={config} run={fold}"
        ],
        "other deal": [f"run={own_cv}: fold-1 is of cases dealt to other folds than fold-0"],
        "other fold": [f"run={fold}: was trained with fold=2"],
    }
    assert all(word in outcome.err for word in words[kind]), outcome.err
    assert outcome.err.count("\n") == 1
    assert not (own_cv / "evaluation").exists()


def test_folds_that_are_named_are_measured_without_the_others(
    own_cv: Path, tmp_path: Path, cli: Cli
) -> None:
    """By runs= or cases=; nothing is kept for the folder."""
    shutil.rmtree(own_cv / "fold-1")
    summary = evaluated(cli, f"runs=[{own_cv}/fold-*]", tmp_path / "named")
    assert summary["runs"] == ["fold-0", "fold-2"]
    (case, *_) = summary["folds"][1]["cases"]
    number = case.removeprefix("Case_")
    one = evaluated(cli, f"run={own_cv}", f"cases=[{number}]", tmp_path / "case")
    assert (one["run"], one["cases"]) == ("fold-2", [case])
    assert not (own_cv / "ensemble.json").exists()


def test_folds_that_are_not_all_there_are_no_ensemble_for_other_fields(
    own_cv: Path, trained: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    """A case of raw= or of data= is measured by all folds; and a folder is all of them, also among
    other runs."""
    shutil.rmtree(own_cv / "fold-1")
    for given in (
        (f"run={own_cv}", f"raw={raw}", "cases=[1]"),
        (f"run={own_cv}", f"data={read_run(trained).config.data}", "cases=[4]"),
        (f"runs=[{own_cv},{trained}]", f"raw={raw}"),
    ):
        outcome = cli(evaluate.main, *given, f"out={tmp_path / 'out'}")
        assert outcome.code == 2
        assert f"run={own_cv}: of 3 folds 2 are there, without fold-1" in outcome.err
    assert not (tmp_path / "out").exists()
