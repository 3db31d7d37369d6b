"""Losses against sums worked out by hand and in numpy."""

import numpy as np
import pytest
import torch

from train.config import LossConfig
from train.loop.losses import segmentation_loss, soft_dice_loss

LOGITS = torch.tensor([[[[0.0, 2.0], [-2.0, 0.0]]]])
TARGET = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])


def test_cross_entropy_of_four_pixels() -> None:
    """-log p of the right answer: log 2 where p is 1/2, log(1 + e^-2) where it is 0.88."""
    expected = (2 * np.log(2) + 2 * np.log(1 + np.exp(-2))) / 4
    assert segmentation_loss(LOGITS, TARGET, LossConfig()).item() == pytest.approx(expected)


def test_annotated_pixels_can_weigh_more() -> None:
    """Three times the loss of the two annotated pixels, over the same four."""
    expected = 4 * (np.log(2) + np.log(1 + np.exp(-2))) / 4
    loss = segmentation_loss(LOGITS, TARGET, LossConfig(positive_weight=3))
    assert loss.item() == pytest.approx(expected)


def test_soft_dice_of_four_pixels() -> None:
    """p = 1/2, s, 1 - s, 1/2 with s = 1 / (1 + e^-2): |pt| = 1/2 + s, |p| = 2, |t| = 2."""
    both = 0.5 + 1 / (1 + np.exp(-2))
    assert soft_dice_loss(LOGITS, TARGET).item() == pytest.approx(1 - (2 * both + 1) / (4 + 1))


@pytest.mark.parametrize(
    ("logit", "annotated", "expected"),
    [(-100.0, 0.0, 0.0), (100.0, 1.0, 0.0), (100.0, 0.0, 1 - 1 / 17), (-100.0, 1.0, 1 - 1 / 17)],
)
def test_soft_dice_at_its_ends(logit: float, annotated: float, expected: float) -> None:
    """16 pixels, all alike: right is 0, also where nothing is annotated; wrong is nearly 1."""
    shape = (1, 1, 4, 4)
    loss = soft_dice_loss(torch.full(shape, logit), torch.full(shape, annotated))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_both_losses_over_a_batch_of_classes() -> None:
    """Cross-entropy is a mean over all; Dice over a batch's pixels, then over classes."""
    rng = np.random.default_rng(0)
    logits_BCHW = rng.normal(0, 2, (3, 2, 5, 7))
    target_BCHW = (rng.random((3, 2, 5, 7)) < 0.3).astype(float)
    probability_BCHW = 1 / (1 + np.exp(-logits_BCHW))
    right = np.where(target_BCHW == 1, probability_BCHW, 1 - probability_BCHW)
    dice = [
        (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        for p, t in ((probability_BCHW[:, c], target_BCHW[:, c]) for c in range(2))
    ]
    expected = -np.log(right).mean() + 0.7 * (1 - np.mean(dice))
    loss = segmentation_loss(
        torch.tensor(logits_BCHW), torch.tensor(target_BCHW).float(), LossConfig(dice_weight=0.7)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_does_not_overflow() -> None:
    """A crop of 512 x 512 px sums to more than fp16's 65,504."""
    shape = (1, 1, 512, 512)
    logits = torch.full(shape, 3.0, dtype=torch.float16)
    loss = segmentation_loss(logits, torch.ones(shape), LossConfig(dice_weight=1))
    s = 1 / (1 + np.exp(-3))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-np.log(s) + 1 - 2 * s / (1 + s), rel=1e-3)


@pytest.mark.parametrize("settings", [{"dice_weight": -1.0}, {"positive_weight": 0.0}])
def test_a_loss_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    (key,) = settings
    with pytest.raises(ValueError, match=f"loss.{key}={settings[key]}"):
        LossConfig(**settings)
