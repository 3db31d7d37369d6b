"""How cost grows with ranks and fields: the measured figures of docs/scale.md.

    python -m tests.benchmarks.scale ranks [--num 2,4,8,16]    descriptors, threads, bytes, seconds
    python -m tests.benchmarks.scale store [--num 100,1000]    requests that rank 0's store answers
    python -m tests.benchmarks.scale shares [--num 8,1000]     Python's part of a step and a save
    python -m tests.benchmarks.scale fields [--num 1000,5000] [--variants 1]
    python -m tests.benchmarks.scale samples [--num 16000,80000]

Counts and bytes are exact. Seconds of fields, samples and shares are the CPU's, so that other work
on the machine disturbs them little.
"""

import argparse
import os
import re
import shutil
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import TCPStore
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.scale_data import in_a_child, measure_fields, measure_samples
from train.checkpoints.checkpoint_files import COMPLETE
from train.checkpoints.save_checkpoint import save_checkpoint, tensors_of_rank
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.gradients import TreeGradients
from train.ranks.tree import portions

MILLION = 1 << 20
BYTES_SENT = 200  # offset of tcpi_bytes_sent in Linux's struct tcp_info


def main() -> None:
    """Measure one thing for several numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["ranks", "store", "shares", "fields", "samples"])
    parser.add_argument("--num", default="", help="numbers of ranks, fields or samples")
    parser.add_argument("--variants", type=int, default=1, help="of each field (1)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    measure: dict[str, tuple[str, str, Callable[[int], None]]] = {
        "ranks": ("2,4,8,16", RANKS_HEAD, lambda num: measure_ranks(num, folder)),
        "store": ("100,1000", "| ranks | requests | seconds |", measure_store),
        "shares": ("8,1000", "| ranks | portions, ms | tensors_of_rank, ms |", share_costs),
        "fields": ("1000,5000", DATA_HEAD, lambda n: measure_fields(folder, n, options.variants)),
        "samples": ("16000,80000", DATA_HEAD, lambda n: measure_samples(folder / "set", n)),
    }
    numbers, head, work = measure[options.what]
    print(f"{head}\n{'| --- ' * (head.count('|') - 1)}|", flush=True)
    try:
        for num in map(int, (options.num or numbers).split(",")):
            in_a_child(lambda num=num: work(num))  # type: ignore[misc]
            shutil.rmtree(folder)
            folder.mkdir()
    finally:
        shutil.rmtree(folder)


DATA_HEAD = "| stage | of | CPU, s | us each | memory, MB | bytes each |"
RANKS_HEAD = (
    "| ranks | start, s | descriptors of a rank | of rank 0 | threads | memory, MB | tree, sent a"
    " rank | all-reduce, sent | tree, s | all-reduce, s | max, ms | collectives a save | files"
    " | COMPLETE, bytes |"
)


def measure_ranks(num: int, folder: Path) -> None:
    """Fork as many ranks, which all measure; rank 0 prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_s = time.perf_counter()
    children = []
    for rank in range(num):
        if not (child := os.fork()):
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num)}
            as_a_rank(folder, start_s)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


def as_a_rank(folder: Path, start_s: float) -> None:
    """Start, make the second group, exchange, save; print on rank 0."""
    torch.set_num_threads(1)
    with start_ranks("cpu", 600) as ranks:
        beside = ranks.beside(600)
        ranks.max([0])
        beside.max([0])
        row: list[Any] = [ranks.world_size, time.perf_counter() - start_s]
        opened = ranks.gather(len(os.listdir("/proc/self/fd")))
        row += [max(opened[1:]), opened[0], len(os.listdir("/proc/self/task"))]
        status = Path("/proc/self/status").read_text()
        row.append(int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1e3)
        ways = {"tree": stepper(ranks, True), "all-reduce": stepper(ranks, False)}
        row += [sent_by(step, ranks) for step in ways.values()]
        times: dict[str, list[float]] = {"tree": [], "all-reduce": [], "max": []}
        for _ in range(5):
            for name, way in [*ways.items(), ("max", lambda: ranks.max([0, 0, 0, 0]))]:
                ranks.max([0])
                begin_s = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - begin_s)
        row += [statistics.median(times[name]) for name in ("tree", "all-reduce")]
        row.append(1e3 * statistics.median(times["max"]))
        row += saved(beside, folder)
        if ranks.is_first:
            cells = [f"{cell:.3f}" if isinstance(cell, float) else f"{cell}" for cell in row]
            print(f"| {' | '.join(cells)} |", flush=True)


