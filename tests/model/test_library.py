"""What each network of segmentation-models-pytorch must do as our own U-Net does."""

import subprocess
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from common.command_line import UsageError
from model import ModelConfig, build_model
from model.library import LibraryNetwork, normalisation_of
from tests.forked_ranks import ForkedRanks
from tests.model.networks import LOCAL, NETWORKS
from train.exchange import exported_model, onnx_model

every_network = pytest.mark.parametrize("name", NETWORKS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Noise, 0 to 1."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, num_classes: int = 2) -> LibraryNetwork:
    """A network with the weights of seed 0."""
    torch.manual_seed(0)
    return build_model(NETWORKS[name], num_classes)


@every_network
def test_logits_fit_the_image_and_every_weight_has_a_gradient(name: str) -> None:
    model = build(name)
    logits_BCHW = model(draw(2, 3, 97, 50))
    assert logits_BCHW.shape == (2, 2, 97, 50)
    assert logits_BCHW.isfinite().all()
    logits_BCHW.square().mean().backward()
    without = [key for key, weight in model.named_parameters() if weight.grad is None]
    assert without == []
    assert not [key for key in model.state_dict() if key.endswith("num_batches_tracked")]
    assert model.eval()(draw(1, 3, 1, 1)).shape == (1, 2, 1, 1)


def test_layers_that_no_image_goes_through_are_taken_out() -> None:
    """The library's efficientnet-b0 holds its classifier's convolution: it would have no gradient
    on any rank."""
    held = smp.encoders.get_encoder("efficientnet-b0", weights=None).state_dict()
    model = build_model(ModelConfig("smp", encoder="efficientnet-b0"))
    model(draw(2, 3, 64, 64)).mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert {name.split(".")[0] for name in held} - {
        name.split(".")[0] for name in model.encoder.state_dict()
    } == {"_conv_head", "_bn1"}


@every_network
def test_a_file_keeps_the_network(name: str, tmp_path: Path) -> None:
    """safetensors and ONNX compute what the network computes, sizes that need padding included."""
    model = build(name).eval()
    about = {"of": name}
    path = tmp_path / "model.safetensors"
    path.write_bytes(exported_model.encode([model], about))
    again = build_model(NETWORKS[name], 2).eval()
    with exported_model.open_file(path) as file:
        again.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    image_BCHW = draw(1, 3, 60, 70)
    assert torch.equal(again(image_BCHW), model(image_BCHW))
    content = onnx_model.convert(model, about)
    assert onnx_model.check(content, model, onnx_model.random_images()) < 1e-4


@pytest.mark.timeout(800)
def test_every_network_has_the_same_bits_on_1_2_and_4_ranks(tmp_path: Path) -> None:
    """Dropout, stochastic depth and batch normalisation included; the average of the weights, too.
    Ranks beside others go on from what was saved between the two steps."""
    command = "tests.model.stepping_rank"
    outputs = [
        ForkedRanks(command, [*NETWORKS], number, tmp_path / str(number), timeout_s=250).finish()
        for number in (1, 2, 4)
    ]
    lines = [
        [line for line in output.splitlines() if line.split()[0] in NETWORKS] for output in outputs
    ]
    assert [line.split()[0] for line in lines[0]] == [*NETWORKS]
    assert len({digest for line in lines[0] for digest in line.split()[1:]}) == 2 * len(NETWORKS)
    assert lines[1] == lines[0]
    assert lines[2] == lines[0]


@pytest.mark.parametrize("name", LOCAL)
def test_logits_move_with_the_image(name: str) -> None:
    """So tiles agree with the whole: here, at the middle of one moved by a stride."""
    model = build(name, 1).eval()
    size_px = 1024 * model.downsample
    image_BCHW = draw(1, 3, 2 * model.stride, size_px)
    moved_BCHW = image_BCHW[..., model.stride :]
    middle = slice(size_px // 2 - 32, size_px // 2 + 32)
    with torch.no_grad():
        logits_BCHW = model(image_BCHW)
        difference = logits_BCHW[..., model.stride :] - model(moved_BCHW)
    assert difference[..., middle].abs().max() <= 1e-5 * logits_BCHW.std()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LOCAL])
def test_which_networks_look_at_the_whole_image(name: str) -> None:
    """README says of which a tile shows less than the whole."""
    model = build(name, 1).eval()
    image_BCHW = draw(1, 3, 64 * model.downsample, 1024 * model.downsample)
    changed_BCHW = image_BCHW.clone()
    changed_BCHW[..., -32:] = 0
    with torch.no_grad():
        difference = (model(changed_BCHW) - model(image_BCHW))[..., :32]
    assert difference.abs().max() > 0


