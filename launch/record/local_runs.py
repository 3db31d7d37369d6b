"""Stages that launch/submit.py ran on a machine itself, without Slurm.

Each start has a number, and a folder launch/jobs/local-<number> with a log for each stage. Its
events name the machine and the process that runs the stages, so that others can tell whether it
still does, and stop it.
"""

import hashlib
import os
import re
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import UserError
from launch.record.events import COMPARE, JOBS, LAUNCH, STAGES, read_events

LOCAL = "local-"  # begins the names of such starts, where a job has its number
NAME = re.compile(LOCAL + "([0-9]{1,9})")
STATES = {"finished": "COMPLETED", "stopped": "STOPPED", "gave up": "FAILED"}
RUNNING, KILLED, UNKNOWN = "RUNNING", "KILLED", "UNKNOWN"


@dataclass(frozen=True)
class LocalStage:
    """A stage that was started on a machine, from its events."""

    started: dict[str, Any]
    ended: dict[str, Any] | None
    """None while nothing says that it ended."""

    @property
    def name(self) -> str:
        """The stage."""
        return str(self.started["stage"])

    @property
    def job(self) -> str:
        """The name of the start, as in local-1."""
        return str(self.started["job"])

    @property
    def host(self) -> str:
        """The machine."""
        return str(self.started.get("nodes", "?"))

    @property
    def state(self) -> str:
        """Whether it runs, or how it ended. Only its own machine can tell that it was killed."""
        if self.ended:
            return STATES[self.ended["event"]]
        if self.host != socket.gethostname():
            return UNKNOWN
        return RUNNING if self.launcher else KILLED

    @property
    def launcher(self) -> int:
        """The process that runs the stages, 0 where it is no more (or another with its number)."""
        pid = self.started.get("pid", 0)
        is_it = pid > 0 and self.started.get("process") == identity(pid)
        return pid if is_it else 0

    @property
    def reason(self) -> str:
        """Why it ended, and what to do where that is not known."""
        if self.ended:
            return str(self.ended.get("reason", ""))
        return {
            KILLED: "the process that ran it is gone; its log shows how far it came",
            UNKNOWN: f"started on {self.host}, and only that machine knows whether it runs",
        }.get(self.state, "")


def about_this_process() -> dict[str, Any]:
    """Return what the event of a start says about the process that makes it."""
    about = {"nodes": socket.gethostname(), "pid": os.getpid()}
    return about | {"process": identity(os.getpid())}


def identity(pid: int) -> str:
    """Return a digest of the start and the command of a process; '' where there is none.

    No other process has the same, not even after a restart of the machine.
    """
    facts = facts_of_linux(pid) if Path("/proc/self/stat").is_file() else facts_of_ps(pid)
    return hashlib.sha256(facts).hexdigest()[:16] if facts else ""


def facts_of_linux(pid: int) -> bytes:
    """Return the boot, the start and the command of a process; b'' where there is none."""
    folder = Path(f"/proc/{pid}")
    try:
        state, *fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        command = (folder / "cmdline").read_bytes()
    except OSError:
        return b""
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return b"" if state == b"Z" else b"\0".join([boot, fields[18], command])


def facts_of_ps(pid: int) -> bytes:
    """Return the same where there is no /proc."""
    try:
        asked = ["ps", "-p", str(pid), "-o", "lstart=", "-o", "command="]
        return subprocess.run(asked, capture_output=True, check=False).stdout.strip()
    except OSError:
        return b""


def local_stages(run: Path) -> list[LocalStage]:
    """Return every stage that was started so, the oldest first."""
    stages: list[LocalStage] = []
    for event in read_events(run):
        if not NAME.fullmatch(event.get("job", "")) or event["stage"] not in (*STAGES, COMPARE):
            continue
        if event["event"] == "started":
            stages.append(LocalStage(event, None))
        elif event["event"] in STATES:
            for index, stage in enumerate(stages):
                if (stage.job, stage.name) == (event["job"], event["stage"]):
                    stages[index] = LocalStage(stage.started, event)
    return stages


def running_stages(run: Path) -> list[LocalStage]:
    """Return the stages that run on this machine now."""
    return [stage for stage in local_stages(run) if stage.state == RUNNING]


def stop(stage: LocalStage) -> None:
    """Ask the process that runs a stage to stop, which passes that on. Raises UserError."""
    pid = stage.launcher  # asked again: it may have ended meanwhile
    try:
        if pid:
            os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise UserError(f"process {pid} ({stage.name}) is not yours to stop") from None


def new_folder(run: Path) -> Path:
    """Make the folder of the next start, for its logs."""
    jobs = run / LAUNCH / JOBS
    jobs.mkdir(parents=True, exist_ok=True)
    numbers = [int(match[1]) for path in jobs.iterdir() if (match := NAME.fullmatch(path.name))]
    folder = jobs / f"{LOCAL}{max(numbers, default=0) + 1}"
    folder.mkdir()
    return folder


def log_of(folder: Path, stage: str) -> Path:
    """Return the log of a stage, which all its ranks share."""
    return folder / f"{stage}_log.out"
