"""What the same bits cost: a training step in each `reproducible` mode beside plain DDP.

    python -m tests.benchmarks.reproducible [--ranks 2,3,4,6] [--each 2,3] [--size-px 128]

The default network, Adam, one crop a microbatch. A rank that computes 2 microbatches sends one sum,
as in an all-reduce; most ranks that compute 3 must send two. Plain DDP is written here, as its
users write it: all-reduce, no_sync between microbatches, no deterministic algorithms.
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from common import command_line
from common.stop_request import StopRequest
from data_prep.dataset.manifest import read_dataset
from model import build_model
from tests import ranks as real_ranks
from tests.benchmarks.side_by_side import compare, interleaved, is_rank, under_torchrun
from train.config import TrainConfig
from train.crops.loader import Microbatch
from train.loop.trainer import Trainer
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.lock import RunLock
from train.ranks.tree import portions

MODES = ("elastic", "off")


def main() -> None:
    """Print a table of seconds a step and ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.reproducible",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", default="2,3,4,6", help="numbers of ranks (2,3,4,6)")
    parser.add_argument("--each", default="2,3", help="microbatches of each rank (2,3)")
    parser.add_argument("--size-px", type=int, default=128, help="side of a crop (128)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each mode, interleaved (5)")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if is_rank():
        measure(options)
        return
    print("| ranks | microbatches | sums sent | plain DDP, s a step | elastic | off |", flush=True)
    print("| --- " * 6 + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        given = ["--size-px", str(options.size_px), "--rounds", str(options.rounds)]
        for number, each in product(options.ranks.split(","), options.each.split(",")):
            more = ["--each", each, "--data", folder]
            under_torchrun(__spec__.name, int(number), [*given, *more])


def prepare(folder: Path, *more: str) -> None:
    """A data set, which a trainer must have; the steps measured here get fixed tensors."""
    real_ranks.run("data_prep.synthetic", f"out={folder / 'raw'}", "fields=2", "cases=4")
    settings = ["copies=4", "split.val=0", "split.test=0", *more]
    real_ranks.run("data_prep", f"raw={folder / 'raw'}", f"out={folder / 'prepared'}", *settings)


def measure(options: argparse.Namespace) -> None:
    """On every rank: a trainer for each mode, and plain DDP."""
    folder, each = Path(options.data), int(options.each)
    with start_ranks("cpu") as ranks:
        microbatch = fixed_microbatch(options.size_px)
        ways: dict[str, Any] = {"plain": PlainDDP(ranks, each, microbatch).step}
        for mode in MODES:
            ways[mode] = trainer(mode, folder, ranks, each, microbatch).train_step
        seconds = interleaved(ways, options.rounds, ranks)
        if ranks.is_first:
            rows = compare(seconds, "plain")
            ratios = " | ".join(f"{ratio - 1:+.1%}" for _, _, ratio in rows[1:])
            number = each * ranks.world_size
            sums = sum(len(portion.subtrees) for portion in portions(number, ranks.world_size))
            about = f"| {ranks.world_size} | {number} | {sums} | {rows[0][1]:.2f}"
            print(f"{about} | {ratios} |", flush=True)


def fixed_microbatch(size_px: int) -> Microbatch:
    """A crop and its mask, as the loader gives them."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, size_px, size_px)
    image_BHWC = torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=generator)
    mask_BHW = 255 * torch.randint(2, shape, dtype=torch.uint8, generator=generator)
    return image_BHWC, mask_BHW


def trainer(mode: str, folder: Path, ranks: Ranks, each: int, microbatch: Microbatch) -> Trainer:
    """A run's own trainer, fed with fixed tensors."""
    number = each * ranks.world_size
    run = folder / f"{mode}-{ranks.world_size}-{each}"
    given = [f"data={folder / 'prepared'}", f"run={run}", f"reproducible={mode}"]
    given += [f"batch_size={number}", f"microbatches={number}"]
    alike = ["amp=off", "memory_format=contiguous", "log_every_steps=1000"]  # as plain DDP has it
    config = command_line.load(TrainConfig, [*given, *alike])
    made = Trainer(config, read_dataset(Path(config.data)), ranks, StopRequest(), RunLock(run))
    made.monitor = Silent()  # type: ignore[assignment]
    made.next_microbatch = lambda: microbatch  # type: ignore[method-assign]

    original = made.train_step

    def step() -> None:
        torch.use_deterministic_algorithms(mode != "off", warn_only=True)
        original()

    made.train_step = step  # type: ignore[method-assign]
    return made


class Silent:
    """A monitor that writes nothing."""

    def step(self) -> None:
        """One more step is done."""


class PlainDDP:
    """The same network and batch, by the book."""

    def __init__(self, ranks: Ranks, each: int, microbatch: Microbatch) -> None:
        self.model = build_model(TrainConfig().model, 1)
        if ranks.world_size > 1:
            self.model = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)
        self.num_mine = each
        image_BHWC, mask_BHW = microbatch
        self.image = image_BHWC.permute(0, 3, 1, 2).contiguous().float() / 255
        self.target = (mask_BHW[:, None] > 0).float()

    def step(self) -> None:
        """Gradients of this rank's microbatches, the last of them reduced; an update."""
        torch.use_deterministic_algorithms(False)
        for number in range(self.num_mine):
            is_last = number == self.num_mine - 1
            if is_last or not isinstance(self.model, DistributedDataParallel):
                self.backward()
            else:
                with self.model.no_sync():
                    self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self) -> None:
        """One microbatch."""
        logits = self.model(self.image)
        loss = F.binary_cross_entropy_with_logits(logits, self.target)
        torch.autograd.backward(loss / self.num_mine)


if __name__ == "__main__":
    main()
