"""What trials start from: a raw folder, a prepared set, a run and an exported model, all sound."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tests.fuzz.running import run_forked
from tests.fuzz.trials import Command

LIMIT_S = 120.0
FIELDS = {"1": 2, "2": 1, "3": 1, "4": 1}
TRAINING = (
    "epochs=2",
    "batch_size=2",
    "microbatches=2",
    "lr=0.01",
    "loader_workers=0",
    "log_every_steps=1",
    "panels=0",
    "amp=off",
    "device=cpu",
    "crop.size_px=32",
    "model.width=4",
    "model.depth=1",
    "tile.size_px=48",
    "tile.overlap_px=8",
)


@dataclass(frozen=True)
class Reference:
    """Paths of what is sound."""

    folder: Path

    @property
    def raw(self) -> Path:
        """A raw folder of five fields."""
        return self.folder / "raw"

    @property
    def data(self) -> Path:
        """It prepared, with a pack."""
        return self.folder / "prepared"

    @property
    def run(self) -> Path:
        """A run on it."""
        return self.folder / "run"

    @property
    def model(self) -> Path:
        """The run's model exported."""
        return self.folder / "model.safetensors"

    @property
    def image(self) -> Path:
        """One of the raw images."""
        return self.raw / "Case_4-01.png"


def make_reference(folder: Path) -> Reference:
    """Draw, prepare, train and export, each by its command."""
    reference = Reference(folder)
    reference.raw.mkdir(parents=True)
    for case, count in FIELDS.items():
        for number in range(1, count + 1):
            draw_field(reference.raw / f"Case_{case}-{number:02d}")
    split = ("split.val_cases=[3]", "split.test_cases=[4]", "copies=2", "pack=true", "workers=1")
    sizes = ("radius_px=8", "format=png")
    raw, data, run = (f"{key}={getattr(reference, key)}" for key in ("raw", "data", "run"))
    did(("data_prep.__main__", raw, f"out={reference.data}", *sizes, *split), folder)
    did(("train.__main__", data, run, *TRAINING), folder)
    did(("train.export", run, f"out={reference.model}"), folder)
    for path in sorted((reference.run / "checkpoints").glob("step_*")):
        shown = did(("train.show", run, f"checkpoint={path.name}"), folder)
        (folder / f"shown_{path.name}.txt").write_text(shown)
    predicted(reference, folder / "predicted", folder)
    evaluated(reference, folder / "evaluated", folder)
    jobs = {"time_s": 0, "revision": "abc", "jobs": {"train": "7"}, "earlier": []}
    (reference.run / "launch").mkdir(exist_ok=True)
    (reference.run / "launch/submission.json").write_text(json.dumps(jobs))
    event = {"time_s": 1.5, "event": "started", "stage": "train", "job": "7", "restart": 0}
    lines = [event, event | {"event": "failed", "reason": "a fault", "nodes": "n1"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (reference.run / "launch/events.jsonl").write_text(text)
    return reference


def did(command: tuple[str, ...], folder: Path) -> str:
    """Run a command that must succeed; return what it printed."""
    outcome = run_forked(Command(command[0], command[1:]), folder / "log", LIMIT_S)
    assert outcome.code == 0, f"{' '.join(command)}\n{outcome.told}"
    return outcome.out


def predicted(reference: Reference, out: Path, folder: Path) -> None:
    """Predict the image with the run."""
    given = (f"run={reference.run}", f"input={reference.image}", f"out={out}", "amp=off")
    did(("train.predict", *given), folder)


def evaluated(reference: Reference, out: Path, folder: Path) -> None:
    """Evaluate the run on its own test split."""
    given = (f"run={reference.run}", f"out={out}", "figures=0", "amp=off")
    did(("train.evaluate", *given), folder)


def draw_field(path: Path) -> None:
    """Draw an image and its annotation, by its name."""
    rng = np.random.default_rng(list(path.name.encode()))
    image_HWC = rng.integers(200, 240, (64, 96, 3), dtype=np.uint8)
    points = [{"x": x, "y": y} for x, y in rng.uniform(0.1, 0.9, (4, 2)).tolist()]
    for point in points:
        center = int(point["x"] * 96), int(point["y"] * 64)
        cv2.circle(image_HWC, center, 8, (120, 60, 90), cv2.FILLED)
    cv2.imwrite(f"{path}.png", image_HWC)
    Path(f"{path}.json").write_text(json.dumps({"tumor": points}))
