"""The training loop: while steps remain, step, maybe validate, maybe save, maybe stop."""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from common import command_line
from common.command_line import EXIT_STOPPED, counted
from common.stop_request import StopRequest, name_of
from data_prep.dataset.manifest import Dataset, check_unchanged
from data_prep.dataset.pack import TrainingPixels
from model.precision import choose_precision
from train.checkpoints.interval import SaveInterval
from train.checkpoints.saver import Saver
from train.checkpoints.upkeep import Retention
from train.config import TrainConfig
from train.crops.fitting import steps_per_epoch
from train.crops.loader import Microbatch, load_microbatches, lost_worker_explained
from train.crops.microbatches import TrainingCrops
from train.crops.staging import staged_pixels
from train.loop import messages
from train.loop.batch_step import BatchStep
from train.loop.curves import Interval
from train.loop.determinism import be_deterministic, doubtful_kernels
from train.loop.initial_state import build_state
from train.loop.schedule import learning_rate
from train.loop.validation import Validation
from train.ranks.distributed import Ranks
from train.ranks.lock import RunLock
from train.runs.history import check_history
from train.runs.monitor import Done, Monitor
from train.runs.newest import CHECKPOINTS
from train.runs.same_run import config_sha256
from train.runs.thresholds import doubt_about_best
from train.runs.warm_start import initial_weights

MUCH_WAITING = 0.1  # fraction of an interval's time above which the user gets advice


