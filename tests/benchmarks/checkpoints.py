"""What a checkpoint costs: how long training stands still, beside torch.save of the same state.

    python -m tests.benchmarks.checkpoints [--ranks 1,2] [--rounds 7] [--device cpu]

The default network with Adam's moments. In the background a save is copied while the next step
computes gradients (here of one crop of 128 px); what counts is what the step waits for. torch.save
is what a script does: rank 0 writes one file and syncs it while the others wait.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.precision import choose_precision
from tests.benchmarks.side_by_side import compare, interleaved, is_rank, under_torchrun
from train.checkpoints.interval import SHORTEST_S
from train.checkpoints.saver import Saver
from train.checkpoints.state import State
from train.checkpoints.upkeep import Retention
from train.config import TrainConfig
from train.loop.initial_state import build_state
from train.ranks.distributed import Ranks, start_ranks


def main() -> None:
    """Print a table: seconds, and ratios to torch.save."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.checkpoints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks (1,2)")
    parser.add_argument("--rounds", type=int, default=7, help="saves of each kind (7)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; a rank a GPU (cpu)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if is_rank():
        measure(options.rounds, options.device)
        return
    print("| ranks | way | training stands still, s | of torch.save | until published, s |")
    print("| --- " * 5 + "|", flush=True)
    for number in map(int, options.ranks.split(",")):
        given = ["--rounds", str(options.rounds), "--device", options.device]
        under_torchrun(__spec__.name, number, given)


def measure(rounds: int, device: str) -> None:
    """On every rank: the three ways in turn."""
    with start_ranks(device) as ranks:
        torch.set_num_threads(1)
        folder = Path(ranks.first_does(tempfile.mkdtemp))
        state = trained_state(ranks.device)
        blocking = Saver(state, folder / "blocking", Retention(1), "", ranks, False)
        own = ranks.beside(600)
        background = Saver(state, folder / "async", Retention(1), "", own, True)
        written_s: list[float] = []

        def save_in_background() -> float:
            start_s, before_s = time.perf_counter(), background.stalled_s
            background.save()
            gradients(state, ranks.device)
            background.wait_for_copy()
            stalled_s = background.stalled_s - before_s
            background.wait()
            written_s.append(time.perf_counter() - start_s)
            return stalled_s

        ways: dict[str, Callable[[], float | None]] = {
            "torch.save": lambda: plain_save(state, folder, ranks),
            "checkpoint=blocking": blocking.save,
            "checkpoint=async": save_in_background,
        }
        seconds = interleaved(ways, rounds, ranks)
        if ranks.is_first:
            tell(seconds, statistics.median(written_s[1:]), ranks)
        for saver in (blocking, background):
            saver.close()
        ranks.first_does(lambda: shutil.rmtree(folder))


def trained_state(device: torch.device) -> State:
    """The default network after a step of Adam, so that there are moments."""
    precision = choose_precision(device, "off", "contiguous")
    state = build_state(TrainConfig(data="", run=""), 1, precision)
    for parameter in state.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.progress.step = 1
    return state


def gradients(state: State, device: torch.device) -> None:
    """What a step computes before its update: here of one small crop."""
    state.model(torch.zeros(1, 3, 128, 128, device=device)).sum().backward()
    state.optimizer.zero_grad()


def plain_save(state: State, folder: Path, ranks: Ranks) -> None:
    """What a script does."""
    if ranks.is_first:
        with (folder / "plain.pt").open("wb") as file:
            torch.save(state.tensors(), file)
            file.flush()
            os.fsync(file.fileno())
    ranks.max([0])  # the others wait


def tell(seconds: dict[str, list[float]], written_s: float, ranks: Ranks) -> None:
    """The rows of the table."""
    for name, median_s, ratio in compare(seconds, "torch.save"):
        until = written_s if name == "checkpoint=async" else median_s
        print(f"| {ranks.world_size} | {name} | {median_s:.3f} | {ratio:.0%} | {until:.2f} |")
    stall_s = statistics.median(seconds["checkpoint=async"])
    print(
        f"| {ranks.world_size} | async, of the training time at save_every_s={SHORTEST_S:.0f}"
        f" | {stall_s / SHORTEST_S:.3%} | | |",
        flush=True,
    )


if __name__ == "__main__":
    main()
