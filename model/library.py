"""Networks of segmentation-models-pytorch, made to compute the same bits on any ranks.

    image -> mean of blocks -> normalised as the encoder was trained -> encoder -> decoder -> logits

What is changed in them: batch normalisation is that of model.layers, which counts nothing and takes
its statistics by microbatch; bilinear upsampling does not depend on the size of the whole image, so
that logits move with the image. Dropout and stochastic depth draw from torch's default generator,
as they did: training seeds it for each microbatch.
"""

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.command_line import UsageError, UserError
from model.config import ModelConfig
from model.layers import MicrobatchNorm2d

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB, 0 to 1
TIMM = "tu-"
"""How the library's names of timm's encoders begin."""
IN_TIMM = {
    "dpn": "dpn68",
    "inception": "inception_v4",
    "timm-tf_efficientnet_lite": "tf_efficientnet_lite0",
    "xception": "legacy_xception",
}
"""How names of the library's own encoders begin that were trained on images of another mean than
ImageNet's, and a network of timm that was trained on the same ones."""


class LibraryNetwork(nn.Module):
    """Network from images (B, 3, H, W), 0 to 1, to logits (B, num_classes, H, W), for any H and W.

    If an image is moved by a multiple of `stride` px, its logits move with it, except near the
    edges; not where arch, encoder or attention pool the whole image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.downsample = config.downsample
        block = config.downsample**2
        network = create(config, num_classes * block)
        mean, std = normalisation_of(config.encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.encoder, self.decoder = network.encoder, network.decoder
        self.head = network.segmentation_head
        self.dropout = nn.Dropout2d(config.dropout)
        self.stride = config.downsample * self.encoder.output_stride
        put_own_layers(self, config.encoder)
        with unsuitable(config):
            remove_unused(self, 2 * self.stride)
        with torch.no_grad():
            # the pixels of a block start with equal weights, as in model.unet
            for values in self.head.parameters():
                values.copy_(values[::block].repeat_interleave(block, dim=0))

    def num_padded(self, length: int) -> int:
        """Return by how many px to pad a side of `length` px: to a multiple of `stride`, at least
        two, so that no layer normalises a single pixel."""
        return max(-length % self.stride, 2 * self.stride - length)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Compute logits: (B, 3, H, W) float from 0 to 1 -> (B, num_classes, H, W)."""
        height, width = image_BCHW.shape[-2:]
        padding = (0, self.num_padded(width), 0, self.num_padded(height))
        padded = F.pad(image_BCHW, padding, mode="replicate") if any(padding) else image_BCHW
        pooled = F.avg_pool2d(padded, self.downsample) if self.downsample > 1 else padded
        *features, deepest = self.encoder((pooled - self.mean) / self.std)
        logits = self.head(self.decoder([*features, self.dropout(deepest)]))
        return F.pixel_shuffle(logits, self.downsample)[..., :height, :width]


def library() -> ModuleType:
    """Import segmentation-models-pytorch. Raises UserError where that cannot be."""
    try:
        import segmentation_models_pytorch
    except Exception as error:  # a torchvision of another torch raises what it likes
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model.name=smp: segmentation-models-pytorch cannot be imported ({reason}); torch is"
            f" {torch.__version__}, torchvision {version_of('torchvision')}, which must be of one"
            " release and one kind (CPU or CUDA): pip install --constraint constraints.txt"
            " segmentation-models-pytorch torch torchvision"
        ) from None
    return segmentation_models_pytorch


def version_of(package: str) -> str:
    """Return the version of an installed package, or 'not installed'."""
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"


def create(config: ModelConfig, num_channels: int) -> Any:
    """Build the library's network with random weights. Raises UsageError for one that it lacks."""
    attention = {} if config.attention == "none" else {"decoder_attention_type": config.attention}
    check_encoder(config.encoder)
    with unsuitable(config), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old names of encoders
        return library().create_model(
            config.arch, config.encoder, None, classes=num_channels, **attention
        )


