"""model.weights= at submission: what is fetched, what jobs are told, and what is refused."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.command_line import EXIT_USAGE
from launch.cluster import findings, profiles
from launch.submit import main as submit
from tests.model.hub import Hub, Repository
from tests.processes import prepare_alone

Cli = Callable[..., Any]
ROOT = Path(__file__).parents[2]
SMP = ("model.name=smp", "model.arch=FPN", "batch_size=1", "crop.size_px=64")
REPOSITORY = "timm/resnet14t.c3_in1k"


@pytest.fixture
def prepared(brecahad: Path, here: Path) -> Path:
    prepare_alone("copies=1")
    return here


def test_a_dry_run_fetches_nothing_and_says_what_it_would(
    prepared: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs are told of the cache, and to ask no hub."""
    monkeypatch.setenv("EOSIN_CACHE", "cache")
    given = ("--dry-run", "--stages", "train", *SMP, "model.weights=imagenet")
    done = cli(submit, *given, "--sweep", "model.encoder=resnet18,resnet34", "run=runs/a")
    assert done.code == 0, done.err
    for encoder in ("resnet18", "resnet34"):
        told = f"this would fetch the ImageNet weights of {encoder} into {prepared}/cache/encoders"
        assert told in done.err
    assert f"\nexport EOSIN_CACHE={prepared}/cache\n" in done.out
    assert "\nexport HF_HUB_OFFLINE=1\n" in done.out
    assert not (prepared / "cache").exists()


