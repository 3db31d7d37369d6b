"""How much of its nodes' time a training turns into steps, where nodes come and go.

    python -m tests.benchmarks.goodput [--minutes 8] [--mean-s 90] [--seed 0] [--quick]

Real jobs on a Slurm of its own, with pretended nodes (slurm/dev_cluster.py; as root). Each system
trains the same network on the same crops, under the same drawn trace: urgent jobs that take some
nodes or all, and nodes that go dark (slurmd killed, all processes of the job there stopped). Slurm
sends SIGTERM, ten seconds before a preemption takes effect; it misses a dark node after 10 to 30 s.

  eosin       submit.py --nodes 1-N: takes what is free
  seed        our training saved once an epoch, in a script that ignores SIGTERM; always N nodes
  lightning   PyTorch Lightning, requeue_signal=SIGTERM and a checkpoint each epoch; always N nodes

goodput: steps that were never repeated x their undisturbed time on so many nodes / the time for
which the job had nodes. The undisturbed time is measured first, for each system by itself. All
nodes share this machine's cores, so more nodes need not be faster; the ratio does not mind. Nor
does it count the time in the queue: Slurm's pause of two minutes after a requeue is left out, and a
job that will not come back is submitted again at once. start-up (from the nodes to the end of the
first step) and signal to end (until the nodes are free) are medians. A network this small has
epochs of a minute or so; those of real trainings are longer, and then more is lost where only
epochs are saved.
"""

import argparse
import json
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.goodput.account import Account, Start, settle
from tests.benchmarks.goodput.player import Player, Watch
from tests.benchmarks.goodput.systems import SYSTEMS, Place, System, prepare
from tests.benchmarks.goodput.trace import Event, draw_trace
from tests.launch.dev_cluster import Cluster, why_not

HEADER = (
    "| system | starts | useful steps | lost steps | allocated s | goodput | start-up s"
    " | signal to end s | queued s | resubmitted | undisturbed s a step (nodes) |"
)


@dataclass(frozen=True)
class Result:
    """What a system made of the trace."""

    starts: list[Start]
    kept: int
    """The step from which it would have gone on."""
    queued_s: float
    resubmitted: list[str]
    step_s: dict[int, float]
    """Number of nodes -> undisturbed seconds a step."""

    @property
    def account(self) -> Account:
        """The sums."""
        return settle(self.starts, self.kept, self.step_s)


def main() -> None:
    """Print a table, and what it rests on."""
    options = parse()
    if missing := why_not():
        raise SystemExit(f"error: {missing}")
    trace = draw_trace(options.seed, 60 * options.minutes, options.mean_s, options.nodes)
    print(HEADER + "\n" + "| --- " * 11 + "|", flush=True)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = Cluster(folder / "slurm", port=options.port, size=options.nodes)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # then, too, the cluster goes down
        stack.callback(cluster.manage, "down")
        up = cluster.manage("up")
        if up.returncode:
            raise SystemExit(up.stderr)
        place = Place(cluster, prepare(folder), options.epoch_steps, folder / "libraries")
        for key in options.systems.split(","):
            result = measure(SYSTEMS[key], place, folder / key, options, trace)
            (folder / f"{key}.json").write_text(json.dumps(asdict(result), indent=1))
            print(row(SYSTEMS[key].name, result), flush=True)
    print(
        f"\nTrace of seed {options.seed} ({options.nodes} nodes, a mean of {options.mean_s:g} s):"
    )
    print("".join(f"- {event}\n" for event in trace))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.goodput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8, help="of the trace, per system (8)")
    parser.add_argument("--mean-s", type=float, default=90, help="between two events (90)")
    parser.add_argument("--seed", type=int, default=0, help="of the trace (0)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=",".join(SYSTEMS))
    parser.add_argument("--nodes", type=int, default=3, help="nodes of the cluster (3)")
    parser.add_argument("--epoch-steps", type=int, default=240, help="steps an epoch (240)")
    parser.add_argument("--undisturbed-s", type=float, default=20, help="measured first, each (20)")
    parser.add_argument("--quick", action="store_true", help="a minute, to try it")
    parser.add_argument("--folder", type=Path, help="keep all files here (a folder for the while)")
    parser.add_argument("--port", type=int, default=18300, help="first of nodes + 1 ports (18300)")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.mean_s, options.undisturbed_s = 1, 40, 5
    if unknown := set(options.systems.split(",")) - SYSTEMS.keys():
        parser.error(f"--systems: {', '.join(sorted(unknown))} unknown; {', '.join(SYSTEMS)}")
    return options


def measure(
    system: System, place: Place, folder: Path, options: argparse.Namespace, trace: list[Event]
) -> Result:
    """Train undisturbed on each number of nodes, then under the trace."""
    most = options.nodes
    counts = range(1, most + 1) if system.takes_what_is_free else [most]
    step_s = {}
    for number in counts:
        say(f"{system.name}: undisturbed on {number} nodes")
        step_s[number] = undisturbed(system, place, folder / str(number), number, options)
    say(f"{system.name}: under the trace; undisturbed {step_s}")
    run = folder / "run"
    nodes = f"1-{most}" if system.takes_what_is_free and most > 1 else str(most)
    watch = Watch(place.cluster, run, lambda: system.queue(place, run, nodes))
    began_s = Player(place.cluster, watch).play(trace)
    starts, resubmitted = list(watch.starts), list(watch.resubmitted)
    watch.until(lambda: any(start.signs for start in watch.starts[len(starts) :]), "the last start")
    kept = next(start.resumed for start in watch.starts[len(starts) :] if start.signs)
    watch.cancel()
    queued_s = starts[-1].end_s - began_s - sum(start.end_s - start.begin_s for start in starts)
    return Result(starts, kept, queued_s, resubmitted, step_s)


def undisturbed(
    system: System, place: Place, run: Path, num_nodes: int, options: argparse.Namespace
) -> float:
    """Return the seconds of a step, from the second step on."""
    watch = Watch(place.cluster, run, lambda: system.queue(place, run, str(num_nodes)))

    def signs() -> list[tuple[float, int]]:
        if watch.resubmitted:
            raise SystemExit(f"{system.name}: {watch.resubmitted[0]} undisturbed; see {run}*")
        return [sign for start in watch.starts for sign in start.signs if sign[1] > 1]

    def is_measured() -> bool:
        found = signs()
        return len(found) > 1 and found[-1][0] - found[0][0] >= options.undisturbed_s

    watch.until(is_measured, "its steps")
    watch.cancel()
    (first_s, first), (last_s, last) = signs()[0], signs()[-1]
    return (last_s - first_s) / (last - first)


def row(name: str, result: Result) -> str:
    """A line of the table."""
    account, about = result.account, ", ".join(sorted(set(result.resubmitted)))
    cells = [
        name,
        str(len(result.starts)),
        str(account.useful),
        str(account.lost),
        f"{account.allocated_s:.0f}",
        f"{account.goodput:.1%}",
        f"{account.start_up_s:.1f}",
        f"{account.leaving_s:.1f}",
        f"{result.queued_s:.0f}",
        f"{len(result.resubmitted)} ({about})" if about else "0",
        ", ".join(f"{step_s:.3f} ({number})" for number, step_s in result.step_s.items()),
    ]
    return f"| {' | '.join(cells)} |"


def say(message: str) -> None:
    """Tell how far it is."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