def check_encoder(name: str, key: str = "model.encoder") -> None:
    """Raise UsageError for a name that neither the library nor timm lists; timm would take some of
    them for addresses. `key`: of the setting that names it."""
    encoders = library().encoders.encoders
    import timm

    names = [*timm.list_models(), *timm.list_pretrained()]
    known = [*encoders, *(TIMM + name for name in names)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or ["resnet34", "mit_b0"]
        raise UsageError(
            f"{key}={name}: unknown; did you mean {', '.join(near)}? Allowed are the library's"
            f" {len(encoders)} encoders, and {TIMM}NAME for each network of timm"
        )


@contextmanager
def unsuitable(config: ModelConfig) -> Iterator[None]:
    """Raise UsageError where an encoder does not fit an architecture, or images of any size: the
    libraries raise what they like."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"model.encoder={config.encoder}: not with model.arch={config.arch} and images of any"
            f" size ({reason}); choose another encoder, as resnet34"
        ) from None


def check_network(config: ModelConfig, crops: int) -> None:
    """Raise UserError for a network that cannot be trained on microbatches of so many crops.

    Our own U-Net can be trained on any. The others are tried on the smallest image.
    """
    if config.name == "unet":
        return
    network = LibraryNetwork(config, 1)
    image_BCHW = torch.zeros(min(crops, 2), 3, 2 * network.stride, 2 * network.stride)
    try:
        with torch.no_grad():
            network(image_BCHW)
    except ValueError:  # of a normalisation of one value
        raise UsageError(
            f"model.arch={config.arch} model.encoder={config.encoder}: normalises the mean of each"
            f" crop over the crops of a microbatch, and there is {crops}; give a batch_size= of at"
            " least twice microbatches="
        ) from None


def normalisation_of(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of R, G and B, 0 to 1, of the images that an encoder was
    trained on: what timm says, else ImageNet's. The library's own encoders say so on the hub alone.
    """
    import timm

    same = [network for start, network in IN_TIMM.items() if encoder.startswith(start)]
    known = [encoder.removeprefix(TIMM)] if encoder.startswith(TIMM) else same
    about = timm.get_pretrained_cfg(known[0]) if known else None
    return (about.mean, about.std) if about else (IMAGENET_MEAN, IMAGENET_STD)


def put_own_layers(network: nn.Module, encoder: str) -> None:
    """Put Eosin's layers in place of those that count batches, or depend on the image's size.

    They keep their names in the state. Raises UsageError where there is none of ours.
    """
    from timm.layers import Conv2dSame

    for parent, name, layer in [*layers_in(network)]:
        if isinstance(layer, nn.BatchNorm2d):
            setattr(parent, name, own_norm(layer))
        elif isinstance(layer, nn.Upsample) and layer.align_corners:
            layer.align_corners = False
        elif isinstance(layer, Conv2dSame):
            setattr(parent, name, own_convolution(layer))
    if counted := [name for name in network.state_dict() if name.endswith("num_batches_tracked")]:
        raise UsageError(
            f"model.encoder={encoder}: {counted[0].rpartition('.')[0]} normalises in a way that"
            " Eosin has no layer for; choose another encoder"
        )


def layers_in(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield what holds a layer, its name there, and the layer; outer ones first."""
    for parent in network.modules():
        for name, layer in parent.named_children():
            yield parent, name, layer


def own_norm(norm: nn.BatchNorm2d) -> MicrobatchNorm2d:
    """Return our normalisation in place of torch's, or of timm's, which has an activation."""
    activation = getattr(norm, "act", None)
    assert norm.momentum is not None
    own = MicrobatchNorm2d(norm.num_features, norm.momentum, norm.eps, activation)
    own.load_state_dict(norm.state_dict(), strict=False)  # without the count of batches
    return own


class PaddedConv2d(nn.Conv2d):
    """TensorFlow's convolution for sides that its stride divides: zeros are added at the end first.

    timm's computes the padding from the size of each image, which takes ONNX hours to follow.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to 1/stride of its height and width."""
        missing = [
            max((size - 1) * dilation + 1 - stride, 0)
            for size, dilation, stride in zip(
                self.kernel_size[::-1], self.dilation[::-1], self.stride[::-1], strict=True
            )
        ]
        padding = [part for total in missing for part in (total // 2, total - total // 2)]
        return super().forward(F.pad(features, padding))


def own_convolution(conv: nn.Conv2d) -> PaddedConv2d:
    """Return our convolution in place of timm's."""
    own = PaddedConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    own.load_state_dict(conv.state_dict())
    return own


@torch.no_grad()
def remove_unused(network: nn.Module, size_px: int) -> None:
    """Replace layers that have weights, but that an image never goes through.

    Encoders hold stages that some architectures do not use. They would have no gradient.
    """
    used: set[nn.Module] = set()
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: used.add(layer))
        for layer in network.modules()
    ]
    network.eval()(torch.zeros(1, 3, size_px, size_px))
    network.train()
    for hook in hooks:
        hook.remove()
    for parent, name, layer in [*layers_in(network)]:
        if layer.state_dict() and used.isdisjoint(layer.modules()):
            setattr(parent, name, nn.Identity())
