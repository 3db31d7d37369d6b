"""A rank of a training as most write it: it saves at the end of an epoch, and at no signal.

    python -m tests.benchmarks.goodput.seeds_way key=value ...     the settings of python -m train

Network, data and loop are ours, so that only this differs.
"""

import signal

from common import command_line
from common.stop_request import StopRequest
from train.__main__ import main as train


def main(argv: list[str]) -> int:
    """Train; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # given, so that training installs no handlers of its own; nothing ever tells it of a signal
    return train([*argv, "save_every_s=inf"], StopRequest())


if __name__ == "__main__":
    command_line.run(main)
