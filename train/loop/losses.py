"""Compute losses of logits against masks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import LossConfig


class Valid(NamedTuple):
    """The pixels of a microbatch that its loss counts."""

    pixels_B1HW: Tensor
    """Bool."""
    mean_number: Tensor
    """Scalar: the number of such pixels in the batch of all ranks, for each of its microbatches."""


def segmentation_loss(
    logits_BCHW: Tensor, target_BCHW: Tensor, config: LossConfig, valid: Valid | None = None
) -> Tensor:
    """Compute the mean of the pixels' losses, plus the weighted soft Dice loss; a scalar.

    If only some pixels are valid, the mean is their sum over `valid.mean_number`: then a pixel
    weighs the same in every microbatch. Without any, the loss is 0.
    """
    logits_BCHW = logits_BCHW.float()  # under autocast too: sums over a crop overflow fp16
    losses_BCHW = pixel_losses(logits_BCHW, target_BCHW, config)
    loss = valid_mean(losses_BCHW, valid) if valid else losses_BCHW.mean()
    if config.dice_weight:
        loss = loss + config.dice_weight * soft_dice_loss(logits_BCHW, target_BCHW, valid)
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


def valid_mean(loss_BCHW: Tensor, valid: Valid) -> Tensor:
    """Sum a loss over valid pixels, divide by their number for a microbatch, mean over classes."""
    num_classes = loss_BCHW.shape[1]
    number = valid.mean_number * num_classes
    total = loss_BCHW.where(valid.pixels_B1HW, 0).sum()
    return total / number.where(number > 0, 1)


def soft_dice_loss(logits_BCHW: Tensor, target_BCHW: Tensor, valid: Valid | None = None) -> Tensor:
    """Compute 1 - (2 |pt| + 1) / (|p| + |t| + 1) over the valid pixels of a class, mean over
    classes.

    Milletari et al. 2016, doi:10.1109/3DV.2016.79, without the squares. The 1 gives a batch without
    annotation a loss of nearly 0 if nothing is predicted.
    """
    probability = torch.sigmoid(logits_BCHW)
    if valid is not None:
        probability = probability.where(valid.pixels_B1HW, 0)
        target_BCHW = target_BCHW.where(valid.pixels_B1HW, 0)
    axes = (0, 2, 3)
    both = (probability * target_BCHW).sum(axes)
    total = probability.sum(axes) + target_BCHW.sum(axes)
    return (1 - (2 * both + 1) / (total + 1)).mean()
