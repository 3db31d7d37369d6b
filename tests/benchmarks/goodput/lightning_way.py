"""A rank of the same training in PyTorch Lightning, with its requeueing on Slurm.

    srun python -m tests.benchmarks.goodput.lightning_way NODES SIGNAL key=value ...

The network, the crops, the loss and the optimizer are ours. Lightning has what its documentation
offers: SLURMEnvironment with auto_requeue and requeue_signal=SIGNAL, ModelCheckpoint once an epoch.
It goes on from the newest of its checkpoints, whether that was saved at an epoch or at a signal
(left to itself it takes the one of a signal, however old). Its loader's workers ignore SIGTERM, and
so does the process until training begins: either would fail the job, which is then not requeued.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import command_line
from common.files import write_atomically
from data_prep.dataset.manifest import read_dataset
from data_prep.dataset.pack import TrainingPixels
from data_prep.images.masks import channel_values
from model import build_model
from train.config import TrainConfig
from train.crops.microbatches import TrainingCrops, mask_to_target
from train.loop.losses import segmentation_loss
from train.loop.optimizer import build_optimizer
from train.runs.newest import PROGRESS


class Crops(Dataset[Any]):
    """The crops of an epoch, each with other random numbers in another epoch."""

    def __init__(self, crops: TrainingCrops) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> Any:
        epoch = torch.initial_seed() % 2**31  # Lightning's workers have another one in each epoch
        return self.crops.cut([(epoch, index)])[0]


class Module(lightning.LightningModule):
    """The network, its loss and its optimizer."""

    def __init__(self, config: TrainConfig, label_values: list[int]) -> None:
        super().__init__()
        self.config, self.label_values = config, label_values
        self.network = build_model(config.model, len(label_values))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        image_BHWC, mask_BHW = batch
        logits_BCHW = self.network(image_BHWC.permute(0, 3, 1, 2).float() / 255)
        target_BCHW = mask_to_target(mask_BHW, self.label_values)
        return segmentation_loss(logits_BCHW, target_BCHW, self.config.loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.network, self.config)


class Signs(Callback):
    """Tells how far it is, as our own training does."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.tell(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *others: Any) -> None:
        self.tell(trainer)

    def tell(self, trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero:
            now = {"step": trainer.global_step, "time_s": time.time()}
            write_atomically(self.run / PROGRESS, json.dumps(now).encode())


def newest(run: Path) -> str | None:
    """The newest checkpoint: of an epoch's end (last.ckpt), or of a signal (hpc_ckpt_N.ckpt)."""
    found = [*run.glob("hpc_ckpt_*.ckpt"), *(run / "epochs").glob("last*.ckpt")]
    return str(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def ignore_sigterm(worker: int) -> None:
    """In a worker of the loader."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main(num_nodes: int, requeue_signal: signal.Signals, argv: list[str]) -> None:
    """Train for ever."""
    config = command_line.load(TrainConfig, argv)
    run, dataset = Path(config.run), read_dataset(Path(config.data))
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    crops = TrainingCrops(TrainingPixels(dataset), config)
    loader = DataLoader(
        Crops(crops),
        batch_size=config.batch.size // num_nodes,
        shuffle=True,  # Lightning shares it out among the ranks
        drop_last=True,
        num_workers=config.loader_workers,
        worker_init_fn=ignore_sigterm,  # Slurm signals them too, and without them the save fails
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=num_nodes,
        strategy="ddp" if num_nodes > 1 else "auto",
        plugins=[SLURMEnvironment(auto_requeue=True, requeue_signal=requeue_signal)],
        max_epochs=config.epochs,
        callbacks=[
            ModelCheckpoint(run / "epochs", every_n_epochs=1, save_last=True),
            Signs(run),
        ],
        default_root_dir=run,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    lightning.seed_everything(config.seed)
    label_values = channel_values(dataset.description.labelling.labels.values())
    # Ignored until now: it would have killed the job for good. Lightning adds no handler of its own
    # where there is one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    trainer.fit(Module(config, label_values), loader, ckpt_path=newest(run), weights_only=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), signal.Signals[sys.argv[2]], sys.argv[3:])
