"""Folders of runs, made by what writes them in a training, in place of hours of training."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from common import command_line
from data_prep.dataset.description import DATASET
from data_prep.dataset.manifest import Dataset
from tests.train.conftest import prepare_here
from train.config import TrainConfig
from train.runs.history import METRICS, RESTARTS, TRAINING
from train.runs.monitor import append_line
from train.runs.newest import CHECKPOINTS, CONFIG, PROGRESS
from train.runs.open_run import write_settings

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def in_folds(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five cases, a fold each: fold k tests on case k + 1, and validates on the next one."""
    out = tmp_path_factory.mktemp("in_folds") / "data"
    return prepare_here(raw, out, "split.folds=cases", "split.val_cases=[]", "split.test_cases=[]")


@pytest.fixture
def write_run(prepared: Dataset, tmp_path: Path) -> Write:
    """write_run("a", [0.5, 0.6], "lr=0.01") is a run with a validation for each Dice."""

    def write(
        name: str,
        dice: Sequence[float | None],
        *settings: str,
        data: Dataset = prepared,
        epochs: int | None = None,
        speed: float = 4.0,
        restarts: int = 0,
    ) -> Path:
        run, total = tmp_path / name, epochs or len(dice)
        given = [f"data={data.folder}", f"epochs={total}", "batch_size=4", "microbatches=4"]
        config = command_line.load(TrainConfig, [*given, f"run={run}", *settings])
        run.mkdir(parents=True)
        as_yaml = command_line.as_yaml(config).encode()
        about_data = (data.folder / DATASET).read_bytes()
        write_settings(run, {DATASET: about_data, CONFIG: as_yaml})
        for epoch, value in enumerate(dice, start=1):
            figures = {"val/dice": value, "val/nuclei_f1": value and value / 2}
            append_line(run / METRICS, {"step": 10 * epoch, "epoch": epoch, **figures})
            curve = {"train/loss": 1 / epoch, "speed/samples_per_s": speed}
            append_line(run / TRAINING, {"step": 10 * epoch, **curve})
        for number in range(restarts):
            append_line(run / RESTARTS, {"step": 10 * number, "time_s": 1e9, "notes": []})
        now = {"step": 10 * len(dice), "total_steps": 10 * total, "epoch": len(dice)}
        now |= {"is_finished": len(dice) == total, "time_s": 1e9}
        (run / PROGRESS).write_text(json.dumps(now))
        (run / CHECKPOINTS / "step_00000010").mkdir(parents=True)
        (run / CHECKPOINTS / "step_00000010" / "COMPLETE").write_bytes(b"complete")
        (run / CHECKPOINTS / "best").write_text("step_00000010\n")
        return run

    return write


@pytest.fixture
def write_evaluation() -> Callable[..., None]:
    """write_evaluation(run, {"Case_4-01": ([hit, too much, missed, neither], [...])}) is a
    summary.json with the counts of pixels and of nuclei of each field."""

    def write(run: Path, counts: dict[str, tuple[list[int], list[int]]], **changed: Any) -> None:
        rows = [{"field": name, "case": name.partition("-")[0]} for name in counts]
        pixels, nuclei = (
            [
                row | {"counts": {"tumor": both[kind]}}
                for row, both in zip(rows, counts.values(), strict=True)
            ]
            for kind in (0, 1)
        )
        summary = {
            "run": run.name,
            "checkpoint": "step_00000010",
            "checkpoint_sha256": hashlib.sha256(b"complete").hexdigest(),
            "tta": False,
            "all_pixels": {"dice": 0.75},
            "detection": {"f1": 0.7, "radius_px": 8, "per_field": nuclei},
            "per_field": pixels,
            "truth_sha256": {name: f"truth of {name}" for name in counts},
            "warnings": [],
            **changed,
        }
        folder = run / "evaluation" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(summary))

    return write
