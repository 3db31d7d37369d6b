"""Training on a GPU: what it does otherwise than on a CPU, and what must be as there.

On one GPU; two ranks share it (tests.train.nccl_rank).
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from common.command_line import EXIT_STOPPED
from common.stop_request import StopRequest
from data_prep.dataset.manifest import Dataset
from data_prep.dataset.pack import TrainingPixels
from data_prep.image_files.open_image import read_image
from model.precision import choose_precision
from tests import ranks as real_ranks
from tests.train.curves import read_curve
from train import evaluate, export, predict
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.load_checkpoint import load_all_tensors
from train.config import TrainConfig
from train.crops.loader import load_microbatches
from train.crops.microbatches import MicrobatchSampler, TrainingCrops
from train.loop.determinism import be_deterministic, doubtful_kernels
from train.loop.initial_state import build_state
from train.loop.trainer import Trainer
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.lock import RunLock
from train.runs.history import read_metrics
from train.runs.open_run import open_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")  # before conftest hides them all
HIDDEN = {name: getattr(torch.cuda, name) for name in ("device_count", "is_available")}
Tiny = Callable[..., TrainConfig]
NewTrainer = Callable[[TrainConfig], Trainer]
EVERYTHING = ("model.norm=batch", "model.dropout=0.3", "schedule=cosine", "warmup_steps=3")
AMPS = ("bf16", "fp16", "off")


@pytest.fixture(scope="module", autouse=True)
def with_gpus() -> Iterator[None]:
    """Take back what conftest does for all other tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in HIDDEN.items():
            patch.setattr(torch.cuda, name, function)
        patch.delenv("CUDA_VISIBLE_DEVICES")
        if VISIBLE is not None:
            patch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)
        yield


@pytest.fixture(scope="module")
def gpu(with_gpus: None) -> Iterator[Ranks]:
    """The only rank, on the GPU."""
    with start_ranks("cuda") as ranks:
        yield ranks


@pytest.fixture
def on_gpu(gpu: Ranks, prepared: Dataset) -> Iterator[NewTrainer]:
    """on_gpu(config) is what `python -m train` makes of a configuration, on a GPU."""

    def make(config: TrainConfig) -> Trainer:
        config, changes = open_run(config, prepared, gpu.device)
        return Trainer(config, prepared, gpu, StopRequest(), RunLock(Path(config.run)), changes)

    yield make
    torch.use_deterministic_algorithms(False)


def whole_state(trainer: Trainer) -> tuple[str, object]:
    """All that two runs must share to be the same to the bit."""
    return tensors_sha256(trainer.state.tensors()), trainer.state.progress


@pytest.mark.parametrize("amp", AMPS)
def test_what_can_be_learned_is_learned(
    amp: str, tiny: Tiny, on_gpu: NewTrainer, tmp_path: Path
) -> None:
    settings = ("epochs=6", "lr=0.03", "loss.dice_weight=1", "loader_workers=1")
    trainer = on_gpu(tiny(tmp_path, *settings, f"amp={amp}"))
    assert {parameter.device.type for parameter in trainer.state.model.parameters()} == {"cuda"}
    assert trainer.fit() == 0
    metrics = read_metrics(tmp_path)
    assert metrics[-1]["val/loss"] < 0.5 * metrics[0]["val/loss"]
    assert metrics[-1]["val/dice"] > 0.85
    assert max(megabytes for _, megabytes in read_curve(tmp_path, "memory/gpu_mb")) > 0.1


