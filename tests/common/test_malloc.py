"""Large arrays get the memory that others left, and not new pages."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
exec(sys.argv[1])
for _ in range(3):
    blocks = [np.ones(2_000_000, np.uint8) for _ in range(4)]
    del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    blocks = [np.ones(2_000_000, np.uint8) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 4 * 2_000_000 // 4096


def page_faults(first: str = "") -> int:
    """Of forty arrays of 2 MB, four at a time, after this code."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, first], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc is glibc's on Linux only")
@pytest.mark.parametrize(
    "first",
    [
        "from common import malloc; malloc.keep_freed_memory()",
        "from train.ranks.distributed import start_ranks; start_ranks('cpu').__enter__()",
    ],
)
def test_freed_memory_is_kept_for_the_next_arrays(first: str) -> None:
    assert page_faults() > PAGES / 2
    assert page_faults(first) < PAGES / 100
