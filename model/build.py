"""Build a network from its configuration."""

from torch import nn

from model.config import ModelConfig
from model.unet import UNet

ENCODER, HEAD = "encoder", "head"
"""Names of two parts that every network has: the layers that turn an image into features (those of
a U-Net's contracting path), and the last layer, whose size depends on the number of classes."""


def build_model(config: ModelConfig, num_classes: int = 1) -> nn.Module:
    """Build a network: images (B, 3, H, W), float from 0 to 1 -> logits (B, num_classes, H, W).

    H and W can be any size. The weights are random, from torch's default generator. Raises
    UserError for a network that cannot be built.
    """
    if config.name == "unet":
        return UNet(config, num_classes)
    from model.library import LibraryNetwork  # it takes seconds

    return LibraryNetwork(config, num_classes)
