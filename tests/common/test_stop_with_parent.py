"""A process whose parent was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("told")))
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
from common.stop_request import stop_with_parent
subprocess.run([sys.executable, "-c", sys.argv[1]], preexec_fn=stop_with_parent)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_process_is_told_that_its_parent_was_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    assert parent.communicate(timeout=30)[0] == "told\n"
