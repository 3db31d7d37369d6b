"""Weights that an encoder begins with, from the cache and from files of others."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from common.command_line import UsageError
from model import ModelConfig, build_model
from model.encoder_cache import Fetched, folder_of
from model.weights import Weights, read_weights
from tests.model import efficientnet_lite
from tests.model.efficientnet_lite import NAME, write_weights

LITE0 = f"tu-{NAME.format(0)}"
State = dict[str, Tensor]


def read(encoder: str, weights: str | Path, **more: Any) -> Weights:
    return read_weights(ModelConfig(name="smp", encoder=encoder, weights=str(weights), **more))


def refused(encoder: str, weights: str | Path) -> str:
    """Why these weights are refused."""
    with pytest.raises(UsageError) as caught:
        read(encoder, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def resnet18() -> State:
    """The state of the library's resnet18, no weight as it would be at random."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        state = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
        return {
            name: torch.rand_like(value) + 0.5 if value.is_floating_point() else value
            for name, value in state.items()
        }


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("lite0") / "lite0.safetensors"
    write_weights(0, file)
    return file


@pytest.fixture
def cached(tmp_path: Path, resnet18: State, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """cached(sha256=...) puts weights of resnet18 into a cache; returns their folder."""

    def put(**changes: object) -> Path:
        monkeypatch.setenv("EOSIN_CACHE", str(tmp_path))
        folder, content = folder_of("resnet18"), save(resnet18)
        sha256 = hashlib.sha256(content).hexdigest()
        named = ("resnet18", "smp-hub/resnet18.imagenet", "abc", "https://hub", sha256)
        about = Fetched(*named, len(content), "mit", [0.4, 0.5, 0.6], [0.1, 0.2, 0.3], "now")
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(content)
        (folder / "source.json").write_text(json.dumps(dataclasses.asdict(about) | changes))
        return folder

    return put


def in_network(weights: Weights, encoder: str) -> torch.nn.Module:
    """A network with these weights, as training makes it."""
    network = build_model(ModelConfig(name="smp", encoder=encoder))
    network.load_state_dict(network.state_dict() | weights.tensors)
    return network.eval()


def test_the_command_of_the_docs_writes_the_weights(tmp_path: Path, lite0: Path) -> None:
    efficientnet_lite.main([str(tmp_path / "weights")])
    written = tmp_path / f"weights/{LITE0}.safetensors"
    assert written.read_bytes() == lite0.read_bytes()


def test_efficientnet_lite0_has_the_features_of_timms_own(lite0: Path) -> None:
    """ImageNet's weights, through the file's names, against timm's network that loads them."""
    own = timm.create_model(NAME.format(0), features_only=True)
    assert not own.load_state_dict(load_file(lite0), strict=False).missing_keys
    weights = read(LITE0, lite0)
    network = in_network(weights, LITE0)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, *features = network.encoder(image)
        expected = own.eval()(image)
        assert [each.shape for each in features] == [each.shape for each in expected]
        assert all(map(torch.equal, features, expected))
        assert expected[-1].abs().max() > 1, "they are not random"
    assert weights.tensors["mean"].flatten().tolist() == [0.5, 0.5, 0.5]
    assert weights.source.source == "lite0.safetensors"
    assert weights.source.licence == "not stated"


def test_the_cache_gives_the_encoder_and_how_its_images_were_normalised(
    cached: Callable[..., Path], resnet18: State
) -> None:
    folder = cached()
    before = torch.random.get_rng_state()
    weights = read("resnet18", "imagenet")
    assert torch.equal(torch.random.get_rng_state(), before)
    network = build_model(ModelConfig(name="smp", encoder="resnet18"))
    kept = {name for name in network.state_dict() if name.startswith("encoder.")}
    assert weights.tensors.keys() == {*kept, "mean", "std"}
    for name in kept:
        assert torch.equal(weights.tensors[name], resnet18[name.removeprefix("encoder.")])
    assert torch.equal(weights.tensors["mean"], torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
    assert torch.equal(weights.tensors["std"], torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    sha256 = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert dataclasses.astuple(weights.source) == (
        *("resnet18", "smp-hub/resnet18.imagenet", "abc", sha256, "mit"),
    )


def test_weights_that_are_missing_or_damaged_name_the_command(
    cached: Callable[..., Path], tmp_path: Path
) -> None:
    folder = cached()
    command = f"EOSIN_CACHE={tmp_path} python -m model.fetch encoder=resnet18"
    content = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(content[:-1] + b"\1")
    told = refused("resnet18", "imagenet")
    assert "sha256 of weights.safetensors differs" in told
    assert told.endswith(command)
    (folder / "weights.safetensors").write_bytes(content[:-1])
    assert "damaged" in refused("resnet18", "imagenet")
    (folder / "source.json").write_text("{}")
    assert refused("resnet18", "imagenet").endswith(command)
    (folder / "source.json").unlink()
    told = refused("resnet18", "imagenet")
    assert f"the weights of resnet18 are not in {folder}" in told
    assert f"{command}; or begin with those of a file: model.weights=FILE, or with random" in told


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "resnet34"},
        {"std": [0.0, 1, 1]},
        {"mean": [0.5]},
        {"sha256": 7},
        {"licence": "a\x1b[2J"},
        {"bytes": 10**15},
    ],
)
def test_a_record_that_does_not_describe_them_is_damage(
    cached: Callable[..., Path], changes: dict[str, Any]
) -> None:
    cached(**changes)
    assert "fetch them again: EOSIN_CACHE=" in refused("resnet18", "imagenet")


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("", "encoder."),
        ("state_dict", "module."),
        ("model", ""),
        ("state_dict", "model."),
        ("state_dict", "model.encoder."),
    ],
)
@pytest.mark.parametrize("kind", ["", "tu-"])
def test_a_state_dict_is_found_where_trainings_put_it(
    tmp_path: Path, resnet18: State, prefix: str, key: str, kind: str
) -> None:
    """With a classifier of any layers, and with what else a network has; nested, and below a
    prefix."""
    given = {f"{prefix}{name}": value for name, value in resnet18.items()}
    given |= {f"{prefix}{name}": torch.ones(3, 3) for name in ("fc.weight", "fc.0.weight")}
    given["decoder.weight"] = torch.ones(2)
    torch.save({key: given, "epoch": 7} if key else given, tmp_path / "a.pth")
    weights = read(f"{kind}resnet18", tmp_path / "a.pth")
    model = "model." if kind else ""
    for name in ("conv1.weight", "bn1.running_var"):
        assert torch.equal(weights.tensors[f"encoder.{model}{name}"], resnet18[name])


