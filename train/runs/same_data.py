"""Whether a prepared data set is the one that a run was trained on, and what differs.

The content's hash tells two sets apart; the classes, the discs' radius and the like must agree as
well, for some formats of annotation (masks) prepare the same content under other ones.
"""

import dataclasses
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.command_line import UserError, named
from data_prep.config import PrepConfig
from data_prep.dataset.manifest import Dataset, Description

LABELLING = ("annotations", "classes", "labels", "radius_px", "uint16_white")
"""The settings of data_prep that say what is annotated, and how the truth is drawn from it."""
CASE_REGEX = "case_regex"
TOLD_AS_CASES = "split."
NOTHING = "none"
PLAIN = re.compile(r"[\w.+-]+( [\w.+-]+)*")
"""A name that a list on the command line holds without quotes."""


def check_same_data(trained: Description, dataset: Dataset, run: Path, is_named: bool) -> list[str]:
    """Refuse to measure a run on a data set that is not the one it was trained on.

    Another one that is labelled alike is measured on where the user has named it (data=); returns
    what to say of it. Raises UserError with what differs, and what to do.
    """
    now = dataset.description
    if not (lines := differences(trained, now)):
        return []
    if is_named and is_labelled_alike(trained, now):
        return [f"data={dataset.folder} is not the set that was trained on ({'; '.join(lines)})"]
    settings = settings_as_typed(trained.settings)
    ways = [
        f"prepare it as before: python -m data_prep raw=... out={dataset.folder}{settings}",
        "measure on raw fields: raw=...",
        "measure on another set, labelled as the one trained on: data=...",
    ]
    if is_labelled_alike(trained, now):
        ways[-1] = f"measure on it nevertheless: data={dataset.folder}"
    raise UserError(
        f"run={run}: {dataset.folder} is not the data set that was trained on:"
        + "".join(f"\n  {line}" for line in lines)
        + "\nEither"
        + "\nor".join(f" {way}" for way in ways)
    )


def differences(trained: Description, now: Description) -> list[str]:
    """What differs between two prepared data sets, a line each; nothing where they are the same."""
    if trained.content_sha256 == now.content_sha256 and is_labelled_alike(trained, now):
        return []
    changed = changed_settings(trained, now)
    lines = in_lines({key: changed[key] for key in changed if not key.startswith(TOLD_AS_CASES)})
    return [*lines, *moved_cases(trained, now)] or [
        f"the images or annotations (content {trained.content_sha256[:12]} ->"
        f" {now.content_sha256[:12]})"
    ]


def labelling_differences(trained: Description, now: Description) -> list[str]:
    """What differs between the labellings of two data sets, a line each."""
    changed = changed_settings(trained, now)
    return in_lines({key: changed[key] for key in (*LABELLING, CASE_REGEX) if key in changed})


def is_labelled_alike(trained: Description, now: Description) -> bool:
    """Whether a model of one data set can be measured on the other: the same is annotated in the
    same way, whatever tells the cases."""
    regex = trained.labelling.case_regex
    return trained.labelling == replace(now.labelling, case_regex=regex)


def settings_as_typed(settings: Mapping[str, Any]) -> str:
    """The settings of data_prep that are not its defaults, as one types them."""
    defaults = flat(dataclasses.asdict(PrepConfig()))
    return "".join(
        " " + shlex.quote(f"{key}={as_typed(value)}")
        for key, value in flat(settings).items()
        if key not in defaults or value != defaults[key]
    )


def changed_settings(trained: Description, now: Description) -> dict[str, tuple[Any, Any]]:
    """Dotted key of data_prep -> its values, of those that differ; those of the labelling first."""
    return changed(trained.settings, now.settings)


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The same of the settings themselves."""
    flat_before, flat_after = flat(before), flat(after)
    keys = dict.fromkeys([*LABELLING, *flat_before, *flat_after])
    pairs = {key: (flat_before.get(key), flat_after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def in_lines(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """'radius_px: 20 -> 12' for each setting."""
    return [
        f"{key}: {as_text(before)} -> {as_text(after)}" for key, (before, after) in changed.items()
    ]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def moved_cases(trained: Description, now: Description) -> list[str]:
    """'split: Case_3, Case_4 train -> test': cases that are in another split, or in only one of two
    data sets."""
    before, after = split_of_case(trained), split_of_case(now)
    moves = defaultdict(list)
    for case in [*before, *(case for case in after if case not in before)]:
        move = before.get(case, NOTHING), after.get(case, NOTHING)
        if move[0] != move[1]:
            moves[move].append(case)
    return [f"split: {named(cases)} {old} -> {new}" for (old, new), cases in moves.items()]


def split_of_case(data: Description) -> dict[str, str]:
    """Case -> its split."""
    return {case: split for split, cases in data.cases.items() for case in cases}


def as_text(value: Any) -> str:
    """A setting as one reads it."""
    return ", ".join(map(str, value)) or NOTHING if isinstance(value, list) else as_typed(value)


def as_typed(value: Any) -> str:
    """A setting as one types it."""
    if isinstance(value, list):
        names = (name if PLAIN.fullmatch(name) else json.dumps(name) for name in value)
        return "[" + ",".join(names) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
