"""Compute points of the training curves: each is over an interval of steps and over all ranks."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from train.config import TrainConfig
from train.metrics.scores import Score, count_pixels, score
from train.ranks.distributed import Ranks
from train.ranks.gradients import sum_over_microbatches
from train.runs.monitor import TRAINING_LOSS


@dataclass
class Interval:
    """What this rank has counted since the last point of the training curves."""

    counts: Tensor
    """(C, 4) int64 on the device, see train.metrics.scores."""
    losses: list[Tensor] = field(default_factory=list)
    """The loss of each microbatch, scalars on the device."""
    steps: int = 0
    waited_s: float = 0.0
    """Seconds that this process waited for microbatches."""
    start_s: float = field(default_factory=time.monotonic)

    @classmethod
    def empty(cls, num_classes: int, device: torch.device) -> "Interval":
        """Return an interval that starts now."""
        return cls(torch.zeros((num_classes, 4), dtype=torch.int64, device=device))

    def add(
        self,
        loss: Tensor,
        logits_BCHW: Tensor,
        target_BCHW: Tensor,
        valid_B1HW: Tensor | None = None,
    ) -> None:
        """Count a microbatch: its loss (scalar), logits and target, and which pixels count."""
        self.losses.append(loss)
        self.counts += count_pixels(logits_BCHW > 0, target_BCHW > 0.5, valid_B1HW)

    def is_finite(self, ranks: Ranks) -> bool:
        """Whether every loss on every rank is finite. Collective."""
        is_bad = bool(self.losses) and not bool(torch.stack(self.losses).isfinite().all())
        return not any(ranks.max([is_bad]))

    def curves(self, config: TrainConfig, ranks: Ranks) -> dict[str, Score]:
        """Compute the interval's point of each curve, over all ranks. Collective."""
        ranks.sum(self.counts)
        per_step = torch.stack(self.losses).view(self.steps, -1).T  # (microbatch, step)
        number = config.batch.num_microbatches
        loss = float(sum_over_microbatches(per_step, number, ranks).mean()) / number
        seconds = time.monotonic() - self.start_s
        scores = score(self.counts.cpu().numpy())
        return {
            TRAINING_LOSS: loss,
            **{f"train/{name}": scores[name] for name in ("dice", "iou", "accuracy")},
            "speed/samples_per_s": self.steps * config.batch.size / seconds,
            "speed/data_wait_share": self.wait_fraction(seconds, ranks),
        }

    def wait_fraction(self, seconds: float, ranks: Ranks) -> float:
        """Return the fraction of the interval, 0 to 1, that was spent on waiting for data.

        It is that of the rank with the slowest loader, since the others wait for that rank. On a
        GPU it is an upper bound: the process may wait while the GPU still computes. Collective.
        """
        return max(ranks.gather(self.waited_s / seconds))