@pytest.mark.parametrize("amp", AMPS)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_stopped_and_resumed_equals_uninterrupted(
    layout: str, amp: str, tiny: Tiny, on_gpu: NewTrainer, tmp_path: Path
) -> None:
    """And so do two runs from the start: the kernels of a small network add in a fixed order."""
    settings = (*EVERYTHING, f"amp={amp}", f"memory_format={layout}")
    straight = on_gpu(tiny(tmp_path / "straight", *settings))
    assert straight.fit() == 0
    config = tiny(tmp_path / "stopped", *settings)
    first = on_gpu(config)
    original = first.train_step

    def with_signal() -> None:
        if first.state.progress.step == 5:
            first.stop.note(signal.SIGTERM, None)
        original()

    first.train_step = with_signal
    assert first.fit() == EXIT_STOPPED
    second = on_gpu(config)
    assert second.state.progress.step == 6
    assert bool(second.state.progress.scaler) == (amp == "fp16")
    assert second.fit() == 0
    assert whole_state(second) == whole_state(straight)
    assert read_metrics(second.run) == read_metrics(straight.run)


def test_a_gradient_too_large_for_fp16_is_not_applied_and_halves_the_scale(
    tiny: Tiny, on_gpu: NewTrainer, tmp_path: Path
) -> None:
    trainer = on_gpu(tiny(tmp_path, "amp=fp16", "epochs=1"))
    trainer.state.scaler.load_state_dict({**trainer.state.scaler.state_dict(), "scale": 2.0**40})
    weights = dict(trainer.state.model.named_parameters())
    before = tensors_sha256(weights)
    original, seen = trainer.train_step, []

    def watched() -> None:
        original()
        seen.append((trainer.state.scaler.get_scale(), tensors_sha256(weights)))

    trainer.train_step = watched
    assert trainer.fit() == 0
    assert seen[0] == (2.0**39, before)
    state = json.loads((tmp_path / "checkpoints/step_00000004/state.json").read_text())
    assert state["scaler"]["scale"] == seen[-1][0]


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_come_to_the_gpu_whole_however_late_it_gets_to_them(
    workers: int,
    with_pack: Dataset,
    tiny: Tiny,
    gpu: Ranks,
    cut: Callable[..., list[torch.Tensor]],
) -> None:
    """The GPU is kept busy before each is copied and read, while pinned memory is used anew."""
    config = tiny(Path(), f"loader_workers={workers}", "epochs=16")
    crops = TrainingCrops(TrainingPixels(with_pack), config)
    read = []
    with closing(load_microbatches(crops, config, gpu, 0)) as loader:
        for microbatch in loader:
            read.append([part + 0 for part in microbatch])
            torch.cuda._sleep(10_000_000)  # clock cycles, some milliseconds
    drawn = list(MicrobatchSampler(len(crops), config, gpu, 0))
    assert len(read) == len(drawn) == 16 * 16
    for crop_keys, microbatch in zip(drawn, read, strict=True):
        expected = [part.cuda() for part in cut(crops, crop_keys)]
        assert all(map(torch.equal, microbatch, expected))


def test_a_step_does_not_wait_for_what_is_queued(
    tiny: Tiny, on_gpu: NewTrainer, tmp_path: Path
) -> None:
    """But for points of the curves; with fp16 torch's scaler has to."""
    alone = ("checkpoint=blocking", "log_every_steps=1000")  # a save's own thread may wait
    trainer = on_gpu(tiny(tmp_path, *EVERYTHING, *alone, "amp=bf16", "loss.positive_weight=2"))
    original = trainer.train_step

    def watched() -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            original()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.train_step = watched
    assert trainer.fit() == 0


