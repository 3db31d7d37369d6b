"""Split the cases (patients) into train, val and test.

A case goes to one split with all its fields, before any field is augmented: fields of one case
overlap and repeat, so splitting fields would test on trained pixels. With folds, every case may be
trained on; data_prep.dataset.folds deals them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from common import seeds
from common.command_line import UsageError
from data_prep.config import SPLITS, SplitConfig
from data_prep.raw import Field, composed, natural_key


def split_cases(fields: Sequence[Field], config: SplitConfig, seed: int) -> dict[str, str]:
    """Return case -> split. Raises UsageError if the cases cannot make the wanted splits."""
    sizes = Counter(field.case for field in fields)
    cases = sorted(sizes, key=natural_key)
    order = [cases[index] for index in seeds.generator(seed, "split").permutation(len(cases))]
    if config.folds:
        check_folds(cases, config)
        return dict.fromkeys(cases, "train")  # a fold is chosen when a set is used
    splits = split_by_list(cases, config)
    if not config.train_cases:
        for split, fraction in (("test", config.test), ("val", config.val)):
            if fraction > 0 and split not in splits.values():
                left = [case for case in order if case not in splits]
                splits |= dict.fromkeys(take_fraction(left, sizes, fraction, split), split)
        splits |= {case: "train" for case in cases if case not in splits}
    if "train" not in splits.values():
        raise UsageError("split: no case is left for training")
    return {case: splits[case] for case in cases}


def split_by_list(cases: Sequence[str], config: SplitConfig) -> dict[str, str]:
    """Return case -> split for the listed cases. Raises UsageError.

    If there is a list for training, every case must be in a list.
    """
    splits: dict[str, str] = {}
    for split in SPLITS:
        for name in getattr(config, f"{split}_cases"):
            case = find_case(name, cases, f"split.{split}_cases")
            if splits.setdefault(case, split) != split:
                raise UsageError(f"split: case {case} is in two lists, {splits[case]} and {split}")
    left = [case for case in cases if case not in splits]
    if config.train_cases and left:
        raise UsageError(
            f"split: cases in no list: {', '.join(left)}; with split.train_cases every case must"
            " be in one; without it, all other cases are for training"
        )
    return splits


def find_case(name: str, cases: Sequence[str], key: str) -> str:
    """Return the case meant by '10' or 'Case_10'. Raises UsageError."""
    name = composed(name)
    for case in (name, f"Case_{name}"):
        if case in cases:
            return case
    raise UsageError(f"{key}: no case '{name}'; there are: {', '.join(cases)}")


def take_fraction(
    order: Sequence[str], sizes: Mapping[str, int], fraction: float, split: str
) -> list[str]:
    """Take cases in this order until about a fraction of all fields is taken; at least one case."""
    if len(order) < 2:
        raise UsageError(
            f"split: {len(sizes)} case(s) are too few for {split} beside the other splits; set"
            f" split.{split}=0, or name cases with split.{split}_cases"
        )
    target, taken = fraction * sum(sizes.values()), list[str]()
    num_fields = 0
    for case in order:
        is_nearer = abs(num_fields + sizes[case] - target) < abs(num_fields - target)
        if is_nearer and len(taken) < len(order) - 1:
            taken.append(case)
            num_fields += sizes[case]
    return taken or [min(order, key=lambda case: sizes[case])]


def check_folds(cases: Sequence[str], config: SplitConfig) -> None:
    """Raise UsageError if there are fewer cases than folds."""
    least = config.least_folds if config.folds == "cases" else config.folds
    if len(cases) < least:
        raise UsageError(
            f"split.folds={config.folds}: there are only {len(cases)} cases"
            + (f", and {least} folds are needed" if config.folds == "cases" else "")
        )
