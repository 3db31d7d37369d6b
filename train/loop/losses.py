"""Compute losses of logits against masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import LossConfig


def segmentation_loss(logits_BCHW: Tensor, target_BCHW: Tensor, config: LossConfig) -> Tensor:
    """Compute the mean of the pixels' losses, plus the weighted soft Dice loss; a scalar."""
    logits_BCHW = logits_BCHW.float()  # under autocast too: sums over a crop overflow fp16
    loss = pixel_losses(logits_BCHW, target_BCHW, config).mean()
    if config.dice_weight:
        loss = loss + config.dice_weight * soft_dice_loss(logits_BCHW, target_BCHW)
    return loss


def pixel_losses(logits_BCHW: Tensor, target_BCHW: Tensor, config: LossConfig) -> Tensor:
    """Compute the weighted binary cross-entropy of each pixel in each channel, (B, C, H, W), or
    with focal_gamma its focal loss: that times (1 - p)^gamma, where p is the probability of the
    right answer."""

    def filled(number: float) -> Tensor:
        # on the device: to copy a number, the process would wait for the GPU's whole queue
        return torch.full((1, 1), number, device=logits_BCHW.device)

    losses_BCHW = F.binary_cross_entropy_with_logits(
        logits_BCHW, target_BCHW, pos_weight=filled(config.positive_weight), reduction="none"
    )
    if config.focal_gamma:
        # 1 - p as a logarithm: a power below 1 of a zero would have no gradient
        log_wrong_BCHW = F.logsigmoid(logits_BCHW * (1 - 2 * target_BCHW))
        losses_BCHW = losses_BCHW * torch.exp(config.focal_gamma * log_wrong_BCHW)
    if config.class_weights:
        mean = sum(config.class_weights) / len(config.class_weights)
        weights = [filled(weight / mean) for weight in config.class_weights]
        losses_BCHW = losses_BCHW * torch.stack(weights)
    return losses_BCHW


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
