"""Train on one rank from start to end: data set, run folder, trainer."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from common import command_line
from common.command_line import UsageError
from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset, read_dataset
from model.library import check_network
from train.config import PRESETS, TrainConfig
from train.crops.fitting import check_fitting
from train.loop import compiler
from train.loop.batch import RanksError, accepted_starts, as_lines, resolve_batch
from train.loop.schedule import about_schedule
from train.loop.trainer import Trainer
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.lock import RunLock, locked
from train.runs.newest import CONFIG, new_run, read_config
from train.runs.open_run import io_errors_explained, open_run
from train.runs.same_data import OtherRunError


def start(config: TrainConfig, settings: Sequence[str], stop: StopRequest | None) -> int:
    """Start or resume training on this rank; returns the exit code. Collective.

    `settings`: the arguments that gave `config`. `stop`: who watches for signals; None to watch
    here. Raises UserError if training cannot start or go on.
    """
    compiler.import_late()
    watched = nullcontext(stop) if stop else StopRequest()
    with watched as stop, start_ranks(config.device, config.rank_timeout_s) as ranks:
        dataset = read_dataset(Path(config.data)).of_fold(config.fold)
        begun = ranks.first_does(lambda: begun_config(config.run))
        config = batch_for_ranks(config, settings, ranks, begun)
        check_fitting(config, dataset)
        if not begun:
            ranks.first_does(lambda: check_network(config.model, config.batch.microbatch_size))
        if not config.run:
            config = replace(config, run=str(ranks.first_does(new_run)))
        folder = Path(config.run)
        with io_errors_explained(folder), locked(folder, ranks) as lock:
            return train(config, begun, settings, dataset, ranks, stop, lock)


def batch_for_ranks(
    config: TrainConfig, settings: Sequence[str], ranks: Ranks, begun: TrainConfig | None
) -> TrainConfig:
    """Replace auto in the batch's settings.

    Raises UsageError, with commands that would be accepted, if these ranks cannot compute it.
    """
    try:
        return resolve_batch(config, ranks.world_size, begun)
    except RanksError as error:

        def load(given: Sequence[str]) -> TrainConfig:
            return command_line.load(TrainConfig, given, preset_folder=PRESETS)

        starts = accepted_starts(settings, range(ranks.world_size, 0, -1), load, begun)
        commands = [train_command(num_ranks, given) for num_ranks, given in starts]
        raise UsageError(f"{error}{as_lines(commands)}") from None


def begun_config(run: str) -> TrainConfig | None:
    """Return the configuration of a run that was begun; None for a new run."""
    is_begun = run and (Path(run) / CONFIG).is_file()
    return read_config(Path(run)) if is_begun else None


def train_command(num_ranks: int, settings: Sequence[str]) -> str:
    """Write the command that trains on `num_ranks` ranks of one machine."""
    launcher = f"torchrun --nproc-per-node {num_ranks}" if num_ranks > 1 else "python"
    return f"{launcher} -m train {shlex.join(settings)}".rstrip()


def train(
    config: TrainConfig,
    begun: TrainConfig | None,
    settings: Sequence[str],
    dataset: Dataset,
    ranks: Ranks,
    stop: StopRequest,
    lock: RunLock,
) -> int:
    """Open the run's folder, and train to the last epoch; returns the exit code. Collective.

    `begun`: the configuration of the start before this one, None for a new run.
    """
    # rank 0 alone decides whether the run may go on
    given = config
    try:
        config, changes = ranks.first_does(lambda: open_run(given, dataset, ranks.device))
    except OtherRunError as error:
        commands = [train_command(ranks.world_size, other) for other in error.accepted(settings)]
        raise UsageError(f"{error}{as_lines(commands)}") from None
    trainer = Trainer(config, dataset, ranks, stop, lock, changes)
    if not trainer.is_finished:
        step = trainer.state.progress.step
        if told := about_schedule(config, begun, trainer.steps_per_epoch, step):
            trainer.notes.append(told)
        return trainer.fit()
    if ranks.is_first:
        print(f"run={config.run} is finished: {trainer.summary}")
    return 0
