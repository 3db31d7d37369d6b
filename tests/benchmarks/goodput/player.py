"""Plays a trace of disturbances on a cluster while a training runs there, and watches it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from tests.benchmarks.goodput.account import Start
from tests.benchmarks.goodput.trace import Event
from tests.launch.dev_cluster import SETTLE_S, Cluster
from train.runs.newest import PROGRESS

POLL_S = 0.25
PATIENCE_S = 600.0  # for a start whose nodes are free
WAITS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)  # other states hold nodes, as COMPLETING does


class Watch:
    """Follows a job: its starts, and how far each came. Resubmits a job that is gone."""

    def __init__(self, cluster: Cluster, run: Path, queue: Callable[[], str]) -> None:
        self.cluster, self.run, self.queue = cluster, run, queue
        self.job = queue()
        self.starts: list[Start] = []
        self.resubmitted: list[str] = []
        """What Slurm called the job each time that it had ended and would not have come back."""
        self.is_running = False
        self.pending_since = time.time()

    def look(self) -> None:
        """Note what has changed."""
        now, fields = time.time(), self.fields()
        state = fields["JobState"]
        holds_nodes = state not in WAITS + ENDED
        if holds_nodes and not self.is_running:
            self.starts.append(Start(now, int(fields["NumNodes"].split("-")[0])))
            self.is_running = True
        if self.is_running:
            self.note_step(self.starts[-1])
            self.note_signal(self.starts[-1], fields.get("PreemptTime", "None"))
        if holds_nodes:
            return
        if self.is_running:
            self.starts[-1].end_s = self.pending_since = now
            self.is_running = False
        if state in WAITS:
            self.let_it_start(fields["Reason"], now)
        else:  # as a user would who sees it at once
            self.resubmitted.append(state)
            self.job, self.pending_since = self.queue(), now

    def fields(self) -> dict[str, str]:
        """What Slurm says of the job."""
        words = self.cluster.call("scontrol", "show", "job", "--oneliner", self.job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def note_step(self, start: Start) -> None:
        """Add the run's last sign of life to the start that gave it."""
        try:
            sign = json.loads((self.run / PROGRESS).read_text())
        except FileNotFoundError:
            return
        last_s = start.signs[-1][0] if start.signs else start.begin_s
        if sign["time_s"] > last_s:
            start.signs.append((sign["time_s"], sign["step"]))

    def note_signal(self, start: Start, preempt_time: str) -> None:
        """Note when Slurm preempted this start; an earlier time is of an earlier one."""
        if preempt_time != "None":
            preempted_s = datetime.fromisoformat(preempt_time).timestamp()
            start.preempted_s = preempted_s if preempted_s > start.begin_s else 0.0

    def let_it_start(self, reason: str, now: float) -> None:
        """Without Slurm's pause of two minutes after a requeue."""
        if now - self.pending_since < SETTLE_S:  # a slurmd that ends a job refuses its new start
            return
        if reason in ("BeginTime", "None"):
            self.try_scontrol("update", f"jobid={self.job}", "starttime=now")
        elif "held" in reason.lower():  # by Slurm, where a node refused it
            self.try_scontrol("release", self.job)

    def try_scontrol(self, *words: str) -> None:
        """Slurm may be about to do it by itself, and then refuses."""
        subprocess.run(["scontrol", *words], env=self.cluster.environment, capture_output=True)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Watch until something holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not within {PATIENCE_S:.0f} s; see {self.run}")
            time.sleep(POLL_S)
            self.look()

    def cancel(self) -> None:
        """End the job, and wait until its nodes are free."""
        # Lightning requeues a job at any SIGTERM, also at scancel's: it would come back for ever
        self.try_scontrol("update", f"jobid={self.job}", "requeue=0")
        self.cluster.cancel_all()
        self.is_running = False


class Player:
    """Disturbs the cluster as a trace says."""

    def __init__(self, cluster: Cluster, watch: Watch) -> None:
        self.cluster, self.watch = cluster, watch
        self.dark: dict[str, list[int]] = {}
        """Lost node -> the processes of the job that are stopped on it, as file descriptors."""
        self.back: list[tuple[float, str]] = []
        """When which node comes back."""

    def play(self, trace: list[Event]) -> float:
        """Play a trace to its end, until the job has left its nodes; returns when it began."""
        began_s, events = time.time(), list(trace)
        while events or self.watch.is_running:
            time.sleep(POLL_S)
            self.watch.look()
            now = time.time()
            if not self.watch.is_running:
                self.kill_dark()
            if events and now >= began_s + events[0].at_s:
                self.disturb(events.pop(0), now)
            self.bring_back(now)
        for _, name in self.back:
            self.start_node(name)
        return began_s

    def disturb(self, event: Event, now: float) -> None:
        """Take nodes for an urgent job, or lose one."""
        print(f"  {event}", file=sys.stderr, flush=True)
        if not event.lost:
            self.cluster.sbatch(
                "--partition=high", f"--nodes={event.num_nodes}", "--exclusive", "--no-requeue",
                "--output=/dev/null", f"--wrap=sleep {event.lasts_s:.0f}",
            )  # fmt: skip
        elif event.lost not in self.dark:
            self.lose(event.lost)
            self.back.append((now + event.lasts_s, event.lost))

    def lose(self, name: str) -> None:
        """A node goes dark: nothing on it answers, and no connection to it is closed."""
        listed = subprocess.run(
            ["scontrol", "listpids", self.watch.job, name],
            env=self.cluster.environment,
            capture_output=True,
            text=True,
        )  # refused where the job is not on this node
        lines = [line.split() for line in listed.stdout.splitlines()]
        pids = [int(words[0]) for words in lines if words and words[0].isdecimal()]
        self.cluster.kill_node(name)
        self.dark[name] = []
        for pid in pids:
            with suppress(ProcessLookupError):
                self.dark[name].append(process := os.pidfd_open(pid))
                signal.pidfd_send_signal(process, signal.SIGSTOP)

    def kill_dark(self) -> None:
        """End what was stopped on lost nodes, now that Slurm has missed them."""
        for processes in self.dark.values():
            for process in processes:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                os.close(process)
            processes.clear()

    def bring_back(self, now: float) -> None:
        """Start the nodes whose absence is over."""
        for at_s, name in list(self.back):
            if now >= at_s:
                self.back.remove((at_s, name))
                self.start_node(name)

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node that was lost."""
        self.kill_dark()
        del self.dark[name]
        configuration = str(self.cluster.folder / "slurm.conf")
        subprocess.run(["slurmd", "-f", configuration, "-N", name], check=True)
