"""Show a checkpoint: step, epoch, metrics, whether it is intact, and digests.

    python -m train.show [run=DIR checkpoint=latest]

The digests are sha256 over the values alone, so the number of ranks that trained or saved does not
matter. Two checkpoints with the same digest are the same to the bit.
"""

from pathlib import Path

from common import command_line
from common.command_line import UsageError
from common.help_text import help_text
from train.runs.config import ShowConfig
from train.runs.newest import check_run


def main(argv: list[str]) -> int:
    """Print what a checkpoint holds; exit code 1 if it is not intact."""
    if command_line.wants_help(argv):
        print(help_text(ShowConfig, __doc__ or ""))
        return 0
    config = command_line.load(ShowConfig, argv)
    if config.run and Path(config.run).is_file():
        raise UsageError(f"run={config.run}: an exported model, not a run with checkpoints")
    check_run(config.run, config.checkpoint)
    from train.runs.show_checkpoint import show_checkpoint  # here: it takes seconds

    return show_checkpoint(config)


if __name__ == "__main__":
    command_line.run(main)
