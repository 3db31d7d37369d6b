"""Why a job waits, in words: Slurm's Reason, and what a user can do."""

import re
from collections.abc import Mapping

AGAIN = "submit it with"
IS_DOWN = "waits for nodes that are down or reserved"
PARTITION_IS_DOWN = "waits until the partition is up again; --partition names another one"
# Reasons that time does not heal, up to a comma (manual of squeue) -> why, and what to do
NEVER = {
    "PartitionTimeLimit": f"the partition allows less time; {AGAIN} a lower --time-min",
    "PartitionNodeLimit": f"the partition allows another number; {AGAIN} other --nodes",
    "PartitionConfig": f"the partition does not allow it; {AGAIN} less, or another --partition",
    "AccountNotAllowed": "the partition does not take this account; see --account",
    "QOSNotAllowed": "the partition does not take this quality of service; see --qos",
    "InvalidAccount": "no such account; see --account",
    "InvalidQOS": "no such quality of service; see --qos",
    "BadConstraints": f"no node has what it asks for; {AGAIN} less, or see --constraint",
    "MaxMemPerLimit": f"the partition allows less memory; {AGAIN} a lower --mem-gb, or more CPUs",
    "ReservationDeleted": "its reservation is gone; submit it without",
    r"(Assoc|QOS)MaxWall\w*PerJob\w*": "above a limit of your account ({reason});"
    f" {AGAIN} a lower --time-min",
    r"(Assoc|QOS)Max(?!Wall)\w*Per(Job|Node)\w*": "above a limit of your account ({reason});"
    f" {AGAIN} less",
    r"QOSMin\w+": "below what its quality of service asks for at least ({reason});"
    f" {AGAIN} more, or see --qos",
}
# The others
WAITS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "waits for jobs of a higher priority",
    "Resources": "waits for free nodes",
    "BeginTime": "waits until {start}",
    # Not among NEVER: as a chain is queued, its first job may fail, and the log of that tells why
    "DependencyNeverSatisfied": "never starts: a job before it failed; cancel it, and submit again",
    "Dependency": "waits for the job before it",
    "Partition(Down|Inactive)": PARTITION_IS_DOWN,
    "JobHeldUser": "held; `scontrol release {job}` lets it start",
    "JobHeldAdmin": "held by an administrator of the cluster; ask there",
    "JobHoldMaxRequeue": "held: requeued too often; `scontrol release {job}` lets it start",
    r"launch_failed\w*": "held: its node could not start it; `scontrol release {job}` tries again",
    "JobLaunchFailure": "its node could not start it",
    r"ReqNodeNotAvail|Nodes_required\w*": IS_DOWN,
    "NodeDown": "waits for a node that is down",
    "Reservation": "waits for its reservation to begin",
    "Licenses": "waits for a licence",
    "Cleaning": "its last start is still being cleared away",
    "JobArrayTaskLimit": "waits for other tasks of the array",
    r"Max\w+Per(Account|User)|(Assoc|QOS(?!Min|NotAllowed))(?!Max\w*Per(Job|Node))\w*": "waits"
    " until jobs of your account or group have ended ({reason})",
}


def why_it_waits(task: Mapping[str, str]) -> str:
    """Return why a pending job waits, from the fields of `scontrol show job`."""
    reason = task.get("Reason", "None")
    if never := why_never(task):
        return f"never starts: {never}; cancel this one"
    if not (words := words_of(WAITS, reason)):
        return reason
    start = task.get("StartTime", "").partition("T")[2] or "its time to begin"
    return words.format(job=task.get("JobId", ""), start=start, reason=reason)


def why_never(task: Mapping[str, str]) -> str:
    """Return why a pending job will never start as it is, and what to do; '' if it may start."""
    reason = task.get("Reason", "None")
    return words_of(NEVER, reason).format(reason=reason)


def words_of(table: Mapping[str, str], reason: str) -> str:
    """Return the words for a reason; '' for one that is not in the table."""
    first = reason.partition(",")[0]
    return next((words for key, words in table.items() if re.fullmatch(key, first)), "")