@pytest.mark.parametrize("kind", ["", "tu-"])
def test_weights_of_a_deeper_network_are_refused(tmp_path: Path, kind: str) -> None:
    """resnet34 has all that resnet18 has, and more of it; a classifier may be there."""
    state = timm.create_model("resnet34").state_dict()
    torch.save(state, tmp_path / "a.pth")
    told = refused(f"{kind}resnet18", tmp_path / "a.pth")
    assert "tensors of a deeper network" in told
    assert "layer1.2.bn1" in told
    read(f"{kind}resnet34", tmp_path / "a.pth")


def authors_name_in_pvt(name: str) -> str:
    """What timm calls stages.0.blocks.2 is block1.2 for the authors of pvt_v2, and so on."""

    def numbered_from_1(found: re.Match[str]) -> str:
        return {"blocks.": "block{}.", "norm": "norm{}", "downsample": "patch_embed{}"}[
            found[2]
        ].format(int(found[1]) + 1)

    name = re.sub(r"^stages\.(\d)\.(blocks\.|norm|downsample)", numbered_from_1, name)
    name = name.replace("mlp.dwconv", "mlp.dwconv.dwconv")
    return re.sub(r"^patch_embed\.", "patch_embed1.", name)


@pytest.mark.parametrize("depth", ["b1", "b2"])
def test_they_are_refused_under_their_authors_names_too(tmp_path: Path, depth: str) -> None:
    """b2 has a third block in a stage, b1 two. One number in a file stands for a tensor."""
    with torch.device("meta"):
        state = timm.create_model(f"pvt_v2_{depth}").state_dict()
    theirs = {authors_name_in_pvt(name): value for name, value in state.items()}
    file = tmp_path / "a.pth"
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in theirs.items()}, file)
    if depth == "b1":
        assert read("tu-pvt_v2_b1", file).source.source == "a.pth"
    else:
        told = refused("tu-pvt_v2_b1", file)
        assert (
            "tensors of a deeper network than model.encoder=tu-pvt_v2_b1: stages.0.blocks.2" in told
        )


