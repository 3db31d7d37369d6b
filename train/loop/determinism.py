"""Compute the same bits again. This is what that takes:

1. Every random number comes from a seed for its purpose (`common/seeds.py`): sample, step,
   microbatch.
2. The batch is cut into microbatches, whose number is fixed in the configuration. Each is computed
   by itself, batch normalisation included. Sums over them follow one tree, whichever rank computes
   them (`train/ranks/tree.py`).
3. The arithmetic of one microbatch is the same everywhere: the same kind of hardware, the same
   release of torch (and of timm and segmentation-models-pytorch, where the network is theirs), the
   same number of threads per rank (`threads`), the precision and layout that the run began with
   (`train/runs/open_run.py` keeps the choices of `auto`), and kernels that add in a fixed order. If
   a GPU has no such kernel, the run says so when it starts.
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
    """Make torch use kernels that add in a fixed order; it warns if there is none."""
    torch.set_num_threads(config.threads)
    if config.reproducible != "off":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        # as use_deterministic_algorithms(True, warn_only=True), which imports the compiler
        torch.set_deterministic_debug_mode("warn")
        # torch would fill all new memory, to show reads of it; that costs some percent of the time
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False


def doubtful_kernels(model: nn.Module, config: TrainConfig, precision: Precision) -> list[str]:
    """Name the kernels of a training step on a GPU that add in no fixed order, by a trial step."""
    if config.reproducible == "off" or precision.device.type != "cuda":
        return []
    return nondeterministic_kernels(lambda: trial_step(copy.deepcopy(model), config, precision))


def trial_step(model: nn.Module, config: TrainConfig, precision: Precision) -> None:
    """Compute forward pass, loss and backward pass of a small microbatch: of two crops, since some
    networks normalise over crops, unless the run's have one."""
    shape = (min(2, config.batch.microbatch_size), TRIAL_PX, TRIAL_PX, 3)
    image_BHWC = torch.zeros(shape, dtype=torch.uint8, device=precision.device)
    with precision.autocast():
        logits_BCHW = model.train()(precision.image_to_input(image_BHWC))
    loss = segmentation_loss(logits_BCHW, torch.zeros_like(logits_BCHW).float(), config.loss)
    loss.backward()  # type: ignore[no-untyped-call]


def nondeterministic_kernels(step: Callable[[], object]) -> list[str]:
    """Return torch's names of the kernels that it warns of while `step` runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    texts = [str(warning.message) for warning in caught]
    found = [
        re.match(r"(\S+) does not have a deterministic implementation", text) for text in texts
    ]
    return sorted({match[1] for match in found if match})
