"""How a task of a job starts Python: on the node itself, or in a container.

In a container (image: of a profile) each folder that the stages use is mounted under its own path.
Apptainer is started by each task; pyxis, a plugin of Slurm's, takes arguments of srun. Both hand
the environment on, but an image's own variables come first. So `env` sets ours inside.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.command_line import UsageError
from launch.cluster.profiles import Profile
from model.encoder_cache import CACHE, names_file
from train.config import VARIABLE
from train.runs.newest import CONFIG, read_config

Arguments = Mapping[str, Sequence[str]]
"""Stage -> its key=value arguments."""
PYXIS = "pyxis"
PATHS = ("raw", "data", "out", "run")  # keys of stages that name a folder
# Of the node's user, who may be someone else in the image
IN_IMAGE = {"PYTHONNOUSERSITE": "1"}


@dataclass(frozen=True)
class Start:
    """How a task starts Python."""

    python: str
    """Words of the shell, after those of srun."""
    setup: list[str] = field(default_factory=list)
    """Lines of the job's script before them."""


def start_python(
    profile: Profile,
    environment: Mapping[str, str],
    arguments: Arguments,
    run: Path,
    *,
    has_gpus: bool,
) -> Start:
    """Return how a task starts Python. Raises UsageError where the image cannot be used.

    `environment`: variables of the task. `arguments`: those of each stage of the run's chain.
    """
    if not profile.image:
        return Start(shlex.quote(profile.python or sys.executable))
    image, folders = image_of(profile), folders_of(run, arguments, environment.get(CACHE, ""))
    (*_, stage) = "", *values_of("stage", arguments)
    for folder in folders:
        check_mountable(folder, profile.container)
    variables = [f"{name}={value}" for name, value in {**IN_IMAGE, **environment}.items()]
    python = ["env", "-u", "PYTHONHOME", *variables, profile.python or "python3"]
    # A container mounts only what exists
    made = [f"mkdir -p {shlex.quote(out)}" for out in sorted(set(values_of("out", arguments)))]
    if profile.container == PYXIS:
        return start_by_pyxis(image, folders, stage, python, made)
    binds = [word for folder in folders for word in ("--bind", str(folder))]
    words = shlex.join(["exec", *(["--nv"] if has_gpus else []), *binds, image, *python])
    if not stage:
        return Start(f"{profile.container} {words}", made)
    # A node without the folder trains from the shared pack
    bind = f'{making(stage)} && set -- exec --bind {expanded(stage)} "${{@:2}}"'
    binding = f'{bind}; exec {profile.container} "$@"'
    return Start(f"bash -c {shlex.quote(binding)} {profile.container} {words}", made)


def start_by_pyxis(
    image: str, folders: Iterable[Path], stage: str, python: Sequence[str], made: list[str]
) -> Start:
    """Return how srun starts Python with pyxis."""
    mounts = ",".join(f"{folder}:{folder}" for folder in folders)
    arguments = shlex.join([f"--container-image={image}", f"--container-mounts={mounts}"])
    if not stage:
        return Start(f"{arguments} {shlex.join(python)}", made)
    # srun mounts the folder under the name that it has on the job's first node
    mount = '${STAGE:+"--container-mounts=$STAGE:$STAGE"}'
    setup = [*made, "STAGE=", f"{making(stage)} && STAGE={expanded(stage)}"]
    return Start(f"{arguments} {mount} {shlex.join(python)}", setup)


def image_of(profile: Profile) -> str:
    """Return the image as jobs name it: a file by its whole path. Raises UsageError."""
    path = Path(profile.image).expanduser()
    if profile.container == PYXIS:
        is_file = profile.image.startswith(("/", ".", "~"))
    else:
        is_file = path.exists() or not re.match(r"[a-z][a-z0-9-]+:", profile.image)
    if not is_file:
        return profile.image
    if not path.exists():
        raise UsageError(
            f"image={profile.image}: no such file: build it, or name another (image: in the"
            " profile, or python launch/submit.py --image FILE); an image of a registry is"
            f" {'REGISTRY#NAME:TAG' if profile.container == PYXIS else 'docker://NAME:TAG'}"
        )
    return str(path.resolve())


def check_mountable(folder: Path, container: str) -> None:
    """Refuse a folder that cannot be mounted by its name. Raises UsageError."""
    wrong = r"[,:\s]" if container == PYXIS else "[,:]"
    if found := re.search(wrong, str(folder)):
        raise UsageError(
            f"{folder}: {container} cannot mount a folder whose path holds '{found[0]}'; rename it,"
            " or leave image: out of the profile"
        )


def folders_of(run: Path, arguments: Arguments, cache: str = "") -> list[Path]:
    """Return the folders that the stages of a chain read or write, none inside another. `cache`:
    that of encoders' weights, '' for none."""
    named = {run, *(Path(value) for key in PATHS for value in values_of(key, arguments))}
    begun_with = [*values_of("init", arguments), *values_of("model.weights", arguments)]
    files = [Path(value) for value in begun_with if names_file(value)]
    named |= {path if path.is_dir() else path.parent for path in files}
    named |= {Path(cache)} if cache else set()
    if (run / CONFIG).is_file():  # where evaluation finds the data set
        named.add(Path(read_config(run).data))
    named |= {target for folder in named for target in linked(folder)}
    return [path for path in sorted(named) if not any(above in named for above in path.parents)]


def linked(folder: Path, depth: int = 2) -> Iterator[Path]:
    """Yield the folders that links in a folder, or one level below it, lead to."""
    for entry in os.scandir(folder) if depth and folder.is_dir() else ():
        path = Path(entry.path)
        if not entry.is_symlink():
            if entry.is_dir():
                yield from linked(path, depth - 1)
        elif path.exists():
            next_one = Path(os.path.abspath(folder / path.readlink()))
            for target in (next_one, path.resolve()):
                yield target if target.is_dir() else target.parent


def values_of(key: str, arguments: Arguments) -> list[str]:
    """Return what the stages are given for a key, where it is not empty."""
    settings = [setting.partition("=") for given in arguments.values() for setting in given]
    return [value for name, _, value in settings if name == key and value]


def expanded(path: str) -> str:
    """Return a path as a word of the shell, which expands variables ($TMPDIR) and nothing else."""
    parts = VARIABLE.split(path)  # text, name in braces, name, text, ...
    words = [shlex.quote(parts[0]) if parts[0] else ""]
    for braced, plain, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        words += [f'"${braced or plain}"', shlex.quote(text) if text else ""]
    return "".join(words)


def making(path: str) -> str:
    """Return shell that succeeds where all variables of a path are set and the folder exists, or
    could be made."""
    word = expanded(path)
    given = [f'[ "${braced or plain}" ]' for braced, plain in VARIABLE.findall(path)]
    return " && ".join([*given, f"{{ [ -d {word} ] || mkdir {word}; }}"])
