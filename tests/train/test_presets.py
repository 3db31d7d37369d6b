"""The presets: those that begin with ImageNet weights, without them and with them."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import command_line
from common.command_line import EXIT_USAGE
from data_prep.dataset.manifest import Dataset
from model.encoder_cache import Fetched, folder_of
from tests.model.efficientnet_lite import write_weights
from train import __main__ as train_main
from train import evaluate
from train.config import PRESETS, TrainConfig

Cli = Callable[..., Any]
ALL = sorted(path.stem for path in PRESETS.glob("*.yaml"))
PRETRAINED = [name for name in ALL if name.startswith("brecahad")]
LITE0 = "tu-tf_efficientnet_lite0"
SMALL = ("epochs=1", "batch_size=8", "crop.size_px=64", "loader_workers=0", "device=cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of encoders."""
    monkeypatch.setenv("EOSIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_lite0() -> None:
    """Put EfficientNet-Lite0's weights into the cache, as model.fetch does."""
    folder = folder_of(LITE0)
    folder.mkdir(parents=True)
    write_weights(0, file := folder / "weights.safetensors")
    sha256, num_bytes = hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size
    named = (LITE0, "timm/tf_efficientnet_lite0.in1k", "abc", "https://hub", sha256)
    about = Fetched(*named, num_bytes, "apache-2.0", [0.5] * 3, [0.5] * 3, "now")
    (folder / "source.json").write_text(json.dumps(dataclasses.asdict(about)))


def load(preset: str, *given: str) -> TrainConfig:
    return command_line.load(
        TrainConfig, ["data=a", f"preset={preset}", *given], preset_folder=PRESETS
    )


@pytest.mark.parametrize("preset", PRETRAINED)
def test_without_the_weights_the_command_that_fetches_them_is_named(
    preset: str, prepared: Dataset, cache: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli(
        train_main.main, f"preset={preset}", f"data={prepared.folder}", f"run={tmp_path / 'run'}"
    )
    assert done.code == EXIT_USAGE
    assert f"EOSIN_CACHE={cache} python -m model.fetch encoder={LITE0}" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", sorted({*ALL} - {*PRETRAINED}))
def test_the_others_begin_with_random_weights(preset: str) -> None:
    """`make demo` needs no network."""
    assert load(preset).model.weights == "none"


@pytest.mark.parametrize("preset", PRETRAINED)
def test_a_preset_trains_and_is_evaluated(
    preset: str, prepared: Dataset, cache: Path, tmp_path: Path, cli: Cli
) -> None:
    put_lite0()
    run = tmp_path / "run"
    given = (f"preset={preset}", f"data={prepared.folder}", f"run={run}", *SMALL)
    done = cli(train_main.main, *given)
    assert done.code == 0, done.err
    source = json.loads((run / "init.json").read_text())["encoder"]
    assert (source["source"], source["licence"]) == (
        "timm/tf_efficientnet_lite0.in1k",
        "apache-2.0",
    )
    assert cli(evaluate.main, f"run={run}", f"out={tmp_path / 'out'}").code == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert not [line for line in summary["warnings"] if "encoder" in line]


def test_without_any_weights_a_preset_needs_no_cache(
    prepared: Dataset, cache: Path, tmp_path: Path, cli: Cli
) -> None:
    given = ("preset=brecahad-cpu", "model.weights=none", "encoder_lr_factor=1")
    done = cli(
        train_main.main, *given, f"data={prepared.folder}", f"run={tmp_path / 'run'}", *SMALL
    )
    assert done.code == 0, done.err
    assert not cache.exists()
