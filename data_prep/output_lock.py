"""Lock an output folder: for all shares k/n of one n at a time, or for one whole run.

Each run holds its own lock in the folder, `.lock` or `.lock-3-of-8`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.lease import Lease

WHOLE = ".lock"
SHARE = re.compile(r"\.lock-(\d+)-of-(\d+)")


@contextmanager
def locked(out: Path, share: str) -> Iterator[Lease]:
    """Lock an output folder, or a share of it. Raises UserError if another run excludes this one.

    Takes our lock first, then looks at the others: if two runs start at once, at least one sees the
    other.
    """
    ours = WHOLE
    if share:
        k, n = share.split("/")
        ours = f"{WHOLE}-{int(k)}-of-{int(n)}"
    with lease_of(out, ours) as lease:
        for path in sorted(out.glob(f"{WHOLE}*")):
            if exclude(path.name, ours):
                with lease_of(out, path.name):
                    pass  # its process is dead
        yield lease


def exclude(theirs: str, ours: str) -> bool:
    """Return whether two different locks exclude each other; shares of one n do not."""
    if theirs == ours or not (theirs == WHOLE or SHARE.fullmatch(theirs)):
        return False
    of_ours, of_theirs = SHARE.fullmatch(ours), SHARE.fullmatch(theirs)
    return not (of_ours and of_theirs and of_ours[2] == of_theirs[2])


def lease_of(out: Path, name: str) -> Lease:
    """Return the lease of a lock in an output folder."""
    share = SHARE.fullmatch(name)
    doing = f"preparing share {share[1]}/{share[2]} of it" if share else "preparing it"
    return Lease(out, "out", name=name, doing=doing)
