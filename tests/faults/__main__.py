"""Disturb many trainings at random and print what became of them.

python -m tests.faults --runs 300 --seed 1 [--kinds "SIGKILL,disk"]
python -m tests.faults --each-instant     instead, a SIGKILL at each write, fsync and rename
python -m tests.faults --ranks 1,3,4,2    instead, one run killed on 1, 3 and 4 ranks, ended on 2
"""

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from common import seeds
from common.command_line import UserError
from tests.faults.faults import FAULTS, Reference, Trial, can_mount, fill_disk, random_trial
from tests.faults.rank import Instant
from tests.faults.training import Launch, digests, passed_instants
from tests.forked_ranks import ForkedRanks, Lost
from train.checkpoints.published import published_checkpoints, step_of


def main() -> int:
    """Print a table; exit code 1 where a run was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=25, help="faults, one a run (25)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (0)")
    parser.add_argument("--kinds", default="", help="only faults with one of these in their name")
    parser.add_argument("--each-instant", action="store_true", help="every named instant once")
    parser.add_argument("--ranks", default="", help="of one run, killed on all but the last")
    parser.add_argument("--amp", default="off", help="off or bf16 (off)")
    options = parser.parse_args()
    wanted = options.kinds.split(",")
    kinds = [kind for kind in FAULTS if any(part in kind for part in wanted)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not can_mount(folder / "disk"):
            kinds = [kind for kind in kinds if FAULTS[kind] is not fill_disk]
            print("left out: a full disk (mounting a small one takes root)")
        reference = make_reference(folder / "reference", options.amp)
        if options.ranks:
            lost = change_ranks([int(n) for n in options.ranks.split(",")], folder, reference)
        elif options.each_instant:
            lost = kill_at_each_instant(folder, reference)
        else:
            lost = disturb(kinds, range(options.runs), options.seed, folder, reference)
    return 1 if lost else 0


def disturb(
    kinds: Sequence[str], numbers: range, seed: int, folder: Path, reference: Reference
) -> list[str]:
    """Disturb a run for each number, the kinds in turn; prints a table, returns what was lost."""
    tried: Counter[str] = Counter()
    repeated = defaultdict(list)
    lost = []
    for number in tqdm(numbers, unit="fault", disable=not sys.stderr.isatty()):
        kind = kinds[number % len(kinds)]
        tried[kind] += 1
        try:
            place = folder / str(number)
            repeated[kind].append(random_trial(kind, number, seed, place, reference))
            shutil.rmtree(place)
        except (Lost, UserError) as reason:
            lost.append(f"{kind}, number {number}: {reason}")
            tqdm.write(f"LOST {lost[-1]}")
    print(table(kinds, tried, repeated))
    return lost


def kill_at_each_instant(folder: Path, reference: Reference) -> list[str]:
    """Kill rank 0, and another, once at each of the instants it comes by; prints a line each."""
    lost = []
    for is_first, counts in reference.instants.items():
        for number, (name, count) in enumerate(counts.items()):
            place = folder / f"{is_first}{number}"
            place.mkdir()
            rng = seeds.generator(number, "instant", is_first)
            trial = Trial(place / "run", place, reference, rng)
            try:
                kill_at(trial, 0 if is_first else 1, name, count)
                print(f"rank {0 if is_first else 1}, {name}: {trial.finish()} steps repeated")
            except (Lost, UserError) as reason:
                lost.append(f"{name}: {reason}")
                print(f"LOST {lost[-1]}")
            shutil.rmtree(place)
    return lost


def kill_at(trial: Trial, rank: int, name: str, count: int) -> None:
    """Kill a rank at an instant that a run came by so often. Raises Lost where it is not killed."""
    # not the first time only: then there would be nothing to lose
    for passing in (count // 2, 0):
        codes = trial.start((rank, Instant(name, passing))).end()
        if -signal.SIGKILL in codes:
            return
        # busy with other things, a machine saves less often: then the first time
        shutil.rmtree(trial.run)
    raise Lost(f"was not killed: exit codes {codes}")


def change_ranks(world_sizes: Sequence[int], folder: Path, reference: Reference) -> list[str]:
    """Kill a run on each number of ranks but the last, on which it must end like the others."""
    trial = Trial(folder / "run", folder, reference, seeds.generator(0, "ranks"))
    for trial.world_size in world_sizes[:-1]:
        before = resumable_step(trial)
        launch = trial.start()
        launch.wait_for(lambda before=before: resumable_step(trial) >= before + 2)
        launch.send(trial.world_size - 1, signal.SIGKILL)
        launch.end()
        print(f"on {trial.world_size} ranks from step {before} to {resumable_step(trial)}, killed")
    trial.world_size = world_sizes[-1]
    trial.start().finish()
    print(f"on {trial.world_size} ranks to the end")
    found = digests(trial.run)
    print("\n".join(["undisturbed, on 2 ranks:", *reference.digests, "this run:", *found]))
    return [] if found == reference.digests else ["another end"]


def resumable_step(trial: Trial) -> int:
    """The step of the newest checkpoint."""
    return max([0, *(step_of(path) for path in published_checkpoints(trial.run / "checkpoints"))])


def table(kinds: Sequence[str], tried: Counter[str], repeated: dict[str, list[int]]) -> str:
    """A line a fault: times tried, runs lost, steps repeated."""
    lines = ["| fault | tried | lost | steps repeated: median | most |", "| --- " * 5 + "|"]
    for kind in kinds:
        steps = repeated[kind]
        middle = f"{statistics.median(steps):g} | {max(steps)}" if steps else "- | -"
        lines.append(f"| {kind} | {tried[kind]} | {tried[kind] - len(steps)} | {middle} |")
    every = [count for steps in repeated.values() for count in steps]
    total = sum(tried.values())
    middle = f"{statistics.median(every):g} | {max(every)}" if every else "- | -"
    return "\n".join([*lines, f"| all | {total} | {total - len(every)} | {middle} |"])


def make_reference(folder: Path, amp: str) -> Reference:
    """Draw and prepare a small data set, and train on it undisturbed."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, data = folder / "raw", folder / "prepared"
    size = ["fields=2", "cases=3", "width_px=192", "height_px=192"]
    ForkedRanks("data_prep.synthetic", [f"out={raw}", *size], 1, folder / "log").finish()
    split = ["split.val_cases=[3]", "split.test=0", "copies=4", "workers=1"]
    arguments = [f"raw={raw}", f"out={data}", *split]
    ForkedRanks("data_prep.__main__", arguments, 1, folder / "log").finish()
    launch = Launch(folder / "run", data, folder, world_size=2, amp=f"amp={amp}")
    launch.finish()
    instants = {rank == 0: passed_instants(launch, rank) for rank in range(2)}
    return Reference(data, amp, digests(folder / "run"), instants)


if __name__ == "__main__":
    sys.exit(main())
