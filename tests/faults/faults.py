"""What is done to a training on purpose, and what it must make of that.

A fault disturbs a training that runs, waits for its end and checks what it said. Whatever it was,
`Trial` then starts the same command on another number of ranks: it must end with the bits of an
undisturbed run, or the run is lost.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import seeds
from common.command_line import EXIT_STOPPED
from tests.faults.rank import Instant
from tests.faults.training import NUM_STEPS, Launch, digests, resumed_at, step
from tests.forked_ranks import Lost
from train.checkpoints.published import published_checkpoints
from train.checkpoints.upkeep import clean_up_after_kills

WORLD_SIZES = (1, 2, 3, 4)
DISK_BYTES = 16_000_000


@dataclass
class Reference:
    """An undisturbed run, and what its ranks came by."""

    data: Path
    amp: str
    digests: list[str]
    instants: dict[bool, dict[str, int]]
    """Of rank 0 (True) and of the others: name -> how often."""


@dataclass
class Trial:
    """One run, one fault."""

    run: Path
    logs: Path
    reference: Reference
    rng: np.random.Generator
    world_size: int = 2
    must_repeat_nothing: bool = False

    def start(self, fatal: tuple[int, Instant] | None = None) -> Launch:
        """Start the training that is to be disturbed."""
        amp = f"amp={self.reference.amp}"
        return Launch(self.run, self.reference.data, self.logs, self.world_size, amp, fatal)

    def start_and_wait(self, first_step: int = 0) -> Launch:
        """Start it, and wait for a random moment from a step on."""
        launch = self.start()
        moment = int(self.rng.integers(first_step, NUM_STEPS))
        launch.wait_for(lambda: step(self.run) >= moment)
        until = time.monotonic() + self.rng.uniform(0, 0.3)
        launch.wait_for(lambda: time.monotonic() > until)
        return launch

    def any_rank(self) -> int:
        """A rank, at random."""
        return int(self.rng.integers(self.world_size))

    def finish(self) -> int:
        """Start again on another number of ranks, to the end; returns how many steps it repeated.

        Raises Lost where the end is not that of the undisturbed run.
        """
        before = step(self.run)
        others = [size for size in WORLD_SIZES if size != self.world_size]
        self.world_size = int(self.rng.choice(others))
        last = self.start()
        output = last.finish()
        found = digests(self.run)
        if found != self.reference.digests:
            raise Lost(f"ended with {found}, not {self.reference.digests}:\n{output}")
        repeated = 0 if "is finished" in output else max(0, before - resumed_at(output))
        if repeated and self.must_repeat_nothing:
            raise Lost(f"{repeated} steps were repeated after a signal:\n{output}")
        return repeated


def expect(launch: Launch, codes: list[int], *messages: str) -> None:
    """One of the messages was said (a training that came to its end before may say nothing)."""
    output = launch.output
    if any(codes) and not any(message in output for message in messages):
        raise Lost(f"exit codes {codes}, and nothing of {messages}:\n{output}")
    if "Traceback" in output:
        raise Lost(f"a traceback:\n{output}")


def kill_at_instant(trial: Trial) -> None:
    """SIGKILL at a write, fsync, rename, ... of a rank."""
    rank = trial.any_rank()
    counts = trial.reference.instants[rank == 0]
    names = sorted(counts)
    name = names[int(trial.rng.integers(len(names)))]
    trial.start((rank, Instant(name, int(trial.rng.integers(counts[name]))))).end()


def kill_rank(trial: Trial) -> None:
    """SIGKILL of a rank at any moment: the others say which it was."""
    launch, rank = trial.start_and_wait(), trial.any_rank()
    launch.send(rank, signal.SIGKILL)
    codes = launch.end(patience_s=20)
    # killed after its last word to the others, it leaves them to end well
    survivors = [code for other, code in enumerate(codes) if other != rank]
    expect(launch, survivors, f"no sign of life from rank {rank}")


def kill_all(trial: Trial) -> None:
    """SIGKILL of all ranks at once, as when a box loses its power."""
    launch = trial.start_and_wait()
    for rank in range(trial.world_size):
        launch.send(rank, signal.SIGKILL)
    launch.end()


def kill_loader_worker(trial: Trial) -> None:
    """SIGKILL of a process that reads images: said, with the likely cause."""
    launch, rank = trial.start_and_wait(), trial.any_rank()
    killed = [child for child in children(launch.pids[rank]) if kill(child)]
    codes = launch.end(patience_s=20)
    if killed:
        expect(launch, codes, "DataLoader worker", "ended by an error of its own")


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def kill(pid: int) -> bool:
    """SIGKILL, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def signal_one_rank(signum: int) -> Callable[[Trial], None]:
    """A fault: a signal to a single rank; all must stop at one step and lose none."""

    def send(trial: Trial) -> None:
        launch, rank = trial.start_and_wait(first_step=1), trial.any_rank()
        launch.send(rank, signum)
        codes = launch.end(patience_s=20)
        if set(codes) not in ({0}, {EXIT_STOPPED}):
            raise Lost(f"exit codes {codes} after {signum}:\n{launch.output}")
        trial.must_repeat_nothing = True

    return send


