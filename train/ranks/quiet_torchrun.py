"""Keep torchrun from burying what a rank has said: one line, and not forty, where a rank refuses.

When a rank ends with another exit code than 0, torchrun logs two lines, then ends with a traceback
of its own code and a table. The rank has printed the reason by then, and it is lost above them.
torchrun has no option for that, but it loads the entry points of the group `torchrun.handlers` when
it starts, and pyproject.toml names `install` there. Other programs than ours under torchrun, and
ranks that a signal killed, which say nothing themselves, are shown as ever. Exit codes stay.
"""

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

COMMANDS = {"train", "train.evaluate", "train.predict"}
LOGGERS = ("__main__", "torch.distributed.run", "torch.distributed.elastic.multiprocessing.api")


def install() -> Callable[[Any], Any]:
    """Quieten this process where it is torchrun that starts one of COMMANDS.

    Returns what torchrun asks for: a maker of rendezvous handlers, which serves nobody.
    """
    if starts_ours(sys.argv):
        sys.excepthook = show_unexplained
        for name in LOGGERS:
            logging.getLogger(name).addFilter(is_of_use)
    return make_handler


def starts_ours(argv: Sequence[str]) -> bool:
    """Whether a command line of torchrun starts one of COMMANDS."""
    return any(flag in ("-m", "--module") and name in COMMANDS for flag, name in pairwise(argv))


def show_unexplained(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error that ends torchrun, unless it says only that a rank ended as it said itself."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if isinstance(error, ChildFailedError):
        _, first = error.get_first_failure()
        is_explained = first.exitcode > 0  # negative: the number of the signal that killed it
    else:
        is_explained = isinstance(error, SignalException) and error.sigval == signal.SIGINT
    if not is_explained:
        sys.__excepthook__(kind, error, trace)


def is_of_use(record: logging.LogRecord) -> bool:
    """Whether a line of torchrun's log says what the ranks do not say."""
    text = record.getMessage()
    if text.startswith("failed (exitcode: "):
        return text.startswith("failed (exitcode: -")
    return not (text.startswith("Sending process") or "OMP_NUM_THREADS" in text)


def make_handler(parameters: Any) -> Any:
    """Refuse to be a rendezvous backend. Raises ValueError."""
    raise ValueError("eosin is no rendezvous backend; leave --rdzv-backend out")
