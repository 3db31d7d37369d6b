"""What a GPU trains: crops a second and the share of its time that it waits for them, by settings.

    python -m tests.benchmarks.gpu [--preset unet] [--rounds 5] [--steps 20] [set=value ...]

Takes turns, in one process, at steps of the real trainer with its loader (drawn fields, a pack),
and at a plain loop: the same network and batch by the book, in bf16, on tensors that lie on the GPU
already. Settings given go to all of the trainers.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from common import command_line
from common.stop_request import StopRequest
from data_prep.dataset.manifest import read_dataset
from model import build_model
from model.layers import MicrobatchNorm2d
from tests.benchmarks.reproducible import Silent, prepare
from tests.benchmarks.side_by_side import compare, interleaved
from train.config import PRESETS, TrainConfig
from train.crops.loader import load_microbatches
from train.loop.batch import resolve_batch
from train.loop.determinism import be_deterministic
from train.loop.trainer import Trainer
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.lock import RunLock
from train.runs.open_run import open_run

DEFAULT = "as it is"
WAYS = {
    DEFAULT: [],
    "amp=fp16": ["amp=fp16"],
    "amp=off": ["amp=off"],
    "memory_format=contiguous": ["memory_format=contiguous"],
    "reproducible=off": ["reproducible=off"],
    "microbatches=4": ["microbatches=4"],
    "loader_workers=0": ["loader_workers=0"],
    "loader_workers=4": ["loader_workers=4"],
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="unet", help="of train (unet)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (5)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn (20)")
    parser.add_argument("settings", nargs="*", help="for all of the trainers")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here")
    with tempfile.TemporaryDirectory() as name, start_ranks("cuda") as ranks:
        folder = Path(name)
        prepare(folder, "pack=true")
        given = [f"preset={options.preset}", "model.weights=none", "encoder_lr_factor=1"]
        given += options.settings
        turns = {
            name: Turn(trainer(folder, name, [*given, *settings], ranks), options.steps)
            for name, settings in WAYS.items()
        }
        plain = PlainLoop(turns[DEFAULT].trainer.config, options.steps)
        ways: dict[str, Callable[[], float | None]] = {"a plain loop": plain.turn}
        ways |= {name: turn.take for name, turn in turns.items()}
        seconds = interleaved(ways, options.rounds)
        size = turns[DEFAULT].trainer.config.batch.size
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, preset={options.preset}")
        print("\n| way | crops a second | times the plain loop | waits for data |")
        print("| --- " * 4 + "|")
        for name, median_s, ratio in compare(seconds, "a plain loop"):
            rate = size * options.steps / median_s
            waits = f"{statistics.median(turns[name].waited[1:]):.1%}" if name in turns else ""
            print(f"| {name} | {rate:.0f} | {1 / ratio:.2f} | {waits} |", flush=True)
        for turn in turns.values():
            turn.trainer.microbatches.close()
            turn.trainer.saver.close()


def trainer(folder: Path, name: str, settings: Sequence[str], ranks: Ranks) -> Trainer:
    """A run's own trainer with its loader, whose monitor writes nothing."""
    run = folder / name
    given = [f"data={folder / 'prepared'}", f"run={run}", "epochs=100000", *settings]
    config = command_line.load(
        TrainConfig, [*given, "log_every_steps=1000000"], preset_folder=PRESETS
    )
    dataset = read_dataset(Path(config.data))
    config, _ = open_run(resolve_batch(config, ranks.world_size, None), dataset, ranks.device)
    made = Trainer(config, dataset, ranks, StopRequest(), RunLock(run))
    made.monitor = Silent()  # type: ignore[assignment]
    made.microbatches = load_microbatches(made.crops, config, ranks, 0)
    return made


@dataclass
class Turn:
    """Some steps of a trainer at a time."""

    trainer: Trainer
    num_steps: int
    waited: list[float] = field(default_factory=list)
    """Of each turn, the share of its time that waited for data."""

    def take(self) -> float:
        """Seconds of so many steps, from an idle GPU to an idle GPU."""
        torch.use_deterministic_algorithms(False)
        be_deterministic(self.trainer.config)
        self.trainer.train_step()  # after the others' turns, the loader is ahead
        self.trainer.interval = self.trainer.new_interval()
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        for _ in range(self.num_steps):
            self.trainer.train_step()
        torch.cuda.synchronize()
        taken_s = time.perf_counter() - start_s
        self.waited.append(self.trainer.interval.waited_s / taken_s)
        return taken_s


class PlainLoop:
    """The same network and batch, by the book."""

    def __init__(self, config: TrainConfig, num_steps: int) -> None:
        self.num_steps = num_steps
        self.model = build_model(config.model, 1).cuda().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        size = config.crop.size_px
        image = torch.rand(config.batch.size, 3, size, size, device="cuda")
        self.image = image.to(memory_format=torch.channels_last)
        self.target = (image[:, :1] > 0.5).float()

    def turn(self) -> float:
        """Seconds of so many steps."""
        torch.use_deterministic_algorithms(False)
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        for _ in range(self.num_steps):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                logits = self.model(self.image)
            loss = F.binary_cross_entropy_with_logits(logits, self.target)
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            for module in self.model.modules():  # a step's statistics, which trainers take
                if isinstance(module, MicrobatchNorm2d):
                    module.step_statistics.clear()
        torch.cuda.synchronize()
        return time.perf_counter() - start_s


if __name__ == "__main__":
    main()
