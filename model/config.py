"""The settings of a model: every key, its unit and its default."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal

SCSE_ARCHS = ("Unet", "UnetPlusPlus")
OF_ONE_NETWORK = {"unet": ("width", "depth", "norm"), "smp": ("arch", "encoder", "attention")}


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and size of a network."""

    name: Literal["unet", "smp"] = "unet"
    """unet: Eosin's own; smp: one of segmentation-models-pytorch, as arch and encoder say."""
    width: int = 64
    """unet: channels of the first level; each level down has twice as many (64 ends at 1024)."""
    depth: int = 4
    """unet: number of times the resolution is halved."""
    norm: Literal["none", "batch", "group", "instance"] = "batch"
    """unet: normalisation after each 3x3 convolution; 'none' is the U-Net of 2015 as published."""
    arch: Literal[
        "Unet",
        "UnetPlusPlus",
        "MAnet",
        "Linknet",
        "FPN",
        "DeepLabV3Plus",
        "Segformer",
    ] = "Unet"
    """smp: architecture, by its class in the library."""
    encoder: str = "resnet34"
    """smp: encoder, by its name in the library: its own, as resnet34 or mit_b0, or tu-NAME for NAME
    of timm, as tu-tf_efficientnet_lite0."""
    attention: Literal["none", "scse"] = "none"
    """smp: attention in the decoder of Unet and UnetPlusPlus: scse weighs channels and places (Roy
    et al. 2018, arXiv:1808.08127)."""
    weights: str = "none"
    """smp: weights that the encoder begins with. none: random; imagenet: from the cache that
    `python -m model.fetch encoder=NAME` fills; or a file, safetensors or torch's state dict. A run
    that goes on no longer needs them."""
    dropout: float = 0.0
    """Fraction of the deepest level's channels dropped in training, 0 to below 1 (no unit). smp:
    beside what FPN (0.2) and DeepLabV3Plus (0.5) drop by themselves."""
    downsample: int = 1
    """Run the network at 1/downsample of the resolution; logits come out at full size. 2 costs a
    quarter of the arithmetic. unet takes in blocks of pixels as channels, smp their mean."""

    def __post_init__(self) -> None:
        for key, least in (("width", 1), ("depth", 1), ("downsample", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"model.{key}={getattr(self, key)}: must be at least {least}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: 0 to below 1")
        if self.norm == "group" and self.width % 8:
            raise ValueError(f"model.width={self.width}: norm=group needs a multiple of 8")
        default = {field.name: field.default for field in fields(self)}
        self.check_of_network({key for key, value in vars(self).items() if value != default[key]})
        if self.attention == "scse" and self.arch not in SCSE_ARCHS:
            raise ValueError(
                f"model.attention=scse: only with model.arch={' or '.join(SCSE_ARCHS)}, not"
                f" {self.arch}"
            )
        if not self.weights:
            raise ValueError("model.weights=: none, imagenet, or a file")

    def check_of_network(self, keys: Collection[str]) -> None:
        """Raise ValueError if a key of another network than `name` is among those given: it would
        do nothing."""
        for network, of_network in OF_ONE_NETWORK.items():
            for key in of_network:
                if network != self.name and key in keys:
                    raise ValueError(
                        f"model.{key}={getattr(self, key)}: a setting of model.name={network}, but"
                        f" model.name={self.name}; give model.name={network}, or leave"
                        f" model.{key} out (a preset may give it)"
                    )
        if self.name == "unet" and self.weights != "none":
            raise ValueError(
                f"model.weights={self.weights}: there are weights for encoders of model.name=smp;"
                " init= takes those of a whole network"
            )

    @property
    def least_crops(self) -> int:
        """The smallest microbatch that the network can be trained on: DeepLabV3Plus normalises the
        means of crops over the crops."""
        return 2 if self.name == "smp" and self.arch == "DeepLabV3Plus" else 1
