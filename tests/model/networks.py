"""The networks of the library that README names, as settings of a model."""

import typing

from model import ModelConfig

ARCHS = typing.get_args(typing.get_type_hints(ModelConfig)["arch"])
SMALL = "tu-test_resnet"  # timm's own for tests
ENCODERS = ("tu-tf_efficientnet_lite0", "mit_b0")  # stochastic depth; attention
NETWORKS = {
    **{arch: ModelConfig("smp", arch=arch, encoder=SMALL) for arch in ARCHS},
    "half": ModelConfig("smp", encoder="resnet18", downsample=2),
    **{encoder: ModelConfig("smp", encoder=encoder, dropout=0.2) for encoder in ENCODERS},
    "scse": ModelConfig("smp", encoder="resnet18", attention="scse"),
}
LOCAL = ("Unet", "half", "UnetPlusPlus", "Linknet", "Segformer", "tu-tf_efficientnet_lite0")
"""Those that look at no more than the neighbourhood of a pixel."""
