"""Note a signal that asks to stop; the loop acts on it at the end of the step."""

import ctypes
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)

REQUESTED = 1000  # in place of a signal's number, above all of them: ranks agree on the largest

PR_SET_PDEATHSIG = 1  # of Linux


def stop_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent ends, as by kill -9.

    Only Linux can; elsewhere this does nothing. It holds until the process starts another program
    as another user, and is not passed on to the processes that it starts.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended just before
            os.kill(os.getpid(), signal.SIGTERM)


def caught() -> list[signal.Signals]:
    """Return the signals to handle: all SIGNALS, but not SIGHUP under nohup."""
    is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signum for signum in SIGNALS if signum != signal.SIGHUP or not is_nohup]


def name_of(signum: int) -> str:
    """Return what asked for a stop, for a message."""
    return "this program" if signum == REQUESTED else signal.Signals(signum).name


class StopRequest:
    """While this context lasts, SIGTERM, SIGINT, SIGUSR2 and SIGHUP only set `signum`.

    The ranks compare `signum` at each step (signals reach them at different times), stop at the
    same step and save together. A second SIGINT ends the process without saving, once a save in
    progress is written. SIGHUP (a closed terminal) stays ignored under nohup.
    """

    def __init__(self) -> None:
        self.signum = 0
        """The first signal that came; 0 for none, REQUESTED for a request of this program's."""
        self.num_signals = 0
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self.previous = {signum: signal.signal(signum, self.note) for signum in caught()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def request(self) -> None:
        """Ask for a stop as a signal would, unless one came before. Any thread may."""
        self.signum = self.signum or REQUESTED

    def adopt(self, signum: int) -> None:
        """Take over the signal that the ranks agreed on, if this rank got none."""
        if not self.signum:
            self.signum, self.num_signals = signum, 1

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum
        self.num_signals += 1
