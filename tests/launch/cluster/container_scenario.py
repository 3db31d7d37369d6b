"""A chain in containers on the development cluster, with a stand-in for Apptainer.

The stand-in runs the command in another root, which holds the system, Python and what is mounted.
So a stage that misses a mount fails.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.launch.dev_cluster import Cluster

SYSTEM = ("/usr", "/etc", "/dev", "/proc", "/sys")
LINKS = ("/bin", "/sbin", "/lib", "/lib64")  # into /usr
APPTAINER = """\
#!/bin/bash
[ "$1" = exec ] || { echo "apptainer: not exec: $1" >&2; exit 97; }
shift
mounts=(%(mounts)s)
while [[ $1 == -* ]]; do
    case $1 in
        --nv) shift;;
        --bind) mounts+=("$2"); shift 2;;
        *) echo "apptainer: unknown flag: $1" >&2; exit 97;;
    esac
done
[ -e "$1" ] || { echo "apptainer: no image $1" >&2; exit 97; }
shift
export listed="$(printf '%%s\\n' "${mounts[@]}")" PATH=%(python)s:/usr/sbin:/usr/bin:/bin
exec unshare --mount bash -c '
    set -e
    mount -t tmpfs none /mnt
    mkdir /mnt/tmp
    for link in %(links)s; do [ -L $link ] && cp -P $link /mnt$link; done
    while read -r path; do
        [ -e "$path" ] || { echo "apptainer: no $path to mount" >&2; exit 97; }
        mkdir -p "/mnt$path" && mount --rbind "$path" "/mnt$path"
    done <<< "$listed"
    exec chroot /mnt "$@"
' apptainer "$@"
"""


def why_not() -> str:
    """Why the stand-in cannot run here; '' where it can."""
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "unshare --mount is not allowed here"


def write_apptainer(folder: Path) -> None:
    """Write the stand-in, with this Python as that of each image."""
    python = Path(sys.executable).parent
    mounts = " ".join((*SYSTEM, sys.prefix, sys.base_prefix))
    text = APPTAINER % {"mounts": mounts, "python": python, "links": " ".join(LINKS)}
    (folder / "apptainer").write_text(text)
    (folder / "apptainer").chmod(0o755)


def run_chain(cluster: Cluster, raw: Path, tmp_path: Path, *settings: str) -> Path:
    """Prepare and train in containers, with the pack on the node's disk; return the run.

    `settings`: flags and settings of submit.py that make it small.
    """
    for name in ("bin", "disk"):
        (tmp_path / name).mkdir()
    image, run = tmp_path / "my image.sif", tmp_path / "my run"
    image.touch()
    write_apptainer(tmp_path / "bin")
    cluster.call(
        *(sys.executable, "launch/submit.py", "--profile", "dev", "--constraint", cluster.nodes),
        *("--image", str(image), "--prep-jobs", "1", "--gpus-per-node", "1", "pack=true"),
        *("stage=$TMPDIR", f"raw={raw}", f"data={tmp_path / 'new' / 'set'}", f"run={run}"),
        *settings,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        TMPDIR=str(tmp_path / "disk"),
    )
    return run
