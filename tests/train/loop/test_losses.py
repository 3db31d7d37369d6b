"""Losses against sums worked out by hand and in numpy."""

import numpy as np
import pytest
import torch

from common import command_line
from common.command_line import UsageError
from train.config import LossConfig, TrainConfig
from train.loop.losses import Valid, pixel_losses, segmentation_loss, soft_dice_loss

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


def batch_of(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and target, (B, C, H, W) float32, of a size that is no power of two."""
    rng = np.random.default_rng(1)
    shape = (2, num_classes, 5, 7)
    logits = rng.normal(0, 3, shape).astype(np.float32)
    return logits, (rng.random(shape) < 0.3).astype(np.float32)


def by_hand(logits: np.ndarray, target: np.ndarray, **settings: float) -> np.ndarray:
    """The pixels' losses, from the formula of Lin et al., in float64."""
    p = 1 / (1 + np.exp(-logits.astype(float)))
    right = np.where(target == 1, p, 1 - p)
    alpha = np.where(target == 1, settings.get("positive_weight", 1), 1)
    return -alpha * (1 - right) ** settings.get("focal_gamma", 0) * np.log(right)


@pytest.mark.parametrize("focal_gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_focal_loss_is_the_formula_of_the_paper(focal_gamma: float) -> None:
    logits, target = batch_of(3)
    settings = {"focal_gamma": focal_gamma, "positive_weight": 4.0}
    given = torch.tensor(logits), torch.tensor(target)
    losses = pixel_losses(*given, LossConfig(**settings))
    expected = by_hand(logits, target, **settings)
    assert losses.shape == (2, 3, 5, 7)
    assert np.allclose(losses.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert segmentation_loss(*given, LossConfig(**settings)).item() == pytest.approx(
        expected.mean(), rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("focal_gamma", [0.5, 2.0])
def test_the_focal_loss_and_its_gradient_are_finite_at_logits_far_out(
    focal_gamma: float, dtype: torch.dtype
) -> None:
    """Right answers cost nothing and pull nowhere; wrong ones cost and pull like cross-entropy."""
    logits = torch.tensor([-1e4, -100, 100, 1e4]).to(dtype).reshape(1, 1, 2, 2).requires_grad_()
    config = LossConfig(focal_gamma=focal_gamma)
    for annotated, far in ((0.0, [0, 0, 100, 1e4]), (1.0, [1e4, 100, 0, 0])):
        loss = segmentation_loss(logits, torch.full((1, 1, 2, 2), annotated), config)
        assert loss.item() == pytest.approx(sum(far) / 4, rel=5e-3)  # of 1e4 in bfloat16
        (gradient,) = torch.autograd.grad(loss, logits)
        pull = [(1 if value else 0) * (1 - 2 * annotated) / 4 for value in far]
        assert gradient.flatten().tolist() == pytest.approx(pull, abs=1e-6)


def test_a_weight_of_a_class_counts_relative_to_the_mean() -> None:
    """1, 1, 10 and 4 have the mean 4: the channels count 1/4, 1/4, 5/2 and 1 times."""
    logits, target = batch_of(4)
    given = torch.tensor(logits), torch.tensor(target)
    per_class = by_hand(logits, target).mean(axis=(0, 2, 3))
    expected = np.mean(per_class * [0.25, 0.25, 2.5, 1])
    for weights in ([1, 1, 10, 4], [0.5, 0.5, 5, 2]):
        loss = segmentation_loss(*given, LossConfig(class_weights=weights))
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [7.0, 7.0, 7.0]])
def test_equal_weights_and_no_focus_leave_every_bit(weights: list[float]) -> None:
    logits, target = batch_of(3)
    ends = []
    for config in (LossConfig(), LossConfig(class_weights=weights, focal_gamma=0)):
        leaf = torch.tensor(logits, requires_grad=True)
        loss = segmentation_loss(leaf, torch.tensor(target), config)
        loss.backward()
        ends.append((loss.detach(), leaf.grad))
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_a_batchs_cross_entropy_is_its_mean_over_valid_pixels() -> None:
    """Two microbatches with 3 and 20 of them: their mean is that of the 23 pixels in numpy."""
    rng = np.random.default_rng(1)
    logits_BCHW, target_BCHW = rng.normal(0, 2, (2, 2, 4, 6)), rng.integers(0, 2, (2, 2, 4, 6))
    is_valid_BHW = np.zeros((2, 4, 6), bool)
    is_valid_BHW[0, 1, :3] = True
    is_valid_BHW[1, :, 1:] = True
    right = 1 / (1 + np.exp(np.where(target_BCHW, -logits_BCHW, logits_BCHW)))
    expected = -np.log(right.transpose(0, 2, 3, 1)[is_valid_BHW]).mean()
    losses = [
        segmentation_loss(
            torch.tensor(logits_BCHW[[number]]),
            torch.tensor(target_BCHW[[number]]).float(),
            LossConfig(),
            Valid(torch.tensor(is_valid_BHW[[number]])[:, None], torch.tensor(23 / 2)),
        )
        for number in range(2)
    ]
    assert float(sum(losses)) / 2 == pytest.approx(expected, rel=1e-6)


def test_soft_dice_is_of_valid_pixels() -> None:
    """Of four pixels the two on the left: |pt| = 1/2, |p| = 1/2 + 1 - s, |t| = 1."""
    left = Valid(torch.tensor([[[[True, False], [True, False]]]]), torch.tensor(2.0))
    total = 0.5 + 1 - 1 / (1 + np.exp(-2)) + 1
    expected = 1 - (2 * 0.5 + 1) / (total + 1)
    assert soft_dice_loss(LOGITS, TARGET, left).item() == pytest.approx(expected)


@pytest.mark.parametrize("num_valid", [0, 5])
def test_what_is_not_valid_changes_no_bit_and_gets_no_gradient(num_valid: int) -> None:
    """Whatever it is predicted or annotated as; and nothing valid is a loss of 0."""
    is_valid = (torch.arange(12) < num_valid).view(1, 1, 3, 4)
    valid, config = Valid(is_valid, torch.tensor(float(num_valid))), LossConfig(dice_weight=0.5)
    ends = []
    for seed in range(2):
        kept, hidden = (torch.Generator().manual_seed(number) for number in (9, seed))
        shape = (1, 2, 3, 4)
        logits = torch.randn(shape, generator=kept).where(
            is_valid, 50 * torch.randn(shape, generator=hidden)
        )
        target = (torch.rand(shape, generator=kept) < 0.5).where(
            is_valid, torch.rand(shape, generator=hidden) < 0.5
        )
        logits.requires_grad_()
        loss = segmentation_loss(logits, target.float(), config, valid)
        loss.backward()
        ends.append((loss.item(), logits.grad.tolist()))
        assert not logits.grad.where(~is_valid, 0).any()
        assert (loss.item() == 0) == (num_valid == 0)
    assert ends[0] == ends[1]


def test_half_precision_does_not_overflow() -> None:
    """A crop of 512 x 512 px sums to more than fp16's 65,504."""
    shape = (1, 1, 512, 512)
    logits = torch.full(shape, 3.0, dtype=torch.float16)
    loss = segmentation_loss(logits, torch.ones(shape), LossConfig(dice_weight=1))
    s = 1 / (1 + np.exp(-3))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-np.log(s) + 1 - 2 * s / (1 + s), rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"dice_weight": -1.0},
        {"positive_weight": 0.0},
        {"focal_gamma": -0.5},
        {"focal_gamma": np.nan},
        {"focal_gamma": 10.5},
    ],
)
def test_a_loss_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    (key,) = settings
    with pytest.raises(ValueError, match=f"loss.{key}={settings[key]}"):
        LossConfig(**settings)


@pytest.mark.parametrize("typed", ["[1,0]", "[1,-2,3]", "[nan]", "[1,inf]", "[1e+308,1]"])
def test_a_weight_that_cannot_be_is_refused(typed: str) -> None:
    with pytest.raises(UsageError) as refused:
        command_line.load(TrainConfig, [f"loss.class_weights={typed}"])
    assert str(refused.value) == f"loss.class_weights={typed}: each must be above 0, at most 1e+06"


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("[a,b]", "expected a list like [1,2.5]"),
        ("3", "takes a list, as in loss.class_weights=[3]"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(typed: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        command_line.load(TrainConfig, [f"loss.class_weights={typed}"])
    assert str(refused.value) == f"loss.class_weights={typed}: {reason}"
