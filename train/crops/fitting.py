"""Check that the settings of a training fit its data set; needs no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.command_line import UsageError, counted, named
from data_prep.dataset.manifest import Dataset, Sample, count_nuclei
from train.config import LossConfig, TrainConfig, weights_text
from train.crops.config import CropConfig


def check_fitting(config: TrainConfig, dataset: Dataset) -> None:
    """Raise UsageError for settings that do not fit the data set, before a run's folder is made.

    An epoch has fewer crops than a batch, every pixel is ignored, crops are far larger than the
    images or placed around nuclei that are not there, weights are not those of the classes, or
    stop_after= waits for what cannot be measured.
    """
    samples = dataset.split("train")
    per_sample, size = config.crop.per_sample, config.batch.size
    num_crops = len(samples) * per_sample
    if not steps_per_epoch(config, dataset):
        enough = -(-size // max(1, len(samples)))
        raise UsageError(
            f"batch_size={size}: the train split gives only {num_crops} crop(s) an epoch; give"
            f" batch_size={max(1, num_crops)} or less, or crop.per_sample={enough} or more"
        )
    check_crops(config.crop, samples)
    names, counts = dataset.description.labelling.labels, count_nuclei(samples)
    check_class_weights(config.loss, names, dataset.folder)
    if config.crop.centred and not any(counts.get(name) for name in names):
        raise UsageError(
            f"crop.centred={config.crop.centred:g}: places crops around annotated nuclei, but the"
            f" training cases have none ({named(names)}); set crop.centred=0"
        )
    if all(sample.ignored_px == sample.height_px * sample.width_px for sample in samples):
        raise UsageError(
            f"data={config.data}: every pixel of the train split is ignored, so there is nothing to"
            " learn; prepare other cases for training, as with split.test_cases=[...], or another"
            " ignore_value= or ignore_px="
        )
    if config.stop_after:
        check_validation(config, dataset.split("val", originals_only=True))


def steps_per_epoch(config: TrainConfig, dataset: Dataset) -> int:
    """Return the number of an epoch's steps; the crops of the last one that is not whole are left
    out."""
    return len(dataset.split("train")) * config.crop.per_sample // config.batch.size


def check_class_weights(loss: LossConfig, labels: Mapping[str, int], data: Path) -> None:
    """Raise UsageError unless there are no weights, or one for each channel of the network.

    `labels`: class -> mask value, of the data set in the folder `data`.
    """
    if not loss.class_weights:
        return
    from data_prep.images.masks import channel_names  # late: with OpenCV

    names = channel_names(labels)
    if len(names) != len(loss.class_weights):
        equal = weights_text([1.0] * len(names))
        raise UsageError(
            f"loss.class_weights={weights_text(loss.class_weights)}: data={data} has"
            f" {counted(len(names), 'class', 'classes')} to learn ({named(names)}); give a weight"
            f" for each, in this order, as in loss.class_weights={equal}"
        )


def check_validation(config: TrainConfig, samples: Sequence[Sample]) -> None:
    """Raise UsageError if there is no validation Dice that could become better."""
    if any(sample.foreground_px for sample in samples):
        return
    if samples:
        reason = "nothing is annotated in the validation split"
    else:
        reason = "there is no validation split" + (" with fold=all" if config.fold == "all" else "")
    other = "split.val or split.val_cases of data_prep give it other cases"
    raise UsageError(
        f"stop_after={config.stop_after}: {reason}, so no Dice that could become better; set"
        f" stop_after=0, or {'train one fold' if config.fold == 'all' else other}"
    )


def check_crops(crop: CropConfig, samples: Sequence[Sample]) -> None:
    """Raise UsageError if more than half of every crop would be mirrored."""
    side = crop.size_px

    def filled(sample: Sample) -> float:
        return min(1.0, sample.height_px / side) * min(1.0, sample.width_px / side)

    largest = max(samples, key=filled)
    if filled(largest) >= 0.5:
        return
    raise UsageError(
        f"crop.size_px={side}: no image of the train split fills half of such a crop (the largest"
        f" is {largest.width_px} x {largest.height_px} px), and the rest would be its mirror image;"
        f" set crop.size_px={max(16, min(largest.height_px, largest.width_px))} or less"
    )
