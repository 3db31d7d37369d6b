"""The command lines of train: what --help says, and what a wrong one comes to."""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import command_line
from common.command_line import UsageError
from common.help_text import describe_fields
from data_prep.dataset.manifest import Dataset
from tests.train.conftest import TINY
from train import __main__ as train_main
from train.config import PRESETS, TrainConfig
from train.evaluation.config import EvaluateConfig
from train.exchange.config import ExportConfig
from train.loop.batch import resolve_batch
from train.prediction.config import PredictConfig
from train.runs.config import ShowConfig
from train.runs.newest import read_config

COMMANDS = {
    "train.__main__": TrainConfig,
    "train.evaluate": EvaluateConfig,
    "train.predict": PredictConfig,
    "train.export": ExportConfig,
    "train.show": ShowConfig,
}


@pytest.mark.parametrize("module", COMMANDS)
def test_help_lists_every_key_with_a_text(module: str, cli: Callable[..., Any]) -> None:
    outcome = cli(importlib.import_module(module).main, "--help")
    assert outcome.code == 0
    usage = f"python -m {module.removesuffix('.__main__')} "
    assert usage in outcome.out
    for key, default, _, text in describe_fields(COMMANDS[module]):
        assert text, f"{key} has no docstring"
        assert f"\n  {key}={default}\n" in outcome.out


