"""Train a network on a prepared data set; a run that was begun goes on where it stopped.

    python -m train [data=DIR run=DIR preset=unet epochs=10 seed=0 ...]
    torchrun --nproc-per-node 2 -m train [...]                        the same on two ranks

Without run=, each training gets a folder of its own in runs/. With run= of a run that was begun, it
goes on.

Exit codes: 0 finished; 1 failed, with the reason; 2 a wrong command line; 75 stopped by a signal
with the state saved: run the same command to go on. torchrun itself ends with 1 in place of 1, 2
and 75.
"""

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from common import command_line
from common.command_line import UsageError
from common.help_text import help_text
from data_prep.dataset.manifest import read_dataset
from train.config import PRESETS, TrainConfig, with_pipeline_read
from train.runs.warm_start import check_weights_exist

if TYPE_CHECKING:
    from common.stop_request import StopRequest


def main(argv: list[str], stop: "StopRequest | None" = None) -> int:
    """Train on this rank. A launcher that already watches for signals hands over its `stop`."""
    if command_line.wants_help(argv):
        print(help_text(TrainConfig, __doc__ or ""))
        print(presets_text())
        return 0
    config = command_line.load(TrainConfig, argv, preset_folder=PRESETS)
    check_weights_exist(config)
    if not Path(config.data).is_dir():
        read_dataset(Path(config.data))  # says so, without waiting for torch
    if config.run and Path(config.run).is_file():
        raise UsageError(f"run={config.run}: is a file; name a folder")
    with_pipeline_read(config)  # refused before a run is made
    gc.disable()  # objects of modules stay: looking for garbage among them would take seconds
    from train.loop.start import start  # here: it takes seconds

    gc.freeze()  # nor at the process's end, nor in loader workers
    gc.enable()
    return start(config, argv, stop)


def presets_text() -> str:
    """List the presets, each with the comment that its file begins with."""
    lines = ["", "Presets (preset=NAME):", ""]
    for path in sorted(PRESETS.glob("*.yaml")):
        about = path.read_text().partition("\n")[0].removeprefix("# ")
        lines.append(f"  {path.stem:14} {about}")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(main)