def test_the_weights_of_a_preset_are_fetched_too(
    prepared: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EOSIN_CACHE", "cache")
    given = ("--dry-run", "--stages", "train", "run=runs/a", "crop.size_px=64", "batch_size=1")
    done = cli(submit, *given, "preset=brecahad-cpu")
    assert done.code == 0, done.err
    assert "this would fetch the ImageNet weights of tu-tf_efficientnet_lite0 into" in done.err
    done = cli(submit, *given, "preset=demo")
    assert (done.code, "would fetch" in done.err) == (0, False), done.err


def test_an_unknown_encoder_is_refused_before_anything_is_queued(prepared: Path, cli: Cli) -> None:
    done = cli(submit, "--dry-run", "--stages", "train", *SMP, "model.encoder=resnet43")
    assert done.code == EXIT_USAGE
    assert "model.encoder=resnet43: unknown; did you mean resnet34" in done.err
    assert not Path("runs").exists()


def test_a_network_that_normalises_over_crops_is_refused_with_one_crop_a_microbatch(
    prepared: Path, cli: Cli
) -> None:
    done = cli(submit, "--dry-run", "--stages", "train", *SMP, "model.encoder=tu-skresnet18")
    assert done.code == EXIT_USAGE
    assert "normalises the mean of each crop over the crops of a microbatch, and there is 1" in (
        done.err
    )
    assert not Path("runs").exists()


def test_a_file_becomes_a_whole_path_and_must_be_there(prepared: Path, cli: Cli) -> None:
    given = ("--dry-run", "--stages", "train", *SMP, "run=runs/a", "model.weights=own.pth")
    done = cli(submit, *given)
    assert done.code == EXIT_USAGE
    assert "train: model.weights=own.pth: no such file" in done.err
    Path("own.pth").touch()
    done = cli(submit, *given)
    assert done.code == 0, done.err
    (train,) = [line for line in done.out.splitlines() if "#   train " in line]
    assert f"model.weights={prepared}/own.pth" in shlex.split(train)
    assert "EOSIN_CACHE" not in done.out
    swept = cli(submit, *given[:-1], "--sweep", "model.weights=none,own.pth")
    assert "'model.weights=none'" in repr(shlex.split(swept.out, comments=False))
    assert f"model.weights={prepared}/own.pth" in swept.out


@pytest.mark.parametrize("trials", [(), ("--trials", "2")])
def test_settings_of_swept_weights_may_be_shared(
    prepared: Path, cli: Cli, trials: tuple[str, ...]
) -> None:
    """Without any weights, which no trial is, they would be refused."""
    for name in ("a.pth", "b.pth"):
        Path(name).touch()
    given = ("--dry-run", "--stages", "train", *SMP, "encoder_lr_factor=0.5", "freeze_epochs=1")
    for weights in ("a.pth,b.pth", "imagenet,a.pth"):
        done = cli(submit, *given, *trials, "--sweep", f"model.weights={weights}")
        assert done.code == 0, done.err
    refused = cli(submit, *given, *trials, "--sweep", "model.weights=a.pth,none")
    assert refused.code == EXIT_USAGE
    assert "--sweep: freeze_epochs=1: only with init= or model.weights=" in refused.err


def test_folders_of_weights_are_mounted_in_a_container(
    prepared: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EOSIN_CACHE", "/shared/cache")
    Path("image.sif").touch()
    Path("weights").mkdir()
    Path("weights/own.pth").touch()
    given = ("--dry-run", "--image", "image.sif", "--stages", "train", *SMP, "run=runs/a")
    done = cli(submit, *given, "model.weights=weights/own.pth")
    assert f"--bind {prepared}/weights " in done.out, done.err
    done = cli(submit, *given, "model.weights=imagenet")
    assert "--bind /shared/cache " in done.out
    assert "EOSIN_CACHE=/shared/cache" in done.out


def test_a_study_fetches_every_encoder_that_it_may_give_a_trial(
    prepared: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one beside the first weights, which are none."""
    monkeypatch.setenv("EOSIN_CACHE", "cache")
    given = ("--dry-run", "--stages", "train", *SMP, "run=runs/a", "--trials", "3")
    swept = ("--sweep", "model.encoder=resnet18,resnet34", "--sweep", "model.weights=none,imagenet")
    done = cli(submit, *given, *swept)
    assert done.code == 0, done.err
    told = [line.split()[7] for line in done.err.splitlines() if "would fetch" in line]
    assert told == ["resnet18", "resnet34"]


def test_the_cache_of_a_profile_is_one_folder_for_who_submits_and_the_job(
    prepared: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a need for weights, no job and no container hears of a folder that may not exist."""
    monkeypatch.setattr(profiles, "PROFILES", prepared)
    monkeypatch.setenv("HOME", str(prepared / "home"))
    Path("image.sif").touch()
    Path("mine.yaml").write_text("image: image.sif\nenvironment: {EOSIN_CACHE: ~/cache, A: b}\n")
    given = ("--dry-run", "--profile", "mine", "--stages", "train", "run=runs/a", *SMP)
    done = cli(submit, *given, "model.weights=imagenet")
    folder = prepared / "home/cache"
    assert f"weights of resnet34 into {folder}/encoders/resnet34\n" in done.err
    assert f"\nexport EOSIN_CACHE={folder}\n" in done.out
    assert f"--bind {folder} " in done.out
    done = cli(submit, *given)
    assert done.code == 0, done.err
    assert "\nexport A=b\n" in done.out
    assert "home/cache" not in done.out
    looked = findings.command(profiles.load_profile("mine", {}), prepared, prepared, [])
    assert "~/cache" not in " ".join(looked)


@pytest.mark.parametrize(
    ("encoder", "told"),
    [("resnet43", "resnet43: unknown; did you mean"), ("dpn92", "no ImageNet weights")],
)
def test_a_dry_run_refuses_what_could_not_be_fetched(
    prepared: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, encoder: str, told: str
) -> None:
    monkeypatch.setenv("EOSIN_CACHE", "cache")
    given = ("--dry-run", "--stages", "train", *SMP, "run=runs/a", "model.weights=imagenet")
    done = cli(submit, *given, f"model.encoder={encoder}")
    assert done.code == EXIT_USAGE
    assert told in done.err
    assert "would fetch" not in done.err


def test_what_is_missing_is_fetched_before_anything_starts(prepared: Path) -> None:
    """With --cluster local, which does the same: the weights are there when the training refuses
    them. Without a hub nothing is begun."""
    script = [sys.executable, str(ROOT / "launch/submit.py"), "--cluster", "local"]
    script += ["--stages", "train", *SMP, "model.weights=imagenet", "model.encoder=tu-resnet14t"]
    environment = {**os.environ, "EOSIN_CACHE": str(prepared / "cache")}

    def call(run: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*script, f"run={run}"], env=environment, capture_output=True, text=True, cwd=prepared
        )

    with Hub({REPOSITORY: Repository({"model.safetensors": b"no tensors"})}) as hub:
        environment |= hub.environment
        done = call("runs/a")
    folder = prepared / "cache/encoders/tu-resnet14t"
    assert (folder / "weights.safetensors").read_bytes() == b"no tensors", done.stderr
    assert json.loads((folder / "source.json").read_text())["encoder"] == "tu-resnet14t"
    assert f"{folder}: damaged" in done.stderr + done.stdout
    shutil.rmtree(prepared / "cache")
    alone = call("runs/b")
    assert alone.returncode == 1
    (told,) = [line for line in alone.stderr.splitlines() if line.startswith("error: ")]
    assert told.startswith("error: encoder=tu-resnet14t: no answer from")
    assert not (prepared / "runs/b").exists()
