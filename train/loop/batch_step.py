"""One step of the optimizer over the batch of all ranks, on this rank."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common import seeds
from model.build import ENCODER
from model.layers import update_running_statistics
from model.precision import Precision
from train.checkpoints.state import State
from train.config import TrainConfig
from train.crops.loader import Microbatch
from train.crops.microbatches import mask_to_target, valid_pixels
from train.loop.curves import Interval
from train.loop.losses import Valid, segmentation_loss
from train.loop.optimizer import clip_gradient, move_average, set_learning_rate
from train.ranks.distributed import Ranks
from train.ranks.gradients import TreeGradients, sum_over_microbatches
from train.ranks.tree import portions


class BatchStep:
    """Computes gradients of this rank's microbatches, sums them over ranks, updates the weights."""

    def __init__(
        self,
        state: State,
        config: TrainConfig,
        precision: Precision,
        label_values: list[int],
        has_ignored: bool,
        ranks: Ranks,
    ) -> None:
        """`has_ignored`: whether masks have pixels that the loss does not count."""
        self.state, self.config, self.precision = state, config, precision
        self.label_values, self.has_ignored, self.ranks = label_values, has_ignored, ranks
        self.encoder = state.model.get_submodule(ENCODER)
        num_microbatches = config.batch.num_microbatches
        self.mine = portions(num_microbatches, ranks.world_size)[ranks.rank].microbatches
        self.generator = default_generator(ranks.device)
        self.parallel = parallelise(state.model, ranks)
        self.gradients: TreeGradients | None = None
        if config.reproducible != "off":
            self.gradients = TreeGradients(state.model, num_microbatches, ranks)
            if isinstance(self.parallel, DistributedDataParallel):
                self.gradients.attach(self.parallel)

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether this step leaves the encoder as it is (freeze_epochs)."""
        return self.state.progress.epochs < self.config.freeze_epochs

    def compute_gradients(
        self, next_microbatch: Callable[[], Microbatch], interval: Interval
    ) -> None:
        """Compute the mean gradient of the batch of all ranks, in each parameter's .grad.
        Collective."""
        self.state.model.train()
        if self.is_encoder_frozen:
            self.encoder.eval()  # it normalises by its running statistics, and keeps them
        step = self.state.progress.step
        for microbatch, (image_BHWC, mask_BHW, valid) in zip(
            self.mine, self.microbatches(next_microbatch), strict=True
        ):
            # Random numbers of a layer (dropout) depend on the microbatch, not on the rank. Seed
            # after the microbatch is loaded: a DataLoader that starts draws from this generator.
            seed = seeds.derive_seed(self.config.seed, "layers", step, microbatch)
            self.generator.manual_seed(seed)
            is_last = microbatch == self.mine[-1]
            with nullcontext() if is_last else self.without_sync():
                self.forward_backward(image_BHWC, mask_BHW, valid, interval)
            if self.gradients:
                self.gradients.microbatch_done()

    def microbatches(
        self, next_microbatch: Callable[[], Microbatch]
    ) -> Iterator[tuple[Tensor, Tensor, Valid | None]]:
        """Yield images, masks and valid pixels of this rank's microbatches. Collective.

        If pixels are ignored, the batch is loaded as a whole: its valid pixels are counted over all
        ranks before the first loss, in whole numbers, whose sum has no order.
        """
        if not self.has_ignored:
            for _ in self.mine:
                yield *next_microbatch(), None
            return
        loaded = [next_microbatch() for _ in self.mine]
        valid_B1HW = [valid_pixels(mask_BHW) for _, mask_BHW in loaded]
        number = torch.stack([each.sum() for each in valid_B1HW]).sum()
        self.ranks.sum(number)
        mean_number = number / self.config.batch.num_microbatches
        for (image_BHWC, mask_BHW), valid in zip(loaded, valid_B1HW, strict=True):
            yield image_BHWC, mask_BHW, Valid(valid, mean_number)

    def without_sync(self) -> AbstractContextManager[Any]:
        """Return a context in which gradients are added up on this rank only."""
        parallel = self.parallel
        return (
            parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else nullcontext()
        )

    def forward_backward(
        self, image_BHWC: Tensor, mask_BHW: Tensor, valid: Valid | None, interval: Interval
    ) -> None:
        """Add one microbatch's gradient, weighted for the mean over the batch."""
        target_BCHW = mask_to_target(mask_BHW, self.label_values)
        with self.precision.autocast():
            logits_BCHW = self.parallel(self.precision.image_to_input(image_BHWC))
        loss = segmentation_loss(logits_BCHW, target_BCHW, self.config.loss, valid)
        # DDP's own all-reduce divides the sum over ranks by their number
        averaged = 1 if self.gradients else self.ranks.world_size
        weight = averaged / self.config.batch.num_microbatches
        self.state.scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
        counted = valid and valid.pixels_B1HW
        interval.add(loss.detach(), logits_BCHW.detach(), target_BCHW, counted)

    def update(self, learning_rate: float) -> None:
        """Update the weights, the running statistics and the average of both. Collective."""
        state, config = self.state, self.config
        set_learning_rate(state.optimizer, learning_rate)
        if self.is_encoder_frozen:
            self.encoder.zero_grad()  # without a gradient, the optimizer passes a parameter over
        if config.clip_norm:
            state.scaler.unscale_(state.optimizer)
            clip_gradient(state.model, config.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        number = config.batch.num_microbatches
        update_running_statistics(
            state.model, number, lambda mine: sum_over_microbatches(mine, number, self.ranks)
        )
        if state.averaged is not None:
            move_average(state.averaged, state.model, config.ema, state.progress.step)
        state.progress.step += 1


def parallelise(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Wrap the model in DDP if there are several ranks."""
    if ranks.world_size == 1:
        return model
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # Buffers are the same on every rank already (model.layers). Set as an attribute, because torch
    # 2.13 has renamed the argument.
    parallel.broadcast_buffers = False
    return parallel


def default_generator(device: torch.device) -> torch.Generator:
    """Return the generator that layers use on a device.

    Seeding it takes less time than torch.manual_seed(), which seeds those of all kinds of devices.
    """
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator
