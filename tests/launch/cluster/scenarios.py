"""Scenarios of test_cluster.py: jobs in containers, on a site that exports no environment, and with
weights that were fetched before.

A stand-in for Apptainer runs the command in another root, which holds the system, Python and what
is mounted. So a stage that misses a mount fails.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.record.events import read_submission
from tests.launch.dev_cluster import HOSTILE, Cluster, events
from tests.model.hub import Hub, Repository

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


def a_container_holds_all_that_a_chain_needs(cluster: Cluster, data: Any, tmp_path: Path) -> None:
    """Prepare into a new folder and train, the pack on the node's own disk: nothing is missing."""
    (tmp_path / "bin").mkdir()
    disk = Path(tempfile.mkdtemp(prefix="disk"))  # short: sockets in TMPDIR have 108 characters
    image, run = tmp_path / "my image.sif", tmp_path / "my run"
    image.touch()
    write_apptainer(tmp_path / "bin")
    submit(
        cluster, run, "--image", str(image), "--stages", "prepare,train", "--prep-jobs", "1",
        "pack=true", "copies=2", "split.val=0", "split.test=0", "stage=$TMPDIR", f"raw={data.raw}",
        f"data={tmp_path / 'new' / 'set'}",
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", TMPDIR=str(disk),
    )  # fmt: skip
    wait_until_trained(cluster, run)
    log = cluster.jobs_py("logs", str(run))
    shutil.rmtree(disk)
    assert f"the pack is read from {disk}/eosin-{os.getuid()}/" in log


def a_site_that_exports_nothing_trains(cluster: Cluster, data: Any, tmp_path: Path) -> None:
    """sbatch --export=NONE, as some sites have it for all: the script sets what tasks need."""
    (tmp_path / "bin").mkdir()
    sbatch, real = tmp_path / "bin" / "sbatch", shutil.which("sbatch")
    sbatch.write_text(f'#!/bin/sh\nexec {real} --export=NONE "$@"\n')
    sbatch.chmod(0o755)
    run = tmp_path / "run"
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    submit(cluster, run, "--stages", "train", f"data={data.prepared}", PATH=path)
    wait_until_trained(cluster, run)


def weights_that_submit_fetches_train_without_a_network(
    cluster: Cluster, data: Any, tmp_path: Path
) -> None:
    """EfficientNet-Lite0's of ImageNet, from a hub that is gone when the job runs."""
    from tests.model.efficientnet_lite import write_weights  # it loads torch

    run, file, cache = tmp_path / "run", tmp_path / "lite0.safetensors", tmp_path / "cache"
    write_weights(0, file)
    weights = {"model.safetensors": file.read_bytes()}
    network = ("model.name=smp", "model.encoder=tu-tf_efficientnet_lite0", "model.weights=imagenet")
    given = ("--stages", "train,evaluate", f"data={data.prepared}", "evaluate.split=val")
    with Hub({"timm/tf_efficientnet_lite0.in1k": Repository(weights)}) as hub:
        shell = {**hub.environment, "EOSIN_CACHE": str(cache)}
        submit(cluster, run, *given, network=network, **shell)
    wait_until_trained(cluster, run)
    evaluation = run / "evaluation" / "val" / "summary.json"
    cluster.wait(evaluation.is_file, "the evaluation ends", run)
    source = json.loads(evaluation.read_text())["encoder"]
    assert source == json.loads((run / "init.json").read_text())["encoder"]
    assert source["source"] == "timm/tf_efficientnet_lite0.in1k"
    assert source["sha256"] == hashlib.sha256(weights["model.safetensors"]).hexdigest()
    log = cluster.jobs_py("logs", str(run), "--stage", "train")
    assert "its encoder begins with tu-tf_efficientnet_lite0: timm/tf_efficientnet_lite0" in log
    # each file once, and nothing by the job
    assert sum(asked.startswith("GET /timm/") for asked in hub.asked) == 1


SMALL = (
    *("epochs=1", "batch_size=4", "crop.size_px=64"),
    *("tile.size_px=96", "tile.overlap_px=16", "train.amp=off", "panels=0"),
)
UNET = ("model.width=4", "model.depth=2")


def submit(
    cluster: Cluster, run: Path, *arguments: str, network: Sequence[str] = UNET, **variables: str
) -> None:
    """Submit something small on one GPU, from a hostile shell with these variables."""
    script = (sys.executable, "launch/submit.py", "--profile", "dev", "--gpus-per-node", "1")
    given = ("--constraint", cluster.nodes, *arguments, *SMALL, *network, f"run={run}")
    cluster.call(*script, *given, **HOSTILE, **variables)
    submission = read_submission(run)
    assert submission
    cluster.jobs += submission["jobs"].values()


def wait_until_trained(cluster: Cluster, run: Path) -> None:
    """Wait for the end of training; fail as soon as a job does."""

    def has_ended() -> bool:
        assert not events(run, "failed", "gave up"), cluster.jobs_py("status", str(run))
        return any(event["stage"] == "train" for event in events(run, "finished"))

    cluster.wait(has_ended, "training ends", run)
