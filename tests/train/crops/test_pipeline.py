"""Crops that go through a pipeline of the user's: the same whoever cuts them, and when."""

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.command_line import EXIT_STOPPED, UserError
from data_prep.dataset.manifest import Dataset
from data_prep.dataset.pack import TrainingPixels
from tests.train.conftest import CPU
from train.__main__ import main as train
from train.config import TrainConfig, with_pipeline_read
from train.crops.loader import load_microbatches
from train.crops.microbatches import TrainingCrops
from train.loop.trainer import Trainer
from train.ranks.distributed import Ranks
from train.runs.open_run import open_run
from train.runs.run_folder import read_run_folder

ROOT = Path(__file__).parents[3]
Tiny = Callable[..., TrainConfig]

# Flips show whether the mask goes with the image, noise whether a crop has a seed of its own
FLIPPED = """
transform:
  __class_fullname__: Compose
  transforms:
  - {__class_fullname__: HorizontalFlip, p: 1.0}
  - {__class_fullname__: GaussNoise, std_range: [0.1, 0.2], p: 1.0}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a pipeline."""
    path = tmp_path / "mine.yaml"
    path.write_text(FLIPPED)
    return path


def crops_of(dataset: Dataset, config: TrainConfig) -> TrainingCrops:
    return TrainingCrops(TrainingPixels(dataset), with_pipeline_read(config))


def loaded(
    dataset: Dataset, config: TrainConfig, rank: Ranks, first_step: int, steps: int
) -> list[bytes]:
    """Images and masks of a rank's microbatches."""
    loader = load_microbatches(crops_of(dataset, config), config, rank, first_step)
    per_step = config.batch.num_microbatches // rank.world_size
    with closing(loader):
        taken = islice(loader, steps * per_step)
        return [image.numpy().tobytes() + mask.numpy().tobytes() for image, mask in taken]


def test_image_and_mask_go_through_it_with_a_seed_for_each_crop(
    prepared: Dataset, tiny: Tiny, file: Path
) -> None:
    still = ["crop.flip=false", "crop.rotation_deg=0", "crop.scale=1", "crop.stain=0"]
    keys = [(0, index) for index in range(8)]
    before = crops_of(prepared, tiny(Path(), *still)).cut(keys)
    crops = crops_of(prepared, tiny(Path(), *still, f"crop.pipeline={file}"))
    for (image_HWC, mask_HW), (made_HWC, made_HW) in zip(before, crops.cut(keys), strict=True):
        assert np.array_equal(made_HW, mask_HW[:, ::-1])
        assert made_HWC.dtype == np.uint8
        assert np.abs(made_HWC.astype(int) - image_HWC[:, ::-1]).mean() < 60
    assert any(mask_HW.any() for _, mask_HW in before)
    keys = [(epoch, index) for epoch in range(2) for index in range(2)]
    noise = {crops.augment(*before[0], key)[0].tobytes() for key in keys}
    assert len(noise) == len(keys)


@pytest.mark.parametrize("pack", [False, True])
def test_workers_ranks_and_a_resume_make_no_difference(
    pack: bool,
    prepared: Dataset,
    with_pack: Dataset,
    tiny: Tiny,
    file: Path,
    ranks: Callable[..., Ranks],
) -> None:
    dataset, steps = with_pack if pack else prepared, 8  # two epochs of four
    config, with_workers = (
        tiny(Path(), f"crop.pipeline={file}", f"loader_workers={number}") for number in (0, 2)
    )
    alone = loaded(dataset, config, ranks(), 0, steps)
    assert len(set(alone)) == steps * 4
    assert loaded(dataset, with_workers, ranks(), 0, steps) == alone
    assert loaded(dataset, with_workers, ranks(), 3, steps - 3) == alone[3 * 4 :]
    second = loaded(dataset, config, ranks(1, 2), 0, steps)
    assert second == [one for step in range(steps) for one in alone[4 * step + 2 : 4 * step + 4]]


def test_a_run_keeps_the_content_and_refuses_another(
    prepared: Dataset, tiny: Tiny, file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = tiny(run, f"crop.pipeline={file}")
    opened, _ = open_run(config, prepared, CPU)
    kept = read_run_folder(run).config.crop.pipeline
    assert kept == opened.crop.pipeline
    assert '"std_range":[0.1,0.2]' in kept
    moved = file.rename(tmp_path / "moved.yaml")
    for same in (str(moved), kept):  # the content counts, wherever it stands
        assert open_run(tiny(run, f"crop.pipeline={same}"), prepared, CPU)[1] == []
    file.write_text(FLIPPED.replace("0.2]", "0.3]"))
    for other in (f"crop.pipeline={file}", "crop.pipeline="):
        with pytest.raises(UserError, match="begun with other settings") as refused:
            open_run(tiny(run, other), prepared, CPU)
        assert f"({other}: not the transforms that the run began with)" in str(refused.value)
        assert not refused.value.can_heal  # a job is not tried again
    opened, changes = open_run(tiny(run, f"crop.pipeline={file}", "resume=override"), prepared, CPU)
    assert "0.3]" in opened.crop.pipeline
    assert changes == [
        f"changed crop.pipeline={file}: not the transforms that the run began with (overridden)"
    ]


def test_a_refused_file_is_a_wrong_command_line_and_no_run_is_made(
    prepared: Dataset, cli: Callable[..., Any], file: Path, tmp_path: Path
) -> None:
    file.write_text("transform: {__class_fullname__: HistogramMatching}")
    run = tmp_path / "run"
    done = cli(train, f"data={prepared.folder}", f"run={run}", f"crop.pipeline={file}")
    assert done.code == 2
    assert done.err.startswith(
        f"error: crop.pipeline={file}: HistogramMatching: needs other images"
    )
    assert not run.exists()


def test_a_run_stopped_in_an_epoch_ends_with_the_same_weights(
    tiny: Tiny, new_trainer: Callable[..., Trainer], file: Path, tmp_path: Path
) -> None:
    def config(name: str, *settings: str) -> TrainConfig:
        return tiny(tmp_path / name, f"crop.pipeline={file}", *settings)

    whole = new_trainer(config("whole"))
    assert whole.fit() == 0
    first = new_trainer(config("stopped"))
    step = first.train_step

    def stop_after_six() -> None:
        step()
        if first.state.progress.step == 6:
            first.stop.adopt(signal.SIGTERM)

    first.train_step = stop_after_six  # type: ignore[method-assign]
    assert first.fit() == EXIT_STOPPED
    then = new_trainer(config("stopped", "loader_workers=2"))
    assert then.state.progress.step == 6
    assert then.fit() == 0
    ends = [trainer.state.model.state_dict() for trainer in (whole, then)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_training_without_a_pipeline_does_not_load_albumentations() -> None:
    script = "import sys, train.crops.microbatches, train.runs.open_run as _; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "cv2" in done.stdout.split()
    assert "albumentations" not in done.stdout.split()
