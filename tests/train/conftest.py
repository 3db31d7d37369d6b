"""A tiny prepared data set, and runs on it."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common import command_line
from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset, read_dataset
from tests.processes import prepare_alone
from train import __main__ as train_main
from train.config import TrainConfig
from train.crops.fitting import check_fitting
from train.crops.microbatches import CropKey, TrainingCrops
from train.loop.trainer import Trainer
from train.ranks.distributed import Ranks
from train.ranks.lock import RunLock
from train.runs.open_run import open_run
from train.runs.several import fold_name

CPU = torch.device("cpu")

FIELDS = {"1": 2, "2": 2, "3": 2, "4": 2, "5": 1}
"""Case -> number of its fields: 1 and 2 are for training, 3 for validation, 4 and 5 for testing."""
WIDTH_PX, HEIGHT_PX, RADIUS_PX = 96, 64, 8
# Four training fields with four variants each, by four: 4 steps an epoch
TINY = (
    "epochs=2",
    "batch_size=4",
    "microbatches=4",
    "lr=0.01",
    "loader_workers=0",
    "log_every_steps=1",
    "panels=1",
    "amp=off",
    "crop.size_px=32",
    "model.width=4",
    "model.depth=1",
    "tile.size_px=48",
    "tile.overlap_px=8",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Promise 4 is about one thread a process; and threads do not live through a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """This process has no GPU either, but for tests of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark discs on a pale ground, annotated as tumor: a task that is learned in a few steps."""
    folder = tmp_path_factory.mktemp("raw")
    for case, num_fields in FIELDS.items():
        for number in range(1, num_fields + 1):
            draw_field(folder, f"Case_{case}-{number:02d}")
    return folder


def draw_field(folder: Path, name: str) -> None:
    """An image and its annotation, drawn from the name."""
    rng = np.random.default_rng(list(name.encode()))
    image_HWC = rng.integers(200, 240, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    points = [{"x": x, "y": y} for x, y in rng.uniform(0.1, 0.9, (4, 2)).tolist()]
    for point in points:
        center = int(point["x"] * WIDTH_PX), int(point["y"] * HEIGHT_PX)
        cv2.circle(image_HWC, center, RADIUS_PX, (120, 60, 90), cv2.FILLED)
    cv2.imwrite(str(folder / f"{name}.png"), image_HWC)
    (folder / f"{name}.json").write_text(json.dumps({"tumor": points}))


@pytest.fixture(scope="session")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The raw fields prepared, lossless: train 4 fields of 4 variants, val 2, test 3."""
    return prepare_here(raw, tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="session")
def with_pack(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same with a pack."""
    return prepare_here(raw, tmp_path_factory.mktemp("with_pack") / "data", "pack=true")


def prepare_here(raw: Path, out: Path, *settings: str) -> Dataset:
    """Prepare these fields in this process."""
    given = [f"raw={raw}", f"out={out}", "copies=4", "format=png", f"radius_px={RADIUS_PX}"]
    given += ["split.val_cases=[3]", "split.test_cases=[4,5]"]
    prepare_alone(*given, *settings)
    return read_dataset(out)


@pytest.fixture(scope="session")
def tiny(prepared: Dataset) -> Callable[..., TrainConfig]:
    """tiny(run, "epochs=3") is a configuration that trains in a second."""

    def load(run: Path, *settings: str) -> TrainConfig:
        given = [f"data={prepared.folder}", f"run={run}", *TINY, *settings]
        return command_line.load(TrainConfig, given)

    return load


@pytest.fixture(scope="session")
def new_trainer(prepared: Dataset) -> Callable[..., Trainer]:
    """new_trainer(config) is what `python -m train` makes of a configuration, on one rank."""

    def make(config: TrainConfig) -> Trainer:
        check_fitting(config, prepared)
        config, changes = open_run(config, prepared, CPU)
        lock = RunLock(Path(config.run))
        return Trainer(config, prepared, one_rank(), StopRequest(), lock, changes)

    return make


@pytest.fixture(scope="session")
def trained(
    tiny: Callable[..., TrainConfig],
    new_trainer: Callable[..., Trainer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run. Copy it before changing it (`own_run`)."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert new_trainer(tiny(run)).fit() == 0
    return run


@pytest.fixture(scope="session")
def cv(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three folds, each trained for an epoch. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("cv")
    data = folder / "data"
    given = [f"raw={raw}", f"out={data}", "copies=2", "format=png", f"radius_px={RADIUS_PX}"]
    prepare_alone(*given, "split.folds=3")
    for fold in range(3):
        run = [f"data={data}", f"run={folder / 'cv' / fold_name(fold)}", f"fold={fold}"]
        short = ["epochs=1", "batch_size=2", "microbatches=1", f"seed={fold}"]
        assert train_main.main([*run, *TINY, *short]) == 0
    return folder / "cv"


@pytest.fixture(scope="session")
def cut() -> Callable[[TrainingCrops, Sequence[CropKey]], list[torch.Tensor]]:
    """cut(crops, crop_keys) are their images and masks, stacked."""

    def stack(crops: TrainingCrops, crop_keys: Sequence[CropKey]) -> list[torch.Tensor]:
        return [
            torch.from_numpy(np.stack(part)) for part in zip(*crops.cut(crop_keys), strict=True)
        ]

    return stack


@pytest.fixture
def own_run(trained: Path, tmp_path: Path) -> Path:
    """The finished run, to do with as one likes."""
    return Path(shutil.copytree(trained, tmp_path / "own"))


def with_other_content(data: str, folder: Path) -> Path:
    """Copy a prepared data set, as one of other content: its manifest has other spaces."""
    shutil.copytree(data, folder)
    manifest, about = folder / "manifest.jsonl", folder / "dataset.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"}\n", b"} \n"))
    content_sha256 = hashlib.sha256(manifest.read_bytes()).hexdigest()
    changed = json.loads(about.read_text()) | {"content_sha256": content_sha256}
    about.write_text(json.dumps(changed))
    return folder


def one_rank(rank: int = 0, world_size: int = 1) -> Ranks:
    """A rank on the CPU; with others only for what needs no collective."""
    return Ranks(rank, world_size, torch.device("cpu"))


@pytest.fixture(scope="session")
def ranks() -> Callable[..., Ranks]:
    """ranks() is the only rank; ranks(1, 4) one of four."""
    return one_rank
