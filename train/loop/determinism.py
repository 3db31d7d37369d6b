"""What "the same bits" rests on, in one place.

1. Every random draw is made from a seed over what it is for (`common/seeds.py`): sample, step,
   microbatch.
2. The batch is cut into `microbatches` parts, fixed by the configuration; each is computed by
   itself, batch normalisation included, and sums over them follow one tree
   (`train/ranks/gradients.py`).
3. The arithmetic of one microbatch is the same everywhere: the same kind of hardware, the same
   release of torch, the same number of threads a rank (`threads`), the precision and layout that
   the run began with (`train/runs/run_folder.py` keeps what `auto` came to), and kernels that add
   in a fixed order. Where a GPU has no such kernel, it is named as the run starts.
"""

import copy
import os
import re
import warnings
from collections.abc import Callable

import torch
import torch.utils.deterministic
from torch import nn

from model.precision import Precision
from train.config import TrainConfig
from train.loop.losses import segmentation_loss

TRIAL_PX = 64


def be_deterministic(config: TrainConfig) -> None:
    """Kernels that add in a fixed order, where there are such; torch warns where there are not."""
    torch.set_num_threads(config.threads)
    if config.reproducible != "off":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True, warn_only=True)
        # torch would fill all new memory, to catch reads of it; we read none, and it costs percents
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False


def doubtful_kernels(model: nn.Module, config: TrainConfig, precision: Precision) -> list[str]:
    """The kernels of a training step on a GPU that add in no fixed order; one small trial step."""
    if config.reproducible == "off" or precision.device.type != "cuda":
        return []
    return nondeterministic_kernels(lambda: trial_step(copy.deepcopy(model), config, precision))


def trial_step(model: nn.Module, config: TrainConfig, precision: Precision) -> None:
    """Forward, loss and backward of one crop."""
    shape = (1, TRIAL_PX, TRIAL_PX, 3)
    image_BHWC = torch.zeros(shape, dtype=torch.uint8, device=precision.device)
    with precision.autocast():
        logits_BCHW = model.train()(precision.image_to_input(image_BHWC))
    loss = segmentation_loss(logits_BCHW, torch.zeros_like(logits_BCHW).float(), config.loss)
    loss.backward()  # type: ignore[no-untyped-call]


def nondeterministic_kernels(step: Callable[[], object]) -> list[str]:
    """The kernels that torch warns of while `step` runs, each once, by torch's names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    texts = [str(warning.message) for warning in caught]
    found = [
        re.match(r"(\S+) does not have a deterministic implementation", text) for text in texts
    ]
    return sorted({match[1] for match in found if match})
