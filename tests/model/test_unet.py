"""One contract for every network, and the facts of the U-Net and of batch normalisation."""

import copy

import pytest
import torch
from torch import Tensor, nn

from model import ModelConfig, build_model
from model.layers import MicrobatchNorm2d, update_running_statistics

NORMS = ("none", "batch", "group", "instance")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# Every network


@pytest.mark.parametrize(
    ("norm", "depth", "downsample", "height", "width"),
    [
        ("none", 1, 1, 48, 48),
        ("none", 3, 2, 37, 50),
        ("batch", 1, 3, 37, 50),
        ("batch", 3, 1, 65, 33),
        ("group", 1, 2, 48, 48),
        ("group", 3, 3, 65, 33),
        ("instance", 1, 2, 65, 33),
        ("instance", 3, 1, 37, 50),
        ("instance", 3, 3, 48, 48),
    ],
)
def test_logits_fit_the_image_and_every_weight_learns(
    norm: str, depth: int, downsample: int, height: int, width: int
) -> None:
    model = build_model(ModelConfig("unet", 8, depth, norm, downsample=downsample), num_classes=2)
    logits_BCHW = model(draw(2, 3, height, width))
    assert logits_BCHW.shape == (2, 2, height, width)
    assert logits_BCHW.isfinite().all()
    logits_BCHW.square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("norm", "downsample"), [("instance", 1), ("batch", 2)])
def test_odd_sides_are_computed_as_if_the_edge_went_on(norm: str, downsample: int) -> None:
    """37 x 50 px to the next multiples of 4 x downsample: 40 x 52, or 40 x 56."""
    model = build_model(ModelConfig("unet", 8, 2, norm, downsample=downsample)).eval()
    image_BCHW = draw(1, 3, 37, 50)
    right = {1: 2, 2: 6}[downsample]
    last_column, last_row = image_BCHW[..., -1:], image_BCHW[..., -1:, :]
    wider = torch.cat([image_BCHW] + right * [last_column], dim=-1)
    last_row = wider[..., -1:, :]
    larger = torch.cat([wider] + 3 * [last_row], dim=-2)
    assert torch.equal(model(image_BCHW), model(larger)[..., :37, :50])


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_of_a_pixel_will_do(norm: str) -> None:
    """In training a normalisation has nothing to divide by in a single value."""
    model = build_model(ModelConfig("unet", 8, 4, norm))
    for is_training in (True, False):
        assert model.train(is_training)(draw(1, 3, 1, 1)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("downsample", [2, 4])
def test_a_network_begins_without_a_checkerboard(downsample: int) -> None:
    """The pixels of a block, which come from one place of the head, are alike before training."""
    torch.manual_seed(0)
    network = build_model(ModelConfig(width=4, depth=2, downsample=downsample), 2).eval()
    logits = network(torch.rand(1, 3, 64, 64))
    blocks = logits.unfold(2, downsample, downsample).unfold(3, downsample, downsample)
    assert torch.equal(blocks, blocks[..., :1, :1].expand_as(blocks))
    assert logits.std() > 0
    assert not torch.equal(logits[:, 0], logits[:, 1])


def test_a_pixel_far_away_does_not_shift_what_is_seen_here() -> None:
    """At half resolution too, a change of the image shows up where it was made, in every class."""
    model = build_model(ModelConfig("unet", 8, 1, "none", downsample=2), num_classes=3).eval()
    image_BCHW = draw(1, 3, 96, 96)
    changed_BCHW = image_BCHW.clone()
    changed_BCHW[..., 20, 70] = 1 - changed_BCHW[..., 20, 70]
    change_CHW = (model(changed_BCHW) - model(image_BCHW))[0].abs()
    for change_HW in change_CHW:
        rows, columns = change_HW.nonzero(as_tuple=True)
        assert len(rows) > 0
        # 2 convolutions on blocks of 2 px, 2 on blocks of 4, 2 on blocks of 2: 4 + 8 + 4 px either
        # way, and less than a block of 4 for where it lies in its block
        assert (rows - 20).abs().max() < 20
        assert (columns - 70).abs().max() < 20


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_dropout_acts_in_training_alone(share: float) -> None:
    model = build_model(ModelConfig("unet", 8, 2, "group", dropout=share))
    image_BCHW = draw(1, 3, 16, 16)
    assert torch.equal(model(image_BCHW), model(image_BCHW)) == (share == 0)
    model.eval()
    assert torch.equal(model(image_BCHW), model(image_BCHW))


# The U-Net of the paper


def double_conv_size(before: int, after: int, norm: str) -> int:
    """Two 3 x 3 convolutions; each output channel has a bias, or a normalisation's two numbers."""
    per_channel = {"none": 1, "batch": 2}[norm]
    return (9 * before * after + per_channel * after) + (9 * after * after + per_channel * after)


@pytest.mark.parametrize(("norm", "expected"), [("none", 31_031_745), ("batch", 31_037_633)])
def test_the_number_of_parameters_is_the_papers(norm: str, expected: int) -> None:
    """64 to 1024 channels and back, one class: the known 31.03 million, worked out by hand.

    With biases: 38,720 + 221,440 + 885,248 + 3,539,968 + 14,157,824 on the way down,
    2,097,664 + 524,544 + 131,200 + 32,832 to double the resolution, 7,078,912 + 1,769,984 + 442,624
    + 110,720 after each concatenation, 65 at the end. Batch normalisation has two numbers in a
    bias's place: one more for each of the 5,888 convolved channels.
    """
    down = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    up = [(1024, 512), (512, 256), (256, 128), (128, 64)]
    total = sum(double_conv_size(before, after, norm) for before, after in down)
    total += sum(4 * before * after + after for before, after in up)  # 2 x 2, transposed
    total += sum(double_conv_size(before, after, norm) for before, after in up)  # after concat
    total += 64 + 1  # 1 x 1 convolution
    assert total == expected
    with torch.device("meta"):
        model = build_model(ModelConfig("unet", width=64, depth=4, norm=norm))
    assert sum(weight.numel() for weight in model.parameters()) == expected


def test_skips_carry_what_pooling_loses() -> None:
    """With everything below the first level silenced, the output still depends on every pixel."""
    model = build_model(ModelConfig("unet", 8, 1, "none")).eval()
    for up in model.up:
        nn.init.zeros_(up.weight)
    image_BCHW = draw(1, 3, 8, 8).requires_grad_()
    model(image_BCHW).sum().backward()
    assert (image_BCHW.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"width": 0}, "model.width=0"),
        ({"depth": 0}, "model.depth=0"),
        ({"downsample": 0}, "model.downsample=0"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"dropout": -0.1}, "model.dropout=-0.1"),
        ({"norm": "group", "width": 12}, "model.width=12"),
    ],
)
def test_a_network_that_cannot_be_is_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig(**settings)


