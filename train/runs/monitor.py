"""Report how a run goes: TensorBoard, JSON lines, a progress bar or log lines. Rank 0 only.

train.runs.history lists the files, and reads them.
"""

import json
import resource
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from common.files import through_no_link, write_atomically
from data_prep.images.arrays import Image, Mask
from data_prep.images.class_colours import coloured, legend
from train.metrics.scores import EMPTY, Score, score_text
from train.runs.history import METRICS, RESTARTS, TRAINING, points, read_restarts
from train.runs.newest import PROGRESS

TRAINING_LOSS = "train/loss"


@dataclass(frozen=True)
class Done:
    """What was done before this start."""

    step: int
    epochs: int
    is_validated: bool
    """False if the validation at `step` is still to do."""


class Monitor:
    """Writes the run's curves and prints how far it is. If not `enabled`, it does nothing."""

    def __init__(
        self, run: Path, done: Done, total_steps: int, every_s: float, enabled: bool
    ) -> None:
        """`total_steps`: those of all epochs."""
        self.enabled, self.run, self.every_s, self.total_steps = enabled, run, every_s, total_steps
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # here: other ranks need not wait for it

        drop_lines_after(run / METRICS, "epoch", done.epochs)
        drop_lines_after(run / TRAINING, "step", done.step)
        # After a resume, TensorBoard drops points after the checkpoint
        purge_step = done.step + (1 if done.is_validated else 0)
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=purge_step)
        threading.excepthook = without_writers
        self.bar = tqdm(
            total=total_steps,
            initial=done.step,
            desc="train",
            unit="step",
            disable=not sys.stderr.isatty(),
        )
        self.last_line = self.start_s = time.monotonic()

    def say(self, message: str) -> None:
        """Print a line above the progress bar."""
        if self.enabled:
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()

    def text(self, name: str, content: str) -> None:
        """Show a block of text in TensorBoard."""
        if self.enabled:
            self.writer.add_text(name, f"```\n{content}\n```")

    def resumed(self, step: int, notes: Sequence[str]) -> None:
        """Print notes; after a restart, add them to restarts.jsonl and TensorBoard too."""
        for note in notes:
            self.say(note)
        if self.enabled and step:
            restart = {"step": step, "time_s": round(time.time()), "notes": list(notes)}
            append_line(self.run / RESTARTS, restart)
            number = len(read_restarts(self.run))
            self.writer.add_scalar("run/restarts", number, step)
            self.writer.add_text("restarts", f"restart {number} at step {step}", step)

    def finished(self, summary: str, stalled_s: float) -> None:
        """Print that the run is finished, and the time that checkpoints cost since this start."""
        if self.enabled:
            fraction = stalled_s / (time.monotonic() - self.start_s)
            self.say(
                f"finished: {summary}; checkpoints held it up for {stalled_s:.2f} s"
                f" ({fraction:.1%} of the time)"
            )

    def step(self) -> None:
        """Move the progress bar by one step."""
        if self.enabled:
            self.bar.update()

    def sign_of_life(self, step: int, epoch: int, is_finished: bool = False) -> None:
        """Write progress.json: how far the run is, for launch/jobs.py and others.

        `is_finished`: nothing is left to do, the last validation included.
        """
        if not self.enabled:
            return
        now = {
            "step": step,
            "total_steps": self.total_steps,
            "epoch": epoch,
            "is_finished": is_finished,
            "time_s": time.time(),
        }
        write_atomically(self.run / PROGRESS, json.dumps(now).encode())

    def curves(self, step: int, epoch: int, values: Mapping[str, Score]) -> None:
        """Write a point of each training curve, and a log line every `every_s` seconds."""
        if not self.enabled:
            return
        known = {name: value for name, value in values.items() if value is not None}
        point = known | memory_mb()
        self.points(step, point)
        append_line(self.run / TRAINING, {"step": step, **point})
        self.sign_of_life(step, epoch)
        brief = {name.rpartition("/")[2]: f"{value:.4g}" for name, value in known.items()}
        self.bar.set_postfix(brief)
        if self.bar.disable and time.monotonic() - self.last_line >= self.every_s:
            self.last_line = time.monotonic()
            listed = " ".join(f"{name} {value}" for name, value in brief.items())
            self.say(f"step {step} of {self.bar.total} (epoch {epoch + 1}) {listed}")

    def validation(self, step: int, epoch: int, values: Mapping[str, Score]) -> None:
        """Write the metrics of an epoch: curves, a line in metrics.jsonl, a printed line."""
        if not self.enabled:
            return
        known = {name: value for name, value in values.items() if value is not None}
        self.points(step, known)
        self.writer.flush()
        append_line(self.run / METRICS, {"step": step, "epoch": epoch, **values})
        shown = [name for name in values if name.count("/") == 1]  # none of a single class
        listed = " ".join(f"{name} {score_text(known[name])}" for name in shown if name in known)
        if unknown := [name for name in shown if name not in known]:
            listed += f"; {EMPTY} for {', '.join(unknown)}"
        self.say(f"epoch {epoch} (step {step}): {listed}")

    def points(self, step: int, values: Mapping[str, float]) -> None:
        """Write a point of each curve into TensorBoard."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def panels(self, step: int, panels: Sequence[tuple[str, npt.NDArray[np.uint8]]]) -> None:
        """Show pictures (name, HWC uint8) in TensorBoard."""
        if self.enabled:
            for name, image_HWC in panels:
                self.writer.add_image(name, image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Write everything that is buffered."""
        if self.enabled:
            self.bar.close()
            try:
                self.writer.close()
            except OSError as error:  # not raised: it would hide the error that ended the run
                self.say(f"TensorBoard's last points are not written: {error.strerror or error}")


def without_writers(failed: threading.ExceptHookArgs) -> None:
    """Print an error in a thread as Python does, except TensorBoard's, which is raised on flush."""
    if not type(failed.thread).__module__.startswith("tensorboard"):
        threading.__excepthook__(failed)


def panel_strip(
    image_HWC: Image, truth_HW: Mask, predicted_HW: Mask, names: Sequence[str], height_px: int
) -> Image:
    """Put input, truth and prediction side by side, HWC uint8, for TensorBoard.

    `truth_HW` and `predicted_HW` are 0, or 1 for the first of the classes and so on. Below them is
    a legend of several classes.
    """
    masks = [coloured(class_HW, len(names)) for class_HW in (truth_HW, predicted_HW)]
    width_px = round(image_HWC.shape[1] * height_px / image_HWC.shape[0])
    panels = [
        cv2.resize(panel, (width_px, height_px), interpolation=cv2.INTER_AREA)
        for panel in (image_HWC, *masks)
    ]
    return np.vstack([np.hstack(panels), legend(3 * width_px, names)])


def memory_mb() -> dict[str, float]:
    """Return the peak memory of this process, and of its GPU if it has one, in MB."""
    peak = {"memory/process_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
    if torch.cuda.is_available():
        peak["memory/gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return peak


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add a JSON line to a file. Raises ValueError for NaN and infinity, which JSON cannot hold."""
    with open(path, "a", opener=through_no_link) as file:
        file.write(json.dumps(values, allow_nan=False) + "\n")


def drop_lines_after(path: Path, key: str, last: int) -> None:
    """Drop lines that were written after the checkpoint: the run will write them again.

    These are the lines whose `key` is above `last`, and lines that a kill has cut short. Raises
    UserError for lines of another shape.
    """
    if path.is_file():
        kept = [line for line, point in points(path, key) if (point[key] or 0) <= last]
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
