"""The loop on one rank: it learns, stops where asked, goes on to the same bits, and says so."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common import command_line
from common.command_line import EXIT_STOPPED, UserError
from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset, read_dataset
from data_prep.dataset.pack import PACKED, TrainingPixels
from data_prep.dataset.samples import read_sample
from model.precision import choose_precision
from tests.matching import num_pairs
from train import __main__ as train_main
from train import evaluate
from train.checkpoints.checkpoint_files import verify
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.load_checkpoint import load_all_tensors
from train.checkpoints.save_checkpoint import save_checkpoint
from train.config import TrainConfig
from train.crops.microbatches import CropKey, MicrobatchSampler, TrainingCrops
from train.fields import measured_fields
from train.loop.initial_state import build_state
from train.loop.trainer import Trainer
from train.metrics.detection import find_nuclei
from train.prediction.tiles import predict_probability
from train.ranks.distributed import Ranks
from train.ranks.lock import RunLock
from train.runs.history import read_metrics
from train.runs.run_folder import read_run

Tiny = Callable[..., TrainConfig]
NewTrainer = Callable[[TrainConfig], Trainer]


def whole_state(trainer: Trainer) -> tuple[str, object]:
    """All that two runs must share to be the same to the bit."""
    return tensors_sha256(trainer.state.tensors()), trainer.state.progress


def test_what_can_be_learned_is_learned(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """Dark discs on a pale ground; on fields of a case that it never saw."""
    settings = ("epochs=6", "lr=0.03", "loss.dice_weight=1", "panels=0")
    assert new_trainer(tiny(tmp_path, *settings)).fit() == 0
    metrics = read_metrics(tmp_path)
    assert metrics[-1]["val/loss"] < 0.5 * metrics[0]["val/loss"]
    assert metrics[-1]["val/dice"] > 0.85


def test_a_finished_run_says_so_and_changes_nothing(
    own_run: Path, prepared: Dataset, cli: Callable[..., Any]
) -> None:
    """`python -m train` with the very settings the run has."""
    before = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    given = [f"config={own_run / 'config.yaml'}", f"run={own_run}"]
    outcome = cli(train_main.main, *given)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"run={own_run} is finished: 2 epochs, 8 steps, best validation")
    after = {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}
    assert set(after) == set(before)
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"config.yaml", "run.json"}  # names where it was trained from


def test_a_run_leaves_what_the_design_says(own_run: Path) -> None:
    steps = [path.name for path in sorted((own_run / "checkpoints").iterdir())]
    assert steps == ["best", "latest", "step_00000004", "step_00000008"]
    assert [verify(own_run / "checkpoints" / name) for name in steps[2:]] == ["", ""]
    assert {path.name for path in own_run.iterdir()} >= {"config.yaml", "metrics.jsonl"}
    assert list((own_run / "tensorboard").iterdir())


def test_latest_names_the_last_step_and_best_that_of_the_best_dice(own_run: Path) -> None:
    metrics = read_metrics(own_run)
    assert [(line["step"], line["epoch"]) for line in metrics] == [(4, 1), (8, 2)]
    dice, step = max((line["val/dice"], -line["step"]) for line in metrics)
    folder = own_run / "checkpoints"
    assert (folder / "latest").read_text().strip() == "step_00000008"
    assert (folder / "best").read_text().strip() == f"step_{-step:08d}"
    state = json.loads((folder / "step_00000008" / "state.json").read_text())
    assert (state["best_dice"], state["best_step"]) == (dice, -step)


def test_a_run_that_found_nothing_says_that_its_best_is_no_choice(
    tiny: Tiny, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every pixel stays below 0.5; evaluation says it again, of the best."""

    def below(model: object, image_HWC: np.ndarray, *settings: object) -> np.ndarray:
        return np.full((1, *image_HWC.shape[:2]), 0.2, np.float32)

    monkeypatch.setattr(measured_fields, "predict_probability", below)
    run = tmp_path / "run"
    config = tiny(run, "panels=0")
    settings = tmp_path / "settings.yaml"
    settings.write_text(command_line.as_yaml(config))
    outcome = cli(train_main.main, f"config={settings}")
    dices = [line["val/dice"] for line in read_metrics(run)]
    assert dices == [0, 0]
    doubt = "best is step 4, of Dice 0.0000: no validation found anything"
    assert f"warning: {doubt}" in outcome.out
    given = [f"run={run}", "figures=0", "amp=off"]
    assert f"warning: {doubt}" in cli(evaluate.main, *given, f"out={tmp_path / 'a'}").out
    latest = cli(evaluate.main, *given, f"out={tmp_path / 'b'}", "checkpoint=latest")
    assert doubt not in latest.out