# Batch normalisation by microbatches


def over_one_rank(mine: Tensor) -> Tensor:
    """The sum over all microbatches where this rank has them all."""
    return mine.sum(0)


def test_one_microbatch_per_step_is_torchs_batch_norm() -> None:
    """Outputs and gradients in training, running statistics over three steps, then evaluation."""
    ours, theirs = MicrobatchNorm2d(5), nn.BatchNorm2d(5)
    for step in range(3):
        ours_in = (3 * draw(4, 5, 6, 7, seed=step) + 1).requires_grad_()
        theirs_in = ours_in.detach().clone().requires_grad_()
        ours_out, theirs_out = ours(ours_in), theirs(theirs_in)
        torch.testing.assert_close(ours_out, theirs_out)
        ours_out.square().sum().backward()
        theirs_out.square().sum().backward()
        torch.testing.assert_close(ours_in.grad, theirs_in.grad)
        update_running_statistics(ours, 1, over_one_rank)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
    features = draw(2, 5, 6, 7, seed=9)
    torch.testing.assert_close(ours.eval()(features), theirs.eval()(features))


@pytest.mark.parametrize("split", [(4,), (2, 2), (1, 3), (1, 1, 2)])
def test_running_statistics_are_the_mean_over_microbatches_however_spread(
    split: tuple[int, ...],
) -> None:
    model = nn.Sequential(MicrobatchNorm2d(3), nn.Conv2d(3, 2, 1), MicrobatchNorm2d(2))
    microbatches = [5 * draw(2, 3, 4, 4, seed=seed) for seed in range(4)]
    on_ranks = [copy.deepcopy(model) for _ in split]
    left = iter(microbatches)
    for replica, num_microbatches in zip(on_ranks, split, strict=True):
        for _ in range(num_microbatches):
            replica(next(left))
    total = sum(vectors_of(replica).sum(0) for replica in on_ranks)  # as collectives would give it
    for replica in on_ranks:
        update_running_statistics(replica, len(microbatches), lambda mine: total.clone())

    means = torch.stack([microbatch.mean((0, 2, 3)) for microbatch in microbatches]).mean(0)
    variances = torch.stack(
        [microbatch.var((0, 2, 3), unbiased=True) for microbatch in microbatches]
    ).mean(0)
    for replica in on_ranks:
        first, second = replica[0], replica[2]
        torch.testing.assert_close(first.running_mean, 0.1 * means)
        torch.testing.assert_close(first.running_var, 0.9 + 0.1 * variances)
        assert second.running_mean.abs().sum() > 0
        for mine, rank_0s in zip(replica.buffers(), on_ranks[0].buffers(), strict=True):
            assert torch.equal(mine, rank_0s)


def vectors_of(replica: nn.Module) -> Tensor:
    """What a rank has to give to the sum: one vector per microbatch."""
    given = []
    bystander = copy.deepcopy(replica)
    update_running_statistics(bystander, 1, lambda mine: given.append(mine) or mine.sum(0))
    return given[0]


def test_evaluation_does_not_count_as_a_microbatch() -> None:
    norm, microbatch = MicrobatchNorm2d(3), draw(2, 3, 4, 4)
    norm.eval()(100 * microbatch)
    norm.train()(microbatch)
    update_running_statistics(norm, 1, over_one_rank)
    torch.testing.assert_close(norm.running_mean, 0.1 * microbatch.mean((0, 2, 3)))


def test_a_checkpoint_holds_what_torchs_batch_norm_holds_but_for_its_count() -> None:
    norm = MicrobatchNorm2d(3)
    norm(draw(2, 3, 4, 4))
    assert set(norm.state_dict()) == {*nn.BatchNorm2d(3).state_dict()} - {"num_batches_tracked"}


def test_a_network_without_batch_norm_has_nothing_to_sum() -> None:
    model = build_model(ModelConfig("unet", 8, 1, "group"))
    update_running_statistics(model, 1, lambda mine: pytest.fail("a collective for nothing"))
