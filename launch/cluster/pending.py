"""Why a job waits, in words: Slurm's Reason, and what a user can do."""

import re
from collections.abc import Mapping

NEVER = "never starts"
AGAIN = "cancel it, and submit it with"
# The beginning of a Reason -> words; the first that fits counts
WORDS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "waits for jobs of a higher priority",
    "Resources": "waits for free nodes",
    "DependencyNeverSatisfied": f"{NEVER}: a job before it failed; cancel it, and submit again",
    "Dependency": "waits for the job before it",
    "PartitionTimeLimit": f"{NEVER}: the partition allows less time; {AGAIN} a lower --time-min",
    "PartitionNodeLimit": f"{NEVER}: the partition allows another number; {AGAIN} other --nodes",
    "PartitionConfig": f"{NEVER}: the partition does not allow it; {AGAIN} less, or another"
    " --partition",
    "PartitionDown": "waits until the partition is up again; --partition names another one",
    "PartitionInactive": "waits until the partition is up again; --partition names another one",
    "AccountNotAllowed": f"{NEVER}: the partition does not take this account; see --account",
    "QOSNotAllowed": f"{NEVER}: the partition does not take this quality of service; see --qos",
    "InvalidAccount": f"{NEVER}: no such account; see --account",
    "InvalidQOS": f"{NEVER}: no such quality of service; see --qos",
    "BadConstraints": f"{NEVER}: no node has what it asks for; {AGAIN} less, or see --constraint",
    "JobHeldUser": "held; `scontrol release {job}` lets it start",
    "JobHeldAdmin": "held by an administrator of the cluster; ask there",
    "JobHoldMaxRequeue": "held: requeued too often; `scontrol release {job}` lets it start",
    "launch_failed": "held: its node could not start it; `scontrol release {job}` tries again",
    "JobLaunchFailure": "its node could not start it",
    "ReqNodeNotAvail": "waits for nodes that are down or reserved",
    "Nodes_required": "waits for nodes that are down or reserved",
    "NodeDown": "waits for a node that is down",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": f"{NEVER}: its reservation is gone; cancel it, and submit it without",
    "Licenses": "waits for a licence",
    "Cleaning": "its last start is still being cleared away",
    "JobArrayTaskLimit": "waits for other tasks of the array",
}
OF_LIMITS = re.compile(r"(?:Assoc|QOS|Q_OS)\w*|Max\w+Per(?:Account|User)")


def why_it_waits(task: Mapping[str, str]) -> str:
    """Return why a pending job waits, from the fields of `scontrol show job`."""
    reason = task.get("Reason", "None")
    if reason.startswith("BeginTime"):
        starts = task.get("StartTime", "").partition("T")[2]
        return f"waits until {starts}" if starts else "waits for its time to begin"
    for beginning, words in WORDS.items():
        if reason.startswith(beginning):
            return words.format(job=task.get("JobId", ""))
    if OF_LIMITS.match(reason):
        return of_limits(reason)
    return reason


def of_limits(reason: str) -> str:
    """Return what a limit of an account or a quality of service means."""
    if reason.endswith(("PerJob", "PerJobLimit", "PerNode")) or "MaxWallDuration" in reason:
        key = "a lower --time-min" if "Wall" in reason else "less"
        return f"{NEVER}: above a limit of your account ({reason}); {AGAIN} {key}"
    return f"waits until jobs of your account or group have ended ({reason})"
