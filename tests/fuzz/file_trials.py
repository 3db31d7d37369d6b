"""Trials of mutated prepared sets, runs and exported models: the same figures, or a refusal."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml

from common.schema import json_sha256
from tests.fuzz.reference import TRAINING, Reference
from tests.fuzz.running import Outcome
from tests.fuzz.text_mutations import (
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_yaml,
)
from tests.fuzz.trials import RIGHT, WRONG, Command, Trial, Verdict

# Settings that decide what is predicted, though the weights stay
DECIDING = ("tile", "amp", "memory_format", "model", "seed", "device")


def copied(source: Path, target: Path) -> Path:
    """Copy a folder."""
    return Path(shutil.copytree(source, target))


def mutate_file(folder: Path, names: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """Mutate one of the files that match a pattern; return its name, and what was done."""
    paths = sorted(folder.glob(str(rng.choice(names))))
    path = paths[int(rng.integers(len(paths)))]
    content = path.read_bytes()
    by_ending: dict[str, Callable[..., tuple[bytes, str]]] = {
        ".json": mutate_json,
        ".jsonl": mutate_lines,
        ".yaml": mutate_yaml,
    }
    change = by_ending.get(path.suffix, mutate_json if path.name == "COMPLETE" else mutate_bytes)
    if rng.random() < 0.05:
        path.unlink()
        return path.name, f"{path.name}: missing"
    changed, what = change(content, rng)
    path.write_bytes(changed)
    return path.name, f"{path.relative_to(folder)}: {what}"


def set_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Use a mutated prepared set: train on it, evaluate with it, or prepare it again."""
    data = copied(reference.data, folder / "data")
    files = ["dataset.json", "dataset.json", "manifest.jsonl", "manifest.jsonl", "images/*",
             "masks/*", "points/*", "packed/*", ".eosin/*/*.json", ".eosin/pack/*"]  # fmt: skip
    _, about = mutate_file(data, files, rng)
    way = rng.random()
    if way < 0.35:
        given = (f"run={reference.run}", f"data={data}", f"out={folder / 'out'}")
        command = Command("train.evaluate", (*given, "figures=0", "amp=off"))

        def judge(outcome: Outcome) -> Verdict:
            # a damaged training image is named, and cannot be compared with those that are tested
            is_named = "not checked whether" in outcome.told
            passing = ("near_duplicates",) if is_named else ()
            return judge_figures(folder / "out", reference, passing)

        return Trial(command, judge, about)
    if way < 0.7:
        run = f"run={folder / 'out'}"
        command = Command("train.__main__", (f"data={data}", run, *TRAINING))
        return Trial(command, lambda outcome: judge_training(folder / "out", reference), about)
    split = ("split.val_cases=[3]", "split.test_cases=[4]", "copies=2", "pack=true", "workers=1")
    given = (f"raw={reference.raw}", f"out={data}", "radius_px=8", "format=png")
    command = Command("data_prep.__main__", (*given, *split), ("data",))
    return Trial(command, lambda outcome: judge_set(data, reference), f"prepared again: {about}")


def run_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Use a mutated run."""
    run = copied(reference.run, folder / "runs/run")
    files = ["config.yaml", "config.yaml", "dataset.json", "checkpoints/latest", "checkpoints/best",
             "checkpoints/*/state.json", "checkpoints/*/COMPLETE", "checkpoints/*/.metadata",
             "checkpoints/*/*.distcp", "metrics.jsonl", "progress.json"]  # fmt: skip
    name, about = mutate_file(run, files, rng)
    way = rng.random()
    about = f"run: {about}"
    if way < 0.3:
        return show_trial(run, reference, about)
    if way < 0.45:
        command = Command("train.export", (f"run={run}", f"out={folder / 'out.safetensors'}"),
                          ("out.safetensors", ".eosin"))  # fmt: skip
        return Trial(command, lambda outcome: Verdict(RIGHT), about)
    if way < 0.65:
        given = (f"run={run}", f"out={folder / 'out'}", "figures=1", "amp=off")
        is_free = name in ("config.yaml", "dataset.json")
        judge = lambda _: judge_figures(folder / "out", reference, is_free=is_free)  # noqa: E731
        return Trial(Command("train.evaluate", given), judge, about)
    given = (f"run={run}", f"input={reference.image}", f"out={folder / 'out'}", "amp=off")
    is_free = name == "config.yaml" and decides(run / name, reference.run / name)
    judge = lambda outcome: judge_prediction(folder / "out", reference, is_free)  # noqa: E731
    return Trial(Command("train.predict", given), judge, about)


def jobs_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Ask about the jobs of a mutated run."""
    run = copied(reference.run, folder / "runs/run")
    files = ["launch/*.json", "launch/*.jsonl", "metrics.jsonl", "progress.json",
             "checkpoints/latest"]  # fmt: skip
    _, about = mutate_file(run, files, rng)
    way = ("status", str(run)) if rng.random() < 0.6 else ("list", str(run.parent))
    command = Command("launch.jobs", way)
    return Trial(command, lambda outcome: Verdict(RIGHT), f"{way[0]}: {about}")


