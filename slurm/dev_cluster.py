#!/usr/bin/env python3
"""Run a real Slurm on this machine, with pretended nodes and GPUs, for trials and tests.

    sudo slurm/dev_cluster.py install             Debian's packages
    sudo slurm/dev_cluster.py up [--nodes 4]      munge, slurmctld and one slurmd per node
    eval "$(slurm/dev_cluster.py env)"            lets sbatch, squeue ... find it
    slurm/dev_cluster.py status
    sudo slurm/dev_cluster.py down                ends only what `up` started

Two partitions share the nodes n1, n2, ...: `high` preempts `low` (SIGTERM, ten seconds of grace,
requeue). Each node claims 4 CPUs and 2 GPUs, whatever the machine has, and its name is a feature
(--constraint n1). All files are in --folder, where `up` replaces only its own. Outside of it only
/etc/hosts changes, so that the names of the nodes resolve.
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
FOLDER = Path("/tmp/eosin-dev-cluster")
HOSTS = Path("/etc/hosts")
MARK = "# eosin dev_cluster"
# All that `up` and the daemons write into the folder
OURS = re.compile(
    r"slurm\.conf|gres\.conf|munge\.(key|socket|socket\.lock)|munged\.(pid|log|seed)"
    r"|slurm(ctld|d\.n\d+)\.(pid|log)|state|spool\.n\d+"
)
START_S = 30

SLURM_CONF = """\
ClusterName=dev
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=15
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=4000 Gres=gpu:pretend:2
{node_lines}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE \
GraceTime=10
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} Feature={name}"
GRES_CONF = "NodeName=n[1-{nodes}] Name=gpu Type=pretend File=/dev/tty[1-2]\n"


def main() -> None:
    """Run a subcommand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("install", "up", "down", "status", "env"))
    parser.add_argument("--nodes", type=int, default=4, help="number of nodes (4)")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help=f"where its files are ({FOLDER})"
    )
    parser.add_argument("--port", type=int, default=17000, help="first of nodes + 1 ports (17000)")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    if arguments.command == "up":
        up(arguments.folder, arguments.nodes, arguments.port)
    else:
        COMMANDS[arguments.command](arguments.folder)


def install(folder: Path) -> None:
    """Fetch Debian's packages."""
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", *PACKAGES], check=True)


def up(folder: Path, nodes: int, port: int) -> None:
    """Start the cluster, if it is not up, and wait until every node is idle."""
    missing = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name)]
    if missing:
        sys.exit(f"error: {', '.join(missing)} not found: run slurm/dev_cluster.py install")
    if os.geteuid() != 0:
        sys.exit("error: slurmd starts jobs as their users, so `up` and `down` need root")
    if is_up(folder):
        print(f"already up: {folder}")
        return
    if folder.exists() and any(folder.iterdir()) and not is_ours(folder):
        sys.exit(
            f"error: --folder {folder} holds other files, or a slurm.conf that somebody changed;"
            " name another folder, or move your files away"
        )
    down(folder)
    remove(folder)
    (folder / "state").mkdir(parents=True)
    names = [f"n{number}" for number in range(1, nodes + 1)]
    host = socket.gethostname()
    lines = [NODE.format(name=name, host=host, port=port + i) for i, name in enumerate(names, 1)]
    configuration = SLURM_CONF.format(
        host=host, folder=folder, port=port, node_lines="\n".join(lines)
    )
    (folder / "slurm.conf").write_text(marked(configuration))
    (folder / "gres.conf").write_text(GRES_CONF.format(nodes=nodes))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    add_hosts(folder, names)

    # --force: the folder may be under one that others may write to (/tmp)
    kinds = ("socket", "key-file", "pid-file", "log-file", "seed-file")
    names_of = ("munge.socket", "munge.key", "munged.pid", "munged.log", "munged.seed")
    files = [f"--{kind}={folder / name}" for kind, name in zip(kinds, names_of, strict=True)]
    start("munged", "--force", *files)
    start("slurmctld", "-f", str(folder / "slurm.conf"), "-c")
    for name in names:
        start("slurmd", "-f", str(folder / "slurm.conf"), "-N", name)
    wait_until_idle(folder, nodes)
    print(f'{nodes} nodes are up. To use them: eval "$({sys.argv[0]} env --folder {folder})"')


