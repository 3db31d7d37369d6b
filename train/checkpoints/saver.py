"""Checkpoints while training goes on: a thread copies the state and writes the copy.

The copy is made while the next step computes its gradients, which changes nothing of the state; the
step waits for it before its update. The thread talks to the other ranks' threads through a process
group of its own. There is never more than one save at a time: the next waits for it. What fails in
the thread is raised at the next step.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoints.digests import named_tensors
from train.checkpoints.save_checkpoint import save_checkpoint, tensors_of_rank
from train.checkpoints.state import State, point
from train.checkpoints.upkeep import Retention
from train.ranks.distributed import Ranks


class Saver:
    """Saves a run's state. Every method but `is_busy` and `has_failed` is collective."""

    def __init__(
        self,
        state: State,
        folder: Path,
        retention: Retention,
        config_sha256: str,
        ranks: Ranks,
        in_background: bool,
        check_ours: Callable[[], None] = lambda: None,
    ) -> None:
        """`ranks` are these threads' own (`Ranks.beside`) where they work in the background."""
        self.state, self.folder, self.retention = state, folder, retention
        self.config_sha256, self.ranks, self.in_background = config_sha256, ranks, in_background
        self.check_ours = check_ours
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.running: Future[None] | None = None
        self.copied = threading.Event()
        self.copied.set()
        self.copies: dict[str, Tensor] = {}
        """Where tensors are copied to, by name; made once."""
        self.stalled_s = 0.0
        """Seconds for which training stood still for saves."""

    @property
    def is_busy(self) -> bool:
        """Whether a save is still being written."""
        return self.running is not None and not self.running.done()

    @property
    def has_failed(self) -> bool:
        """Whether a save was not written; `wait` raises why."""
        running = self.running
        return running is not None and running.done() and running.exception() is not None

    def save(self) -> None:
        """Save the state as it is now: written on return, or soon after, in the background.

        Call `wait_for_copy` before the state changes.
        """
        self.wait()
        start_s = time.monotonic()
        tensors = tensors_of_rank(
            dict(named_tensors(self.state.tensors())), self.ranks.rank, self.ranks.world_size
        )
        progress = self.state.snapshot()
        if self.in_background:
            self.copied.clear()
            self.running = self.executor.submit(self.copy_and_write, tensors, progress)
        else:
            self.write(tensors, progress)
        self.stalled_s += time.monotonic() - start_s

    def wait_for_copy(self) -> None:
        """Wait until the state may change again."""
        start_s = time.monotonic()
        self.copied.wait()
        self.stalled_s += time.monotonic() - start_s

    def copy_and_write(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """What the thread does."""
        try:
            self.copy(tensors)
        finally:
            self.copied.set()
        self.write(self.copies, progress)

    def copy(self, tensors: dict[str, Tensor]) -> None:
        """Copy this rank's share into memory of our own, which the next steps do not change."""
        for name, tensor in tensors.items():
            if name not in self.copies:
                self.copies[name] = torch.empty_like(
                    tensor, device="cpu", pin_memory=tensor.is_cuda
                )
            self.copies[name].copy_(tensor, non_blocking=True)
        if self.ranks.device.type == "cuda":
            # named, since a new thread's current device is GPU 0, whatever this rank's is
            torch.cuda.synchronize(self.ranks.device)

    def write(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Publish a checkpoint, let `latest` and `best` name it, drop those too old."""
        path = save_checkpoint(
            self.folder,
            progress["step"],
            tensors,
            progress,
            self.config_sha256,
            self.ranks,
            self.check_ours,
        )

        def name_it() -> None:
            self.check_ours()
            point(self.folder, path, progress)
            self.retention.apply(self.folder)

        self.ranks.first_does(name_it)

    def wait(self) -> None:
        """Wait for the save that is being written; raises what it failed with."""
        start_s = time.monotonic()
        running, self.running = self.running, None
        if running is not None:
            running.result()
        self.stalled_s += time.monotonic() - start_s

    def close(self) -> None:
        """Let a running save end, whatever becomes of it: training ends with an error already."""
        self.executor.shutdown()
