"""Keep freed memory for reuse. This module imports nothing of the project."""

import ctypes

# From glibc's malloc.h; both options take bytes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc accepts no larger value
NEVER_TRIM = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Make this process, and those it forks, keep the memory of freed arrays for new ones.

    By default glibc returns blocks of some 100 KB and more to the system, which clears each page
    before it hands it out again: a crop then takes 50% longer, a step on a CPU 10%. With another
    malloc (musl, macOS) this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
