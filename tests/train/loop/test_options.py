"""Options of a training on one rank: averages, clipping with fp16, early ends, more epochs."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import command_line
from common.command_line import UsageError
from data_prep.dataset.manifest import Dataset
from model import ModelConfig, build_model
from train import __main__ as train_main
from train import evaluate, export, show
from train.checkpoints.load_checkpoint import load_all_tensors
from train.checkpoints.progress import Progress
from train.config import TrainConfig
from train.crops.fitting import check_fitting
from train.loop.optimizer import move_average
from train.loop.trainer import Trainer
from train.runs.history import read_metrics, read_training
from train.runs.monitor import Monitor
from train.runs.newest import read_config

Tiny = Callable[..., TrainConfig]
NewTrainer = Callable[[TrainConfig], Trainer]
Cli = Callable[..., Any]


@pytest.fixture
def typed(tiny: Tiny, tmp_path: Path) -> Callable[..., list[str]]:
    """typed("run", "epochs=4") are arguments of a tiny training."""

    def arguments(run: str, *settings: str) -> list[str]:
        file = tmp_path / "settings.yaml"
        file.write_text(command_line.as_yaml(tiny(tmp_path, "panels=0")))
        return [f"config={file}", f"run={tmp_path / run}", *settings]

    return arguments


# ema


def test_what_is_validated_measured_shown_and_exported_is_the_average(
    typed: Callable[..., list[str]], tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "run"
    assert cli(train_main.main, *typed("run", "epochs=1", "ema=0.9")).code == 0
    tensors = load_all_tensors(run / "checkpoints/step_00000004")
    weights, averages = (
        {name.removeprefix(part): tensor for name, tensor in tensors.items() if part in name}
        for part in ("model.", "averaged.")
    )
    assert weights.keys() == averages.keys()
    running = [name for name in weights if "running" in name]
    assert running
    assert not any(torch.equal(weights[name], averages[name]) for name in running)

    shown = cli(show.main, f"run={run}").out
    (sha256,) = re.findall(r"model sha256  (\w+)", shown)
    assert "model         the average of the weights, ema=0.9\n" in shown
    given = [f"run={run}", "split=val", "threshold=0.5", "amp=off", "figures=0"]
    assert cli(evaluate.main, *given).code == 0
    summary = json.loads((run / "evaluation/val/summary.json").read_text())
    assert summary["model_sha256"] == sha256
    (last,) = read_metrics(run)
    assert summary["all_pixels"] == {name: last[f"val/{name}"] for name in summary["all_pixels"]}

    file = tmp_path / "model.safetensors"
    exported = cli(export.main, f"run={run}", f"out={file}")
    assert f"model sha256  {sha256}" in exported.out
    from_file = cli(evaluate.main, f"run={file}", f"data={summary_data(run)}", *given[1:])
    assert from_file.code == 0, from_file.err
    again = json.loads((tmp_path / "model_evaluation/val/summary.json").read_text())
    assert (again["model_sha256"], again["all_pixels"]) == (sha256, summary["all_pixels"])


def summary_data(run: Path) -> str:
    """The data set of a run."""
    return str(command_line.read_yaml(run / "config.yaml")["data"])


def test_the_best_is_chosen_by_the_average(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    trainer = new_trainer(tiny(tmp_path, "epochs=1", "ema=0.9"))
    trainer.fit()
    state = trainer.state
    found = [
        trainer.validation.validate(model, trainer.stop).metrics
        for model in (state.averaged, state.model)
    ]
    assert state.progress.metrics == found[0] != found[1]


def test_an_average_changes_no_weight(tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path) -> None:
    states = []
    for ema in (0, 0.9):
        trainer = new_trainer(tiny(tmp_path / str(ema), "epochs=1", f"ema={ema}", "panels=0"))
        trainer.fit()
        states.append(trainer.state.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_average_leaves_whole_numbers_as_they_are() -> None:
    """timm's TinyViT has numbers of places among its buffers; what it keeps of its weights for
    evaluation follows the average."""
    torch.manual_seed(0)
    model = build_model(ModelConfig("smp", encoder="tu-tiny_vit_5m_224"), 1)
    averaged = copy.deepcopy(model)
    image_BCHW = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before_BCHW = averaged.eval()(image_BCHW)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
        move_average(averaged, model, 0.0, 0)
        now_BCHW = averaged.eval()(image_BCHW)
        assert torch.equal(now_BCHW, model.eval()(image_BCHW))
    assert not torch.equal(now_BCHW, before_BCHW)


# clip_norm


def test_with_fp16_the_unscaled_gradient_is_clipped(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """By SGD without momentum, whose step is rate times gradient; of length 1 here."""
    settings = ("amp=fp16", "clip_norm=1", "optimizer=sgd", "momentum=0", "model.norm=none")
    trainer = new_trainer(tiny(tmp_path, *settings))
    state = trainer.state
    before = torch.cat([each.detach().flatten().clone() for each in state.model.parameters()])
    gradient = np.random.default_rng(0).normal(size=len(before))
    scale = float(state.scaler.scale(torch.ones(())))
    assert scale > 1
    scaled = torch.tensor(gradient * scale, dtype=torch.float32)
    fill_gradients(state.model, scaled)
    trainer.batch_step.update(0.5)
    after = torch.cat([each.detach().flatten() for each in state.model.parameters()])
    moved = (before - after).double().numpy()
    np.testing.assert_allclose(moved, 0.5 * gradient / np.linalg.norm(gradient), atol=1e-6)


def test_with_fp16_a_step_with_an_infinite_gradient_is_left_out(
    tiny: Tiny, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    """Infinity divided by infinity must not reach the weights; the scale is halved as ever."""
    settings = ("amp=fp16", "clip_norm=1", "ema=0.9", "model.norm=none")
    trainer = new_trainer(tiny(tmp_path, *settings))
    state = trainer.state
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    scale = float(state.scaler.scale(torch.ones(())))
    fill_gradients(state.model, torch.tensor([1.0, torch.inf]))
    trainer.batch_step.update(0.5)
    assert float(state.scaler.scale(torch.ones(()))) == scale / 2
    for model in (state.model, state.averaged):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, before[name])


def fill_gradients(model: torch.nn.Module, values: torch.Tensor) -> None:
    """Set each parameter's gradient to the next of these values, again and again."""
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    repeated = values.repeat(-(-total // len(values)))[:total]
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, gradient in zip(parameters, repeated.split(sizes), strict=True):
        parameter.grad = gradient.view_as(parameter).clone(memory_format=torch.preserve_format)


# stop_after


def only_count(trainer: Trainer) -> None:
    """A step for tests that ask when, not what."""
    trainer.state.progress.step += 1


@pytest.fixture
def dices(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What validations find, one after the other; steps compute nothing."""
    left: list[float] = []
    monkeypatch.setattr(Trainer, "train_step", only_count)
    monkeypatch.setattr(
        "train.loop.validation.validation_metrics",
        lambda results, classes: {"val/loss": 1.0, "val/dice": left.pop(0)},
    )
    return left


def test_a_run_ends_after_so_many_epochs_without_a_better_dice(
    typed: Callable[..., list[str]], dices: list[float], tmp_path: Path, cli: Cli
) -> None:
    """0.7 in epoch 2 is not reached again but as high: after two more the run is finished."""
    dices += [0.5, 0.7, 0.6, 0.7, 0.9]
    given = typed("run", "epochs=9", "stop_after=2")
    outcome = cli(train_main.main, *given)
    told = (
        "4 epochs, 16 steps, best validation Dice 0.7000 at step 8; none better in 2 epochs, so it"
        " ended (stop_after=2)"
    )
    assert outcome.code == 0
    assert f"finished: {told}; checkpoints" in outcome.out
    assert dices == [0.9]
    progress = json.loads((tmp_path / "run/progress.json").read_text())
    assert (progress["step"], progress["epoch"], progress["is_finished"]) == (16, 4, True)
    again = cli(train_main.main, *given)
    assert (again.code, again.out) == (0, f"run={tmp_path / 'run'} is finished: {told}\n")
    assert (tmp_path / "run/checkpoints/best").read_text() == "step_00000008\n"
    more = cli(train_main.main, *typed("run", "epochs=5", "stop_after=0", "resume=override"))
    assert "finished: 5 epochs, 20 steps, best validation Dice 0.9000 at step 20;" in more.out


def test_an_unfinished_run_is_never_said_to_be_finished(
    typed: Callable[..., list[str]],
    dices: list[float],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second epoch is better than the first: at no moment has the run ended by then."""
    dices += [0.5, 0.7, 0.6]
    seen = []
    original = Monitor.sign_of_life

    def sign_of_life(self: Monitor, step: int, epoch: int, is_finished: bool = False) -> None:
        seen.append((epoch, is_finished))
        original(self, step, epoch, is_finished)

    monkeypatch.setattr(Monitor, "sign_of_life", sign_of_life)
    assert cli(train_main.main, *typed("run", "epochs=9", "stop_after=1")).code == 0
    assert [epoch for epoch, is_finished in seen if is_finished] == [3]


@pytest.mark.parametrize(
    ("epochs", "best_step", "stop_after", "has_stopped"),
    [(0, -1, 1, False), (1, 4, 1, False), (2, 4, 1, True), (2, 4, 2, False), (9, 4, 0, False)],
)
def test_whether_a_run_has_stopped_improving_follows_from_its_progress(
    epochs: int, best_step: int, stop_after: int, has_stopped: bool
) -> None:
    """Epochs of 4 steps; in the middle of one nothing is decided."""
    for step in (4 * epochs, 4 * epochs + 3):
        progress = Progress(step=step, epochs=epochs, best_step=best_step)
        assert progress.has_stopped_improving(stop_after, 4) == has_stopped


def test_where_no_dice_can_become_better_stop_after_is_refused(
    prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny(tmp_path, "stop_after=3")
    check_fitting(config, prepared)
    without = [sample for sample in prepared.samples if sample.split != "val"]
    empty = [
        replace(sample, foreground_px=0) if sample.split == "val" else sample
        for sample in prepared.samples
    ]
    for samples, words in (
        (without, "there is no validation split, so no Dice"),
        (empty, "nothing is annotated in the validation split, so no Dice"),
    ):
        dataset = replace(prepared, samples=samples)
        with pytest.raises(UsageError, match=rf"stop_after=3: {words} .*; set stop_after=0, or"):
            check_fitting(config, dataset)
        check_fitting(replace(config, stop_after=0), dataset)
    with pytest.raises(UsageError, match=r"split with fold=all, .*, or train one fold"):
        check_fitting(replace(config, fold="all"), replace(prepared, samples=without))


# schedule_epochs


def test_more_epochs_of_a_finished_run_leave_its_rate_where_it_ended(
    typed: Callable[..., list[str]], tmp_path: Path, cli: Cli
) -> None:
    """A cosine over 4 steps from 0.01: the fourth has 0.005 * (1 + cos 135 degrees)."""
    given = ("schedule=cosine", "log_every_steps=1")
    assert cli(train_main.main, *typed("run", *given, "epochs=1")).code == 0
    refused = cli(train_main.main, *typed("run", *given, "epochs=2"))
    assert "epochs: 1 -> 2" in refused.err
    longer = cli(train_main.main, *typed("run", *given, "epochs=2", "resume=override"))
    told = "epochs: 1 -> 2: the learning rate stays at 1.5e-03, where its schedule over 1 epoch"
    # of 8 steps, the fifth is at half
    stretched = "; schedule_epochs=2 stretches the schedule instead: 5.0e-03 at the next step\n"
    assert told in longer.out.partition("finished")[0]
    assert stretched in longer.out
    rates = [point["train/lr"] for point in read_training(tmp_path / "run")]
    quarter = 0.5**0.5
    falls = [0.01, 0.005 * (1 + quarter), 0.005, 0.005 * (1 - quarter)]
    assert rates == pytest.approx([*falls, *[falls[-1]] * 4])
    again = cli(train_main.main, *typed("run", *given, "epochs=2"))
    assert "is finished: 2 epochs" in again.out
    fewer = cli(train_main.main, *typed("run", *given, "epochs=1", "resume=override"))
    assert "is finished: 2 epochs" in fewer.out


def test_a_schedule_is_stretched_by_who_says_so(
    typed: Callable[..., list[str]], tmp_path: Path, cli: Cli
) -> None:
    given = ("schedule=poly", "log_every_steps=1")
    assert cli(train_main.main, *typed("run", *given, "epochs=1")).code == 0
    more = ("epochs=2", "schedule_epochs=2", "resume=override")
    longer = cli(train_main.main, *typed("run", *given, *more))
    # of 4 steps the last is at a quarter before the end, of 8 the fifth at half
    last, fifth = 0.01 * 0.25**0.9, 0.01 * 0.5**0.9
    told = "epochs: 1 -> 2: the learning rate follows a schedule over 2 epochs in place of 1:"
    assert f"{told} {fifth:.1e} at the next step, in place of {last:.1e}\n" in longer.out
    rates = [point["train/lr"] for point in read_training(tmp_path / "run")]
    assert rates[3:5] == pytest.approx([last, fifth])


def test_a_runs_settings_give_a_longer_run_a_longer_schedule(
    typed: Callable[..., list[str]], dices: list[float], tmp_path: Path, cli: Cli
) -> None:
    """As config= of another run; unless the schedule was another one there, which is said."""
    dices += [0.5] * 7
    first = typed("first", "schedule=cosine", "epochs=1")
    assert cli(train_main.main, *first).code == 0
    taken = [f"config={tmp_path / 'first/config.yaml'}"]
    second = cli(train_main.main, *taken, f"run={tmp_path / 'second'}", "epochs=2")
    assert second.code == 0
    assert "schedule" not in second.out
    assert read_config(tmp_path / "second").scheduled_epochs == 2
    cli(train_main.main, *first[:2], "schedule=cosine", "epochs=2", "resume=override")
    third = cli(train_main.main, *taken, f"run={tmp_path / 'third'}", "epochs=3")
    assert "epochs=3 schedule_epochs=1: the learning rate follows its schedule over 1" in third.out