def stepper(ranks: Ranks, is_tree: bool) -> Callable[[], None]:
    """A step of DDP with a million parameters in one tensor: a backward pass, and no other work."""
    model = nn.Linear(1024, 1024, bias=False)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    gradients = TreeGradients(model, ranks.world_size, ranks)
    if is_tree:
        gradients.attach(parallel)
    batch = torch.ones(1, 1024)

    def step() -> None:
        parallel(batch).sum().backward()
        gradients.microbatch_done()

    step()
    return step


def sent_by(work: Callable[[], None], ranks: Ranks) -> int:
    """Bytes that this rank's sockets send for something, the most of all ranks."""
    ranks.max([0])
    time.sleep(0.2)
    before = bytes_sent()
    work()
    ranks.max([0])  # a few hundred bytes more
    return max(ranks.gather(bytes_sent() - before))


def bytes_sent() -> int:
    """What all TCP sockets of this process have sent."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(entry))) as copy:
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # no socket, or not of TCP
            continue
        total += struct.unpack_from("Q", info, BYTES_SENT)[0]
    return total


def saved(ranks: Ranks, folder: Path) -> list[Any]:
    """Save 300 small tensors; collectives of a save, files, and bytes of COMPLETE."""
    tensors = {f"layer.{number}.weight": torch.ones(number + 1) for number in range(300)}
    mine = tensors_of_rank(tensors, ranks.rank, ranks.world_size)
    counted = Counted()
    with counted:
        path = save_checkpoint(folder, 1, mine, {}, "", ranks)
    return [counted.num, len(os.listdir(path)), (path / COMPLETE).stat().st_size]


class Counted:
    """Counts the collectives that this process calls."""

    NAMES = ("all_gather", "all_reduce", "broadcast", "gather", "scatter")

    def __init__(self) -> None:
        self.num, self.real = 0, {}  # type: int, dict[str, Any]

    def __enter__(self) -> None:
        module = dist.distributed_c10d
        for name in self.NAMES:
            self.real[name] = getattr(module, name)
            setattr(module, name, self.counting(self.real[name]))

    def counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def called(*args: Any, **kwargs: Any) -> Any:
            self.num += 1
            return real(*args, **kwargs)

        return called

    def __exit__(self, *error: object) -> None:
        for name, real in self.real.items():
            setattr(dist.distributed_c10d, name, real)


def measure_store(num: int) -> None:
    """Ask the store as the heartbeats of `num` ranks do, from eight threads."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    each = 20 * num // 8

    def ask(own: TCPStore) -> None:
        for number in range(each):
            own.add(f"beat/{number % num}", 1)

    threads = [threading.Thread(target=ask, args=(store.clone(),)) for _ in range(8)]
    start_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"| {num} | {8 * each} | {time.perf_counter() - start_s:.2f} |", flush=True)


def share_costs(num: int) -> None:
    """Time what a rank plans by itself: its microbatches, and its tensors at each save."""
    tensors = {f"layer.{number}": torch.ones(number + 1) for number in range(300)}
    start_s = time.process_time()
    portions(4 * num, num)  # once: kept for the rest of the run
    middle_s = time.process_time()
    for _ in range(10):
        tensors_of_rank(tensors, num - 1, num)
    planned, shared = (middle_s - start_s) * 1e3, (time.process_time() - middle_s) / 10 * 1e3
    print(f"| {num} | {planned:.1f} | {shared:.2f} |", flush=True)


if __name__ == "__main__":
    main()
