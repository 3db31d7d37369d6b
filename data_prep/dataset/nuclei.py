"""Count the nuclei of each class in the splits, and warn of splits without any."""

from collections.abc import Mapping, Sequence

from common.command_line import named, printable
from data_prep.config import SPLITS
from data_prep.dataset.manifest import Sample, count_nuclei
from data_prep.raw import natural_key


def by_split(
    samples: Sequence[Sample], folds: Sequence[Sequence[str]] = ()
) -> dict[str, dict[str, int]]:
    """Return split -> class -> number of nuclei, for each split that has samples; of a set with
    folds for each of them, as 'fold 0'."""
    if folds:
        return {
            f"fold {number}": count_nuclei(sample for sample in samples if sample.case in cases)
            for number, cases in enumerate(folds)
        }
    members = {split: [sample for sample in samples if sample.split == split] for split in SPLITS}
    return {split: count_nuclei(found) for split, found in members.items() if found}


def table(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a line for each class, below a line with the splits."""
    names = list(next(iter(counts.values())))
    width = max(map(len, [*map(printable, names), "nuclei"]))
    lines = [f"{'nuclei':{width}}" + "".join(f"  {split:>7}" for split in counts)]
    for name in names:
        lines.append(
            f"{printable(name):{width}}"
            + "".join(f"  {nuclei[name]:>7}" for nuclei in counts.values())
        )
    return lines


def warnings(samples: Sequence[Sample], folds: Sequence[Sequence[str]] = ()) -> list[str]:
    """Return a line for each class that is in no field, or missing in a split or a fold."""
    counts, lines = by_split(samples, folds), []
    for name in next(iter(counts.values())):
        shown = printable(name)
        missing = [split for split, nuclei in counts.items() if not nuclei[name]]
        if len(missing) == len(counts):
            lines.append(f"no {shown} in any field: it can be neither learned nor measured")
        elif missing:
            cases = sorted({s.case for s in samples if s.nuclei[name]}, key=natural_key)
            found_in = f"({shown} is in {named(cases)})"
            lines.append(
                f"no {shown} in {named(missing)}: only all folds together measure it {found_in}"
                if folds
                else f"no {shown} in {' and '.join(missing)}: it {lost(missing)} there;"
                f" {advice(missing)} {found_in}"
            )
    return lines


def about_ignored(samples: Sequence[Sample]) -> list[str]:
    """Say in a line how much of the original fields is ignored; nothing where nothing is."""
    originals = [sample for sample in samples if sample.variant == 0]
    ignored_px = sum(sample.ignored_px for sample in originals)
    if not ignored_px:
        return []
    fraction = ignored_px / sum(sample.height_px * sample.width_px for sample in originals)
    return [f"ignored by loss and metrics: {fraction:.3%} of the pixels of the fields"]


def lost(missing: Sequence[str]) -> str:
    """Say what is impossible without a class in these splits."""
    if "train" not in missing:
        return "cannot be measured"
    if missing == ["train"]:
        return "cannot be learned"
    return "can be neither learned nor measured"


def advice(missing: Sequence[str]) -> str:
    """Say how to get other cases into these splits."""
    # cases in no list are for training
    splits = [split for split in SPLITS[1:] if split in missing or "train" in missing]
    return "name cases with " + " and ".join(f"split.{split}_cases=..." for split in splits)
