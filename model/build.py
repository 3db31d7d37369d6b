"""Build a network from its configuration."""

from torch import nn

from model.config import ModelConfig
from model.unet import UNet

ARCHITECTURES = {"unet": UNet}


def build_model(config: ModelConfig, num_classes: int = 1) -> nn.Module:
    """Build a network: images (B, 3, H, W), float from 0 to 1 -> logits (B, num_classes, H, W).

    H and W can be any size. The weights are random, from torch's default generator.
    """
    return ARCHITECTURES[config.name](config, num_classes)
