"""Quieten torchrun: when a rank ends with an error, print its one line and not forty more. Let it
wait while ranks save.

When a rank ends with an exit code other than 0, torchrun logs two lines and ends with a traceback
of its own code and a table. They push the reason, which the rank has printed before, out of sight.
torchrun has no option against that. But it loads the entry points of the group `torchrun.handlers`
when it starts, and pyproject.toml names `install` there. torchrun says as much as before about
programs that are not ours, and about ranks that a signal killed, which print no reason. Exit codes
do not change.

It also gives ranks the time to save. By default SIGUSR2 ends torchrun but not its ranks, and after
another signal it kills them in 30 s, while a step and a save may take longer.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

PACKAGES = {"train", "data_prep"}
# torchrun takes its options from such variables, unless they are typed
WAITS = {
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",
    "PET_SHUTDOWN_TIMEOUT": "3600",  # in s
}
LOGGERS = ("__main__", "torch.distributed.run", "torch.distributed.elastic.multiprocessing.api")


def install() -> Callable[[Any], Any]:
    """Quieten this process, and let it wait, if it is torchrun and starts a command of PACKAGES.

    Returns what torchrun expects of an entry point: a function that makes a rendezvous handler.
    """
    if starts_ours(sys.argv):
        sys.excepthook = show_unexplained
        for name, value in WAITS.items():
            os.environ.setdefault(name, value)
        for name in LOGGERS:
            logging.getLogger(name).addFilter(is_of_use)
    return make_handler


def starts_ours(argv: Sequence[str]) -> bool:
    """Whether a command line of torchrun starts a command of PACKAGES."""
    return any(
        flag in ("-m", "--module") and name.partition(".")[0] in PACKAGES
        for flag, name in pairwise(argv)
    )


def show_unexplained(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error that ends torchrun, unless a rank has printed the reason itself."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if isinstance(error, ChildFailedError):
        _, first = error.get_first_failure()
        is_explained = first.exitcode > 0  # negative: a signal killed the rank
    else:
        is_explained = isinstance(error, SignalException) and error.sigval == signal.SIGINT
    if not is_explained:
        sys.__excepthook__(kind, error, trace)


def is_of_use(record: logging.LogRecord) -> bool:
    """Whether a line of torchrun's log says something that the ranks do not say."""
    text = record.getMessage()
    if text.startswith("failed (exitcode: "):
        return text.startswith("failed (exitcode: -")
    return not (text.startswith("Sending process") or "OMP_NUM_THREADS" in text)


def make_handler(parameters: Any) -> Any:
    """Raise ValueError: nobody can use this as a rendezvous backend."""
    raise ValueError("eosin is no rendezvous backend; leave --rdzv-backend out")