@every_network
def test_a_converted_network_computes_what_the_librarys_does(name: str) -> None:
    """Our normalisation is torch's. The encoder alone: it has no upsampling, which is another."""
    config = NETWORKS[name]
    theirs = smp.create_model(config.arch, config.encoder, None).encoder
    ours = build(name).encoder
    nn.Module.load_state_dict(theirs, ours.state_dict(), strict=False)  # it has no count of batches
    image_BCHW = draw(1, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(ours.eval()(image_BCHW), theirs.eval()(image_BCHW), strict=True)
    assert all(torch.equal(our, their) for our, their in pairs)


def test_a_converted_network_begins_with_the_librarys_weights() -> None:
    """timm begins the last normalisation of a block of a ResNet with 0, torch with 1."""
    ours = build("Unet").encoder.state_dict()
    torch.manual_seed(0)
    theirs = smp.create_model(
        "Unet", NETWORKS["Unet"].encoder, None, classes=2
    ).encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(name.endswith("bn2.weight") and not ours[name].any() for name in ours)


def test_input_is_normalised_as_the_encoder_was_trained() -> None:
    """ImageNet's mean and deviation; those of EfficientNet-Lite are one half each."""
    for name, mean, std in (
        ("half", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tu-tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ):
        model, seen = build(name), []
        model.encoder.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        image_BCHW = draw(2, 3, 128, 128)
        model(image_BCHW)
        pooled = nn.AvgPool2d(model.downsample)(image_BCHW)
        expected = torch.stack([(pooled[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
        assert torch.allclose(seen[0], expected, atol=1e-6)
        assert {"mean", "std"} <= model.state_dict().keys()  # a model that is handed on keeps them


@pytest.mark.parametrize("name", ["inceptionv4", "xception", "timm-tf_efficientnet_lite3", "dpn92"])
def test_the_librarys_own_encoders_have_their_own_normalisation(name: str) -> None:
    """As published: the DPNs subtracted (124, 117, 104) and multiplied by 0.0167, of 0 to 255."""
    mean, std = normalisation_of(name)
    is_dpn = name.startswith("dpn")
    assert mean == pytest.approx([124 / 255, 117 / 255, 104 / 255] if is_dpn else [0.5] * 3)
    assert std == pytest.approx([1 / 0.0167 / 255 if is_dpn else 0.5] * 3)


@pytest.mark.parametrize("downsample", [2, 4])
def test_a_network_begins_without_a_checkerboard(downsample: int) -> None:
    torch.manual_seed(0)
    config = ModelConfig("smp", encoder="resnet18", downsample=downsample)
    network = build_model(config, 2).eval()
    logits = network(draw(1, 3, 128, 128))
    blocks = logits.unfold(2, downsample, downsample).unfold(3, downsample, downsample)
    assert torch.equal(blocks, blocks[..., :1, :1].expand_as(blocks))
    assert not torch.equal(logits[:, 0], logits[:, 1])


def test_dropout_and_stochastic_depth_act_in_training_alone() -> None:
    model = build("tu-tf_efficientnet_lite0")
    image_BCHW = draw(2, 3, 64, 64)
    assert not torch.equal(model(image_BCHW), model(image_BCHW))
    model.eval()
    assert torch.equal(model(image_BCHW), model(image_BCHW))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"encoder": "resnet43"}, "model.encoder=resnet43: unknown; did you mean resnet34"),
        ({"encoder": "tu-convnext_tinny"}, "unknown; did you mean tu-convnext_tiny"),
        (
            {"arch": "Linknet", "encoder": "mit_b0"},
            "model.encoder=mit_b0: not with model.arch=Link",
        ),
        ({"encoder": "tu-vit_base_patch16_224"}, "not with model.arch=Unet"),
        ({"encoder": "tu-swin_tiny_patch4_window7_224"}, "images of any size .Input height"),
        ({"encoder": "tu-botnet26t_256"}, "not with model.arch=Unet and images of any size"),
        ({"encoder": "tu-hf-hub:timm/resnet18.a1_in1k"}, "unknown; did you mean tu-resnet18.a1"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(settings: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        build_model(ModelConfig("smp", **settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"name": "unet", "encoder": "resnet18"},
            "model.encoder=resnet18: a setting of model.name",
        ),
        ({"name": "smp", "width": 8}, "model.width=8: a setting of model.name=unet"),
        ({"name": "unet", "weights": "imagenet"}, "model.weights=imagenet: .* init= takes"),
        (
            {"name": "smp", "arch": "FPN", "attention": "scse"},
            "only with model.arch=Unet or UnetPl",
        ),
        ({"name": "smp", "weights": ""}, "model.weights=: none, imagenet, or a file"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(settings: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig(**settings)


def test_a_torchvision_of_another_torch_breaks_nothing_else(tmp_path: Path) -> None:
    """It is told in a line where it is needed; our own network does without it."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nmore')"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from model import ModelConfig, build_model\n"
        "build_model(ModelConfig(width=4, depth=1))\n"
        "build_model(ModelConfig('smp'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = done.stderr.splitlines()[-1]
    assert "UserError: model.name=smp: segmentation-models-pytorch cannot be imported" in last
    assert "operator torchvision::nms does not exist" in last
    assert "torchvision 0." in last
