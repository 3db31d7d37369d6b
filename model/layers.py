"""The blocks of networks.

Batch normalisation by microbatches: a step's batch is computed in microbatches, spread over any
number of ranks. Each microbatch is normalised by its own statistics. The running statistics are
updated once per step, by the mean over all its microbatches. So they are the same on any number of
ranks, and on every rank, without a broadcast.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MicrobatchNorm2d(nn.Module):
    """torch's BatchNorm2d, except that running statistics are updated once per step, see above."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_channels: int,
        momentum: float = 0.1,
        eps: float = 1e-5,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.activation = activation or nn.Identity()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.step_statistics: list[Tensor] = []
        """Mean and variance (2, C) of each microbatch that this rank has computed in this step."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W), and apply the activation if there is one."""
        return self.activation(self.normalise(features))

    def normalise(self, features: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training:
            return F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # with a momentum of 1, batch_norm writes the batch's own statistics into these two
        statistics_2C = self.running_mean.new_zeros((2, len(self.running_mean)))
        mean, var = statistics_2C
        self.step_statistics.append(statistics_2C)
        return F.batch_norm(
            features, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps
        )


def update_running_statistics(
    model: nn.Module, num_microbatches: int, sum_over_microbatches: Callable[[Tensor], Tensor]
) -> None:
    """Update the running statistics at the end of a step, by the mean over its microbatches.

    `num_microbatches`: those of all ranks. `sum_over_microbatches` sums over them: it takes this
    rank's values, (microbatches of this rank, length) float, and returns (length,). A layer in
    evaluation mode keeps its statistics.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, MicrobatchNorm2d) and module.training
    ]
    if not norms:
        return
    mine = [torch.stack(norm.step_statistics).flatten(1) for norm in norms]
    means = sum_over_microbatches(torch.cat(mine, dim=1)) / num_microbatches
    sizes = [2 * len(norm.weight) for norm in norms]
    for norm, statistics in zip(norms, torch.split(means, sizes), strict=True):
        mean, var = statistics.view(2, -1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var, norm.momentum)
        norm.step_statistics.clear()


def normalisation(kind: str, num_channels: int) -> nn.Module:
    """Return the normalisation layer with this name, for (B, C, H, W)."""
    if kind == "batch":
        return MicrobatchNorm2d(num_channels)
    if kind == "group":
        return nn.GroupNorm(8, num_channels)
    if kind == "instance":
        return nn.InstanceNorm2d(num_channels, affine=True)
    return nn.Identity()


def double_conv(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """Build twice a 3x3 convolution, normalisation, ReLU; height and width stay the same."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        # a normalisation that subtracts the mean would cancel a bias before it
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=norm == "none")
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers += [conv, normalisation(norm, out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
