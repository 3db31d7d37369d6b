"""Files of a run, a model or a prepared set that a stranger or a fault has changed.

Each file is changed in many ways, and read by what reads it in use: it is right, or refused in a
line. `python -m tests.train.runs.test_strangers SEED` tries all of the ways at every place.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from common.command_line import UserError
from common.schema import json_sha256
from data_prep.dataset.manifest import Dataset, read_dataset
from launch import jobs
from launch.record.events import note, read_submission, write_submission
from tests.train.checkpoints.conftest import remake_complete
from train.checkpoints.checkpoint_files import verify
from train.checkpoints.load_checkpoint import load_all_tensors
from train.evaluation.report import about_training
from train.exchange.config import ExportConfig
from train.ranks.distributed import Ranks
from train.runs.config import ShowConfig
from train.runs.ensemble import read_any
from train.runs.export_run import export_run
from train.runs.history import check_history
from train.runs.monitor import METRICS, RESTARTS, TRAINING, drop_lines_after
from train.runs.newest import check_run, how_far
from train.runs.run_folder import read_run
from train.runs.show_checkpoint import show_checkpoint
from train.runs.thresholds import thresholds_of

VALUES: list[Any] = [
    *(None, True, -1, 0, 2**70, 10**400, 1.5, 1e308, float("nan"), float("inf")),
    *("", "x", "../x", "a\nb", "\x1b[2J", "\udce9", "\0", "9" * 400, [], {}, [1], {"a": 1}, [[]]),
    json.loads("[" * 150 + "]" * 150),
]
CONTENTS = [
    *(b"", b"\0" * 9, b"\xff\xfe{", b"{", b"[]", b"null", b"7", b'"x"', b"[" * 10**5, b"{}\n{}\n"),
    *(b"- a\n- b\n", b"a: &x [*x, *x]\n", b"*a", b"!!python/object:os.system x", b"\x1f\x8b\x08"),
    *(b'{"a":' * 10**4, b"9" * 10**5, b"a: " + b"[" * 5000, b"\r\n\r\n", b"? !!binary x\n"),
]


class Place(NamedTuple):
    """A file of a run or of a prepared set."""

    path: str
    kind: str
    """json, lines, yaml or safetensors."""


PLACES = [
    Place("run/config.yaml", "yaml"),
    Place("run/dataset.json", "json"),
    Place("run/progress.json", "json"),
    *(Place(f"run/{name}", "lines") for name in (METRICS, TRAINING, RESTARTS)),
    Place("run/launch/events.jsonl", "lines"),
    Place("run/launch/submission.json", "json"),
    Place("run/checkpoints/step_00000008/COMPLETE", "json"),
    Place("run/checkpoints/step_00000008/state.json", "json"),
    Place("run/checkpoints/step_00000008/.metadata", "binary"),
    Place("run/checkpoints/latest", "binary"),
    Place("run/checkpoints/best", "binary"),
    Place("data/dataset.json", "json"),
    Place("data/manifest.jsonl", "lines"),
    Place("model.safetensors", "safetensors"),
    Place("ensemble.safetensors", "safetensors"),
]


def read_all(folder: Path, place: Place) -> Iterator[Callable[[], object]]:
    """What reads these files in use."""
    run, data, model = folder / "run", folder / "data", folder / place.path
    step = run / "checkpoints/step_00000008"
    if place.path.startswith("data/"):
        yield lambda: read_dataset(data)
        return
    if place.kind == "safetensors":
        yield lambda: use(model)
        yield lambda: check_run(str(model), "best")
        return
    if "checkpoints" not in place.path:
        yield lambda: about_training({"step": 8}, read_run(run))
        yield lambda: how_far(run)
        yield lambda: check_history(run)
        for name, key in ((METRICS, "epoch"), (TRAINING, "step")):
            yield lambda name=name, key=key: drop_lines_after(run / name, key, 4)  # type: ignore[misc]
        yield lambda: write_submission(run, read_submission(run) or {"jobs": {}})
    yield lambda: jobs.main(["status", str(run)])
    yield lambda: jobs.main(["list", str(folder)])
    yield lambda: jobs.main(["logs", str(run)])
    yield lambda: check_run(str(run), "latest")
    yield lambda: use(run)
    if "step_" in place.path:
        yield lambda: show_checkpoint(ShowConfig(str(run), "8"))
        yield lambda: None if verify(step) else load_all_tensors(step)


def use(run: Path) -> None:
    """Load the model and choose its thresholds."""
    import torch

    read = read_any(run)
    loaded = read.load_model("best", Ranks(0, 1, torch.device("cpu")))
    thresholds_of(loaded.state, read.class_names)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested ones, its own first."""
    yield path
    listed = dict(enumerate(value)) if isinstance(value, list) else value
    if isinstance(listed, dict):
        for key, child in listed.items():
            yield from paths_in(child, (*path, key))


