"""How many nuclei of each class the splits hold, and where that leaves nothing to measure."""

from collections.abc import Mapping, Sequence

from common.command_line import named, printable
from data_prep.config import SPLITS, SplitConfig
from data_prep.dataset.manifest import Sample, count_nuclei
from data_prep.raw import natural_key


def by_split(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Split -> class -> its number of nuclei, of the splits that there are."""
    members = {split: [sample for sample in samples if sample.split == split] for split in SPLITS}
    return {split: count_nuclei(found) for split, found in members.items() if found}


def table(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each class, under a line of the splits."""
    names = list(next(iter(counts.values())))
    width = max(map(len, [*map(printable, names), "nuclei"]))
    lines = [f"{'nuclei':{width}}" + "".join(f"  {split:>7}" for split in counts)]
    for name in names:
        lines.append(
            f"{printable(name):{width}}" + "".join(f"  {of[name]:>7}" for of in counts.values())
        )
    return lines


def warnings(samples: Sequence[Sample], config: SplitConfig) -> list[str]:
    """What cannot be learned or measured: a line for each class that a split has nothing of."""
    counts, lines = by_split(samples), []
    for name in next(iter(counts.values())):
        told = printable(name)
        missing = [split for split, of in counts.items() if not of[name]]
        if len(missing) == len(counts):
            lines.append(f"no {told} in any field: nothing can be learned or said of it")
        elif missing:
            cases = sorted({s.case for s in samples if s.nuclei[name]}, key=natural_key)
            lines.append(
                f"no {told} in {' and '.join(missing)}: nothing can be {lost(missing)} of it there;"
                f" {advice(missing, config)} ({told} is in {named(cases)})"
            )
    return lines


def lost(missing: Sequence[str]) -> str:
    """What cannot be done without a class in these splits."""
    if "train" not in missing:
        return "said"
    return "learned" if missing == ["train"] else "learned or said"


def advice(missing: Sequence[str], config: SplitConfig) -> str:
    """What to type so that these splits get other cases."""
    if config.folds:
        return "another seed= deals the cases into other folds"
    # what is in no list is for training
    splits = [split for split in SPLITS[1:] if split in missing or "train" in missing]
    return "name cases with " + " and ".join(f"split.{split}_cases=..." for split in splits)
