"""How a step's crops are divided: over how many ranks, in how many microbatches, at which rate.

`batch_size`, `microbatches` and `batch_per_rank` are settled when a run first starts, from the
number of its ranks, and kept in the run from then on: on fewer ranks it computes the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from common.command_line import UsageError
from train.config import AUTO, REFERENCE_BATCH, TrainConfig

BATCH_KEYS = ("batch_size", "microbatches", "batch_per_rank")


class RanksError(UsageError):
    """A number of ranks that cannot share a run's batch."""


def settle(config: TrainConfig, num_ranks: int, begun: TrainConfig | None) -> TrainConfig:
    """Return the configuration with numbers for auto: those of a run that has `begun`, or else what
    suits the ranks. Raises RanksError where the ranks cannot share the batch."""
    settled = as_begun(config, begun) if begun else for_ranks(config, num_ranks)
    if problem := why_not(settled, num_ranks):
        since = f", as the run began (run={config.run})" if begun else ""
        raise RanksError(f"{problem}{since}")
    return settled


def as_begun(config: TrainConfig, begun: TrainConfig) -> TrainConfig:
    """Return the configuration with a begun run's numbers for auto."""
    is_open = {
        "batch_size": config.batch_size == AUTO,
        "microbatches": config.microbatches == AUTO,
        "batch_per_rank": config.batch_per_rank == 0,
    }
    numbers = {key: getattr(begun, key) for key in BATCH_KEYS if is_open[key]}
    return dataclasses.replace(config, **numbers)


def for_ranks(config: TrainConfig, num_ranks: int) -> TrainConfig:
    """Return the configuration of a run that starts on so many ranks.

    microbatches=auto: one a rank. batch_size=auto: batch_per_rank crops a rank, or the least
    multiple of the microbatches that is 8 or more.
    """
    microbatches = num_ranks if config.microbatches == AUTO else config.microbatches
    batch_size = config.batch_size
    per_rank = config.batch_per_rank
    # both stand in the configuration of a run that has begun, which a new one may take over
    if (
        batch_size != AUTO
        and per_rank
        and batch_size
        not in (
            per_rank * num_ranks,
            per_rank * microbatches,
        )
    ):
        raise UsageError(
            f"batch_size={batch_size} and batch_per_rank={per_rank} are not the same on {num_ranks}"
            " ranks; give one of the two"
        )
    if batch_size == AUTO and config.batch_per_rank:
        batch_size = config.batch_per_rank * num_ranks
    elif batch_size == AUTO:
        batch_size = -(-REFERENCE_BATCH // microbatches) * microbatches
    if batch_size % microbatches:
        raise RanksError(
            f"batch_size={batch_size} crops cannot be cut into microbatches={microbatches} equal"
            f" parts ({num_ranks} ranks)"
        )
    return dataclasses.replace(config, batch_size=batch_size, microbatches=microbatches)


def why_not(config: TrainConfig, num_ranks: int) -> str:
    """Why so many ranks cannot share the microbatches; '' where they can."""
    num = config.batch.num_microbatches
    if num_ranks > num:
        return f"{num_ranks} ranks, but microbatches={num}: a rank would have nothing to do"
    if config.reproducible == "off" or are_subtrees(num, num_ranks):
        return ""
    fitting = ", ".join(str(n) for n in range(1, num + 1) if are_subtrees(num, n))
    return (
        f"{num_ranks} ranks cannot compute microbatches={num} to the same bits"
        f" (reproducible=elastic); {fitting} can"
    )


def are_subtrees(num_microbatches: int, num_ranks: int) -> bool:
    """Whether each rank's microbatches are a whole subtree of train.ranks.gradients' tree: on every
    rank as many, and a power of two of them."""
    each, rest = divmod(num_microbatches, num_ranks)
    return num_ranks == 1 or (rest == 0 and each & (each - 1) == 0)


Accepted = tuple[int, list[str]]
"""A number of ranks, and key=value settings."""


def accepted(
    settings: Sequence[str],
    rank_counts: Sequence[int],
    load: Callable[[Sequence[str]], TrainConfig],
    begun: TrainConfig | None,
) -> list[Accepted]:
    """Return what is accepted in place of refused `settings`: other settings for the wanted number
    of ranks, the first of `rank_counts`, and the same settings for the first other number.

    A run that has begun takes no other settings.
    """

    def is_accepted(way: Accepted) -> bool:
        try:
            settle(load(way[1]), way[0], begun)
        except UsageError:
            return False
        return True

    wanted, *fewer = rank_counts
    others = () if begun else relaxed(settings)
    same = next(filter(is_accepted, ((wanted, given) for given in others)), None)
    less = next(filter(is_accepted, ((number, list(settings)) for number in fewer)), None)
    return [way for way in (same, less) if way]


def relaxed(settings: Sequence[str]) -> Iterator[list[str]]:
    """Yield the settings without one of the batch's keys, and without all of them."""
    key_of = {
        setting: setting.partition("=")[0].removeprefix("--").removeprefix("train.")
        for setting in settings
    }

    def without(*keys: str) -> list[str]:
        return [setting for setting in settings if key_of[setting] not in keys]

    yield without("batch_size")
    yield without("microbatches")
    yield without(*BATCH_KEYS)


def ways_out(commands: Sequence[str]) -> str:
    """The commands that are accepted, as the end of an error."""
    return "".join(f"\n  {command}" for command in commands)
