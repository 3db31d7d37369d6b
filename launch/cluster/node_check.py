"""Look at a node from inside a job. It runs there as a text after `python -c`, so that it needs
nothing of the project's, which the node may not see.

Arguments: project, a folder that the submitter has just made in the folder for runs, where scontrol
is outside a container, host names. It prints one line: MARK and what it saw, as JSON.
"""

import importlib.util
import json
import os
import shutil
import socket
import sys
from pathlib import Path

MARK = "eosin-node "
UNSEEN = "?"
# What pyproject.toml lists, beside torch
NEEDED = (
    *("albumentations", "filelock", "huggingface_hub", "imagecodecs", "jinja2", "matplotlib"),
    *("numpy", "omegaconf", "cv2", "PIL", "pooch", "pydantic", "yaml", "requests", "safetensors"),
    *("scipy", "segmentation_models_pytorch", "submitit", "tensorboard", "tifffile", "timm"),
    "tqdm",
)


def look(project: str, shared: str, scontrol: str, names: list[str]) -> dict[str, object]:
    """Return what this node has. `scontrol`: its path, '' for none, UNSEEN where nobody looked."""
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return {
        "node": node,
        "python": sys.version.split()[0],
        "missing": [name for name in NEEDED if importlib.util.find_spec(name) is None],
        "scontrol": None if scontrol == UNSEEN else bool(scontrol),
        "unresolved": [name for name in names if not resolves(name)],
        "project": os.access(Path(project) / "common" / "command_line.py", os.R_OK),
        "shared": is_written(Path(shared) / node),
        "shm": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        "cores": len(os.sched_getaffinity(0)),
        **look_at_torch(),
    }


def resolves(name: str) -> bool:
    """Return whether a host name has an address."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def is_written(path: Path) -> bool:
    """Return whether a file can be written in a folder that is there."""
    try:
        path.write_text("seen")
    except OSError:
        return False
    return True


def look_at_torch() -> dict[str, object]:
    """Return the version of torch, or why it does not load, its GPUs, and whether it has NCCL."""
    try:
        import torch
    except Exception as error:  # a library of the system's may be missing, or too old
        return {"torch": "", "error": f"{type(error).__name__}: {error}", "gpus": 0, "nccl": False}
    return {
        "torch": torch.__version__,
        "error": "",
        "gpus": torch.cuda.device_count(),
        "nccl": torch.distributed.is_available() and torch.distributed.is_nccl_available(),
    }


if __name__ == "__main__":
    project, shared, scontrol, *names = sys.argv[1:]
    # One write: two nodes may print at once
    sys.stdout.write(MARK + json.dumps(look(project, shared, scontrol, names)) + "\n")