def test_timm_names_its_whole_network_otherwise_than_its_features(tmp_path: Path) -> None:
    """convnext: stages.0.blocks of the network is stages_0.blocks of its features."""
    whole = timm.create_model("convnext_atto")
    save_file(whole.state_dict(), tmp_path / "a.safetensors", {"license": "mit"})
    weights = read("tu-convnext_atto", tmp_path / "a.safetensors")
    assert weights.source.licence == "mit"
    found = weights.tensors["encoder.model.stages_0.blocks.0.conv_dw.weight"]
    assert torch.equal(found, whole.stages[0].blocks[0].conv_dw.weight)
    assert not any(name.startswith("encoder.model.head") for name in weights.tensors)


def test_what_is_missing_or_of_another_shape_is_counted_and_named(
    tmp_path: Path, resnet18: State, lite0: Path
) -> None:
    left = dict(list(resnet18.items())[2:])
    save_file(left, tmp_path / "a.safetensors")
    told = refused("resnet18", tmp_path / "a.safetensors")
    assert "lacks 2 (conv1.weight, bn1.weight)" in told
    assert "of the 100 tensors of model.encoder=resnet18" in told
    save_file(resnet18 | {"bn1.bias": torch.ones(3)}, tmp_path / "a.safetensors")
    assert "has in another shape 1 (bn1.bias)" in refused("resnet18", tmp_path / "a.safetensors")
    assert "tu-tf_efficientnet_lite1 it lacks 75 (" in refused("tu-tf_efficientnet_lite1", lite0)
    save_file(resnet18 | {"bn1.bias": torch.full((64,), torch.nan)}, tmp_path / "a.safetensors")
    assert "bn1.bias is not finite" in refused("resnet18", tmp_path / "a.safetensors")


class Code:
    """What a pickle may run when it is read."""

    def __reduce__(self) -> object:
        return os.mkdir, ("ran",)


def test_files_of_others_run_nothing_and_are_no_more_than_they_are(
    tmp_path: Path, resnet18: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(resnet18 | {"code": Code()}, "code.pth")
    told = refused("resnet18", "code.pth")
    assert "(not a file of torch.save, damaged, or it holds more than tensors)" in told
    assert "weights_only" not in told, "torch's own words advise to run the file's code"
    assert not Path("ran").exists()
    torch.save([1, 2], "list.pth")
    assert "it holds a list, not tensors by name" in refused("resnet18", "list.pth")
    torch.save({"epoch": 3}, "none.pth")
    assert "it holds no tensors" in refused("resnet18", "none.pth")
    huge = torch.ones(1).expand(2**50)  # a petabyte, if it were taken at its word
    torch.save(resnet18 | {"conv1.weight": huge}, "huge.pth")
    assert "has in another shape 1 (conv1.weight)" in refused("resnet18", "huge.pth")
    for value in (torch.ones(64).to_sparse(), torch.ones(64, device="meta")):
        torch.save(resnet18 | {"bn1.bias": value}, "strange.pth")
        assert "tensors are sparse, or without values" in refused("resnet18", "strange.pth")
    Path("empty.safetensors").touch()
    Path("text.pth").write_text("no weights\n")
    for file in ("empty.safetensors", "text.pth"):
        assert f"model.weights={file}: cannot be read" in refused("resnet18", file)
    os.mkfifo("pipe.pth")
    assert "not a file" in refused("resnet18", "pipe.pth")
    assert "No such file" in refused("resnet18", "nowhere.pth")
    save_file(resnet18, "own.safetensors", {"eosin": "{}"})
    assert refused("resnet18", "own.safetensors").endswith(
        "begin with it as init=own.safetensors model.weights=none"
    )
