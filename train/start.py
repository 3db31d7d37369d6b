"""A rank's training from its start to its end: the data set, the run folder, the trainer."""

from contextlib import nullcontext
from pathlib import Path

from command_line import UsageError
from data_prep.manifest import Dataset, read_dataset
from train.config import TrainConfig
from train.distributed import Ranks, start_ranks
from train.lock import RunLock, locked
from train.preemption import StopRequest
from train.run_folder import io_errors_explained, open_run
from train.trainer import Trainer, check_sizes


def start(config: TrainConfig, stop: StopRequest | None) -> int:
    """Train on this rank, or go on training; returns the exit code. Collective.

    Without a `stop` it watches for signals itself.
    """
    watched = nullcontext(stop) if stop else StopRequest()
    with watched as stop, start_ranks(config.device, config.rank_timeout_s) as ranks:
        dataset = read_dataset(Path(config.data))
        check_sizes(config, dataset, ranks)
        folder = Path(config.run)
        if folder.is_file():
            raise UsageError(f"run={folder}: is a file; name a folder")
        with io_errors_explained(folder), locked(folder, ranks) as lock:
            return train(config, dataset, ranks, stop, lock)


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
        print(f"run={config.run} is finished: {trainer.summary()}")
    return 0