@pytest.mark.parametrize("norm", ["none", "batch", "group", "instance"])
@pytest.mark.parametrize("dice_weight", [0, 1])
def test_every_kernel_of_the_network_has_a_fixed_order(
    norm: str, dice_weight: int, tiny: Tiny, tmp_path: Path
) -> None:
    settings = ("model.width=8", f"model.norm={norm}", f"loss.dice_weight={dice_weight}")
    config = tiny(tmp_path, *settings)
    be_deterministic(config)
    for layout in ("channels_last", "contiguous"):
        precision = choose_precision(torch.device("cuda"), "auto", layout)
        model = build_state(config, 2, precision).model
        assert doubtful_kernels(model, config, precision) == []
        assert all(parameter.grad is None for parameter in model.parameters())
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("norm", ["none", "batch", "group", "instance"])
def test_the_gradient_is_that_of_a_cpu(norm: str, tiny: Tiny, tmp_path: Path) -> None:
    """In single precision; by itself a GPU convolves in TF32, with amp=off too."""
    config = tiny(tmp_path, f"model.norm={norm}", "model.width=8", "reproducible=off")
    be_deterministic(config)
    gradients = []
    generator = torch.Generator().manual_seed(0)
    image_BHWC = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    for device in (torch.device("cpu"), torch.device("cuda")):
        precision = choose_precision(device, "off", "contiguous")
        model = build_state(config, 1, precision).model.train()
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits = model(precision.image_to_input(image_BHWC))
            torch.nn.functional.softplus(logits).mean().backward()
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
    assert torch.norm(gradients[1] - gradients[0]) < 1e-3 * torch.norm(gradients[0])


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_checkpoint_in_the_background_holds_what_a_blocking_one_does(
    amp: str, tiny: Tiny, on_gpu: NewTrainer, tmp_path: Path
) -> None:
    """Each of them saved while the next step is already queued on the GPU."""
    hashes = []
    for way in ("blocking", "async"):
        settings = (f"checkpoint={way}", "save_every_s=0", "keep_checkpoints=100", "epochs=4")
        trainer = on_gpu(tiny(tmp_path / way, *settings, f"amp={amp}", "model.width=32"))
        original = trainer.train_step

        def step_and_wait(trainer: Trainer = trainer, original: Any = original) -> None:
            original()
            if trainer.saver.running:  # or a busy disk decides which steps are saved
                trainer.saver.running.result()

        trainer.train_step = step_and_wait
        assert trainer.fit() == 0
        folders = sorted((tmp_path / way / "checkpoints").glob("step_*"))
        hashes.append({folder.name: tensor_files(folder) for folder in folders})
    assert len(hashes[0]) == 16
    assert hashes[0] == hashes[1]


