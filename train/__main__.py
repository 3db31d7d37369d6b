"""Train a network on a prepared data set; a run that is there goes on where it was.

    python -m train data=DIR run=DIR [preset=unet epochs=10 batch_size=8 seed=0 ...]
    torchrun --nproc-per-node 2 -m train data=DIR run=DIR [...]       the same on two ranks

Exit codes: 0 finished; 1 failed, with the reason; 2 a wrong command line; 75 stopped by a signal
with the state saved: run the same command to go on. (torchrun has its own: 1 for all but 0.)
"""

from contextlib import nullcontext
from pathlib import Path

import command_line
from data_prep.manifest import Dataset, read_dataset
from train.config import PRESETS, TrainConfig
from train.distributed import Ranks, start_ranks
from train.lock import RunLock, locked
from train.preemption import StopRequest
from train.run_folder import io_errors_explained, open_run
from train.trainer import Trainer, check_sizes


def main(argv: list[str], stop: StopRequest | None = None) -> int:
    """Train on this rank. A launcher that already watches for signals hands over its `stop`."""
    if command_line.wants_help(argv):
        print(command_line.help_text(TrainConfig, __doc__ or ""))
        return 0
    config = command_line.load(TrainConfig, argv, preset_folder=PRESETS)
    watched = nullcontext(stop) if stop else StopRequest()
    with watched as stop, start_ranks(config.device, config.rank_timeout_s) as ranks:
        dataset = read_dataset(Path(config.data))
        check_sizes(config, dataset, ranks)
        folder = Path(config.run)
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


if __name__ == "__main__":
    command_line.run(main)
