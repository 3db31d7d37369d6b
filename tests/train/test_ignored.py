"""Ignored pixels from training to the report: no loss and no figure counts them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from common import command_line
from common.command_line import UsageError
from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset
from data_prep.dataset.pack import TrainingPixels
from tests.train.conftest import RADIUS_PX, TINY, one_rank, prepare_here
from train import __main__ as train_main
from train import evaluate, export
from train.config import TrainConfig
from train.crops.fitting import check_fitting
from train.crops.microbatches import MicrobatchSampler, TrainingCrops
from train.evaluation.duplicates import agreement_of, truth_sha256
from train.fields.measured_fields import Criteria, Prediction, measure, prediction_of
from train.fields.whole_fields import FieldContent, WholeField
from train.loop.trainer import Trainer
from train.loop.validation import validation_metrics
from train.metrics.sensitivity import counts_by_radius
from train.ranks.lock import RunLock
from train.runs.history import read_training
from train.runs.open_run import open_run
from train.runs.thresholds import ClassThresholds, Thresholds

IGNORED, RING_PX = 254, 4
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def ringed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The fields of all tests here, with a ring around each disc."""
    out = tmp_path_factory.mktemp("ringed") / "data"
    return prepare_here(raw, out, f"ignore_px={RING_PX}", "pack=true")


def configured(dataset: Dataset, run: Path, *settings: str) -> TrainConfig:
    return command_line.load(
        TrainConfig, [f"data={dataset.folder}", f"run={run}", *TINY, *settings]
    )


def trainer_of(dataset: Dataset, config: TrainConfig) -> Trainer:
    config, changes = open_run(config, dataset, torch.device("cpu"))
    lock = RunLock(Path(config.run))
    return Trainer(config, dataset, one_rank(), StopRequest(), lock, changes)


# Training


def test_crops_of_two_values_and_ignored_pixels_mix_no_labels(
    ringed: Dataset, tmp_path: Path
) -> None:
    """255 and 254 are not interpolated: turned and scaled crops hold no other label, and rings as
    wide as before."""
    config = configured(ringed, tmp_path, "crop.scale=1")
    crops = TrainingCrops(TrainingPixels(ringed), config)
    assert crops.pixels.packed is not None
    masks = np.stack([mask for _, mask in crops.cut([(0, index) for index in range(16)] * 2)])
    assert {*np.unique(masks)} == {0, IGNORED, 255}
    ring = np.count_nonzero(masks == IGNORED) / np.count_nonzero(masks == 255)
    assert ring == pytest.approx((RADIUS_PX + RING_PX) ** 2 / RADIUS_PX**2 - 1, rel=0.4)


def test_a_step_is_over_the_valid_pixels_of_its_batch(ringed: Dataset, tmp_path: Path) -> None:
    """The curve's first point is numpy's mean over them, of all microbatches together."""
    config = configured(ringed, tmp_path / "run", "epochs=1", "microbatches=2", "panels=0")
    model = trainer_of(ringed, config).state.model.train()
    crops = TrainingCrops(TrainingPixels(ringed), config)
    sampler = iter(MicrobatchSampler(len(crops), config, one_rank(), 0))
    right, valid = [], []
    with torch.no_grad():
        for _ in range(2):
            images, masks = (np.stack(part) for part in zip(*crops.cut(next(sampler)), strict=True))
            given = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
            logits = model(given)[:, 0].double().numpy()
            right.append(1 / (1 + np.exp(np.where(masks == 255, -logits, logits))))
            valid.append(masks != IGNORED)
    counts = [each.sum() for each in valid]
    assert counts[0] != counts[1]
    expected = -np.log(np.concatenate(right)[np.concatenate(valid)]).mean()
    assert trainer_of(ringed, replace(config, run=str(tmp_path / "other"))).fit() == 0
    first = read_training(tmp_path / "other")[0]
    assert first["train/loss"] == pytest.approx(expected, rel=1e-4)


