"""The difference between two evaluations, with an interval from a paired bootstrap over cases.

Both are measured on the same fields. A resample draws whole cases, the same for both, and pools
their counts; so what makes a case hard for both does not widen the interval.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.command_line import UserError, counted, named
from train.comparison.config import CompareConfig
from train.comparison.evaluations import Evaluation
from train.comparison.rows import Row
from train.metrics.scores import (
    EMPTY,
    NUM_RESAMPLES,
    ConfidenceInterval,
    Counts,
    Floats,
    bootstrap_pooled,
    nan_to_none,
    scores,
)

FEW_CASES = 6
"""With fewer cases, one of two equal models is ahead on all of them by chance in more than 5% of
comparisons: in 2 of 2 ** cases."""


OF_TWO_RUNS = "between these two trained runs; another seed may differ as much"
"""What the interval, which is over cases, does not hold."""


class NotComparableError(UserError):
    """Two evaluations whose difference would say nothing of the runs."""


class NotEvaluatedError(NotComparableError):
    """There is no evaluation yet."""


@dataclass(frozen=True)
class Difference:
    """How much better the second of two is."""

    what: str
    """What is measured, as in 'Dice of pixels'."""
    first: str
    second: str
    value: float | None
    """The second's figure less the first's; None where nothing is annotated."""
    interval: ConfidenceInterval
    """Of 95%; None if fewer than two cases have annotation."""
    num_cases: int
    """The cases that have annotation."""

    @property
    def text(self) -> str:
        """The difference in plain words."""
        if self.value is None:
            return f"{self.what}: {EMPTY}, so there is no difference to show"
        if self.value == 0 and self.interval in (None, (0, 0)):
            return f"{self.what}: {self.first} and {self.second} are equal"
        better = self.second if self.value >= 0 else self.first
        ahead = f"{self.what}: {better} is better by {abs(self.value):.4f}"
        if self.interval is None:
            return f"{ahead}; no interval, with one annotated case: nothing is known of others"
        low, high = self.interval if self.value >= 0 else (-self.interval[1], -self.interval[0])
        cases = counted(self.num_cases, "case")
        return f"{ahead} (95% interval {low:.4f} to {high:.4f}, {cases}): {self.verdict}"

    @property
    def verdict(self) -> str:
        """Whether it is a difference, in words."""
        assert self.interval
        cases = counted(self.num_cases, "case")
        if self.interval[0] <= 0 <= self.interval[1]:
            return f"the interval holds 0, so no difference is shown with {cases}"
        if self.num_cases >= FEW_CASES:
            return f"a difference {OF_TWO_RUNS}"
        chance = 2 ** (self.num_cases - 1)
        return (
            f"a difference in these cases, but {cases} are few: of two equal models, one is ahead"
            f" in all of them in 1 of {chance} comparisons"
        )


def differences_between(first: Row, second: Row, config: CompareConfig) -> list[Difference]:
    """Return the differences of two evaluations, for pixels and for nuclei.

    Raises NotComparableError if they cannot be compared, with the commands that mend it.
    """
    one, other = evaluations_of(first, second, config)
    check_comparable(first, second, one, other, config)
    names = [*one.fields]
    order = [[*other.fields].index(name) for name in names]
    cases = [one.fields[name].case for name in names]
    found = []
    for what, counts in (
        ("Dice of pixels", (one.pixels, other.pixels[order])),
        ("F1 of nuclei", (one.nuclei, other.nuclei[order])),  # which is their Dice
    ):
        pair = [each.sum(axis=1) for each in counts]
        value, interval = paired_difference(pair[0], pair[1], cases, config.seed)
        num_cases = len(annotated_cases(pair[0], cases))
        found.append(
            Difference(what, str(first.path), str(second.path), value, interval, num_cases)
        )
    return found


def paired_difference(
    first: Counts, second: Counts, cases: Sequence[str], seed: int
) -> tuple[float | None, ConfidenceInterval]:
    """Return the Dice of the second's pooled counts less that of the first's, with its 95%
    interval. `first` and `second` are (fields, 4), of the same fields."""
    both = np.concatenate([first, second], axis=1)

    def difference(sums: npt.NDArray[np.int64]) -> dict[str, Floats]:
        return {"dice": scores(sums[..., 4:])["dice"] - scores(sums[..., :4])["dice"]}

    value = nan_to_none(difference(both.sum(axis=0))["dice"])
    return value, bootstrap_pooled(both, cases, difference, NUM_RESAMPLES, seed)["dice"]


def annotated_cases(counts: Counts, cases: Sequence[str]) -> set[str]:
    """Return the cases that have a Dice: of two that are measured against the same truth, the
    same. In the others, neither can be ahead."""
    is_empty = np.isnan(scores(counts)["dice"])
    return {case for case, empty in zip(cases, is_empty, strict=True) if not empty}


def evaluations_of(first: Row, second: Row, config: CompareConfig) -> tuple[Evaluation, Evaluation]:
    """Return the evaluations of two rows. Raises NotComparableError if one is of another
    checkpoint, or damaged, and NotEvaluatedError if one is missing."""
    if first.evaluation and second.evaluation:
        return first.evaluation, second.evaluation
    kind = NotComparableError if first.doubt or second.doubt else NotEvaluatedError
    lines = [
        row.doubt or f"{row.path}: not evaluated on {config.subject} yet"
        for row in (first, second)
        if not row.evaluation
    ]
    missing = [evaluate_command(row, config) for row in (first, second) if not row.evaluation]
    raise refusal(lines, missing, kind)


def check_comparable(
    first: Row, second: Row, one: Evaluation, other: Evaluation, config: CompareConfig
) -> None:
    """Raise NotComparableError unless two evaluations are of the same fields, truth and classes,
    and were measured alike."""
    if one.classes != other.classes:
        learned = [
            f"{row.path} learned {', '.join(evaluation.classes)}"
            for row, evaluation in ((first, one), (second, other))
        ]
        raise refusal(["; ".join(learned)], [])
    against = keys_of_truth(first, second)
    anew = [evaluate_command(row, config, *against) for row in (first, second)]
    on_the_same = [anew[0], evaluate_command(second, config, f"data={first.runs[0].config.data}")]
    if only := {*one.fields} ^ {*other.fields}:
        lines = [f"measured on other fields: {named(sorted(only))} only by one of them"]
        raise refusal(lines, anew if config.raw else on_the_same)
    if changed := [name for name in one.fields if one.fields[name] != other.fields[name]]:
        lines = [f"not measured against the same annotation, or of other cases: {named(changed)}"]
        raise refusal(lines, anew if config.raw else on_the_same)
    if one.how != other.how:
        lines = [f"not measured alike: {first.path} with {one.how}, {second.path} with {other.how}"]
        alike = one.how.partition(" and ")[0].split()
        raise refusal(lines, [evaluate_command(row, config, *alike) for row in (first, second)])
    check_trained(first, second, one)


def check_trained(first: Row, second: Row, evaluation: Evaluation) -> None:
    """Raise NotComparableError if one run was trained on a measured case, and the other was not.

    Each fold of a folder is measured on cases that it was not trained on.
    """
    cases = {field.case for field in evaluation.fields.values()}
    trained = [
        {*cases} & {*row.runs[0].data.cases["train"]} if not row.is_folds else set()
        for row in (first, second)
    ]
    if unequal := trained[0] ^ trained[1]:
        row = first if unequal & trained[0] else second
        raise refusal(
            [f"{row.path} was trained on {named(sorted(unequal))}, which the other never saw"], []
        )


def keys_of_truth(first: Row, second: Row) -> list[str]:
    """Return keys of train.evaluate by which raw fields give both runs the first one's truth, where
    each would else read them as its own training data."""
    one, other = (row.runs[0].data.labelling for row in (first, second))
    keys = ["annotations", "ignore_value" if one.annotations == "masks" else "ignore_px"]
    return [
        f"{key}={getattr(one, key)}" for key in keys if getattr(one, key) != getattr(other, key)
    ]


def evaluate_command(row: Row, config: CompareConfig, *more: str) -> str:
    """Return the whole command that evaluates a row as configured."""
    about = [f"raw={config.raw}"] if config.raw else [f"split={config.split}"]
    about += [f"cases=[{','.join(config.cases)}]"] if config.cases else []
    return shlex.join(["python", "-m", "train.evaluate", f"run={row.path}", *about, *more])


def refusal(
    lines: Sequence[str],
    commands: Sequence[str],
    kind: type[NotComparableError] = NotComparableError,
) -> NotComparableError:
    """Return the error that says why there is no difference, and what to type."""
    text = f"no difference is shown: {'; '.join(lines)}"
    if commands:
        text += "".join(f"\n  {command}" for command in ["evaluate, and compare again:", *commands])
    return kind(text, can_heal=False)
