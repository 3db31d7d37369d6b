"""The training loop: while steps remain, step, maybe validate, maybe save, maybe stop."""

import inspect
import signal
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common import command_line, seeds
from common.command_line import EXIT_STOPPED, UsageError, UserError, counted
from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset, check_unchanged
from data_prep.dataset.pack import TrainingPixels
from data_prep.images.masks import channel_values
from model.layers import update_running_statistics
from model.precision import choose_precision
from train.checkpoints.checkpoint import Retention
from train.checkpoints.saver import Saver
from train.checkpoints.state import build_state
from train.config import REFERENCE_BATCH, TrainConfig
from train.crops.loader import load_microbatches, lost_worker_explained
from train.crops.microbatches import TrainingCrops, mask_to_target, microbatches_of
from train.evaluation.fields import (
    Criteria,
    FieldResult,
    Prediction,
    gather_results,
    measure,
    predict_fields,
    prepared_fields,
)
from train.loop.determinism import be_deterministic, doubtful_kernels
from train.loop.losses import segmentation_loss
from train.loop.schedule import learning_rate
from train.metrics.scores import (
    DEFAULT_THRESHOLD,
    EMPTY,
    THRESHOLDS,
    Score,
    best_threshold,
    count_pixels,
    counts_at_thresholds,
    score,
)
from train.ranks.distributed import Ranks
from train.ranks.gradients import TreeGradients, tree_sum, tree_sum_over_ranks
from train.ranks.lock import RunLock
from train.runs.monitor import TRAINING_LOSS, Done, Monitor, panel_strip
from train.runs.run_folder import CHECKPOINTS, config_sha256

PANEL_HEIGHT_PX = 256
MUCH_WAITING = 0.1  # share of an interval's time, above which it is said what to do
LARGE_FOR_A_CPU = 10_000_000  # parameters, above which a step takes it many seconds


@dataclass
class Interval:
    """Sums since the last point of the training curves, on this rank."""

    counts: Tensor
    """int64 counts (C, 4) on the device."""
    losses: list[Tensor] = field(default_factory=list)
    """The loss of each microbatch, scalars on the device."""
    steps: int = 0
    waited_s: float = 0.0
    """Time that this process spent on getting its microbatches onto the device."""
    start_s: float = field(default_factory=time.monotonic)


