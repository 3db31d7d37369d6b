"""A fold in training: only its training cases are ever used, and a run keeps its fold."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from common import command_line
from common.command_line import UsageError, UserError
from data_prep.dataset.manifest import read_dataset
from data_prep.dataset.pack import TrainingPixels
from tests.processes import prepare_alone
from tests.train.conftest import TINY, one_rank
from train.__main__ import main as train
from train.config import TrainConfig
from train.crops.loader import load_microbatches
from train.crops.microbatches import TrainingCrops
from train.evaluate import main as evaluate
from train.runs.run_folder import read_run_folder

LEVELS = {"Case_1": 40, "Case_2": 90, "Case_3": 140, "Case_4": 190}
"""Each case is of one grey, which flips, turns and jpg keep: pixels tell the case."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of four cases, each a fold, with three variants of each field: files, pack."""
    folder = tmp_path_factory.mktemp("folded")
    (folder / "raw").mkdir()
    for case, level in LEVELS.items():
        image_HWC = np.full((64, 96, 3), level, np.uint8)
        cv2.imwrite(str(folder / f"raw/{case}-01.png"), image_HWC)
        (folder / f"raw/{case}-01.json").write_text('{"tumor": [{"x": 0.5, "y": 0.5}]}')
    given = [f"raw={folder / 'raw'}", "split.folds=cases", "copies=3", "radius_px=8", "format=png"]
    prepare_alone(*given, f"out={folder / 'files'}", "pack=false")
    prepare_alone(*given, f"out={folder / 'pack'}", "pack=true")
    return folder


def config_of(data: Path, run: Path, fold: int | str, *settings: str) -> TrainConfig:
    still = ["crop.stain=0", "crop.stain_shift=0", "crop.brightness=0"]
    given = [f"data={data}", f"run={run}", *TINY, *still, f"fold={fold}", "batch_size=2"]
    return command_line.load(TrainConfig, [*given, "microbatches=1", *settings])


def levels_seen(data: Path, config: TrainConfig) -> Iterator[int]:
    """The greys of the crops of two epochs."""
    dataset = read_dataset(data).of_fold(config.fold)
    crops = TrainingCrops(TrainingPixels(dataset), config)
    assert (crops.pixels.packed is not None) == (data.name == "pack")
    with closing(load_microbatches(crops, config, one_rank(), 0)) as loaded:
        for image_BHWC, _ in islice(loaded, 2 * len(crops) // 2):
            yield from np.unique(image_BHWC.numpy()).tolist()


@pytest.mark.parametrize("centred", ["crop.centred=0", "crop.centred=1"])
@pytest.mark.parametrize("kept", ["files", "pack"])
@pytest.mark.parametrize(
    ("fold", "seen"), [(0, {140, 190}), (3, {90, 140}), ("all", {40, 90, 140, 190})]
)
def test_crops_come_from_the_training_cases_of_the_fold_and_from_no_other(
    sets: Path, tmp_path: Path, kept: str, fold: int | str, seen: set[int], centred: str
) -> None:
    """Promise 1, through the loader. Fold 0 tests case 1 and validates on case 2."""
    config = config_of(sets / kept, tmp_path / "run", fold, centred)
    assert set(levels_seen(sets / kept, config)) == seen


def test_a_run_keeps_its_fold_and_the_folds_as_they_were_dealt(sets: Path, tmp_path: Path) -> None:
    """Another fold would train on what this one tests; resume=override cannot change that."""
    data, run = Path(shutil.copytree(sets / "files", tmp_path / "set")), tmp_path / "run"
    given = [f"data={data}", f"run={run}", *TINY, "batch_size=2", "microbatches=1", "epochs=1"]
    assert train([*given, "fold=0"]) == 0
    assert read_run_folder(run).data.cases == {
        "train": ["Case_3", "Case_4"],
        "val": ["Case_2"],
        "test": ["Case_1"],
    }
    with pytest.raises(UsageError, match="fold: 0 -> 1") as refused:
        train([*given, "fold=1", "resume=override"])
    assert "fold=0" in str(refused.value)

    # the samples are the same, but not which of them are held out
    about = json.loads((data / "dataset.json").read_text())
    about["folds"] = [about["folds"][2], about["folds"][1], about["folds"][0], about["folds"][3]]
    (data / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=r"split: Case_1 test -> train") as refused:
        train([*given, "fold=0", "epochs=2", "resume=override"])
    assert "Case_3 train -> test" in str(refused.value)
    with pytest.raises(UserError, match=r"not the data set that was trained on"):
        evaluate([f"run={run}"])
