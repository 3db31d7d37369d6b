"""A run whose encoder begins with weights of model.weights=: what it records and hands on."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common import command_line
from common.command_line import EXIT_FAILED, EXIT_USAGE
from data_prep.dataset.manifest import Dataset
from model.weights import read_weights
from tests.processes import prepare_alone
from tests.train.conftest import TINY, one_rank
from train import __main__ as train_main
from train import evaluate, export, show
from train.config import TrainConfig, with_whole_paths
from train.loop.trainer import Trainer
from train.runs.run_folder import name_of, read_run
from train.runs.same_run import config_sha256

Cli = Callable[..., Any]
SMP = ("model.name=smp", "model.encoder=resnet18", "model.arch=FPN")
SHORT = (*(given for given in TINY if not given.startswith("model.")), *SMP, "epochs=1")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for resnet18, all of them 0.01."""
    state = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    file = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_file({name: torch.full_like(value, 0.01) for name, value in state.items()}, file)
    return file


@pytest.fixture(scope="module")
def source(weights: Path) -> dict[str, str]:
    """What is recorded of them."""
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    named = {"encoder": "resnet18", "source": "own.safetensors", "revision": ""}
    return {**named, "sha256": sha256, "licence": "not stated"}


@pytest.fixture(scope="module")
def others(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases that `begun` has not been trained on."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "raw").mkdir()
    for path in raw.glob("Case_[345]*"):
        shutil.copy(path, folder / "raw")
    given = [f"raw={folder / 'raw'}", f"out={folder / 'set'}", "copies=1", "format=png"]
    prepare_alone(*given, "radius_px=8", "split.val_cases=[4]", "split.test_cases=[5]")
    return folder / "set"


@pytest.fixture(scope="module")
def begun(prepared: Dataset, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that began with them."""
    run = tmp_path_factory.mktemp("runs") / "begun"
    given = [f"data={prepared.folder}", f"run={run}", f"model.weights={weights}"]
    assert train_main.main([*given, *SHORT]) == 0
    return run


def test_a_run_begins_with_them_and_the_rest_is_of_the_seed(
    prepared: Dataset, weights: Path, new_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def config(name: str, *more: str) -> TrainConfig:
        given = [f"data={prepared.folder}", f"run={tmp_path / name}", *SHORT, *more]
        return command_line.load(TrainConfig, given)

    found = new_trainer(config("a", f"model.weights={weights}")).state.model.state_dict()
    random = new_trainer(config("b")).state.model.state_dict()
    assert found.keys() == random.keys()
    for name, value in found.items():
        if name.startswith("encoder."):
            assert (value == 0.01).all(), name
        else:
            assert torch.equal(value, random[name]), name


def test_where_they_are_from_stands_in_the_run_its_results_and_its_model(
    begun: Path, source: dict[str, str], weights: Path, tmp_path: Path, cli: Cli
) -> None:
    assert json.loads((begun / "init.json").read_text())["encoder"] == source
    assert (
        "encoder       began with resnet18: own.safetensors, " in cli(show.main, f"run={begun}").out
    )
    assert cli(evaluate.main, f"run={begun}", f"out={tmp_path / 'out'}").code == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["encoder"] == source
    warning = (
        "the encoder began with own.safetensors (model.weights=): if that was trained on these"
        " cases, the figures do not show new patients"
    )
    assert warning in summary["warnings"]
    page = (tmp_path / "out/report.html").read_text()
    assert "resnet18 of own.safetensors; licence: not stated" in page
    file = tmp_path / "model.safetensors"
    assert cli(export.main, f"run={begun}", f"out={file}").code == 0
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()["eosin"]
    assert json.loads(metadata)["encoder"] == source
    assert json.loads(metadata)["model"]["weights"] == "./own.safetensors"
    assert str(weights.parent) not in metadata
    assert dataclasses.asdict(read_run(file).encoder) == source


@pytest.mark.parametrize("name", ["none", "imagenet"])
def test_a_file_of_another_kinds_name_stays_a_file(
    begun: Path, source: dict[str, str], tmp_path: Path, cli: Cli, name: str
) -> None:
    run, file = Path(shutil.copytree(begun, tmp_path / "run")), tmp_path / "model.safetensors"
    config = (run / "config.yaml").read_text()
    weights = read_run(begun).config.model.weights
    (run / "config.yaml").write_text(config.replace(weights, f"/elsewhere/{name}"))
    assert cli(export.main, f"run={run}", f"out={file}").code == 0
    exported = read_run(file)
    assert exported.config.model.weights == f"./{name}"
    assert dataclasses.asdict(exported.encoder) == source
    model = dataclasses.replace(exported.config.model, weights=name)
    other = dataclasses.replace(exported.config, model=model)
    assert config_sha256(exported.config) != config_sha256(other)


def test_a_link_to_a_file_is_what_its_name_says(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the hub's cache, where files are named by their hash."""
    monkeypatch.chdir(tmp_path)
    Path("blobs").mkdir()
    shutil.copy(weights, "blobs/abc123")
    Path("snapshot").mkdir()
    Path("snapshot/own.safetensors").symlink_to("../blobs/abc123")
    given = ["model.weights=snapshot/own.safetensors", *SMP]
    model = with_whole_paths(command_line.load(TrainConfig, given)).model
    assert model.weights == str(tmp_path / "snapshot/own.safetensors")
    assert read_weights(model).source.source == "own.safetensors"
    assert name_of(Path("snapshot/own.safetensors")) == "own.safetensors"


def test_a_run_that_begins_with_its_model_carries_it_on(
    begun: Path, source: dict[str, str], others: Path, tmp_path: Path, cli: Cli
) -> None:
    """From the folder, and from an exported file; random otherwise."""
    file = tmp_path / "model.safetensors"
    cli(export.main, f"run={begun}", f"out={file}")
    for name, init in (("a", begun), ("b", file)):
        run = tmp_path / name
        given = [f"data={others}", f"run={run}", f"init={init}", *SHORT, "batch_size=2"]
        done = cli(train_main.main, *given, "microbatches=2")
        assert done.code == 0, done.err
        assert dataclasses.asdict(read_run(run).encoder) == source


def test_a_begun_run_goes_on_without_the_file_and_refuses_another_before_it_has_saved(
    begun: Path, prepared: Dataset, weights: Path, tmp_path: Path, cli: Cli
) -> None:
    file, run = tmp_path / "own.safetensors", tmp_path / "run"
    shutil.copy(weights, file)
    given = [f"data={prepared.folder}", f"run={run}", f"model.weights={file}", *SHORT]
    assert cli(train_main.main, *given).code == 0
    file.unlink()
    assert "finished" in cli(train_main.main, *given).out
    shutil.rmtree(run / "checkpoints")
    assert "no such file" in cli(train_main.main, *given).err
    state = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    save_file(state, file)
    done = cli(train_main.main, *given)
    assert done.code == EXIT_FAILED
    assert "not the weights that run=" in done.err
    shutil.copy(weights, file)
    assert cli(train_main.main, *given).code == 0
    moved = file.rename(tmp_path / "moved.safetensors")
    assert "finished" in cli(train_main.main, *given, f"model.weights={moved}").out
    gone = tmp_path / "away/own.safetensors"  # of the same name, which is all that can be said
    assert "finished" in cli(train_main.main, *given, f"model.weights={gone}").out
    moved.write_bytes(b"others")
    for other in (moved, "none"):
        told = cli(train_main.main, *given, f"model.weights={other}").err
        assert f"was begun with other settings (model.weights: {gone} -> {other})" in told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("init=a", "model.weights=imagenet", *SMP), "give init= or model.weights=none"),
        (("model.weights=nowhere.pth", *SMP), "model.weights=nowhere.pth: no such file"),
        (("model.weights=imagenet", *SMP), "python -m model.fetch encoder=resnet18"),
        (("model.weights=imagenet", *SMP), "random ones: model.weights=none encoder_lr_factor=1"),
        (("freeze_epochs=1", *SMP), "only with init= or model.weights="),
        (("encoder_lr_factor=0.5", *SMP), "random weights, encoder_lr_factor=1"),
        (("preset=brecahad-cpu", "model.weights=none"), "encoder_lr_factor=0.25: only with"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_is_made(
    prepared: Dataset,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.setenv("EOSIN_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    done = cli(train_main.main, f"data={prepared.folder}", f"run={run}", *settings)
    assert done.code == EXIT_USAGE
    assert told in done.err
    assert done.err.count("\n") == 1
    assert not run.exists()


def test_an_encoder_keeps_them_while_it_is_frozen(
    prepared: Dataset, weights: Path, tmp_path: Path, cli: Cli
) -> None:
    given = [f"data={prepared.folder}", f"run={tmp_path / 'run'}", f"model.weights={weights}"]
    assert cli(train_main.main, *given, *SHORT, "freeze_epochs=1").code == 0
    model = read_run(tmp_path / "run").load_model("latest", one_rank()).model
    assert all((value == 0.01).all() for value in model.encoder.state_dict().values())