class Trainer:
    """Trains on one rank. All ranks must call collective methods."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        ranks: Ranks,
        stop: StopRequest,
        lock: RunLock,
        changes: Sequence[str] = (),
    ) -> None:
        self.config, self.dataset, self.ranks = config, dataset, ranks
        self.stop, self.lock = stop, lock
        self.run = Path(config.run)
        be_deterministic(config)
        precision = choose_precision(ranks.device, config.amp, config.memory_format)
        self.crops = TrainingCrops(TrainingPixels(dataset), config)
        self.steps_per_epoch = steps_per_epoch(config, dataset)
        self.total_steps = self.steps_per_epoch * config.epochs
        self.validation = Validation(dataset, config, precision, ranks)
        self.label_values = self.validation.label_values

        weights = initial_weights(config, ranks)
        self.state = build_state(config, len(self.label_values), precision, weights)
        self.notes = [*changes, *self.state.restore(self.run / CHECKPOINTS, ranks)]
        if doubtful := doubtful_kernels(self.state.model, config, precision):
            self.notes.append(messages.about_kernels(doubtful, config))
        self.saver = self.new_saver()
        self.batch_step = BatchStep(
            self.state, config, precision, self.label_values, self.crops.pixels.has_ignored, ranks
        )
        self.interval = self.new_interval()
        self.num_points = 0
        """Number of points of the training curves since the start."""
        self.save_interval = SaveInterval(config.save_every_s)
        self.last_save_s = time.monotonic()
        progress = self.state.progress
        self.saved_at = (progress.step, progress.epochs) if progress.step else None
        """(step, epochs done) of the newest checkpoint; None before the first one."""

    def new_saver(self) -> Saver:
        """Return the saver, which works in a thread or in this one. Collective."""
        config, in_background = self.config, self.config.checkpoint == "async"
        return Saver(
            self.state,
            self.run / CHECKPOINTS,
            Retention(config.keep_checkpoints, config.keep_every * self.steps_per_epoch),
            config_sha256(config),
            self.ranks.beside(config.rank_timeout_s) if in_background else self.ranks,
            in_background,
            self.lock.check,
        )

    # The loop

    @property
    def is_finished(self) -> bool:
        """Whether every epoch is done and validated, or stop_after= has ended the run."""
        return self.state.progress.epochs >= self.config.epochs or self.has_stopped

    @property
    def has_stopped(self) -> bool:
        """Whether stop_after= has ended the run."""
        stop_after = self.config.stop_after
        return self.state.progress.has_stopped_improving(stop_after, self.steps_per_epoch)

    @property
    def summary(self) -> str:
        """How far the run is, how good, and why it ended."""
        stopped_after = self.config.stop_after if self.has_stopped else 0
        return messages.summary(self.state.progress, stopped_after)

    @property
    def is_epoch_over(self) -> bool:
        """Whether the epoch's steps are done; its validation comes next."""
        progress = self.state.progress
        return progress.step >= (progress.epochs + 1) * self.steps_per_epoch

    def fit(self) -> int:
        """Train to the last epoch, or until asked to stop; returns the exit code. Collective."""
        config, progress = self.config, self.state.progress
        done = Done(progress.step, progress.epochs, not self.is_epoch_over)
        self.ranks.first_does(lambda: check_history(self.run))  # the monitor is on the first alone
        self.monitor = Monitor(
            self.run, done, self.total_steps, config.log_every_s, self.ranks.is_first
        )
        self.monitor.resumed(progress.step, self.notes)
        self.monitor.sign_of_life(progress.step, progress.epochs)
        self.monitor.say(self.beginning())
        self.monitor.text("config", command_line.as_yaml(config))
        try:
            self.stage_pack()
            self.microbatches = load_microbatches(self.crops, config, self.ranks, progress.step)
            with closing(self.microbatches), lost_worker_explained():
                return self.loop()
        finally:
            self.saver.close()
            self.monitor.close()

    def stage_pack(self) -> None:
        """Read the pack from the node's own disk, if stage= says so. Collective."""
        pixels, told = staged_pixels(self.crops.pixels, self.config.stage, self.ranks, self.stop)
        self.crops.pixels = pixels
        if told:
            self.monitor.say(told)
            self.interval = self.new_interval()  # the time of copying is not that of training

    def beginning(self) -> str:
        """Say what this start is about to do, and on which ranks."""
        validated = len(self.validation.fields)
        return (
            f"run={self.run}: step {self.state.progress.step} of {self.total_steps},"
            f" {counted(self.ranks.world_size, 'rank')} on {self.ranks.device.type};"
            f" {counted(self.steps_per_epoch, 'step')} an epoch, then "
            + (f"validation on {counted(validated, 'field')}" if validated else "no validation")
            + f"\n{messages.about_batch(self.config, self.ranks.world_size)}"
            + messages.about_mirrored(self.config.crop, self.crops.pixels.samples)
            + messages.about_centred(self.config.crop, self.crops.nuclei)
            + messages.advice_on_size(self.state.model, self.ranks)
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
                self.saver.get_ready()
        self.saver.wait()
        progress = self.state.progress
        if doubt := doubt_about_best(progress.best_dice, progress.best_step):
            self.monitor.say(f"warning: {doubt}")
        self.monitor.finished(self.summary, self.saver.stalled_s)
        return 0

    def save_is_due(self) -> bool:
        """Whether it is time for a checkpoint within the epoch, by rank 0's clock.

        Not at an epoch's last step: the validation after it saves.
        """
        if not self.ranks.is_first or self.saver.is_busy:
            return False
        if (cost := self.saver.cost) and (told := self.save_interval.follow(cost)):
            self.monitor.say(told)
        step, (saved_step, _) = self.state.progress.step, self.saved_at or (0, 0)
        waited_s, steps_left = time.monotonic() - self.last_save_s, -step % self.steps_per_epoch
        return self.save_interval.is_due(waited_s, step - saved_step, steps_left)

    def save(self) -> None:
        """Save this step, unless it is saved already. Collective.

        Raises DatasetError, and saves nothing, if the data set was prepared again meanwhile.
        """
        self.check_loss()
        progress = self.state.progress
        if self.saved_at != (progress.step, progress.epochs):
            self.ranks.first_does(lambda: check_unchanged(self.dataset))
            self.saver.save()
            self.saved_at = progress.step, progress.epochs
            self.monitor.sign_of_life(progress.step, progress.epochs, self.is_finished)
        self.last_save_s = time.monotonic()

    def stop_early(self, signum: int) -> int:
        """Save this step, and return the exit code; the same command goes on from here.
        Collective."""
        self.stop.adopt(signum)
        self.save()
        self.saver.wait()
        step = self.state.progress.step
        self.monitor.say(
            f"stopped by {name_of(signum)} at step {step}, saved; run the same command"
            f" with run={self.run} to go on"
        )
        return EXIT_STOPPED

    # A step

    def train_step(self) -> None:
        """Make one step of the optimizer over the batch of all ranks. Collective."""
        progress = self.state.progress
        self.batch_step.compute_gradients(self.next_microbatch, self.interval)
        self.saver.wait_for_copy()
        self.batch_step.update(learning_rate(progress.step, self.steps_per_epoch, self.config))
        self.interval.steps += 1
        self.monitor.step()
        if progress.step % self.config.log_every_steps == 0:
            self.log_curves()

    def next_microbatch(self) -> Microbatch:
        """Return the next microbatch on the device, and count the time of waiting for it."""
        start = time.monotonic()
        microbatch = next(self.microbatches)
        self.interval.waited_s += time.monotonic() - start
        return microbatch

    def new_interval(self) -> Interval:
        """Return an interval that starts now."""
        return Interval.empty(len(self.label_values), self.ranks.device)

    def log_curves(self) -> None:
        """Log the interval's point of each curve, and start another interval. Collective."""
        self.check_loss()
        values = self.interval.curves(self.config, self.ranks)
        values["train/lr"] = self.state.optimizer.param_groups[0]["lr"]
        values["speed/save_stalled_s"] = self.saver.stalled_s
        self.num_points += 1
        waited = values["speed/data_wait_share"] or 0.0
        # once per start, and not at the first point, for which workers had to start
        if self.num_points == 2 and waited > MUCH_WAITING:
            self.monitor.say(messages.advice_on_waiting(waited, self.config, self.crops.pixels))
        self.monitor.curves(self.state.progress.step, self.state.progress.epochs, values)
        self.interval = self.new_interval()

    def check_loss(self) -> None:
        """Raise UserError if a loss is not finite: such a state is never saved. Collective."""
        if not self.interval.is_finite(self.ranks):
            raise messages.not_finite(self.state.progress.step, self.config.lr)

    # The end of an epoch

    def end_epoch(self) -> None:
        """Validate, and save; nothing if a stop comes during validation. Collective."""
        self.check_loss()
        if self.validate():
            self.save()

    def validate(self) -> bool:
        """Validate, and note that; False if a stop came before the end. Collective."""
        start_s, progress = time.monotonic(), self.state.progress
        found = self.validation.validate(self.state.model_in_use, self.stop)
        if found is None:
            return False
        progress.note_validation(found.metrics)
        self.monitor.panels(progress.step, found.panels)
        if found.metrics:
            loss = found.metrics["val/loss"]  # None: no pixel counts
            if loss is not None and not math.isfinite(loss):
                raise messages.not_finite(progress.step, self.config.lr)
            self.monitor.validation(progress.step, progress.epochs, found.metrics)
        # the time of validation does not count for the training speed
        self.interval.start_s += time.monotonic() - start_s
        return True
