"""End with the process that started this one, however that ended."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent ends, as by kill -9.

    Only Linux can; elsewhere this does nothing. It holds until the process starts another program
    as another user, and is not passed on to the processes that it starts.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
