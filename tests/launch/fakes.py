"""Executables on PATH that answer as Slurm's were seen to."""

import shlex
import stat
from pathlib import Path


def answer(slurm: Path, command: str, text: str, code: int = 0) -> None:
    """Let a command print a text, and keep what it was called with."""
    write(slurm, command, f'printf "%s\\n" "{text}"\nexit {code}\n')


def write(slurm: Path, command: str, lines: str) -> None:
    """Let a command do some lines of shell, and keep what it was called with."""
    path = slurm / command
    path.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(slurm / "called"))}\n{lines}')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
