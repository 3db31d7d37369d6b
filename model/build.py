"""From a configuration to a network."""

from torch import nn

from model.config import ModelConfig
from model.unet import UNet

ARCHITECTURES = {"unet": UNet}


def build_model(config: ModelConfig, num_classes: int = 1) -> nn.Module:
    """A network from images (B, 3, H, W), float from 0 to 1, to logits (B, num_classes, H, W).

    Any H and W will do. The weights are drawn from torch's default generator.
    """
    return ARCHITECTURES[config.name](config, num_classes)