def model_trial(rng: np.random.Generator, folder: Path, reference: Reference) -> Trial:
    """Predict with a mutated exported model."""
    content = reference.model.read_bytes()
    if rng.random() < 0.3:
        changed, about = mutate_bytes(content, rng)
    else:
        changed, about = with_other_header(content, rng)
    model = folder / "model.safetensors"
    model.write_bytes(changed)
    given = (f"run={model}", f"input={reference.image}", f"out={folder / 'out'}", "amp=off")
    is_free = "hash anew" in about
    judge = lambda outcome: judge_prediction(folder / "out", reference, is_free)  # noqa: E731
    return Trial(Command("train.predict", given), judge, f"model: {about}")


def with_other_header(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Mutate the header of a safetensors file, or what is told in it about the model."""
    size = struct.unpack("<Q", content[:8])[0]
    header, tensors = content[8 : 8 + size], content[8 + size :]
    parsed: dict[str, Any] = json.loads(header)
    if rng.random() < 0.3:
        changed, about = mutate_json(header, rng)
    else:
        told, about = mutate_json(parsed["__metadata__"]["eosin"].encode(), rng)
        text = told.decode(errors="replace")
        if rng.random() < 0.7:
            text, about = hashed_anew(text), f"{about}, hash anew"
        parsed["__metadata__"]["eosin"] = text
        changed = json.dumps(parsed).encode()
    return struct.pack("<Q", len(changed)) + changed + tensors, about


def hashed_anew(text: str) -> str:
    """Return JSON with the hash of its content, as a stranger would write it."""
    try:
        about = json.loads(text)
        about.pop("sha256", None)
        return json.dumps(about | {"sha256": json_sha256(about)})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return text


def show_trial(run: Path, reference: Reference, about: str) -> Trial:
    """Show the checkpoint of a mutated run."""

    def judge(outcome: Outcome) -> Verdict:
        digest = model_digest(outcome.out)
        is_known = digest in known_digests(reference)
        return Verdict(RIGHT) if is_known else Verdict(WRONG, f"another model: {digest}")

    return Trial(Command("train.show", (f"run={run}",)), judge, about)


def known_digests(reference: Reference) -> list[str]:
    """Return the digests of the models of the sound run."""
    return [model_digest(path.read_text()) for path in sorted(reference.folder.glob("shown_*.txt"))]


def model_digest(printed: str) -> str:
    """Return the digest that train.show prints."""
    lines = [line for line in printed.splitlines() if line.startswith("model sha256")]
    return lines[0].split()[-1] if lines else ""


def decides(changed: Path, sound: Path) -> bool:
    """Whether other settings may change what is predicted."""
    try:
        ours, theirs = (yaml.safe_load(path.read_text()) for path in (changed, sound))
        return any(ours.get(key) != theirs.get(key) for key in DECIDING)
    except Exception:
        return False


def judge_figures(
    out: Path, reference: Reference, passing: tuple[str, ...] = (), is_free: bool = False
) -> Verdict:
    """Judge an evaluation: the figures of the sound one, but those that are passed over."""
    ours, theirs = (
        figures(json.loads((folder / "summary.json").read_text()))
        for folder in (out, reference.folder / "evaluated")
    )
    if is_free or ours == theirs:
        return Verdict(RIGHT)
    differing = [key for key in theirs if ours.get(key) != theirs[key] and key not in passing]
    return Verdict(WRONG, f"other figures: {differing}") if differing else Verdict(RIGHT)


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured, without paths."""
    return {key: value for key, value in summary.items() if isinstance(value, dict | float)
            and key not in ("config", "settings", "run", "provenance", "versions")}  # fmt: skip


def judge_prediction(out: Path, reference: Reference, is_free: bool) -> Verdict:
    """Judge a prediction: the probabilities of the sound model."""
    ours, theirs = (
        tifffile.imread(folder / f"{reference.image.stem}_probability.tif", key=0)
        for folder in (out, reference.folder / "predicted")
    )
    if is_free or np.array_equal(ours, theirs):
        return Verdict(RIGHT)
    return Verdict(WRONG, "other probabilities")


def judge_training(run: Path, reference: Reference) -> Verdict:
    """Judge a training: the curves of the sound one."""
    ours, theirs = (
        [json.loads(line).get("val/dice") for line in (folder / "metrics.jsonl").open()]
        for folder in (run, reference.run)
    )
    return Verdict(RIGHT) if ours == theirs else Verdict(WRONG, "other curves")


def judge_set(data: Path, reference: Reference) -> Verdict:
    """Judge a set that was prepared again: the bytes of the sound one."""
    for path in sorted(reference.data.rglob("*")):
        name = path.relative_to(reference.data)
        if path.is_file() and name.parts[0] in ("images", "masks", "points", "manifest.jsonl"):
            other = data / name
            if not other.is_file() or other.read_bytes() != path.read_bytes():
                return Verdict(WRONG, f"another {name}")
    return Verdict(RIGHT)