def stop_rank(trial: Trial) -> None:
    """SIGSTOP of a rank: the others must not wait for ever, and must name it."""
    trial.world_size = int(trial.rng.choice([2, 3, 4]))
    launch, rank = trial.start_and_wait(), trial.any_rank()
    launch.send(rank, signal.SIGSTOP)

    def others() -> list[int | None]:
        return [code for index, code in enumerate(launch.codes) if index != rank]

    launch.wait_for(lambda: None not in others())
    codes = [code or 0 for code in others()]
    expect(launch, codes, f"no sign of life from rank {rank}")
    launch.send(rank, signal.SIGKILL)
    launch.end()


def fill_disk(trial: Trial) -> None:
    """A disk with too little room: said, with how much is missing."""
    launch = trial.start_and_wait(first_step=1)
    free = shutil.disk_usage(trial.run).free
    filler = trial.run.parent / "others"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        file.write(b"x" * int(max(0, free - trial.rng.integers(0, 1_000_000))))
    codes = launch.end(patience_s=20)
    filler.unlink()
    expect(launch, codes, "the disk is full", "No space left on device; mend that")


def flip_byte(path: Path, rng: np.random.Generator) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


def cut_short(path: Path, rng: np.random.Generator) -> None:
    """Lose a file's end."""
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def damage(harm: Callable[[Path, np.random.Generator], None], file: str) -> Callable[[Trial], None]:
    """A fault: after a kill the newest checkpoint is damaged; an older one is taken, and told."""

    def disturb(trial: Trial) -> None:
        launch = trial.start_and_wait(first_step=4)
        launch.wait_for(lambda: bool(published_checkpoints(trial.run / "checkpoints")))
        for rank in range(trial.world_size):
            launch.send(rank, signal.SIGKILL)
        launch.end()
        clean_up_after_kills(trial.run / "checkpoints")
        found = published_checkpoints(trial.run / "checkpoints")
        kept = trial.run.parent / "kept"
        shutil.copytree(found[-1], kept)
        victims = sorted(path for path in found[-1].glob(file) if path.stat().st_size)
        harm(victims[int(trial.rng.integers(len(victims)))], trial.rng)
        again = trial.start()
        codes = again.end(patience_s=20)
        if len(found) > 1:
            if any(codes) or f"passed over {found[-1].name}" not in again.output:
                raise Lost(f"exit codes {codes}, not passed over:\n{again.output}")
        else:  # the only one: refused, and mended by hand
            expect(again, codes, "no intact checkpoint")
            if not all(codes):
                raise Lost(f"started anew beside a damaged checkpoint:\n{again.output}")
            shutil.rmtree(found[-1])
            kept.rename(found[-1])
        shutil.rmtree(kept, ignore_errors=True)

    return disturb


FAULTS: dict[str, Callable[[Trial], None]] = {
    "SIGKILL at a write, fsync or rename": kill_at_instant,
    "SIGKILL of a rank at any moment": kill_rank,
    "SIGKILL of all ranks": kill_all,
    "SIGKILL of a loader worker": kill_loader_worker,
    "SIGTERM to one rank": signal_one_rank(signal.SIGTERM),
    "SIGUSR2 to one rank": signal_one_rank(signal.SIGUSR2),
    "SIGSTOP of a rank": stop_rank,
    "a byte of a shard flipped": damage(flip_byte, "*.distcp"),
    "a file of a checkpoint cut short": damage(cut_short, "*"),
    "COMPLETE removed": damage(lambda path, rng: path.unlink(), "COMPLETE"),
    "the disk full": fill_disk,
}


def random_trial(kind: str, number: int, seed: int, folder: Path, reference: Reference) -> int:
    """Disturb a run in one way, bring it to its end; returns the steps it repeated. Raises Lost."""
    rng = seeds.generator(seed, "fault", number)
    disk = folder / "disk"
    disk.mkdir(parents=True)
    with small_disk(disk) if FAULTS[kind] is fill_disk else contextlib.nullcontext():
        trial = Trial(disk / "run", folder, reference, rng, int(rng.choice(WORLD_SIZES)))
        FAULTS[kind](trial)
        return trial.finish()


def can_mount(folder: Path) -> bool:
    """Whether a small disk of our own can be had here (as root, mostly)."""
    try:
        with small_disk(folder):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of a few MB."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
