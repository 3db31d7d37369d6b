"""Compute losses of logits against masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import LossConfig


def segmentation_loss(logits_BCHW: Tensor, target_BCHW: Tensor, config: LossConfig) -> Tensor:
    """Compute the mean binary cross-entropy, plus the weighted soft Dice loss; a scalar."""
    logits_BCHW = logits_BCHW.float()  # under autocast too: sums over a crop overflow fp16
    # filled on the device: to copy a number, the process would wait for the GPU's whole queue
    weight = torch.full((), config.positive_weight, device=logits_BCHW.device)
    loss = F.binary_cross_entropy_with_logits(logits_BCHW, target_BCHW, pos_weight=weight)
    if config.dice_weight:
        loss = loss + config.dice_weight * soft_dice_loss(logits_BCHW, target_BCHW)
    return loss


def soft_dice_loss(logits_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Compute 1 - (2 |pt| + 1) / (|p| + |t| + 1) over all pixels of a class, mean over classes.

    Milletari et al. 2016, doi:10.1109/3DV.2016.79, without the squares. The 1 gives a batch without
    annotation a loss of nearly 0 if nothing is predicted.
    """
    probability = torch.sigmoid(logits_BCHW)
    axes = (0, 2, 3)
    both = (probability * target_BCHW).sum(axes)
    total = probability.sum(axes) + target_BCHW.sum(axes)
    return (1 - (2 * both + 1) / (total + 1)).mean()