def tensor_files(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint that hold tensors."""
    return {path.name: path.read_bytes() for path in folder.glob("*.distcp")}


# Ranks


def train_on(run: Path, data: Path, num_ranks: int, *settings: str) -> tuple[int, str]:
    """Train on ranks that share the GPU; exit code and output."""
    module = "tests.train.nccl_rank" if num_ranks > 1 else "train"
    given = [f"data={data}", f"run={run}", "epochs=2", "batch_size=4", "loader_workers=0"]
    given += [
        "microbatches=4",
        "crop.size_px=32",
        "model.width=16",
        "model.depth=2",
        "lr=0.01",
        "panels=0",
    ]
    given += ["tile.size_px=48", "tile.overlap_px=8", *EVERYTHING, *settings]
    return real_ranks.finish(real_ranks.start(module, *given, ranks=num_ranks))


def final_state(run: Path) -> tuple[str, dict[str, Any]]:
    """Digest of the newest checkpoint's tensors, and its metrics."""
    folder = run / "checkpoints"
    path = folder / (folder / "latest").read_text().strip()
    metrics = json.loads((path / "state.json").read_text())["metrics"]
    return tensors_sha256(load_all_tensors(path)), metrics


@pytest.mark.parametrize("amp", AMPS)
def test_two_ranks_over_nccl_come_to_the_bits_of_one(
    amp: str, prepared: Dataset, tmp_path: Path
) -> None:
    for num_ranks in (1, 2):
        code, output = train_on(tmp_path / str(num_ranks), prepared.folder, num_ranks, f"amp={amp}")
        assert code == 0, output
        assert f"{num_ranks} rank" in output
        assert "on cuda" in output
    assert final_state(tmp_path / "1") == final_state(tmp_path / "2")


def test_ddps_own_way_to_add_gradients_comes_near(prepared: Dataset, tmp_path: Path) -> None:
    losses = []
    for num_ranks in (1, 2):
        run = tmp_path / str(num_ranks)
        code, output = train_on(
            run, prepared.folder, num_ranks, "amp=off", "reproducible=off", "log_every_steps=1"
        )
        assert code == 0, output
        losses.append([loss for _, loss in read_curve(run, "train/loss")])
    assert np.allclose(losses[0], losses[1], rtol=0.02)


def test_two_ranks_over_nccl_stop_at_one_step_and_go_on_as_one(
    prepared: Dataset, tmp_path: Path
) -> None:
    """Preempted on two ranks, ended on one: the bits of a run that nothing stopped."""
    whole = ["epochs=40", "log_every_steps=1"]
    code, output = train_on(tmp_path / "straight", prepared.folder, 1, *whole)
    assert code == 0, output
    stopped = tmp_path / "stopped"
    given = [f"config={tmp_path / 'straight' / 'config.yaml'}", f"run={stopped}"]
    process = real_ranks.start("tests.train.nccl_rank", *given, ranks=2)
    real_ranks.wait_for(lambda: (stopped / "progress.json").exists(), process)
    process.terminate()
    code, output = real_ranks.finish(process)
    assert code != 0
    assert re.search(r"stopped by SIGTERM at step \d+, saved", output), output
    code, output = real_ranks.finish(real_ranks.start("train", *given))
    assert code == 0, output
    assert "resumed from" in output
    assert final_state(stopped) == final_state(tmp_path / "straight")


def test_ranks_that_share_a_gpu_are_refused(prepared: Dataset, tmp_path: Path) -> None:
    given = [f"data={prepared.folder}", f"run={tmp_path / 'run'}"]
    num_ranks = torch.cuda.device_count() + 1
    code, output = real_ranks.finish(real_ranks.start("train", *given, ranks=num_ranks))
    assert code != 0
    assert output.startswith("error: 2 ranks share one GPU")


# What is done with a model


@pytest.fixture(scope="module")
def run_folder(prepared: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a GPU."""
    run = tmp_path_factory.mktemp("runs") / "gpu"
    code, output = train_on(run, prepared.folder, 1, "epochs=6", "lr=0.03")
    assert code == 0, output
    return run


def test_evaluation_is_that_of_a_cpu(
    run_folder: Path, prepared: Dataset, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    dice = []
    for device in ("cpu", "cuda"):
        run = Path(shutil.copytree(run_folder, tmp_path / device))
        outcome = cli(evaluate.main, f"run={run}", f"data={prepared.folder}", f"device={device}")
        assert outcome.code == 0, outcome.err
        dice.append([float(number) for number in re.findall(r"\d\.\d{3,}", outcome.out)])
    assert dice[0]
    assert np.allclose(dice[0], dice[1], atol=0.01)


def test_predictions_are_those_of_a_cpu_and_of_an_exported_model(
    run_folder: Path, prepared: Dataset, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        picture = np.random.default_rng(number).integers(0, 256, (130, 170, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f"{number}.png"), picture)
    exported = tmp_path / "model.safetensors"
    assert cli(export.main, f"run={run_folder}", f"out={exported}").code == 0
    masks = {}
    for name, run, device in (
        ("cpu", run_folder, "cpu"),
        ("gpu", run_folder, "cuda"),
        ("exported", exported, "cuda"),
    ):
        out = tmp_path / name
        outcome = cli(
            predict.main, f"run={run}", f"input={images}", f"out={out}", f"device={device}"
        )
        assert outcome.code == 0, outcome.err
        masks[name] = np.stack([read_image(path) for path in sorted(out.glob("*_mask.png"))])
    assert np.mean(masks["gpu"] != masks["cpu"]) < 0.01
    assert np.array_equal(masks["gpu"], masks["exported"])