def marked(content: str) -> str:
    """Return a configuration under a line with our mark and its hash."""
    return f"{MARK} {hashlib.sha256(content.encode()).hexdigest()}\n{content}"


def is_ours(folder: Path) -> bool:
    """Return whether `up` made a folder: its slurm.conf is as `up` wrote it."""
    try:
        text = (folder / "slurm.conf").read_text()
    except (OSError, ValueError):
        return False
    return text == marked(text.partition("\n")[2])


def remove(folder: Path) -> None:
    """Remove only what `up` and the daemons wrote into the folder; follows no link."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not OURS.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def start(*command: str) -> None:
    """Start a daemon, which moves itself to the background."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}: {done.stderr.strip()}")


def wait_until_idle(folder: Path, nodes: int) -> None:
    """Wait until slurmctld answers and all nodes are idle."""
    deadline = time.monotonic() + START_S
    states: list[str] = []
    while time.monotonic() < deadline:
        states = node_states(folder)
        if states.count("idle") == nodes:
            return
        time.sleep(0.2)
    sys.exit(f"error: after {START_S} s the nodes are {states}; see {folder}/*.log")


def node_states(folder: Path) -> list[str]:
    """Return the state of every node; [] where slurmctld does not answer."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"],
        env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")},
        capture_output=True,
        text=True,
    )
    return done.stdout.split() if done.returncode == 0 else []


def is_up(folder: Path) -> bool:
    """Return whether all daemons that `up` started are running."""
    pids = daemon_pids(folder)
    return len(pids) >= 3 and all(pids.values())


def daemon_pids(folder: Path) -> dict[str, int]:
    """Return name of each daemon -> its process, 0 where it has ended.

    A process counts only if its command line names this folder: the number in an old pid file may
    belong to another program by now.
    """
    found = {}
    for path in sorted(folder.glob("*.pid")):
        try:
            pid = int(path.read_text())
            ours = str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            ours = False
        found[path.stem] = pid if ours else 0
    return found


def down(folder: Path) -> None:
    """End the jobs and daemons of this cluster, and remove its names from /etc/hosts."""
    pids = daemon_pids(folder)
    if pids.get("slurmctld"):
        environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        subprocess.run(["scancel", "--full", "--user=root"], env=environment)
        kill_job_steps(folder)
    munged = pids.pop("munged", 0)  # last: the others need it to speak
    for running in ([pid for pid in pids.values() if pid], [munged] if munged else []):
        for pid in running:
            os.kill(pid, signal.SIGTERM)
        for pid in running:
            wait_for_end(pid)
    remove_hosts(folder)


def kill_job_steps(folder: Path) -> None:
    """End the step daemons of jobs, which have the folder's configuration in their environment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and job_steps(folder):
        time.sleep(0.2)
    for pid in job_steps(folder):
        os.kill(pid, signal.SIGKILL)


def job_steps(folder: Path) -> list[int]:
    """Return the step daemons, which watch over the jobs of this cluster."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_step = b"slurmstepd" in (entry / "cmdline").read_bytes()
            if is_step and str(folder).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def wait_for_end(pid: int) -> None:
    """Wait 10 s for a process to end, then kill it."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


def add_hosts(folder: Path, names: list[str]) -> None:
    """Make the nodes' names resolve: ranks meet at the name of the first node."""
    with HOSTS.open("a") as file:
        file.write(f"127.0.0.1 {' '.join(names)} {MARK} {folder}\n")


def remove_hosts(folder: Path) -> None:
    """Remove our line. In place, because a container's /etc/hosts cannot be replaced."""
    lines = HOSTS.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.endswith(f" {MARK} {folder}\n")]
    if kept != lines:
        HOSTS.write_text("".join(kept))


def status(folder: Path) -> None:
    """Print daemons and the states of nodes; exit code 1 where the cluster is down."""
    for name, pid in daemon_pids(folder).items():
        print(f"{name:12} {f'process {pid}' if pid else 'ended'}")
    print(f"nodes        {' '.join(node_states(folder)) or 'no answer'}")
    if not is_up(folder):
        sys.exit(f"down ({folder})")


def env(folder: Path) -> None:
    """Print shell code that makes Slurm's commands use this cluster."""
    print(f"export SLURM_CONF={folder / 'slurm.conf'}")


COMMANDS = {"install": install, "down": down, "status": status, "env": env}

if __name__ == "__main__":
    main()
