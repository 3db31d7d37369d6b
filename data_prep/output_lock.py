"""Who may write into an output folder at the same time: all shares of one n, or one whole run.

Each holds a lock of its own in the folder, `.lock` or `.lock-3-of-8`, for as long as it runs.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.lease import Lease

WHOLE = ".lock"
SHARE = re.compile(r"\.lock-(\d+)-of-(\d+)")


@contextmanager
def claimed(out: Path, share: str) -> Iterator[Lease]:
    """Hold an output folder, or a share of it. Raises UserError where another run is in the way.

    First ours, then a look at the others': of two that start at once, one at least sees the other.
    """
    ours = WHOLE
    if share:
        k, n = share.split("/")
        ours = f"{WHOLE}-{int(k)}-of-{int(n)}"
    with lease_of(out, ours) as lease:
        for path in sorted(out.glob(f"{WHOLE}*")):
            if is_in_the_way(path.name, ours):
                with lease_of(out, path.name):
                    pass  # its process is dead
        yield lease


def is_in_the_way(theirs: str, ours: str) -> bool:
    """Whether two locks of different names exclude each other; shares of one n do not."""
    if theirs == ours or not (theirs == WHOLE or SHARE.fullmatch(theirs)):
        return False
    of_ours, of_theirs = SHARE.fullmatch(ours), SHARE.fullmatch(theirs)
    return not (of_ours and of_theirs and of_ours[2] == of_theirs[2])


def lease_of(out: Path, name: str) -> Lease:
    """The lease of a lock in an output folder."""
    share = SHARE.fullmatch(name)
    doing = f"preparing share {share[1]}/{share[2]} of it" if share else "preparing it"
    return Lease(out, "out", name=name, doing=doing)
