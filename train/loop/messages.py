"""Write what a run prints about itself."""

from collections.abc import Sequence

from torch import nn

from common.command_line import UserError, counted, named
from data_prep.dataset.manifest import Sample, count_nuclei
from data_prep.dataset.pack import TrainingPixels
from train.checkpoints.progress import Progress
from train.config import REFERENCE_BATCH, TrainConfig
from train.crops.config import CropConfig
from train.crops.nuclei import TrainingNuclei
from train.metrics.scores import EMPTY
from train.ranks.distributed import Ranks

LARGE_FOR_A_CPU = 10_000_000  # parameters; with more, a step takes a CPU many seconds


class NotFiniteError(UserError):
    """A loss that is not finite."""


def about_batch(config: TrainConfig, num_ranks: int) -> str:
    """Say how a step's crops are computed, and which settings would give each rank more of them."""
    batch = config.batch
    about = (
        f"{counted(batch.size, 'crop')} a step in"
        f" {counted(batch.num_microbatches, 'microbatch', 'microbatches')}"
    )
    if num_ranks == 1 or batch.size >= REFERENCE_BATCH * num_ranks:
        return about
    return (
        f"{about}, {batch.size / num_ranks:g} per rank; a new run with"
        f" batch_per_rank={REFERENCE_BATCH} lr_scale=sqrt gives each rank {REFERENCE_BATCH}"
        " (with a warm-up; or lr_scale=linear, or none)"
    )


def about_mirrored(crop: CropConfig, samples: Sequence[Sample]) -> str:
    """Say how many images are smaller than a crop; '' if none is."""
    smaller = [each for each in samples if min(each.height_px, each.width_px) < crop.size_px]
    if not smaller:
        return ""
    return (
        f"\n{len(smaller)} of {counted(len(samples), 'training image')} do not fill a crop"
        f" (crop.size_px={crop.size_px}): beyond their edges it shows their mirror image"
    )


def about_centred(crop: CropConfig, nuclei: TrainingNuclei | None) -> str:
    """Say which nuclei crops are placed around, and which classes have none; '' without any."""
    if not nuclei:
        return ""
    counts = count_nuclei(nuclei.samples)
    drawn = named(f"{name} ({counts[name]})" for name in nuclei.ends)
    without = [name for name in nuclei.names if name not in nuclei.ends]
    none = f"; there is no {named(without)} in the training cases" if without else ""
    return (
        f"\n{crop.centred:.0%} of the crops are placed around nuclei, each class as often as any"
        f" other: {drawn}{none}"
    )


def advice_on_size(model: nn.Module, ranks: Ranks) -> str:
    """Say that a network is too large for a CPU, which looks like a hang; '' if it is not."""
    num = sum(parameter.numel() for parameter in model.parameters())
    if ranks.device.type != "cpu" or num < LARGE_FOR_A_CPU:
        return ""
    return (
        f"\na network of {num / 1e6:.0f} million parameters is slow on a CPU;"
        " preset=brecahad-cpu is one for CPUs"
    )


def advice_on_waiting(fraction: float, config: TrainConfig, pixels: TrainingPixels) -> str:
    """Say what to change if training waits for data for this fraction of its time."""
    advice = [f"loader_workers={config.loader_workers + 1}"]
    if pixels.packed is None:
        advice.insert(0, pixels.advice_on_pack())
    return f"waits for data {fraction:.0%} of the time; try " + ", or ".join(advice)


def summary(progress: Progress, stopped_after: int) -> str:
    """Say in a line how far a run is, how good, and whether it ended early: after that many epochs
    that were no better, 0 if it did not."""
    done = f"{counted(progress.epochs, 'epoch')}, {counted(progress.step, 'step')}"
    if not progress.metrics:
        return done
    if progress.best_dice < 0:
        return f"{done}, {EMPTY} in val: the newest checkpoint counts as the best"
    best = f"best validation Dice {progress.best_dice:.4f} at step {progress.best_step}"
    if not stopped_after:
        return f"{done}, {best}"
    no_better = counted(stopped_after, "epoch")
    return f"{done}, {best}; none better in {no_better}, so it ended (stop_after={stopped_after})"


def about_kernels(kernels: list[str], config: TrainConfig) -> str:
    """Say that these kernels of a GPU add in no fixed order."""
    return (
        f"no deterministic kernel here for {', '.join(kernels)}: the bits may differ from one start"
        f" to the next, whatever reproducible={config.reproducible} says"
    )


def not_finite(step: int, lr: float) -> NotFiniteError:
    """Return the error for a loss that is not finite."""
    return NotFiniteError(
        f"the loss is not finite, at step {step} or shortly before: lower lr={lr}, or set amp=off;"
        " the last checkpoint is from before"
    )