@pytest.mark.parametrize(
    ("module", "message"),
    {
        "train.__main__": "data=data/prepared: no such folder; python -m data_prep out=data/prep",
        "train.evaluate": "no run in runs/; name one with run=..., or train one: python -m train",
        "train.predict": "needs input=... and out=...",
        "train.export": "needs out=...",
        "train.show": "no run in runs/; name one with run=..., or train one: python -m train",
    }.items(),
)
def test_bare_where_nothing_is_there_it_says_what_comes_before(
    module: str,
    message: str,
    cli: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli(importlib.import_module(module).main)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_bare_commands_find_what_the_one_before_made(
    prepared: Dataset, cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training has a folder of its own; what comes after takes the newest."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/prepared").symlink_to(prepared.folder)
    small = [setting for setting in TINY if not setting.startswith("epochs=")]
    for _ in range(2):
        trained = cli(train_main.main, "epochs=1", *small)
        assert trained.code == 0, trained.err
    first, second = sorted(Path("runs").iterdir())
    assert f"run={second}: step 0 of 4" in trained.out
    evaluated = cli(importlib.import_module("train.evaluate").main, "figures=0")
    assert evaluated.code == 0, evaluated.err
    assert f"run={second}, the newest" in evaluated.out
    assert (second / "evaluation/test/summary.json").is_file()
    assert not (first / "evaluation").exists()
    assert str(second) in cli(importlib.import_module("train.show").main).out
    again = cli(train_main.main, "epochs=1", *small, f"run={first}")
    assert f"run={first} is finished" in again.out


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epoch=3", ["epoch", "epochs"]),
        ("model.norm=layer", ["model.norm=layer", "group"]),
        ("amp=fp8", ["amp=fp8", "bf16"]),
        ("schedule=linear", ["schedule=linear", "cosine"]),
        ("preset=huge", ["preset=huge", "brecahad, brecahad-cpu, demo, unet"]),
        ("epochs=0", ["epochs=0"]),
        ("lr=0", ["lr=0"]),
        ("lr=inf", ["lr=inf", "finite"]),
        ("weight_decay=-1", ["weight_decay=-1", "at least 0"]),
        ("weight_decay=nan", ["weight_decay=nan"]),
        ("weight_decay=inf", ["weight_decay=inf", "finite"]),
        ("optimizer=lion", ["optimizer=lion", "adam, adamw, sgd"]),
        ("momentum=1", ["momentum=1", "to below 1"]),
        ("clip_norm=-1", ["clip_norm=-1", "at least 0"]),
        ("clip_norm=nan", ["clip_norm=nan"]),
        ("ema=1", ["ema=1", "0 (none) to below 1"]),
        ("stop_after=-1", ["stop_after=-1", "at least 0"]),
        ("schedule_epochs=0", ["schedule_epochs=0", "at least 1"]),
        ("rank_timeout_s=-1", ["rank_timeout_s=-1", "above 0"]),
        ("rank_timeout_s=inf", ["rank_timeout_s=inf", "604800 (a week)"]),
        ("save_every_s=-3", ["save_every_s=-3", "at least 0"]),
        ("save_every_s=nan", ["save_every_s=nan"]),
        ("save_every_s=often", ["save_every_s=often", "expected a number or auto"]),
        ("log_every_s=-1", ["log_every_s=-1", "at least 0"]),
        ("keep_checkpoints=0", ["keep_checkpoints=0"]),
        ("loader_workers=-1", ["loader_workers=-1"]),
        ("microbatches=0", ["microbatches=0", "at least 1"]),
        ("microbatches=many", ["microbatches=many", "expected a whole number or auto"]),
        ("batch_size=2.5", ["batch_size=2.5", "expected a whole number or auto"]),
        ("lr_scale=cubic", ["lr_scale=cubic", "none, sqrt, linear"]),
        ("crop.size_px=8", ["crop.size_px=8"]),
        ("crop.scale=0.5", ["crop.scale=0.5", "1 (none) to 4"]),
        ("crop.scale=inf", ["crop.scale=inf", "1 (none) to 4"]),
        ("crop.rotation_deg=nan", ["crop.rotation_deg=nan"]),
        ("crop.rotation_deg=inf", ["crop.rotation_deg=inf", "0 (none) to 180"]),
        ("crop.rotation_deg=-90", ["crop.rotation_deg=-90", "0 (none) to 180"]),
        ("loss.dice_weight=-1", ["loss.dice_weight=-1"]),
        ("loss.dice_weight=inf", ["loss.dice_weight=inf", "finite"]),
        ("loss.positive_weight=inf", ["loss.positive_weight=inf", "finite"]),
        ("tile.overlap_px=300", ["tile.size_px=512", "overlap_px=300"]),
        ("model.dropout=1", ["model.dropout=1"]),
        ("model.encoder=resnet34", ["model.encoder=resnet34: a setting of model.name=smp"]),
        ("model.arch=Unet", ["model.arch=Unet: a setting of model.name=smp"]),
        ("data=/no/such/folder", ["data=/no/such/folder", "no such folder"]),
    ],
)
def test_a_wrong_command_line_is_refused_in_a_line(
    setting: str, words: list[str], prepared: Dataset, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    outcome = cli(train_main.main, f"data={prepared.folder}", f"run={run}", setting)
    assert outcome.code == 2
    assert all(word in outcome.err for word in words), outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: ")
    assert not run.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.encoder=resnet43"], "model.encoder=resnet43: unknown; did you mean resnet34"),
        (["model.encoder=tu-botnet26t_256"], "not with model.arch=Unet and images of any size"),
        (
            ["model.arch=DeepLabV3Plus", "batch_size=2", "microbatches=2"],
            "microbatches=2: model.arch=DeepLabV3Plus needs at least 2 crops in each",
        ),
        (
            ["model.encoder=tu-skresnet18", "batch_size=2", "microbatches=2"],
            "of a microbatch, and there is 1; give a batch_size= of at least twice microbatches=",
        ),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_before_there_is_a_run(
    settings: list[str], message: str, prepared: Dataset, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    given = (f"data={prepared.folder}", f"run={run}", "model.name=smp", "crop.size_px=32")
    outcome = cli(train_main.main, *given, *settings)
    assert outcome.code == 2
    assert message in outcome.err.splitlines()[0]
    assert not run.exists()


def test_a_run_folder_that_is_a_file_is_refused(
    prepared: Dataset, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.touch()
    monkeypatch.setitem(sys.modules, "train.loop.start", None)  # before torch is loaded
    outcome = cli(train_main.main, f"data={prepared.folder}", f"run={run}")
    assert (outcome.code, outcome.err) == (2, f"error: run={run}: is a file; name a folder\n")


def test_raw_fields_are_not_taken_for_an_unfinished_data_set(
    tmp_path: Path, raw_folder: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    raw = raw_folder()
    outcome = cli(train_main.main, f"data={raw}", f"run={tmp_path / 'run'}")
    assert outcome.code == 1
    assert f"data={raw}: raw fields; prepare them first, as with python -m data_prep raw=" in (
        outcome.err
    )


@pytest.mark.parametrize("damage", ["no dataset.json", "changed manifest", "empty folder"])
def test_data_that_is_not_whole_is_refused(
    damage: str, prepared: Dataset, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if damage != "empty folder":
        for name in ("manifest.jsonl", "dataset.json"):
            (data / name).write_bytes((prepared.folder / name).read_bytes())
    if damage == "no dataset.json":
        (data / "dataset.json").unlink()
    if damage == "changed manifest":
        (data / "manifest.jsonl").write_bytes((data / "manifest.jsonl").read_bytes()[:-1])
    outcome = cli(train_main.main, f"data={data}", f"run={tmp_path / 'run'}")
    assert outcome.code in (1, 2)
    assert str(data) in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("key", ["save_every_s", "log_every_s"])
def test_never_is_an_interval(key: str, tmp_path: Path) -> None:
    config = command_line.load(TrainConfig, ["data=a", "run=b", f"{key}=inf"])
    assert getattr(config, key) == float("inf")
    (tmp_path / "config.yaml").write_text(command_line.as_yaml(config))
    assert read_config(tmp_path) == config  # such a run goes on


@pytest.mark.parametrize(
    ("given", "expected"), [("auto", "auto"), ("60", 60), ("0.5", 0.5), ("inf", math.inf)]
)
def test_an_interval_is_the_same_in_the_runs_own_file(
    given: str, expected: object, tmp_path: Path
) -> None:
    """YAML writes infinity as .inf."""
    config = command_line.load(TrainConfig, ["data=a", "run=b", f"save_every_s={given}"])
    assert config.save_every_s == expected
    (tmp_path / "config.yaml").write_text(command_line.as_yaml(config))
    assert read_config(tmp_path) == config
    assert command_line.load(TrainConfig, [f"config={tmp_path / 'config.yaml'}"]).save_every_s == (
        expected
    )


def test_help_lists_the_presets_with_what_each_is_for(cli: Callable[..., Any]) -> None:
    listed = cli(train_main.main, "--help").out.partition("Presets (preset=NAME):\n\n")[2]
    names = {line.split()[0]: line.split(maxsplit=1)[1] for line in listed.splitlines()}
    assert names.keys() == {"brecahad", "brecahad-cpu", "demo", "unet"}
    assert names["demo"] == "For `make demo`: a small network on small crops."


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_a_preset_loads_and_gives_way_to_what_is_typed(preset: str) -> None:
    given = ["data=a", "run=b", f"preset={preset}"]
    config = command_line.load(TrainConfig, given, preset_folder=PRESETS)
    assert config.model != TrainConfig(data="", run="").model or config.lr == 1e-4
    typed = command_line.load(TrainConfig, [*given, "epochs=77"], preset_folder=PRESETS)
    assert typed.epochs == 77 != config.epochs
    assert typed.model == config.model


def test_defaults_are_those_of_the_system_this_replaces() -> None:
    """Batch 8, 10 epochs, BCE alone, Adam's usual rate, the 31 million parameter U-Net."""
    config = command_line.load(TrainConfig, ["data=a", "run=b"])
    assert (resolve_batch(config, 1, None).batch, config.epochs, config.lr) == ((8, 1), 10, 1e-3)
    assert (config.loss.dice_weight, config.loss.positive_weight) == (0, 1)
    assert (config.model.width, config.model.depth) == (64, 4)


def test_the_whole_configuration_survives_a_file(tmp_path: Path) -> None:
    given = ["data=a", "run=007", "amp=off", "lr=1e-4", "model.norm=none", "crop.flip=false"]
    config = command_line.load(TrainConfig, given)
    file = tmp_path / "config.yaml"
    file.write_text(command_line.as_yaml(config))
    again = command_line.load(TrainConfig, [f"config={file}"], preset_folder=PRESETS)
    assert command_line.as_yaml(again).replace(str(file), "''") == command_line.as_yaml(config)
    assert (again.run, again.amp, again.crop.flip) == ("007", "off", False)


def test_a_default_of_another_network_is_refused_in_a_file_too(tmp_path: Path) -> None:
    """It would do nothing. A run's own file, which has every key, may have it; what is typed beside
    that may not."""
    preset, own, whole = "preset=brecahad-cpu", tmp_path / "own.yaml", tmp_path / "run.yaml"
    own.write_text("model: {depth: 4, encoder: resnet34}")
    whole.write_text(command_line.as_yaml(TrainConfig()))
    for given, told in (
        ([preset, "model.width=64"], "unet"),
        (["model={encoder: resnet34}"], "smp"),
        ([f"config={own}"], "smp"),
        ([f"config={whole}", "model.encoder=resnet34"], "smp"),
    ):
        with pytest.raises(UsageError, match=rf"model\.\w+=\w+: a setting of model.name={told}"):
            command_line.load(TrainConfig, given, preset_folder=PRESETS)
    for text in (whole.read_text(), whole.read_text().replace("  attention: none\n", "")):
        whole.write_text(text)
        assert command_line.load(TrainConfig, [f"config={whole}"]).model.name == "unet"


def test_a_run_that_was_begun_otherwise_is_read(tmp_path: Path) -> None:
    """What is refused now of a new run, a finished one may have."""
    config = replace(TrainConfig(run=str(tmp_path)), encoder_lr_factor=0.25)
    (tmp_path / "config.yaml").write_text(command_line.as_yaml(config))
    assert read_config(tmp_path) == config


def test_a_device_that_is_not_there_is_refused(
    prepared: Dataset, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    given = [f"data={prepared.folder}", f"run={tmp_path / 'run'}", "device=cuda"]
    outcome = cli(train_main.main, *given)
    assert outcome.code == 2
    assert "device=cpu or device=auto" in outcome.err