class Trainer:
    """One rank of a run. Collective methods must be called by all ranks."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        ranks: Ranks,
        stop: StopRequest,
        lock: RunLock,
        changes: Sequence[str] = (),
    ) -> None:
        self.config, self.dataset, self.ranks, self.stop = config, dataset, ranks, stop
        self.lock = lock
        self.run = Path(config.run)
        self.checkpoints = self.run / CHECKPOINTS
        self.label_values = channel_values(dataset.description.labelling.labels.values())
        self.precision = choose_precision(ranks.device, config.amp, config.memory_format)
        self.crops = TrainingCrops(TrainingPixels(dataset), config)
        self.validation_fields = prepared_fields(dataset, "val")
        radius_px = dataset.description.labelling.radius_px
        self.criteria = Criteria(DEFAULT_THRESHOLD, DEFAULT_THRESHOLD, radius_px, radius_px)
        self.steps_per_epoch = len(self.crops) // config.batch.size
        self.total_steps = self.steps_per_epoch * config.epochs
        be_deterministic(config)

        self.state = build_state(config, len(self.label_values), self.precision)
        self.notes = [*changes, *self.state.restore(self.checkpoints, ranks)]
        if doubtful := doubtful_kernels(self.state.model, config, self.precision):
            self.notes.append(
                f"no deterministic kernel here for {', '.join(doubtful)}: the bits may differ from"
                f" one start to the next, whatever reproducible={config.reproducible} says"
            )
        keep_every_steps = config.keep_every * self.steps_per_epoch
        in_background = config.checkpoint == "async"
        self.saver = Saver(
            self.state,
            self.checkpoints,
            Retention(config.keep_checkpoints, keep_every_steps),
            config_sha256(config),
            ranks.beside(config.rank_timeout_s) if in_background else ranks,
            in_background,
            lock.check,
        )
        self.mine = microbatches_of(ranks.rank, ranks.world_size, config.batch.num_microbatches)
        self.generator = default_generator(ranks.device)
        self.parallel = parallelise(self.state.model, ranks)
        self.gradients: TreeGradients | None = None
        if config.reproducible != "off":
            self.gradients = TreeGradients(self.state.model, len(self.mine), ranks)
            if isinstance(self.parallel, DistributedDataParallel):
                self.gradients.attach(self.parallel)
        self.interval = self.new_interval()
        self.num_points = 0
        """Points of the training curves since the start."""
        self.last_save_s = time.monotonic()
        progress = self.state.progress
        self.saved_at = (progress.step, progress.epochs) if progress.step else None
        """(step, epochs done) of the newest checkpoint."""

    # The loop

    @property
    def is_finished(self) -> bool:
        """Whether every epoch is done and validated."""
        return self.state.progress.epochs >= self.config.epochs

    @property
    def is_epoch_over(self) -> bool:
        """Whether the epoch's steps are done and its validation is to come."""
        progress = self.state.progress
        return progress.step >= (progress.epochs + 1) * self.steps_per_epoch

    def fit(self) -> int:
        """Train to the last epoch, or until asked to stop; returns the exit code. Collective."""
        config, progress = self.config, self.state.progress
        done = Done(progress.step, progress.epochs, not self.is_epoch_over)
        self.monitor = Monitor(
            self.run, done, self.total_steps, config.log_every_s, self.ranks.is_first
        )
        self.monitor.resumed(progress.step, self.notes)
        self.monitor.sign_of_life(progress.step, progress.epochs)
        self.monitor.say(self.beginning())
        self.monitor.text("config", command_line.as_yaml(config))
        try:
            self.microbatches = load_microbatches(self.crops, config, self.ranks, progress.step)
            with closing(self.microbatches), lost_worker_explained():
                return self.loop()
        finally:
            self.saver.close()
            self.monitor.close()

    def beginning(self) -> str:
        """What is about to be done, and where."""
        device = self.ranks.device.type
        validated = len(self.validation_fields)
        return (
            f"run={self.run}: step {self.state.progress.step} of {self.total_steps},"
            f" {counted(self.ranks.world_size, 'rank')} on {device};"
            f" {counted(self.steps_per_epoch, 'step')} an epoch, then "
            + (f"validation on {counted(validated, 'field')}" if validated else "no validation")
            + f"\n{self.about_batch()}"
            + self.advice_on_size()
        )

    def about_batch(self) -> str:
        """How the crops of a step are computed, and what would give every rank more to do."""
        batch, num_ranks = self.config.batch, self.ranks.world_size
        about = (
            f"{counted(batch.size, 'crop')} a step in"
            f" {counted(batch.num_microbatches, 'microbatch', 'microbatches')}"
        )
        if num_ranks == 1 or batch.size >= REFERENCE_BATCH * num_ranks:
            return about
        return (
            f"{about}, {batch.size / num_ranks:g} per rank; a new run with"
            f" batch_per_rank={REFERENCE_BATCH} lr_scale=sqrt gives each rank {REFERENCE_BATCH}"
            " (with a warm-up; or lr_scale=linear, or none)"
        )

    def advice_on_size(self) -> str:
        """A line more where the network is one for GPUs: a forgotten preset looks like a hang."""
        num = sum(parameter.numel() for parameter in self.state.model.parameters())
        if self.ranks.device.type != "cpu" or num < LARGE_FOR_A_CPU:
            return ""
        return (
            f"\na network of {num / 1e6:.0f} million parameters is slow on a CPU;"
            " preset=brecahad-cpu is one for CPUs"
        )

    def loop(self) -> int:
        """Step, maybe validate, maybe save, maybe stop; returns the exit code. Collective."""
        while not self.is_finished:
            stop, save_due, failed, taken = self.ranks.max(
                [self.stop.signum, self.save_is_due(), self.saver.has_failed, self.lock.is_lost]
            )
            if failed:
                self.saver.wait()
            if taken:
                raise self.lock.lost_to_another()
            if stop:
                return self.stop_early(stop)
            if save_due:
                self.save()
            if self.is_epoch_over:
                self.end_epoch()
            else:
                self.train_step()
        self.saver.wait()
        self.monitor.finished(self.summary(), self.saver.stalled_s)
        return 0

    def summary(self) -> str:
        """How far the run is and how good, in a line."""
        progress = self.state.progress
        done = f"{counted(progress.epochs, 'epoch')}, {counted(progress.step, 'step')}"
        if not progress.metrics:
            return done
        if progress.best_dice < 0:
            return f"{done}, {EMPTY} in val: the newest checkpoint counts as the best"
        return f"{done}, best validation Dice {progress.best_dice:.4f} at step {progress.best_step}"

    def save_is_due(self) -> bool:
        """Whether rank 0's clock says that it is time for a checkpoint within the epoch.

        Not at an epoch's last step: its validation follows and saves.
        """
        waited = time.monotonic() - self.last_save_s
        at_end = self.state.progress.step % self.steps_per_epoch == 0
        is_due = waited >= self.config.save_every_s and not at_end and not self.saver.is_busy
        return self.ranks.is_first and is_due

    def save(self) -> None:
        """Save this step, where it is not saved already. Collective.

        Raises DatasetError, and saves nothing, where the data were prepared anew meanwhile.
        """
        self.check_loss()
        progress = self.state.progress
        if self.saved_at != (progress.step, progress.epochs):
            self.ranks.first_does(lambda: check_unchanged(self.dataset))
            self.saver.save()
            self.saved_at = progress.step, progress.epochs
            self.monitor.sign_of_life(progress.step, progress.epochs)
        self.last_save_s = time.monotonic()

    def stop_early(self, signum: int) -> int:
        """Save at this very step and leave; the same command goes on from here."""
        self.stop.adopt(signum)
        self.save()
        self.saver.wait()
        step = self.state.progress.step
        self.monitor.say(
            f"stopped by {signal.Signals(signum).name} at step {step}, saved; run the same command"
            f" with run={self.run} to go on"
        )
        return EXIT_STOPPED

    # A step

    def train_step(self) -> None:
        """One optimizer step over the global batch. Collective."""
        step, config = self.state.progress.step, self.config
        self.state.model.train()
        for group in self.state.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total_steps, config)
        for microbatch in self.mine:
            # Whatever a layer draws (dropout) depends on the microbatch, not on the rank
            self.generator.manual_seed(seeds.derive_seed(config.seed, "layers", step, microbatch))
            is_last = microbatch == self.mine[-1]
            with nullcontext() if is_last else self.without_sync():
                self.forward_backward()
            if self.gradients:
                self.gradients.microbatch_done()
        self.saver.wait_for_copy()
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        self.state.optimizer.zero_grad()
        num_microbatches = config.batch.num_microbatches
        update_running_statistics(self.state.model, num_microbatches, self.sum_over_microbatches)
        self.state.progress.step += 1
        self.interval.steps += 1
        self.monitor.step()
        if self.state.progress.step % config.log_every_steps == 0:
            self.log_curves()

    def without_sync(self) -> Any:
        """The context in which gradients only add up on this rank."""
        parallel = self.parallel
        return (
            parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else nullcontext()
        )

    def forward_backward(self) -> None:
        """Add one microbatch's share of the global batch's mean gradient."""
        image_BHWC, mask_BHW = self.next_microbatch()
        target_BCHW = mask_to_target(mask_BHW, self.label_values)
        with self.precision.autocast():
            logits_BCHW = self.parallel(self.precision.image_to_input(image_BHWC))
        loss = segmentation_loss(logits_BCHW, target_BCHW, self.config.loss)
        # DDP's own all-reduce divides the sum over ranks by their number
        averaged = 1 if self.gradients else self.ranks.world_size
        share = averaged / self.config.batch.num_microbatches
        self.state.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.interval.losses.append(loss.detach())
            self.interval.counts += count_pixels(logits_BCHW > 0, target_BCHW > 0.5)

    def sum_over_microbatches(self, mine: Tensor) -> Tensor:
        """Sum (microbatches of this rank, ...) over those of all ranks, along the tree."""
        return tree_sum_over_ranks(tree_sum(mine), self.ranks)

    def next_microbatch(self) -> tuple[Tensor, Tensor]:
        """(image BHWC uint8, mask BHW uint8) on the device, with the time that took noted."""
        start = time.monotonic()
        microbatch = next(self.microbatches)
        self.interval.waited_s += time.monotonic() - start
        return microbatch

    def new_interval(self) -> Interval:
        """Empty sums."""
        shape = (len(self.label_values), 4)
        return Interval(torch.zeros(shape, dtype=torch.int64, device=self.ranks.device))

    def log_curves(self) -> None:
        """A point of the training curves from the interval's sums over all ranks. Collective."""
        self.check_loss()
        interval = self.interval
        crops = interval.steps * self.config.batch.size
        self.ranks.sum(interval.counts)
        per_step = torch.stack(interval.losses).view(interval.steps, -1).T  # (microbatch, step)
        num_microbatches = self.config.batch.num_microbatches
        loss = float(self.sum_over_microbatches(per_step).mean()) / num_microbatches
        seconds = time.monotonic() - interval.start_s
        scores = score(interval.counts.cpu().numpy())
        values: dict[str, Score] = {
            TRAINING_LOSS: loss,
            "train/lr": self.state.optimizer.param_groups[0]["lr"],
        }
        values |= {f"train/{name}": scores[name] for name in ("dice", "iou", "accuracy")}
        values["speed/samples_per_s"] = crops / seconds
        wait_share = self.wait_share(seconds)
        values["speed/data_wait_share"] = wait_share
        self.num_points += 1
        # once a start, and not at its first point, which waits for workers to start
        if self.num_points == 2 and wait_share > MUCH_WAITING:
            self.monitor.say(self.advice_on_waiting(wait_share))
        values["speed/save_stalled_s"] = self.saver.stalled_s
        self.monitor.curves(self.state.progress.step, self.state.progress.epochs, values)
        self.interval = self.new_interval()

    def wait_share(self, interval_s: float) -> float:
        """Share of the interval for which the rank with the slowest loader waited for data, 0 to 1:
        the others wait for that rank. Collective.

        On a GPU it is an upper bound: this is the host's time, and the host waits ahead of the GPU,
        which meanwhile works off what is queued.
        """
        return max(self.ranks.gather(self.interval.waited_s / interval_s))

    def advice_on_waiting(self, share: float) -> str:
        """What to change where training waits for data."""
        advice = [f"loader_workers={self.config.loader_workers + 1}"]
        if self.crops.pixels.packed is None:
            advice.insert(0, self.crops.pixels.advice_on_pack())
        return f"waits for data {share:.0%} of the time; try " + ", or ".join(advice)

    def check_loss(self) -> None:
        """Stop the run, before anything is saved, where a loss is no number. Collective."""
        losses = self.interval.losses
        is_bad = bool(losses) and not bool(torch.stack(losses).isfinite().all())
        if any(self.ranks.max([is_bad])):
            raise self.not_finite()

    def not_finite(self) -> UserError:
        """The error of a loss that is no number."""
        return UserError(
            f"the loss is not finite, at step {self.state.progress.step} or shortly before:"
            f" lower lr={self.config.lr}, or set amp=off; the last checkpoint is from before"
        )

    # The end of an epoch

    def end_epoch(self) -> None:
        """Validate, note the best, save. Collective. Asked to stop, it leaves validation undone."""
        self.check_loss()
        results = self.validate()
        if results is None:
            return
        progress = self.state.progress
        progress.epochs += 1
        if results:
            progress.metrics = summarise(results)
            loss = progress.metrics["val/loss"]
            if loss is None or not np.isfinite(loss):
                raise self.not_finite()
            self.monitor.evaluation(progress.step, progress.epochs, progress.metrics)
        dice = progress.metrics.get("val/dice")
        if dice is None:  # no validation split, or nothing annotated in it: the newest is the best
            progress.best_step = progress.step
        elif dice > progress.best_dice:
            progress.best_dice, progress.best_step = dice, progress.step
        self.save()

    def validate(self) -> list[FieldResult] | None:
        """Whole fields of the validation split, or None where a stop came first. Collective."""
        start_s = time.monotonic()
        results, pictures = [], []
        for prediction in predict_fields(
            self.state.model,
            self.validation_fields,
            self.label_values,
            self.config.tile,
            self.precision,
            self.ranks,
            self.stop,
        ):
            results.append(measure(prediction, self.criteria))
            if prediction.index < self.config.panels:
                pictures.append((f"panels/{prediction.field.name}", panel_of(prediction)))
        results = gather_results(results, self.ranks)
        if len(results) < len(self.validation_fields):
            return None
        for part in self.ranks.gather(pictures):
            self.monitor.panels(self.state.progress.step, part)
        # validation is not part of the training speed
        self.interval.start_s += time.monotonic() - start_s
        return results


