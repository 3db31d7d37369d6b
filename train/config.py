"""The settings of `python -m train`: every key, its unit and its default."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple

from common.files import whole_path
from data_prep.config import PREPARED
from data_prep.dataset.folds import Fold
from model import ModelConfig
from model.encoder_cache import NONE, names_file
from train.crops.config import CropConfig

PRESETS = Path(__file__).parent / "presets"
AUTO: Final = "auto"
REFERENCE_BATCH = 8  # crops a step, which lr is meant for
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")  # in stage=
WEEK_S = 7 * 24 * 3600.0


MOST_GAMMA = 10.0  # of the focal loss: with far more, every pixel's loss is rounded to 0
MOST_WEIGHT = 1e6  # of a class


@dataclass(frozen=True)
class LossConfig:
    """Binary cross-entropy with logits or the focal loss, and optionally the soft Dice loss beside
    it."""

    dice_weight: float = 0.0
    """Weight of the soft Dice loss, added to the cross-entropy (no unit)."""
    positive_weight: float = 1.0
    """Weight of annotated pixels in the cross-entropy (no unit)."""
    class_weights: list[float] = field(default_factory=list)
    """Weight of each class in the cross-entropy (no unit), in the order of the data set's classes:
    [1,1,10,5]. Only their ratios count. Empty for equal ones. The soft Dice loss counts classes
    alike."""
    focal_gamma: float = 0.0
    """Focal loss in place of the cross-entropy: each pixel counts times (1 - p)^focal_gamma, where
    p is the probability of the right answer (Lin et al. 2017, arXiv:1708.02002, who take 2). 0 for
    the cross-entropy (no unit)."""

    def __post_init__(self) -> None:
        if not (0 <= self.dice_weight < math.inf and 0 < self.positive_weight < math.inf):
            raise ValueError(
                f"loss.dice_weight={self.dice_weight} must be at least 0 and"
                f" loss.positive_weight={self.positive_weight} above 0, both finite"
            )
        if not 0 <= self.focal_gamma <= MOST_GAMMA:
            raise ValueError(f"loss.focal_gamma={self.focal_gamma}: from 0 to {MOST_GAMMA:g}")
        if not all(0 < weight <= MOST_WEIGHT for weight in self.class_weights):
            typed = weights_text(self.class_weights)
            raise ValueError(
                f"loss.class_weights={typed}: each must be above 0, at most {MOST_WEIGHT:g}"
            )


@dataclass(frozen=True)
class TileConfig:
    """How whole fields go through the network: in overlapping tiles, blended smoothly."""

    size_px: int = 512
    """Side of a tile, in px."""
    overlap_px: int = 64
    """How far neighbouring tiles overlap, in px."""
    batch: int = 1
    """Tiles that go through the network at once."""

    def __post_init__(self) -> None:
        if min(self.size_px, self.batch) < 1 or not 0 <= 2 * self.overlap_px <= self.size_px:
            raise ValueError(
                f"tile.size_px={self.size_px}, overlap_px={self.overlap_px}, batch={self.batch}:"
                " overlap at most half the size, size and batch at least 1"
            )


class Batch(NamedTuple):
    """The crops of a step over all ranks together."""

    size: int
    """Crops."""
    num_microbatches: int
    """Equal parts that they are computed in."""

    @property
    def microbatch_size(self) -> int:
        """The crops of a microbatch."""
        return self.size // self.num_microbatches


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of `python -m train`."""

    data: str = PREPARED
    """Folder of the prepared data set (the out= of data_prep)."""
    run: str = ""
    """Folder of the run: checkpoints, metrics, TensorBoard. A run that was begun there goes on.
    Empty: a new folder in runs/, named by date and time."""
    preset: str = ""
    """Name of a preset, whose keys come before those given here; listed below."""
    config: str = ""
    """A YAML file of keys, which come after the preset's and before those given here; it may name
    the preset."""
    init: str = ""
    """A run's folder, whose best checkpoint counts, or a file of train.export: training begins with
    the weights of that model, in place of random ones, at step 0. Its network must be the same; the
    last layer is made anew where the classes are others. A model that was trained on a case of
    val or test is refused. A run that goes on no longer needs it. Empty for none."""
    freeze_epochs: int = 0
    """First epochs in which the encoder keeps the weights and running statistics that init= or
    model.weights= gave it."""
    seed: int = 0
    """Seed of the weights, the order of samples and all other random numbers."""
    epochs: int = 10
    """Passes over the training images. If batch_size does not divide the crops of a pass, the last
    ones are left out; these are others in each pass."""
    fold: Fold = "none"
    """With a data set whose cases are dealt to folds (split.folds of data_prep): the fold whose
    cases are kept for testing, from 0, or all to train on every case."""
    batch_size: int | Literal["auto"] = "auto"
    """Crops per step over all ranks together. auto: 8 on up to 8 ranks, beyond that one crop per
    rank (rounded up to a multiple of microbatches), or as batch_per_rank says. A run keeps the
    number that it began with, on any number of ranks."""
    batch_per_rank: int = 0
    """Crops per step and rank, in place of batch_size, counted when the run begins; 0 for none."""
    microbatches: int | Literal["auto"] = "auto"
    """Number of equal parts in which a batch is computed; each rank computes at least one. auto:
    one per rank when the run begins, or the next number that divides batch_size. A run keeps the
    number that it began with: it may go on with any number of ranks up to that."""
    reproducible: Literal["elastic", "off"] = "elastic"
    """elastic: the same bits on any number of ranks up to microbatches; off: DDP's own
    all-reduce."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """adam; adamw: Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101);
    sgd: with Nesterov momentum."""
    momentum: float = 0.9
    """Momentum of optimizer=sgd, 0 (none) to below 1 (no unit); nnU-Net takes 0.99."""
    lr: float = 1e-3
    """Learning rate (no unit)."""
    encoder_lr_factor: float = 1.0
    """Factor of the learning rate for the encoder (no unit): below 1, what it begins with changes
    more slowly than the rest of the network. Only with init= or model.weights=."""
    lr_scale: Literal["none", "sqrt", "linear"] = "none"
    """How lr follows the batch. none: not at all; sqrt: times the square root of batch_size / 8
    (Krizhevsky 2014, arXiv:1404.5997); linear: times batch_size / 8 (Goyal et al. 2017,
    arXiv:1706.02677)."""
    schedule: Literal["constant", "cosine", "poly"] = "constant"
    """Learning rate after the warm-up: constant; cosine: half a cosine, to 0 after the last step;
    poly: times (1 - t)^0.9, with t from 0 to 1 (Chen et al. 2017, arXiv:1606.00915)."""
    schedule_epochs: int | Literal["auto"] = "auto"
    """Epochs over which cosine and poly run; after these, the rate stays at that of their last
    step. auto: epochs, as the run began: more epochs later do not raise the rate."""
    warmup_steps: int | Literal["auto"] = "auto"
    """Steps over which the learning rate rises from 0. auto: none, or with lr_scale the first
    epoch."""
    weight_decay: float = 0.0
    """adam, sgd: L2 penalty, weight_decay times the weights is added to their gradient. adamw: each
    step shrinks the weights by lr times weight_decay of themselves. 0 for none (no unit)."""
    clip_norm: float = 0.0
    """Largest norm of a step's gradient, over all weights together; a longer gradient is scaled
    down to it. 0 for no limit (no unit)."""
    ema: float = 0.0
    """Decay per step of a moving average of weights and running statistics, as 0.999, which
    validation, evaluation, prediction and export use in place of the weights. It begins with
    (1 + step) / (10 + step), as TensorFlow's. 0 for none."""
    stop_after: int = 0
    """End after so many epochs in a row without a better validation Dice; 0 for never."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision. auto: bf16 where the hardware has units for it, fp16 on older GPUs, else
    off."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Layout of images in memory. auto: channels_last on GPUs and on CPUs with AVX-512, where it
    is faster, else contiguous."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    threads: int = 1
    """CPU threads per rank; the bits depend on it. On a CPU, more ranks are faster than more
    threads."""
    loader_workers: int = 1
    """Processes per rank that read and crop images; 0 reads in the training process."""
    stage: str = ""
    """Folder on the machine's own disk, as in $TMPDIR, into which the pack is copied, once for all
    ranks of the machine and later runs. Without room there, training reads the shared pack. Empty
    for none."""
    resume: Literal["same", "override"] = "same"
    """What to do if the run was begun with other settings. same: refuse; override: go on with
    the new settings, if the saved state fits them."""
    checkpoint: Literal["async", "blocking"] = "async"
    """async: training goes on while a copy of the state is written. The copy takes as much memory
    as the state, spread over the ranks."""
    save_every_s: float | Literal["auto"] = "auto"
    """Seconds between checkpoints within an epoch, inf for none. auto: 60; longer where saves would
    hold training up for more than 1% of the time, or be written for more than half of it. The end
    of each epoch is saved, too."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the best by validation Dice is kept besides."""
    keep_every: int = 0
    """Keep the checkpoint at the end of every so many epochs for good; 0 for never."""
    rank_timeout_s: float = 600.0
    """Seconds that the other ranks wait for one rank. Then training ends with an error that names
    it. At most a week."""
    log_every_steps: int = 10
    """Steps between points of the training curves."""
    log_every_s: float = 30.0
    """Seconds between lines in a log; a terminal shows a progress bar instead."""
    panels: int = 4
    """Validation fields shown in TensorBoard each epoch: input, truth, prediction."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    tile: TileConfig = field(default_factory=TileConfig)

    def __post_init__(self) -> None:
        from_1 = ["epochs", "schedule_epochs", "batch_size", "microbatches", "keep_checkpoints"]
        from_1 += ["threads", "log_every_steps"]
        from_0 = ["stop_after", "batch_per_rank", "loader_workers", "warmup_steps", "freeze_epochs"]
        from_0 += ["panels", "keep_every", "save_every_s", "log_every_s"]
        for key, value in {**dict.fromkeys(from_1, 1), **dict.fromkeys(from_0, 0)}.items():
            given = getattr(self, key)
            if given != AUTO and not given >= value:  # NaN too, which compares as false
                raise ValueError(f"{key}={given}: must be at least {value}")
        if AUTO not in (self.batch_size, self.microbatches) and (
            self.batch.size % self.batch.num_microbatches
        ):
            allowed = [n for n in range(1, self.batch.size + 1) if self.batch.size % n == 0]
            raise ValueError(
                f"microbatches={self.microbatches} must divide batch_size={self.batch_size};"
                f" allowed: {', '.join(map(str, allowed))}"
            )
        if self.init and self.model.weights != NONE:
            raise ValueError(
                f"init={self.init} gives the encoder its weights, and so would"
                f" model.weights={self.model.weights}; give init= or model.weights={NONE}"
            )
        if self.freeze_epochs and not self.init and self.model.weights == NONE:
            raise ValueError(
                f"freeze_epochs={self.freeze_epochs}: only with init= or model.weights=, which give"
                " the weights that the encoder keeps"
            )
        if self.stage and not self.stage.startswith(("/", "$")):
            raise ValueError(
                f"stage={self.stage}: must be a whole path, or begin with a variable, as in $TMPDIR"
            )
        if not 0 < self.rank_timeout_s <= WEEK_S:
            raise ValueError(
                f"rank_timeout_s={self.rank_timeout_s}: must be above 0, and {WEEK_S:.0f} (a week)"
                " at most"
            )
        if isinstance(self.fold, int) and self.fold < 0:
            raise ValueError(f"fold={self.fold}: the number of a fold, from 0, or none, or all")
        self.check_optimizer()

    def check_given(self, typed: Collection[str], in_file: Collection[str]) -> None:
        """Raise ValueError for a setting of another network, and for an encoder with random weights
        that learns more slowly. A file with most of the network's keys is a run's own, which has
        those of all networks."""
        typed, in_file = of_model(typed), of_model(in_file)
        is_of_a_run = len(in_file) > len(fields(ModelConfig)) / 2
        self.model.check_of_network(typed if is_of_a_run else typed | in_file)
        if self.encoder_lr_factor != 1 and not self.init and self.model.weights == NONE:
            raise ValueError(
                f"encoder_lr_factor={self.encoder_lr_factor:g}: only with init= or model.weights=,"
                " which give the encoder weights to keep; for one that begins with random weights,"
                " encoder_lr_factor=1"
            )

    def check_optimizer(self) -> None:
        """Raise ValueError for numbers with which no step can be made."""
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}: must be above 0, and finite")
        for key in ("encoder_lr_factor", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 0, and finite")
        for key in ("momentum", "ema"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: 0 (none) to below 1")

    @property
    def batch(self) -> Batch:
        """The numbers of a begun run, which has no auto any more (loop.batch.resolve_batch)."""
        assert self.batch_size != AUTO
        assert self.microbatches != AUTO
        return Batch(self.batch_size, self.microbatches)

    @property
    def scheduled_epochs(self) -> int:
        """Epochs over which the schedule of the learning rate runs."""
        return self.epochs if self.schedule_epochs == AUTO else self.schedule_epochs


def of_model(keys: Collection[str]) -> set[str]:
    """Return the keys of the network among those of training: width of model.width."""
    group = "model."
    return {key.removeprefix(group) for key in keys if key.startswith(group)}


def with_pipeline_read(config: TrainConfig) -> TrainConfig:
    """The configuration with the content of crop.pipeline in place of its file. Raises UsageError
    where it cannot be used."""
    if not config.crop.pipeline:
        return config
    from data_prep.augment.pipeline import read_for_crops  # it takes half a second

    pipeline = read_for_crops(config.crop.pipeline, config.crop.size_px)
    return replace(config, crop=replace(config.crop, pipeline=pipeline))


def weights_text(weights: Sequence[float]) -> str:
    """Write weights as they are typed: [1,1,2.5]."""
    return f"[{','.join(f'{weight:g}' for weight in weights)}]"


def whole_paths(config: TrainConfig) -> dict[str, str]:
    """Return the whole paths of the files that a training begins with, by key: init=, and
    model.weights= where that names a file."""
    given = {"init": config.init} if config.init else {}
    if names_file(config.model.weights):
        given["model.weights"] = config.model.weights
    return {key: str(whole_path(path)) for key, path in given.items()}


def with_whole_paths(config: TrainConfig) -> TrainConfig:
    """Return the configuration with whole paths in place of those of `whole_paths`."""
    paths = whole_paths(config)
    model = replace(config.model, weights=paths.get("model.weights", config.model.weights))
    return replace(config, init=paths.get("init", ""), model=model)


def check_threshold(given: str) -> None:
    """Raise ValueError for what is neither auto nor a threshold."""
    try:
        is_good = given == "auto" or 0 < float(given) < 1
    except ValueError:
        is_good = False
    if not is_good:
        raise ValueError(f"threshold={given}: auto, or above 0 and below 1")


# Keys that a resumed run may change: they do not change results.
HARMLESS_KEYS = (
    "data",
    "run",
    "preset",
    "config",
    "loader_workers",
    "stage",
    "resume",
    "checkpoint",
    "save_every_s",
    "keep_checkpoints",
    "keep_every",
    "rank_timeout_s",
    "log_every_steps",
    "log_every_s",
    "panels",
)
# Keys that resume=override cannot change: the saved state would not fit, or have seen other cases.
FIXED_KEYS = (
    *("fold", "init", "batch_size", "batch_per_rank", "crop.per_sample", "model.", "optimizer"),
)
