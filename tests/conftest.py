"""What several test files need: small raw data sets, the real sample, a command line to call."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile

from common import command_line
from tests.processes import survives

ROOT = Path(__file__).parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"
CLASSES = ("mitosis", "non_mitosis", "apoptosis", "tumor", "non_tumor", "lumen", "non_lumen")


class Outcome(NamedTuple):
    """What a command line came to."""

    code: object
    out: str
    err: str


# Files that run before all others, the longest first, or after them
FIRST = ("test_cluster", "test_faults", "test_ranks", "test_demo", "test_predict", "test_evaluate")
LAST = ("test_gpu",)  # a process that has used a GPU cannot be forked to use torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process is left with one at the end."""

    def turn(item: pytest.Item) -> int:
        name = item.path.stem
        return FIRST.index(name) if name in FIRST else len(FIRST) + (name in LAST)

    items.sort(key=turn)


@pytest.fixture(scope="session", autouse=True)
def without_gpus() -> Iterator[None]:
    """Processes that tests start are to do the same on every machine; see tests.train.test_gpu."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call a command's `main` as the shell would: cli(main, "raw=a", "out=b")."""

    def call(main: Callable[[list[str]], int], *arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            command_line.run(main, arguments)
        return Outcome(caught.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def warm_workers() -> None:
    """Import what workers need once a session, not once a worker: seconds each."""
    modules = ("field", "augment.transforms", "dataset.pack")
    forkserver.set_forkserver_preload([f"data_prep.{module}" for module in modules])
    forkserver.ensure_running()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, which needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("a small disk is mounted, as root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def raw_folder(tmp_path: Path) -> Callable[..., Path]:
    """raw_folder({"1": 2, "2": 1}) writes Case_1-01, Case_1-02 and Case_2-01 in BreCaHAD's layout.

    A field depends on `seed`, its case and its number only, not on which others there are.
    """

    def write(
        cases: Mapping[str, int] | None = None,
        *,
        width_px: int = 160,
        height_px: int = 120,
        seed: int = 0,
        name: str = "raw",
    ) -> Path:
        raw = tmp_path / name
        for folder in ("images", "groundTruth"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
        for case, num_fields in (cases or {"1": 2, "2": 1, "3": 1}).items():
            for number in range(1, num_fields + 1):
                stem = f"Case_{case}-{number:02d}"
                rng = np.random.default_rng([seed, *stem.encode()])
                image_HWC = draw_patches(rng, height_px, width_px)
                tifffile.imwrite(raw / f"images/{stem}.tif", image_HWC, photometric="rgb")
                annotation = json.dumps(draw_points(rng))
                (raw / f"groundTruth/{stem}.json").write_text(annotation)
        return raw

    return write


def draw_patches(rng: np.random.Generator, height_px: int, width_px: int) -> np.ndarray:
    """Squares of 16 px, each of one colour: a JPG keeps them nearly as they are."""
    rows, columns = -(-height_px // 16), -(-width_px // 16)
    colours = rng.integers(40, 256, (rows, columns, 3), dtype=np.uint8)
    return colours.repeat(16, axis=0).repeat(16, axis=1)[:height_px, :width_px]


def draw_points(rng: np.random.Generator) -> dict[str, list[dict[str, float]]]:
    """Points of every class; mitosis and apoptosis have none, as in many real fields."""
    counts = dict.fromkeys(CLASSES, 1) | {"mitosis": 0, "apoptosis": 0, "tumor": 4, "non_tumor": 3}
    return {
        key: [dict(zip("xy", rng.uniform(0, 1, 2).tolist(), strict=True)) for _ in range(count)]
        for key, count in counts.items()
    }


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real BreCaHAD sample: images/ and groundTruth/ of 16 fields."""
    folder = REAL_DATA / "BreCaHAD"
    if not (folder / "images").is_dir():
        pytest.skip(f"the real BreCaHAD sample is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def official_json() -> list[Path]:
    """Two official annotation files whose images are not in the sample."""
    files = sorted((REAL_DATA / "official_json").glob("*.json"))
    if not files:
        pytest.skip(f"the official annotation files are not at {REAL_DATA / 'official_json'}")
    return files


@pytest.fixture
def kills(tmp_path: Path) -> Callable[..., Iterator[Path]]:
    """kills(before, action): copies of a folder in which action(copy) was killed, one an instant.

    The last copy is of an action that came to its end.
    """

    def kill_everywhere(before: Path, action: Callable[[Path], object]) -> Iterator[Path]:
        for instants in range(1000):
            copy = Path(shutil.copytree(before, tmp_path / f"killed_{instants}"))
            finished = survives(lambda folder=copy: action(folder), instants)
            yield copy
            if finished:
                assert instants > 2, "next to nothing was killed"
                return

    return kill_everywhere