def changed(content: Any, rng: random.Random) -> Any:
    """The content with one value replaced or removed, one key added, or a text of another kind."""
    content = json.loads(json.dumps(content))
    path = rng.choice(list(paths_in(content)))
    if not path:
        return rng.choice(VALUES)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    match rng.randrange(4):
        case 0:
            del parent[path[-1]]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(["extra", "", "\x1b[2J", "__class__", "step"])] = rng.choice(VALUES)
        case _:
            parent[path[-1]] = rng.choice(VALUES)
    return content


def as_bytes(content: Any) -> bytes:
    """JSON, also of what JSON cannot hold."""
    return json.dumps(content).encode()


def change_content(file: Path, kind: str, rng: random.Random) -> None:
    """Change a file's content as somebody would who knows its format."""
    content = file.read_bytes()
    if kind == "json":
        file.write_bytes(as_bytes(changed(json.loads(content), rng)))
    elif kind == "lines":
        lines = content.splitlines()
        number = rng.randrange(len(lines))
        lines[number] = as_bytes(changed(json.loads(lines[number]), rng))
        file.write_bytes(b"\n".join(lines) + b"\n")
    elif kind == "yaml":
        text = yaml.safe_dump(changed(yaml.safe_load(content), rng), allow_unicode=True)
        file.write_text(text, errors="surrogateescape")
    elif kind == "safetensors":
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        about = changed(json.loads(header["__metadata__"]["eosin"]), rng)
        members = about.get("members") if isinstance(about, dict) else None
        for part in (*(members if isinstance(members, list) else []), about):
            if isinstance(part, dict):
                part.pop("sha256", None)
                with contextlib.suppress(ValueError):
                    part["sha256"] = json_sha256(part)
        header["__metadata__"]["eosin"] = json.dumps(about)
        if rng.random() < 0.2:
            header = changed(header, rng)
        new = as_bytes(header)
        claimed = rng.choice([len(new)] * 8 + [2**63, 2**40, 0, len(new) - 1])
        file.write_bytes(struct.pack("<Q", claimed) + new + content[8 + length :])
    else:
        flipped = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        file.write_bytes(flipped)


def damage(file: Path, kind: str, rng: random.Random) -> str:
    """Change a file in one way. Returns which."""
    content = file.read_bytes()
    way = rng.choice(["content"] * 8 + ["bytes", "cut", "gone", "folder", "loop", "pipe", "sparse"])
    if way == "content":
        change_content(file, kind, rng)
    elif way == "bytes":
        file.write_bytes(rng.choice(CONTENTS))
    elif way == "cut":
        file.write_bytes(content[: rng.randrange(len(content) + 1)])
    else:
        file.unlink()
        if way == "folder":
            file.mkdir()
        elif way == "loop":
            file.symlink_to(file.name)
        elif way == "pipe":
            os.mkfifo(file)
        elif way == "sparse":
            with file.open("wb") as made:
                made.truncate(2**31 + 7)
    return way


def mend_hashes(folder: Path, place: Place) -> None:
    """Make the hashes those of the changed files, as somebody would who means it."""
    data, step = folder / "data", folder / "run/checkpoints/step_00000008"
    if not (folder / place.path).is_file():
        return
    with contextlib.suppress(Exception):
        if place.path == "data/manifest.jsonl" and (data / "manifest.jsonl").stat().st_size < 10**6:
            about = json.loads((data / "dataset.json").read_text())
            digest = hashlib.sha256((data / "manifest.jsonl").read_bytes()).hexdigest()
            (data / "dataset.json").write_text(json.dumps(about | {"content_sha256": digest}))
        if place.path.endswith("COMPLETE"):
            complete = json.loads((step / "COMPLETE").read_text())
            complete.pop("sha256", None)
            complete["sha256"] = json_sha256(complete)
            (step / "COMPLETE").write_text(json.dumps(complete))
        elif "step_" in place.path and (folder / place.path).stat().st_size < 10**6:
            remake_complete(step)


