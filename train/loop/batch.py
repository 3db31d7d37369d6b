"""Choose a run's batch: how many crops a step takes, and in how many microbatches.

`batch_size`, `microbatches` and `batch_per_rank` are chosen when a run starts for the first time,
for the number of its ranks. The run keeps them: on fewer ranks it computes the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from common.command_line import UsageError
from train.config import AUTO, REFERENCE_BATCH, TrainConfig

BATCH_KEYS = ("batch_size", "microbatches", "batch_per_rank")


class RanksError(UsageError):
    """A number of ranks that cannot compute a run's batch."""


def resolve_batch(config: TrainConfig, num_ranks: int, begun: TrainConfig | None) -> TrainConfig:
    """Replace auto in the batch's settings: by those of a `begun` run, else to suit the ranks.

    Raises RanksError if there are more ranks than microbatches, if these do not divide the batch,
    or if they are too small for the network.
    """
    resolved = with_batch_of(config, begun) if begun else with_new_batch(config, num_ranks)
    number = resolved.batch.num_microbatches
    if num_ranks > number:
        since = f", as the run began (run={config.run})" if begun else ""
        raise RanksError(
            f"{num_ranks} ranks, but microbatches={number}: a rank would have nothing to do{since}"
        )
    if resolved.batch.size < config.model.least_crops * number:
        raise RanksError(
            f"batch_size={resolved.batch.size} in microbatches={number}: model.arch="
            f"{config.model.arch} needs at least {config.model.least_crops} crops in each"
        )
    return resolved


def with_batch_of(config: TrainConfig, begun: TrainConfig) -> TrainConfig:
    """Replace auto by the numbers of a begun run."""
    is_open = {
        "batch_size": config.batch_size == AUTO,
        "microbatches": config.microbatches == AUTO,
        "batch_per_rank": config.batch_per_rank == 0,
    }
    numbers = {key: getattr(begun, key) for key in BATCH_KEYS if is_open[key]}
    return dataclasses.replace(config, **numbers)


def with_new_batch(config: TrainConfig, num_ranks: int) -> TrainConfig:
    """Replace auto for a new run on `num_ranks` ranks.

    microbatches=auto: one per rank, or the next number that divides a given batch_size.
    batch_size=auto: batch_per_rank crops per rank, or the smallest multiple of the microbatches
    that is at least 8.
    """
    batch_size, per_rank = config.batch_size, config.batch_per_rank
    microbatches = config.microbatches
    if microbatches == AUTO:
        microbatches = num_ranks if batch_size == AUTO else num_parts(batch_size, num_ranks)
    # config.yaml of a run has numbers for both, and may be the config= of another run
    fitting = per_rank * num_ranks, per_rank * microbatches
    if batch_size != AUTO and per_rank and batch_size not in fitting:
        raise UsageError(
            f"batch_size={batch_size} and batch_per_rank={per_rank} are not the same on {num_ranks}"
            " ranks; give one of the two"
        )
    if batch_size == AUTO and per_rank:
        batch_size = per_rank * num_ranks
    elif batch_size == AUTO:
        crops = max(-(-REFERENCE_BATCH // microbatches), config.model.least_crops)
        batch_size = crops * microbatches
    if batch_size % microbatches:
        raise RanksError(
            f"batch_size={batch_size} crops cannot be cut into microbatches={microbatches} equal"
            f" parts ({num_ranks} ranks)"
        )
    return dataclasses.replace(config, batch_size=batch_size, microbatches=microbatches)


def num_parts(batch_size: int, num_ranks: int) -> int:
    """Return the smallest number of equal parts of a batch that gives each rank at least one.

    Not many more than ranks, for batch normalisation would see a crop or two at a time.
    """
    numbers = range(num_ranks, 2 * num_ranks + 1)
    return next((number for number in numbers if batch_size % number == 0), num_ranks)


Start = tuple[int, list[str]]
"""A number of ranks, and key=value settings."""


def accepted_starts(
    settings: Sequence[str],
    rank_counts: Sequence[int],
    load: Callable[[Sequence[str]], TrainConfig],
    begun: TrainConfig | None,
) -> list[Start]:
    """Find what would be accepted in place of refused settings.

    The wanted number of ranks is the first of `rank_counts`. Returns fewer settings for that number
    (not for a begun run, which keeps its settings), and the same settings for the first other
    number; each only if there is one.
    """

    def is_accepted(start: Start) -> bool:
        try:
            resolve_batch(load(start[1]), start[0], begun)
        except UsageError:
            return False
        return True

    wanted, *others = rank_counts
    shorter = () if begun else without_batch_keys(settings)
    same_ranks = next(filter(is_accepted, ((wanted, given) for given in shorter)), None)
    other_ranks = next(filter(is_accepted, ((number, list(settings)) for number in others)), None)
    return [start for start in (same_ranks, other_ranks) if start]


def without_batch_keys(settings: Sequence[str]) -> Iterator[list[str]]:
    """Yield the settings without batch_size, without microbatches, and without all BATCH_KEYS."""
    key_of = {
        setting: setting.partition("=")[0].removeprefix("--").removeprefix("train.")
        for setting in settings
    }

    def without(*keys: str) -> list[str]:
        return [setting for setting in settings if key_of[setting] not in keys]

    yield without("batch_size")
    yield without("microbatches")
    yield without(*BATCH_KEYS)


def as_lines(commands: Sequence[str]) -> str:
    """Write commands as lines at the end of an error."""
    return "".join(f"\n  {command}" for command in commands)