def only_count(trainer: Trainer) -> None:
    """A step for tests that ask when, not what."""
    trainer.state.progress.step += 1


@pytest.mark.parametrize("dices", [(0.5, 0.7, 0.6), (0.5, 0.5, 0.4)])
def test_best_is_the_first_of_the_highest(
    dices: tuple[float, ...],
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = iter(dices)
    monkeypatch.setattr(Trainer, "train_step", only_count)
    monkeypatch.setattr(
        "train.loop.validation.validation_metrics",
        lambda results, classes: {"val/loss": 1.0, "val/dice": next(left)},
    )
    new_trainer(tiny(tmp_path, "epochs=3", "keep_checkpoints=1", "panels=0")).fit()
    best = 4 * (1 + dices.index(max(dices)))
    folder = tmp_path / "checkpoints"
    assert (folder / "best").read_text().strip() == f"step_{best:08d}"
    assert {path.name for path in folder.glob("step_*")} == {f"step_{best:08d}", "step_00000012"}


# Promise 4


@pytest.fixture(scope="module")
def uninterrupted(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path_factory: pytest.TempPathFactory
) -> Trainer:
    """A run with everything that could carry a state: batch norm, dropout, Adam, an average, a
    schedule."""
    trainer = new_trainer(with_everything(tiny, tmp_path_factory.mktemp("runs") / "straight"))
    assert trainer.fit() == 0
    return trainer


def with_everything(tiny: Tiny, run: Path) -> TrainConfig:
    network = ("model.norm=batch", "model.dropout=0.3")
    steps = ("optimizer=adamw", "weight_decay=0.1", "clip_norm=0.05", "ema=0.9")
    return tiny(run, *network, *steps, "schedule=poly", "warmup_steps=3")


def stop_after(trainer: Trainer, step: int, in_validation: bool) -> None:
    """The signal comes within that step, or within the validation that follows it."""
    method = "validate" if in_validation else "train_step"
    original = getattr(trainer, method)

    def with_signal() -> object:
        if in_validation or trainer.state.progress.step == step - 1:
            trainer.stop.note(signal.SIGTERM, None)
        return original()

    setattr(trainer, method, with_signal)


@pytest.mark.parametrize(
    ("step", "in_validation"),
    [(1, False), (4, False), (4, True), (8, False)],
)
def test_stopped_and_resumed_equals_uninterrupted(
    step: int,
    in_validation: bool,
    uninterrupted: Trainer,
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In mid-epoch, at an epoch's last step, and while it is validated."""
    config = with_everything(tiny, tmp_path)
    first = new_trainer(config)
    stop_after(first, step, in_validation)
    assert first.fit() == EXIT_STOPPED == 75
    assert f"stopped by SIGTERM at step {step}, saved" in capsys.readouterr().out
    latest = tmp_path / "checkpoints" / (tmp_path / "checkpoints" / "latest").read_text().strip()
    assert latest.name == f"step_{step:08d}"
    assert verify(latest) == ""

    second = new_trainer(config)
    assert second.state.progress.step == step
    assert second.fit() == 0
    assert f"resumed from step_{step:08d}" in capsys.readouterr().out
    assert whole_state(second) == whole_state(uninterrupted)
    assert read_metrics(tmp_path) == read_metrics(uninterrupted.run)


def test_killed_in_mid_epoch_only_the_work_since_the_last_save_is_done_again(
    uninterrupted: Trainer,
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Saved after every step and dead within step 6; then save_every_s, a harmless key, differs."""
    config = with_everything(tiny, tmp_path)
    every_step = {"save_every_s": 0.0, "keep_checkpoints": 1, "checkpoint": "blocking"}
    first = new_trainer(dataclasses.replace(config, **every_step))
    original = first.train_step

    def killed_in_step_6() -> None:
        if first.state.progress.step == 5:
            raise SystemExit  # nothing is saved on the way out
        original()

    first.train_step = killed_in_step_6
    with pytest.raises(SystemExit):
        first.fit()
    second = new_trainer(config)
    assert second.state.progress.step == 5
    assert second.fit() == 0
    assert whole_state(second) == whole_state(uninterrupted)


@pytest.mark.parametrize(("save_every_s", "saved"), [(0.0, list(range(1, 9))), (1e9, [4, 8])])
def test_checkpoints_are_made_by_the_clock_and_at_each_epochs_end_once(
    save_every_s: float,
    saved: list[int],
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = []
    original = save_checkpoint
    monkeypatch.setattr(Trainer, "train_step", only_count)
    monkeypatch.setattr(
        "train.checkpoints.saver.save_checkpoint",
        lambda folder, step, *rest: steps.append(step) or original(folder, step, *rest),
    )
    # in the background a step may find the save before it still going on, and leave it at that
    new_trainer(tiny(tmp_path, f"save_every_s={save_every_s}", "checkpoint=blocking")).fit()
    assert steps == saved


def test_the_seed_decides_the_weights(tiny: Tiny, tmp_path: Path, new_trainer: NewTrainer) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name))  # whatever was drawn before
        digests.append(whole_state(new_trainer(tiny(tmp_path / name, f"seed={seed}")))[0])
    assert digests[0] == digests[1] != digests[2]


# The gradient of a step


@pytest.mark.parametrize("microbatches", [1, 4])
def test_microbatches_add_up_to_the_gradient_of_the_whole_batch(
    microbatches: int,
    prepared: Dataset,
    tiny: Tiny,
    new_trainer: NewTrainer,
    tmp_path: Path,
    ranks: Callable[[], Ranks],
    cut: Callable[..., list[torch.Tensor]],
) -> None:
    """Against torch's own loss over the four crops at once; group norm sees one crop at a time."""
    settings = ("model.norm=group", "model.width=8", f"microbatches={microbatches}")
    config = tiny(tmp_path, *settings)
    trainer = new_trainer(config)
    gradients = []

    def note_and_stop() -> None:
        gradients.extend(gradients_of(trainer.state.model))
        trainer.stop.note(signal.SIGTERM, None)

    trainer.state.optimizer.step = note_and_stop
    assert trainer.fit() == EXIT_STOPPED

    first_step = islice(MicrobatchSampler(16, config, ranks(), 0), microbatches)
    crop_keys = list(chain.from_iterable(first_step))
    assert len(crop_keys) == 4
    crops = TrainingCrops(TrainingPixels(prepared), config)
    images, masks = cut(crops, crop_keys)
    model = build_state(config, 1, trainer.batch_step.precision).model
    logits = model(images.permute(0, 3, 1, 2) / 255)
    F.binary_cross_entropy_with_logits(logits, (masks[:, None] > 0).float()).backward()
    for mine, expected in zip(gradients, gradients_of(model), strict=True):
        # a sum that is nearly 0 may pass a ReLU in one rounding and not in another
        largest = expected.abs().max().item()
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-3 * largest)


def gradients_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_dropout_is_drawn_for_each_microbatch_of_each_step(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """Keyed by step and microbatch: not the same again and again, nor another on another run."""
    drawn: list[list[tuple[bool, ...]]] = []
    for run in ("a", "b"):
        trainer = new_trainer(tiny(tmp_path / run, "epochs=1", "model.dropout=0.5"))
        seen: list[tuple[bool, ...]] = []
        dropout = trainer.state.model.dropout
        # ones in place of every input, so that only what is drawn makes a channel zero
        dropout.register_forward_pre_hook(lambda module, given: (0 * given[0] + 1,))
        dropout.register_forward_hook(
            lambda module, given, result, seen=seen: (
                seen.append(tuple((result[0, :, 0, 0] == 0).tolist())) if module.training else None
            )
        )
        trainer.fit()
        drawn.append(seen)
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 16  # 4 microbatches of 1 crop in each of 4 steps
    for in_one_step in range(0, 16, 4):
        assert len(set(drawn[0][in_one_step : in_one_step + 4])) > 1
    for in_each_step in range(4):
        assert len(set(drawn[0][in_each_step::4])) > 1


# What goes wrong


def test_a_train_split_too_small_for_a_batch_is_refused_and_can_be_mended_in_the_same_run(
    tiny: Tiny, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    config = tiny(tmp_path / "run", "epochs=1", "panels=0")
    (tmp_path / "settings.yaml").write_text(command_line.as_yaml(config))
    given = f"config={tmp_path / 'settings.yaml'}"
    refused = cli(train_main.main, given, "batch_size=32")
    assert refused.code == 2
    message = "the train split gives only 16 crop(s) an epoch; give batch_size=16 or less, or"
    assert message in refused.err
    assert refused.err.count("\n") == 1
    assert cli(train_main.main, given, "batch_size=16").code == 0


def test_crops_that_are_mostly_mirror_images_are_refused(
    tiny: Tiny, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Fields are 96 x 64 px: of 110 x 110 px they fill 51%, of 112 x 112 px 49%."""
    config = tiny(tmp_path / "run", "epochs=1", "panels=0")
    (tmp_path / "settings.yaml").write_text(command_line.as_yaml(config))
    given = f"config={tmp_path / 'settings.yaml'}"
    refused = cli(train_main.main, given, "crop.size_px=112")
    assert refused.code == 2
    assert "crop.size_px=112: no image of the train split fills half of such a crop" in refused.err
    assert refused.err.endswith(
        "(the largest is 96 x 64 px), and the rest would be its mirror"
        " image; set crop.size_px=64 or less\n"
    )
    assert not (tmp_path / "run").exists()
    trained = cli(train_main.main, given, "crop.size_px=110")
    assert trained.code == 0
    told = "16 of 16 training images do not fill a crop (crop.size_px=110): beyond their edges"
    assert trained.out.count(told) == 1
    assert "do not fill" not in cli(train_main.main, given, f"run={tmp_path / 'run2'}").out


def test_more_crops_an_image_make_up_for_it(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    trainer = new_trainer(tiny(tmp_path, "batch_size=32", "crop.per_sample=2"))
    assert (trainer.steps_per_epoch, trainer.total_steps) == (1, 2)


@pytest.mark.parametrize(
    "settings",
    [("log_every_steps=1",), ("log_every_steps=100", "save_every_s=0")],
)
def test_a_loss_that_is_no_number_ends_the_run_and_is_never_saved(
    settings: tuple[str, ...], tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """The first step makes the weights 1e30, the second all that comes of them NaN."""
    trainer = new_trainer(tiny(tmp_path, "lr=1e30", "model.norm=none", *settings))
    with pytest.raises(UserError, match=r"the loss is not finite.*: lower lr=1e\+30"):
        trainer.fit()
    for path in (tmp_path / "checkpoints").glob("step_*"):
        tensors = load_all_tensors(path)
        assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("packed", "advice"),
    [
        (
            "no",
            "`python -m data_prep` again with the same settings and pack=true, or loader_workers=1",
        ),
        (
            "by another release",
            r"`python -m data_prep` again with the same settings and pack=true \(its pack was"
            r" made by another release of OpenCV or Eosin, or is not whole\), or loader_workers=1",
        ),
        ("yes", "loader_workers=1"),
    ],
)
def test_a_run_that_waits_for_data_says_what_to_do_once(
    packed: str,
    advice: str,
    new_trainer: Callable[..., Trainer],
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A loader that takes nearly all of the time, and eight points of the curves."""
    trainer = new_trainer(tiny(tmp_path, "log_every_steps=1"))
    trainer.crops = SlowCrops(trainer.crops.pixels, trainer.config)
    pixels = trainer.crops.pixels
    pixels.packed = np.zeros(1, np.uint8) if packed == "yes" else None  # type: ignore[assignment]
    pixels.folder = tmp_path / "data"
    if packed == "by another release":
        (pixels.folder / PACKED).mkdir(parents=True)
        (pixels.folder / PACKED / "0123456789abcdef.u8").touch()
    trainer.fit()
    said = [line for line in capsys.readouterr().out.splitlines() if "waits for data" in line]
    assert len(said) == 1
    assert re.fullmatch(rf"waits for data \d+% of the time; try {advice}", said[0])


class SlowCrops(TrainingCrops):
    """Grey crops that take 20 ms each."""

    def cut(self, crop_keys: Sequence[CropKey]) -> list[tuple[np.ndarray, np.ndarray]]:
        time.sleep(0.02 * len(crop_keys))
        size = self.config.crop.size_px
        crop = np.full((size, size, 3), 128, np.uint8), np.zeros((size, size), np.uint8)
        return [crop] * len(crop_keys)


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_missing_image_is_named_in_a_line(
    loader_workers: int, prepared: Dataset, tiny: Tiny, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """From a worker, too, without its traceback."""
    data = Path(shutil.copytree(prepared.folder, tmp_path / "data"))
    missing = data / prepared.split("train")[3].image
    missing.unlink()
    settings = command_line.as_yaml(tiny(tmp_path / "run", f"loader_workers={loader_workers}"))
    (tmp_path / "settings.yaml").write_text(settings)
    outcome = cli(train_main.main, f"config={tmp_path / 'settings.yaml'}", f"data={data}")
    assert outcome.code == 1
    message = f"error: {missing}: No such file or directory; run data_prep again"
    assert outcome.err.splitlines()[-1].startswith(message)
    assert "Traceback" not in outcome.err


def test_a_killed_loader_worker_is_an_error_with_its_likely_cause(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.crops.microbatches.cut_crop", lambda *given: os.kill(os.getpid(), 9))
    trainer = new_trainer(tiny(tmp_path, "loader_workers=1"))
    with pytest.raises(UserError, match=r"memory.*try loader_workers=0, a smaller batch_size"):
        trainer.fit()


def test_a_bug_in_a_loader_worker_keeps_its_traceback(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch calls it an error "in DataLoader worker process 0"; memory has no part in it."""

    def has_a_bug(*given: Any) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("train.crops.microbatches.cut_crop", has_a_bug)
    trainer = new_trainer(tiny(tmp_path, "loader_workers=1"))
    with pytest.raises(RuntimeError, match=r"(?s)DataLoader worker .*in has_a_bug.*shape mismatch"):
        trainer.fit()


def test_loader_workers_end_with_an_error(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """They ignore SIGTERM, which Python sends them at its exit, and then it waits for them."""
    trainer = new_trainer(tiny(tmp_path, "loader_workers=1"))

    def fails() -> None:
        trainer.next_microbatch()
        assert multiprocessing.active_children()
        raise ZeroDivisionError

    trainer.train_step = fails
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.fit()
    assert caught.traceback  # which holds the trainer, as the one that Python prints does
    assert not multiprocessing.active_children()


def test_a_run_says_what_it_is_about_to_do(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 fields of 4 variants by 4 crops; 2 fields to validate on."""
    new_trainer(tiny(tmp_path, "epochs=1")).fit()
    begins = (
        f"run={tmp_path}: step 0 of 4, 1 rank on cpu; 4 steps an epoch, then validation on 2 fields"
        "\n4 crops a step in 4 microbatches\n"
    )
    said = capsys.readouterr().out
    assert said.startswith(begins)
    assert "slow on a CPU" not in said


def test_another_data_set_in_the_place_of_a_runs_own_stops_it(
    prepared: Dataset, tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """It would go on, on other pictures or masks, and nobody would know."""
    data = Path(shutil.copytree(prepared.folder, tmp_path / "data"))
    trainer = new_trainer(tiny(tmp_path / "run", f"data={data}"))
    trainer.dataset = read_dataset(data)
    about = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(about | {"content_sha256": "other"}))
    with pytest.raises(UserError, match="was prepared anew while a run trained on it") as refused:
        trainer.fit()
    assert not refused.value.can_heal  # a job is not tried again
    assert not list((tmp_path / "run/checkpoints").glob("step_*"))


@pytest.mark.parametrize("content", [None, "{"])
def test_a_dataset_json_that_cannot_be_read_just_now_costs_nothing(
    content: str | None, prepared: Dataset, tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """It is away while one lost field is prepared again, or the disk is: a preempted run saves."""
    data = Path(shutil.copytree(prepared.folder, tmp_path / "data"))
    trainer = new_trainer(tiny(tmp_path / "run", f"data={data}", "epochs=1"))
    trainer.dataset = read_dataset(data)
    (data / "dataset.json").unlink()
    if content:
        (data / "dataset.json").write_text(content)
    assert trainer.fit() == 0
    progress = json.loads((tmp_path / "run/progress.json").read_text())
    assert (progress["step"], progress["epoch"], progress["is_finished"]) == (4, 1, True)


def test_from_outside_a_stopped_run_is_where_it_was_saved(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """`jobs.py status` said that it had not begun, where it had logged no point of its curves."""
    trainer = new_trainer(tiny(tmp_path, "log_every_steps=1000"))
    step = trainer.train_step

    def stopped_after_two() -> None:
        step()
        if trainer.state.progress.step == 2:
            trainer.stop.note(signal.SIGTERM, None)

    trainer.train_step = stopped_after_two  # type: ignore[method-assign]
    assert trainer.fit() == EXIT_STOPPED
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["step"], progress["is_finished"]) == (2, False)


def test_a_run_that_is_stopped_before_its_last_validation_is_not_finished(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """All steps are done then; `jobs.py status` said that the run was finished."""
    trainer = new_trainer(tiny(tmp_path, "epochs=1"))
    step = trainer.train_step

    def stopped_at_the_last() -> None:
        step()
        if trainer.state.progress.step == trainer.total_steps:
            trainer.stop.note(signal.SIGTERM, None)

    trainer.train_step = stopped_at_the_last  # type: ignore[method-assign]
    assert trainer.fit() == EXIT_STOPPED
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["step"], progress["is_finished"]) == (trainer.total_steps, False)


def test_the_network_for_gpus_is_named_as_slow_on_a_cpu(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """The default one: for a forgotten preset."""
    trainer = new_trainer(tiny(tmp_path, "model.width=64", "model.depth=4"))
    advice = "a network of 31 million parameters is slow on a CPU; preset=brecahad-cpu is one for"
    assert advice in trainer.beginning()
    trainer.ranks = dataclasses.replace(trainer.ranks, device=torch.device("cuda", 0))
    assert advice not in trainer.beginning()


def test_without_validation_the_newest_is_the_best(
    prepared: Dataset,
    tiny: Tiny,
    tmp_path: Path,
    ranks: Callable[[], Ranks],
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = [sample for sample in prepared.samples if sample.split != "val"]
    dataset = dataclasses.replace(prepared, samples=samples)
    lock = RunLock(tmp_path)
    trainer = Trainer(tiny(tmp_path, "keep_checkpoints=1"), dataset, ranks(), StopRequest(), lock)
    assert trainer.fit() == 0
    assert trainer.is_finished
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.glob("step_*")} == {"step_00000008"}
    assert (folder / "best").read_text() == (folder / "latest").read_text() == "step_00000008\n"
    assert read_metrics(tmp_path) == []
    assert "4 steps an epoch, then no validation\n" in capsys.readouterr().out


def test_what_tensorboard_shows(own_run: Path) -> None:
    """Losses, Dice, IoU, accuracy, rate, speed, waiting and memory; panels of a field; settings."""
    events = EventAccumulator(str(own_run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    curves = {f"train/{name}" for name in ("loss", "dice", "iou", "accuracy", "lr")}
    curves |= {f"val/{name}" for name in ("loss", "dice", "iou", "accuracy")}
    curves |= {"speed/samples_per_s", "speed/data_wait_share", "memory/process_mb"}
    assert set(tags["scalars"]) >= curves
    assert tags["images"] == ["panels/Case_3-01"]
    assert "config/text_summary" in tags["tensors"]
    for name, steps in (("train/loss", list(range(1, 9))), ("val/dice", [4, 8])):
        assert [event.step for event in events.Scalars(name)] == steps
    assert all(0 <= event.value <= 1 for event in events.Scalars("speed/data_wait_share"))


def test_validation_is_over_originals_with_the_weights_of_the_step(
    own_run: Path, prepared: Dataset, cli: Callable[..., Any]
) -> None:
    """What training wrote of its last epoch is what evaluation finds afterwards."""
    given = [f"run={own_run}", "split=val", "checkpoint=latest", "amp=off", "figures=0"]
    given.append("threshold=0.5")
    assert cli(evaluate.main, *given).code == 0
    summary = json.loads((own_run / "evaluation" / "val" / "summary.json").read_text())
    last = read_metrics(own_run)[-1]
    assert summary["all_pixels"] == {name: last[f"val/{name}"] for name in summary["all_pixels"]}
    assert summary["num_fields"] == 2


def test_the_thresholds_stored_are_the_best_of_validation(
    own_run: Path, prepared: Dataset, ranks: Callable[[], Ranks]
) -> None:
    """Against counting at each threshold: pixels of the masks, and matchings of nuclei."""
    run = read_run(own_run)
    model, _, state = run.load_model("latest", ranks())
    model.eval()
    precision = choose_precision(torch.device("cpu"), "off", run.config.memory_format)
    thresholds = [number / 100 for number in range(1, 100)]
    pixels, nuclei = np.zeros((99, 2)), np.zeros((99, 2))  # twice the hits, and all there are
    for sample in prepared.split("val"):
        image_HWC, mask_HW = read_sample(prepared.folder, sample)
        (probability_HW,) = predict_probability(model, image_HWC, run.config.tile, precision)
        listed = json.loads((prepared.folder / sample.points).read_text())["tumor"]
        annotated = np.array([(int(point["x"] * 96), int(point["y"] * 64)) for point in listed])
        for index, threshold in enumerate(thresholds):
            predicted_HW, truth_HW = probability_HW > threshold, mask_HW > 0
            both = 2 * (predicted_HW & truth_HW).sum()
            pixels[index] += both, predicted_HW.sum() + truth_HW.sum()
            found = find_nuclei(probability_HW, 8, threshold).centres_N2
            nuclei[index] += 2 * num_pairs(found, annotated, 8), len(found) + len(annotated)
    for name, (hits, total) in {"threshold": pixels.T, "nuclei_threshold": nuclei.T}.items():
        of_threshold = dict(zip(thresholds, hits / total, strict=True))
        chosen = state["metrics"][f"val/{name}"]
        assert of_threshold[chosen] == max(of_threshold.values()) > min(of_threshold.values())
    assert state["metrics"]["val/nuclei_f1"] == pytest.approx(max(nuclei[:, 0] / nuclei[:, 1]))
    assert read_metrics(own_run)[-1]["val/threshold"] == state["metrics"]["val/threshold"]
