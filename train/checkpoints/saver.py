"""Save checkpoints while training goes on: a thread copies the state and writes the copy.

The thread copies while the next step computes its gradients, which does not change the state; the
step waits for the copy before it updates the weights. The threads of all ranks talk through a
process group of their own. One save runs at a time: the next one waits for it. An error in the
thread is raised at the next step.
"""

import importlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoints.digests import named_tensors
from train.checkpoints.interval import SaveCost
from train.checkpoints.save_checkpoint import save_checkpoint, tensors_of_rank
from train.checkpoints.state import State, set_pointers
from train.checkpoints.upkeep import Retention
from train.ranks.distributed import Ranks


class Saver:
    """Saves a run's state. `save`, `wait_for_copy`, `wait` and `close` are collective."""

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
        """`ranks`: in the background, those with a process group of their own (`Ranks.beside`).

        `check_ours`: see `save_checkpoint`.
        """
        self.state, self.folder, self.retention = state, folder, retention
        self.config_sha256, self.ranks, self.in_background = config_sha256, ranks, in_background
        self.check_ours = check_ours
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.running: Future[None] | None = None
        self.copied = threading.Event()
        self.copied.set()
        self.copies: dict[str, Tensor] = {}
        """Memory for the copies, by name of tensor, allocated once."""
        self.stalled_s = 0.0
        """Seconds for which training waited for saves."""
        self.requested_s = self.stalled_before_s = 0.0
        """The clock, and `stalled_s`, when the last save was requested."""
        self.num_bytes = 0
        self.write_s: float | None = None
        """See `SaveCost`; None until the last save is published."""
        self.ready: Future[Any] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a save is still being written."""
        return self.running is not None and not self.running.done()

    @property
    def has_failed(self) -> bool:
        """Whether a save has failed; `wait` raises its error."""
        running = self.running
        return running is not None and running.done() and running.exception() is not None

    @property
    def cost(self) -> SaveCost | None:
        """What the last save cost; None before the first one, and while one is written."""
        if self.write_s is None:
            return None
        return SaveCost(self.num_bytes, self.stalled_s - self.stalled_before_s, self.write_s)

    def get_ready(self) -> None:
        """Import in the thread what a save needs, so that a signal's save need not; once.

        It takes a second, and on a cold file system far longer.
        """
        if self.ready is None:
            self.ready = self.executor.submit(
                importlib.import_module, "torch.distributed.checkpoint"
            )

    def save(self) -> None:
        """Save the state as it is now. In the background, it is written some time after the return.

        Call `wait_for_copy` before the state changes.
        """
        self.wait()
        self.requested_s, self.stalled_before_s = time.monotonic(), self.stalled_s
        self.write_s = None
        of_all = dict(named_tensors(self.state.tensors()))
        self.num_bytes = sum(tensor.nbytes for tensor in of_all.values())
        tensors = tensors_of_rank(of_all, self.ranks.rank, self.ranks.world_size)
        progress = self.state.snapshot()
        if self.in_background:
            self.copied.clear()
            self.running = self.executor.submit(self.copy_and_write, tensors, progress)
        else:
            self.write(tensors, progress)
        self.stalled_s += time.monotonic() - self.requested_s

    def wait_for_copy(self) -> None:
        """Wait until the state may change again."""
        start_s = time.monotonic()
        self.copied.wait()
        self.stalled_s += time.monotonic() - start_s

    def copy_and_write(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Copy this rank's tensors, and write the copies; runs in the thread."""
        try:
            self.copy(tensors)
        finally:
            self.copied.set()
        self.write(self.copies, progress)

    def copy(self, tensors: dict[str, Tensor]) -> None:
        """Copy tensors into memory that the next steps do not change."""
        for name, tensor in tensors.items():
            if name not in self.copies:
                self.copies[name] = torch.empty_like(
                    tensor, device="cpu", pin_memory=tensor.is_cuda
                )
            self.copies[name].copy_(tensor, non_blocking=True)
        if self.ranks.device.type == "cuda":
            # in a new thread the current device is GPU 0, not this rank's
            torch.cuda.synchronize(self.ranks.device)

    def write(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Publish a checkpoint, set `latest` and `best`, and remove old checkpoints."""
        path = save_checkpoint(
            self.folder,
            progress["step"],
            tensors,
            progress,
            self.config_sha256,
            self.ranks,
            self.check_ours,
        )

        def update_folder() -> None:
            self.check_ours()
            set_pointers(self.folder, path, progress)
            self.retention.apply(self.folder)

        self.ranks.first_does(update_folder)
        self.write_s = time.monotonic() - self.requested_s

    def wait(self) -> None:
        """Wait for the save that is running. Raises its error if it has failed."""
        start_s = time.monotonic()
        running, self.running = self.running, None
        if running is not None:
            running.result()
        self.stalled_s += time.monotonic() - start_s

    def close(self) -> None:
        """Wait for a running save, and ignore its error: training ends with an error already."""
        self.executor.shutdown()