def make_originals(folder: Path, run: Path, dataset: Dataset) -> None:
    """A run that was restarted and submitted, its exported model, and its data set."""
    shutil.copytree(run, folder / "run")
    shutil.copytree(dataset.folder, folder / "data")
    restart = {"step": 4, "time_s": 1.5e9, "notes": ["resumed"]}
    (folder / "run/restarts.jsonl").write_text(json.dumps(restart) + "\n")
    (folder / "run/launch").mkdir(exist_ok=True)
    about = {"jobs": {"train": "7"}, "time_s": 1.5e9, "revision": "abc", "prepare": ["out=x"]}
    for _ in range(2):
        write_submission(folder / "run", about)
    note(folder / "run", "queued", "chain", jobs={"train": "7"})
    for event in ("started", "failed", "requeued", "error"):
        facts = {"job": "7", "restart": 1, "nodes": "n1", "step": 4, "saved": 4}
        note(folder / "run", event, "train", **facts, reason="lost", rank=0)
    model = folder / "model.safetensors"
    export_run(ExportConfig(run=str(folder / "run"), out=str(model)))
    both = [str(folder / "run"), str(model)]
    export_run(ExportConfig(runs=both, out=str(folder / "ensemble.safetensors")))


def attempt(folder: Path, place: Place, way: str) -> list[str]:
    """Read a changed file by all of its readers. Returns a line for each that fails otherwise."""
    wrong = []
    for number, read in enumerate(read_all(folder, place)):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                read()
        except UserError as error:
            text = str(error)
            if not text or not text.replace("\n", "").isprintable():
                wrong.append(f"{place.path} {way}, reader {number}: {text!r}")
        except OSError as error:
            if not error.strerror:
                wrong.append(f"{place.path} {way}, reader {number}: {error!r}")
        except (Exception, SystemExit):
            wrong.append(f"{place.path} {way}, reader {number}: {traceback.format_exc()}")
        if "\x1b" in printed.getvalue():
            wrong.append(f"{place.path} {way}, reader {number}: printed {printed.getvalue()!r}")
    return wrong


def try_once(originals: Path, place: Place, rng: random.Random) -> list[str]:
    """Change a file of a copy in one way, and read it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "copy"
        shutil.copytree(originals, folder)
        way = damage(folder / place.path, place.kind, rng)
        mend_hashes(folder, place)
        return attempt(folder, place, way)


@pytest.fixture(scope="module")
def originals(trained: Path, prepared: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers") / "originals"
    make_originals(folder, trained, prepared)
    return folder


@pytest.fixture
def outside_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command of Slurm's answers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("launch.cluster.slurm_commands.WAIT_S", 0)


@pytest.mark.usefixtures("outside_slurm")
@pytest.mark.parametrize("place", PLACES, ids=[place.path for place in PLACES])
def test_a_changed_file_is_right_or_refused_in_words(place: Place, originals: Path) -> None:
    rng = random.Random(place.path)
    wrong = [line for _ in range(5) for line in try_once(originals, place, rng)]
    assert not wrong, wrong[0]


if __name__ == "__main__":
    where, seed, times = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    from launch.cluster import slurm_commands

    slurm_commands.WAIT_S = 0
    os.environ["PATH"] = "/nowhere"
    found: dict[str, str] = {}
    for number in range(times):
        for place in PLACES:
            if len(sys.argv) > 4 and sys.argv[4] not in place.path:
                continue
            for line in try_once(where, place, random.Random(f"{seed} {number} {place.path}")):
                last = line.strip().splitlines()
                kind = f"{last[0][:60]} {last[-1][:100]}"
                if kind not in found:
                    print(line, "\n------", flush=True)
                found[kind] = line
    print(len(found), "kinds of failure")
