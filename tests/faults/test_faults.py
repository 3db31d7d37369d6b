"""Promises 3 and 4 under faults: whatever happens to a run, it ends as if nothing had.

In processes of their own: the harness forks its ranks from a server that must be its own.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_harness(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.faults", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(800)
def test_a_kill_at_each_write_fsync_and_rename_costs_no_bit() -> None:
    lines = run_harness("--each-instant").splitlines()
    told = [re.fullmatch(r"rank ([01]), (.*): (\d+) steps repeated", line) for line in lines]
    names = {match[2] for match in told if match}
    assert {
        "tear checkpoints/.step.tmp/__0_0.distcp",
        "fsync checkpoints/.step.tmp/.metadata.tmp",
        "tear checkpoints/.step.tmp/COMPLETE",
        "rename checkpoints/.step.tmp",
        "rename checkpoints/latest",
        "rename checkpoints/best",
        "rename config.yaml",
        "remove checkpoints/step/COMPLETE",
        "tear checkpoints/.step.tmp/__1_0.distcp",
    } <= names


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_any_numbers_of_ranks_in_turn_give_the_same_bits(amp: str) -> None:
    """With batch normalisation, dropout and augmentation, killed at each change."""
    told = run_harness("--ranks", "4,2,1,4", "--amp", amp).splitlines()
    assert [line.endswith(", killed") for line in told[:4]] == [True, True, True, False]
    start = told.index("this run:")
    assert told[start + 1 :] == told[5:start]
    assert len(told[start + 1 :]) == 4


@pytest.mark.timeout(800)
def test_no_run_is_lost_to_a_random_fault() -> None:
    """Each kind at least twice, on 1, 2 and 4 ranks, ended on another number of them."""
    table = run_harness("--runs", "25").splitlines()
    (total,) = [line for line in table if line.startswith("| all")]
    assert re.match(r"\| all \| 25 \| 0 \|", total)
    for signal in ("SIGTERM", "SIGUSR2"):
        (line,) = [line for line in table if line.startswith(f"| {signal} to one rank")]
        assert line.endswith("| 0 | 0 | 0 |"), "a signal that is heeded costs no step"