def test_what_labels_say_under_ignored_pixels_changes_no_bit(
    ringed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained twice, with other random targets there: the same weights and curves."""
    from train.loop import batch_step

    to_target = batch_step.mask_to_target

    def with_garbage(seed: int) -> Callable[..., torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def garbled(mask_BHW: torch.Tensor, values: list[int]) -> torch.Tensor:
            target = to_target(mask_BHW, values)
            garbage = torch.rand(target.shape, generator=generator).round()
            return torch.where((mask_BHW == IGNORED)[:, None], garbage, target)

        return garbled

    ends = []
    for seed in range(2):
        monkeypatch.setattr(batch_step, "mask_to_target", with_garbage(seed))
        run = tmp_path / str(seed)
        settings = "epochs=1", "loss.dice_weight=0.5", "panels=0"
        trainer = trainer_of(ringed, configured(ringed, run, *settings))
        assert trainer.fit() == 0
        curves = [
            {key: value for key, value in line.items() if key.startswith("train/")}
            for line in read_training(run)
        ]
        weights = [tensor.tolist() for tensor in trainer.state.model.state_dict().values()]
        ends.append((weights, curves, (run / "metrics.jsonl").read_text()))
    assert ends[0] == ends[1]


def test_a_split_that_is_all_ignored_is_refused(ringed: Dataset, tmp_path: Path) -> None:
    samples = [
        replace(each, ignored_px=each.height_px * each.width_px) if each.split == "train" else each
        for each in ringed.samples
    ]
    config = configured(ringed, tmp_path)
    check_fitting(config, ringed)
    with pytest.raises(UsageError, match="every pixel of the train split is ignored"):
        check_fitting(config, replace(ringed, samples=samples))


# Measuring


def predicted(mask_HW: np.ndarray, probability_HW: np.ndarray) -> Prediction:
    image_HWC = np.zeros((*mask_HW.shape, 3), np.uint8)
    content = FieldContent(image_HWC, mask_HW.astype(np.uint8), [np.zeros((0, 2))])
    field = WholeField("a-1", "a", lambda: content)
    return prediction_of(0, field, content, probability_HW[None].astype(np.float32), [255])


HALF = ClassThresholds.default(1, "default")
CRITERIA = Criteria(Thresholds(HALF, HALF), 1, 1)


def test_figures_of_a_picture_one_can_count() -> None:
    """4 x 4 px, a column ignored: 2 hits, 1 false alarm, 2 misses, 7 neither."""
    mask_HW = np.array([[255, 255, 0, 254], [255, 255, 0, 254], [0, 0, 0, 254], [0, 0, 0, 254]])
    probability_HW = np.array(
        [[0.9, 0.9, 0.1, 0.9], [0.1, 0.1, 0.1, 0.9], [0.9, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]
    )
    prediction = predicted(mask_HW, probability_HW)
    result = measure(prediction, CRITERIA)
    assert result.counts.tolist() == [[2, 1, 2, 7]]
    # nine are right with 0.9, three with 0.1
    assert result.cross_entropy == pytest.approx(-(9 * np.log(0.9) + 3 * np.log(0.1)) / 12)
    assert result.histogram.sum(axis=2).tolist() == [[4, 8]]
    assert prediction.annotated_classes.tolist() == np.where(mask_HW == 255, 1, mask_HW).tolist()


def test_predictions_in_ignored_pixels_change_no_figure_of_pixels() -> None:
    rng = np.random.default_rng(0)
    mask_HW = rng.choice([0, 255], (30, 40))
    mask_HW[5:25, 3:20] = IGNORED
    probability_HW, garbage_HW = rng.random((2, 30, 40))
    results = [
        measure(predicted(mask_HW, each), CRITERIA)
        for each in (probability_HW, np.where(mask_HW == IGNORED, garbage_HW, probability_HW))
    ]
    one, other = ((r.counts.tolist(), r.histogram.tolist(), r.cross_entropy) for r in results)
    assert one == other


def test_a_field_that_is_all_ignored_has_no_figure() -> None:
    mask_HW = np.full((6, 6), IGNORED)
    result = measure(predicted(mask_HW, np.full((6, 6), 0.9)), CRITERIA)
    assert result.counts.tolist() == [[0, 0, 0, 0]]
    assert result.cross_entropy is None
    assert not len(result.detections[0].scores)
    assert {*validation_metrics([result], ["tumor"]).values()} == {None}
    mask_HW[0] = 0
    other = measure(predicted(mask_HW, np.full((6, 6), 0.5)), CRITERIA)
    both = validation_metrics([result, other], ["tumor"])
    assert (both["val/loss"], both["val/accuracy"]) == (pytest.approx(np.log(2)), 1)


def test_dice_by_radius_is_over_valid_pixels() -> None:
    is_valid_HW = np.ones((30, 30), bool)
    is_valid_HW[:, 15:] = False
    everywhere = np.ones((1, 30, 30), bool)
    ((counts,),) = counts_by_radius(everywhere, is_valid_HW, [np.array([[15.0, 15]])], [5])
    half = cv2.circle(np.zeros((30, 30), np.uint8), (15, 15), 5, 1, cv2.FILLED)[:, :15].sum()
    assert counts.tolist() == [half, 30 * 15 - half, 0, 0]


def test_two_annotations_agree_where_neither_is_ignored() -> None:
    """Of five pixels the first three count: 1 of both, 1 of one."""
    one, other = np.array([[255, 255, 0, 254, 255]]), np.array([[255, 0, 0, 255, 254]])
    assert agreement_of(one, other, [255]) == pytest.approx(2 / 3)


def test_another_ignored_area_is_another_truth() -> None:
    truth_CHW, is_valid_HW = np.zeros((1, 4, 4), bool), np.ones((4, 4), bool)
    ignored_HW = is_valid_HW.copy()
    ignored_HW[0, 0] = False
    hashes = {truth_sha256(truth_CHW, each, []) for each in (is_valid_HW, ignored_HW)}
    assert len(hashes) == 2


# Commands


def test_a_split_and_its_raw_fields_are_measured_alike(
    raw: Path, ringed: Dataset, tmp_path: Path, cli: Cli
) -> None:
    """Also by the exported model; ignore_px=0 counts every pixel."""
    run, file = tmp_path / "run", tmp_path / "model.safetensors"
    train = [f"data={ringed.folder}", f"run={run}", *TINY, "epochs=1", "panels=0"]
    assert cli(train_main.main, *train).code == 0
    assert cli(export.main, f"run={run}", f"out={file}").code == 0
    settings = ["threshold=0.5", "amp=off", "figures=1"]
    of_raw = [f"raw={raw}", "cases=[4,5]"]
    summaries = []
    for number, given in enumerate(
        (
            [f"run={run}"],
            [f"run={run}", *of_raw],
            [f"run={file}", *of_raw],
            [f"run={run}", *of_raw, "ignore_px=0"],
        )
    ):
        out = tmp_path / f"out{number}"
        outcome = cli(evaluate.main, *given, *settings, f"out={out}")
        assert outcome.code == 0, outcome.err
        summaries.append(json.loads((out / "summary.json").read_text()))
    names = ("all_pixels", "per_field", "detection", "baselines", "truth_sha256")
    split, *others, whole = [{name: each[name] for name in names} for each in summaries]
    assert others == [split, split]
    tested = [each for each in ringed.samples if each.split == "test"]
    for field, of_whole, sample in zip(split["per_field"], whole["per_field"], tested, strict=True):
        num_px = sample.height_px * sample.width_px
        assert sum(field["counts"]["tumor"]) == num_px - sample.ignored_px < num_px
        assert sum(of_whole["counts"]["tumor"]) == num_px
    assert [each["data"].get("ignore_px") for each in summaries] == [RING_PX] * 3 + [None]
    ignored, total = (
        sum(n)
        for n in zip(*((e.ignored_px, e.height_px * e.width_px) for e in tested), strict=True)
    )
    line = f"{ignored / total:.3%} of the pixels are ignored: no figure of pixels counts them"
    for each, expected in zip(summaries, [ignored] * 3 + [0], strict=True):
        assert each["pixels"] == {"total": total, "ignored": expected}
        assert (line in each["warnings"]) == bool(expected)
    # larger discs would lie in the ring, which does not count: all radii would look alike
    assert ["sensitivity" in each for each in summaries] == [False, False, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ignore_px=3"], "ignore_px=3: is about raw="),
        (["ignore_value=3"], "ignore_value=3: is about raw="),
        (["raw=RAW", "ignore_value=3"], "ignore_value=3: only annotations=masks has values"),
        (["raw=RAW", "ignore_px=60"], "ignore_px: 60; expected 0 to 56"),
        (["raw=RAW", "annotations=masks", "ignore_px=3"], "annotations=masks has no points"),
        (["raw=RAW", "annotations=masks", "ignore_value=1"], "ignore_value=1: is class 'tumor'"),
        (["raw=RAW", "annotations=masks", "ignore_value=0"], "ignore_value=0: leaves nothing but"),
    ],
)
def test_what_cannot_be_ignored_is_refused(
    settings: list[str], message: str, raw: Path, trained: Path, cli: Cli
) -> None:
    given = [setting.replace("RAW", str(raw)) for setting in settings]
    outcome = cli(evaluate.main, f"run={trained}", *given)
    assert outcome.code == 2
    assert message in outcome.err
