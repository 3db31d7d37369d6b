"""Answers of doctor.py: whether jobs come back on the cluster after preemption and time limit."""

from collections.abc import Iterator
from dataclasses import dataclass

from launch.cluster.facts import Cluster, Partition
from launch.cluster.profiles import Profile

FINE, DOUBTFUL, FATAL = "fine", "doubtful", "FATAL"


@dataclass(frozen=True)
class Finding:
    """The answer to one question."""

    verdict: str
    question: str
    answer: str


def about_cluster(profile: Profile, cluster: Cluster, save_s: float) -> Iterator[Finding]:
    """Check what decides whether a preempted run comes back."""
    settings = cluster.settings
    yield Finding(FINE, "Slurm", f"{settings.get('SLURM_VERSION', '?')} answers")
    if settings.get("JobRequeue", "1").strip() == "1":
        yield Finding(FINE, "JobRequeue", "1: Slurm may requeue jobs")
    else:
        answer = "0: Slurm requeues only jobs with --requeue, which submit.py asks for"
        yield Finding(DOUBTFUL, "JobRequeue", answer)
    for name in profile.partition.split(","):
        if partition := cluster.partition(name):
            yield Finding(FINE, f"partition {partition.name}", partition.nodes or "no nodes")
            yield from about_preemption(partition, cluster, save_s)
    yield about_lead(profile, save_s)


def about_preemption(partition: Partition, cluster: Cluster, save_s: float) -> Iterator[Finding]:
    """Check what preemption does to the jobs of a partition, and whether the grace is enough."""
    mode, grace_s = partition.preempt_mode or "OFF", partition.grace_s
    if "SUSPEND" in mode:
        answer = (
            f"{mode}: a preempted job is stopped where it is, without a signal to save, and goes on"
            " later; its ranks keep their memory, on the GPUs too. That is no failure, but it waits"
            " for its own nodes; a partition with REQUEUE lets it go on anywhere"
        )
        yield Finding(DOUBTFUL, "PreemptMode", answer)
        return
    if mode == "CANCEL":
        answer = "CANCEL: Slurm does not requeue a preempted job; it asks for that itself, in time"
        yield Finding(DOUBTFUL, "PreemptMode", answer)
    else:
        yield Finding(FINE, "PreemptMode", mode)
    user_signal = "send_user_signal" in cluster.settings.get("PreemptParameters", "")
    after = f"{grace_s} s after SIGTERM" + (" and the user signal" if user_signal else "")
    if mode == "OFF" or grace_s >= save_s:
        answer = f"{after}; one step and one save take {save_s:g} s"
        yield Finding(FINE, "GraceTime", answer)
    else:
        answer = (
            f"{after}, but one step and one save take {save_s:g} s: preemption costs the steps"
            " since the last checkpoint (save_every_s=auto: those of about a minute)"
        )
        yield Finding(DOUBTFUL, "GraceTime", answer)


def about_lead(profile: Profile, save_s: float) -> Finding:
    """Check how long before the time limit the signal comes."""
    answer = f"{profile.signal_lead_s} s before the limit (Slurm may be a minute early)"
    if profile.signal_lead_s >= 2 * save_s:
        return Finding(FINE, "signal_lead_s", answer)
    return Finding(DOUBTFUL, "signal_lead_s", f"{answer}: less than two saves; raise it")
