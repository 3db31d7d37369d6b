"""The blocks that networks are made of.

Batch normalisation in shards: a global batch is computed in microbatches (shards), spread over any
number of ranks. Each shard is normalised by its own statistics, and the running statistics move
once a step, by the mean over all shards of that step. So they are the same however many ranks
the shards were spread over, and need no broadcast.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShardBatchNorm2d(nn.Module):
    """torch's BatchNorm2d, but for when the running statistics move: see this module's head."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.shard_statistics: list[Tensor] = []
        """Mean and variance (2, C) of each shard that this rank has seen this step."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if not self.training:
            return F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # with a momentum of 1 batch_norm leaves the batch's own statistics in these two
        statistics_2C = self.running_mean.new_zeros((2, len(self.running_mean)))
        mean, var = statistics_2C
        self.shard_statistics.append(statistics_2C)
        return F.batch_norm(
            features, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps
        )


def batch_norms(model: nn.Module) -> Iterator[ShardBatchNorm2d]:
    """The network's batch normalisations, in the order of its modules."""
    return (module for module in model.modules() if isinstance(module, ShardBatchNorm2d))


def update_running_statistics(
    model: nn.Module, num_shards: int, sum_over_shards: Callable[[Tensor], Tensor]
) -> None:
    """End a step: move the running statistics by the mean over the step's `num_shards` shards.

    `sum_over_shards` sums float vectors, one a shard of this rank (n, length), over all shards of
    all ranks -> (length,).
    """
    norms = list(batch_norms(model))
    if not norms:
        return
    mine = [torch.stack(norm.shard_statistics).flatten(1) for norm in norms]
    mean_of_shards = sum_over_shards(torch.cat(mine, dim=1)) / num_shards
    sizes = [2 * len(norm.weight) for norm in norms]
    for norm, part in zip(norms, torch.split(mean_of_shards, sizes), strict=True):
        mean, var = part.view(2, -1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var, norm.momentum)
        norm.shard_statistics.clear()


def normalisation(kind: str, num_channels: int) -> nn.Module:
    """The normalisation layer of that name, for (B, C, H, W)."""
    if kind == "batch":
        return ShardBatchNorm2d(num_channels)
    if kind == "group":
        return nn.GroupNorm(8, num_channels)
    if kind == "instance":
        return nn.InstanceNorm2d(num_channels, affine=True)
    return nn.Identity()


def double_conv(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """Twice 3x3 convolution, normalisation, ReLU; height and width stay."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        # a bias before a normalisation that subtracts the mean would do nothing
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=norm == "none")
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers += [conv, normalisation(norm, out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