def check_size(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse a batch that leaves an epoch without a step, before a run folder is made."""
    num_crops = len(dataset.split("train")) * config.crop.per_sample
    if num_crops < config.batch.size:
        raise UsageError(
            f"batch_size={config.batch.size}: the train split gives only {num_crops} crop(s) an"
            f" epoch; lower batch_size, or raise crop.per_sample={config.crop.per_sample}"
        )


def parallelise(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Wrap the model in DDP where there are several ranks."""
    if ranks.world_size == 1:
        return model
    # Buffers are the same on every rank as they are (model.layers). torch 2.13 has renamed the
    # argument that says so.
    known = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = (
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    )
    keep_buffers: dict[str, Any] = {sync_buffers: False}
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **keep_buffers)


def default_generator(device: torch.device) -> torch.Generator:
    """What a layer draws from. torch.manual_seed() seeds those of all kinds of devices, and notes
    for each that is not there where it was called, which takes longer than some layers."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator


def panel_of(prediction: Prediction) -> Any:
    """TensorBoard's picture of a field: input, truth and prediction of any class."""
    predicted_HW = prediction.is_predicted(DEFAULT_THRESHOLD)
    return panel_strip(prediction.image_HWC, prediction.is_annotated, predicted_HW, PANEL_HEIGHT_PX)


def summarise(results: list[FieldResult]) -> dict[str, Score]:
    """Validation metrics: over all pixels, and the mean loss over fields.

    At the default threshold, so that epochs compare. Beside them the thresholds of pixels and of
    nuclei that are best here: evaluation and prediction take those of their checkpoint. None where
    nothing is annotated.
    """
    scores = score(np.stack([result.counts for result in results]))
    loss = float(np.mean([result.cross_entropy for result in results]))
    pixels = counts_at_thresholds(np.sum([result.histogram for result in results], axis=0))
    nuclei = [each.counts(THRESHOLDS) for result in results for each in result.detections]
    threshold, _ = best_threshold(pixels) or (None, None)
    nuclei_threshold, nuclei_f1 = best_threshold(np.sum(nuclei, axis=0)) or (None, None)
    return {
        "val/loss": loss,
        **{f"val/{name}": value for name, value in scores.items()},
        "val/threshold": threshold,
        "val/nuclei_threshold": nuclei_threshold,
        "val/nuclei_f1": nuclei_f1,
    }
