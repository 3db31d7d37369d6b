"""Memory that is freed and soon wanted again. This module imports nothing of the project."""

import ctypes

# Of glibc's malloc.h; both are bytes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc takes no more
NEVER_TRIM = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Have this process, and those it forks, keep the memory that arrays leave, for the next.

    By itself glibc hands blocks of some 100 KB and more back to the system, which gives them out
    again page by page, cleared: then a crop takes half as long again, a step on a CPU a tenth more.
    Where malloc is another's (musl, macOS) this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
