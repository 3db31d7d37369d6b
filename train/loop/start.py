"""A rank's training from its start to its end: the data set, the run folder, the trainer."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from common import command_line
from common.command_line import UsageError
from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset, read_dataset
from train.config import PRESETS, TrainConfig
from train.loop import messages
from train.loop.batch import RanksError, accepted, settle, ways_out
from train.loop.trainer import Trainer, check_size
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.lock import RunLock, locked
from train.runs.newest import CONFIG, new_run, read_config
from train.runs.open_run import io_errors_explained, open_run


def start(config: TrainConfig, settings: Sequence[str], stop: StopRequest | None) -> int:
    """Train on this rank, or go on training; returns the exit code. Collective.

    `settings` are those that the configuration is made of. Without a `stop` it watches for signals
    itself.
    """
    watched = nullcontext(stop) if stop else StopRequest()
    with watched as stop, start_ranks(config.device, config.rank_timeout_s) as ranks:
        dataset = read_dataset(Path(config.data))
        if config.run and Path(config.run).is_file():
            raise UsageError(f"run={config.run}: is a file; name a folder")
        config = settle_batch(config, settings, ranks)
        check_size(config, dataset)
        if not config.run:
            config = replace(config, run=str(ranks.first_does(new_run)))
        folder = Path(config.run)
        with io_errors_explained(folder), locked(folder, ranks) as lock:
            return train(config, dataset, ranks, stop, lock)


def settle_batch(config: TrainConfig, settings: Sequence[str], ranks: Ranks) -> TrainConfig:
    """Return the configuration with the run's batch. Raises UsageError, with commands that are
    accepted, where these ranks cannot share it. Collective."""
    begun = ranks.first_does(lambda: begun_as(config.run))
    try:
        return settle(config, ranks.world_size, begun)
    except RanksError as error:

        def load(given: Sequence[str]) -> TrainConfig:
            return command_line.load(TrainConfig, given, preset_folder=PRESETS)

        ways = accepted(settings, range(ranks.world_size, 0, -1), load, begun)
        commands = [command_on(num_ranks, given) for num_ranks, given in ways]
        raise UsageError(f"{error}{ways_out(commands)}") from None


def begun_as(run: str) -> TrainConfig | None:
    """Return the configuration of a run that is there; None where there is none."""
    is_there = run and (Path(run) / CONFIG).is_file()
    return read_config(Path(run)) if is_there else None


def command_on(num_ranks: int, settings: Sequence[str]) -> str:
    """The command that trains on so many ranks of a machine."""
    launcher = f"torchrun --nproc-per-node {num_ranks}" if num_ranks > 1 else "python"
    return f"{launcher} -m train {shlex.join(settings)}".rstrip()


def train(
    config: TrainConfig, dataset: Dataset, ranks: Ranks, stop: StopRequest, lock: RunLock
) -> int:
    """Train, or go on training, to the last epoch. Collective."""
    # one rank looks at the folder, and all go on, or none does
    given = config
    config, changes = ranks.first_does(lambda: open_run(given, dataset, ranks.device))
    trainer = Trainer(config, dataset, ranks, stop, lock, changes)
    if not trainer.is_finished:
        return trainer.fit()
    if ranks.is_first:
        print(f"run={config.run} is finished: {messages.summary(trainer.state.progress)}")
    return 0
