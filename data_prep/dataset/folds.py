"""Deal the cases of a data set to folds, and say which cases a fold trains, validates and tests on.

A set is prepared once, with variants of every case. A fold is a view of it: whoever trains chooses
one, and sees the variants of the cases that the fold trains on, and of no other.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from common.command_line import UsageError

Fold = int | Literal["none", "all"]
"""The number of a fold; all: every case is for training; none: the set has no folds."""
Contents = Mapping[str, Mapping[str, int]]
"""What each case holds: kind -> number, as of fields and of the nuclei of each class."""


def deal(contents: Contents, num_folds: int | Literal["cases"], seed: int) -> list[list[str]]:
    """Deal cases to folds of like content, rare kinds too.

    The cases that hold most of something come first. Each goes to the fold that has least of what
    the case holds, as shares of all there is. The seed orders cases that are alike. Raises
    UsageError if there are fewer cases than folds.
    """
    if num_folds == "cases":
        return [[case] for case in contents]
    if len(contents) < num_folds:
        raise UsageError(f"split.folds={num_folds}: only {len(contents)} cases have usable fields")
    from common import seeds  # here: settings, which need no numpy, import this module

    total = sum((Counter(content) for content in contents.values()), Counter[str]())
    shares = {
        case: {kind: number / total[kind] for kind, number in content.items() if number}
        for case, content in contents.items()
    }
    names = list(contents)
    shuffled = [names[n] for n in seeds.generator(seed, "folds").permutation(len(names))]
    loads: list[Counter[str]] = [Counter() for _ in range(num_folds)]
    fold_of: dict[str, int] = {}
    for case in sorted(shuffled, key=lambda case: -max(shares[case].values())):
        share = shares[case]
        overlap = [sum(load[kind] * share[kind] for kind in share) for load in loads]
        fold_of[case] = overlap.index(min(overlap))
        loads[fold_of[case]].update(share)
    return [[case for case in names if fold_of[case] == fold] for fold in range(num_folds)]


def cases_of_fold(
    folds: Sequence[Sequence[str]], fold: int | Literal["all"], has_val: bool
) -> dict[str, list[str]]:
    """Return split -> cases: those of the fold are for testing, those of the next one for
    validation if there is one, and all others for training."""
    splits = {} if fold == "all" else {fold: "test"}
    if fold != "all" and has_val:
        splits[(fold + 1) % len(folds)] = "val"
    cases: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, members in enumerate(folds):
        cases[splits.get(number, "train")] += members
    return cases


def check_fold(
    folds: Sequence[Sequence[str]], fold: Fold, data: str, folder: Path | None = None
) -> None:
    """Raise UsageError for a fold that a data set does not have; `data` names the set, and `folder`
    is where it was prepared."""
    if not folds:
        if fold == "none":
            return
        out = shlex.quote(f"out={folder or '...'}")
        raise UsageError(
            f"fold={fold}: {data} has no folds; leave fold= out, or deal its cases to folds, with"
            f" all other settings as they were: python -m data_prep raw=... {out} split.folds=5"
        )
    allowed = f"fold=0 to fold={len(folds) - 1} (its cases are tested), or fold=all (trains on all)"
    if fold == "none":
        raise UsageError(
            f"{data}: its cases are dealt to {len(folds)} folds; choose one: {allowed}"
        )
    if fold != "all" and not 0 <= fold < len(folds):
        raise UsageError(f"fold={fold}: {data} has {len(folds)} folds: {allowed}")
