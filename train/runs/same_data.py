"""Check that a prepared data set is the one that a run was trained on, and say what differs.

The hash of the content must be the same, and the labelling too (classes, radius of discs, ...):
annotations that are masks give the same content with different labellings.
"""

import dataclasses
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import command_line
from common.command_line import UsageError, UserError, named
from data_prep.config import PrepConfig
from data_prep.dataset.description import Description
from data_prep.dataset.manifest import Dataset
from data_prep.images.resolution import is_same, mpp_text

LABELLING = (
    *("annotations", "object_types", "classes", "labels", "radius_px", "uint16_white"),
    *("ignore_value", "ignore_px"),
    *("stain_norm", "stain_reference"),
)
"""The settings of data_prep that say what is annotated, and how it becomes masks."""
CASE_REGEX = "case_regex"
SHOWN_AS_CASES = "split."
NOTHING = "none"
PLAIN = re.compile(r"[\w.+-]+( [\w.+-]+)*")
"""A name that a list on the command line holds without quotes."""


class OtherRunError(UsageError):
    """Settings or data are not those that a run began with."""

    def __init__(self, message: str, ways_out: Sequence[Mapping[str, str]]) -> None:
        super().__init__(message)
        self.ways_out = ways_out
        """Settings by key, each of which would be accepted in place of those that were given."""

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (str(self), self.ways_out)  # it goes from rank to rank

    def accepted(self, settings: Sequence[str]) -> list[list[str]]:
        """Return settings that would be accepted, in the order of those that were given."""
        return [with_keys(settings, way_out) for way_out in self.ways_out]


def with_keys(settings: Sequence[str], wanted: Mapping[str, str]) -> list[str]:
    """Return key=value settings with other values; keys that are missing come last.

    A key may be written train.KEY, as for launch/submit.py.
    """
    given, changed = set(), []
    for setting in settings:
        written = command_line.split_argument(setting)[0]
        key = written.removeprefix("train.")
        changed.append(f"{written}={wanted[key]}" if key in wanted else setting)
        given.add(key)
    return [*changed, *(f"{key}={value}" for key, value in wanted.items() if key not in given)]


def check_same_data(trained: Description, dataset: Dataset, run: Path, is_named: bool) -> list[str]:
    """Check that a run may be measured on a data set. Returns notes for the user.

    It must be the one that the run was trained on. If the user has named it (data=), it may be
    another one with the same labelling. Otherwise raises UserError with what differs and what to
    do.
    """
    now = dataset.description
    if not (lines := differences(trained, now)):
        return []
    if is_named and is_labelled_alike(trained, now):
        other = f"data={dataset.folder} is not the set that was trained on ({'; '.join(lines)})"
        return [other, *unknown_resolution(trained, now)]
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
        + "\nor".join(f" {way}" for way in ways),
        can_heal=False,
    )


def differences(trained: Description, now: Description) -> list[str]:
    """List what differs between two prepared data sets; nothing if they are the same."""
    is_same_content = trained.content_sha256 == now.content_sha256
    if is_same_content and trained.cases == now.cases and is_labelled_alike(trained, now):
        return []
    changed = changed_settings(trained.settings, now.settings)
    lines = in_lines({key: changed[key] for key in changed if not key.startswith(SHOWN_AS_CASES)})
    return [*lines, *other_resolution(trained, now), *moved_cases(trained, now)] or [
        f"the images or annotations (content {trained.content_sha256[:12]} ->"
        f" {now.content_sha256[:12]})"
    ]


def labelling_differences(trained: Description, now: Description) -> list[str]:
    """List what differs between the labellings of two data sets."""
    changed = changed_settings(trained.settings, now.settings)
    lines = in_lines({key: changed[key] for key in (*LABELLING, CASE_REGEX) if key in changed})
    return [*lines, *other_resolution(trained, now)]


def other_resolution(trained: Description, now: Description) -> list[str]:
    """Say, in a line, that two data sets are of different resolutions; nothing if they are of one,
    or one is not known."""
    before, after = trained.labelling.mpp, now.labelling.mpp
    if not before or not after or is_same(before, after):
        return []
    return [f"resolution: {mpp_text(before)} -> {mpp_text(after)}"]


def unknown_resolution(trained: Description, now: Description) -> list[str]:
    """Say, in a line, that the resolution of one of two data sets is not known."""
    before, after = trained.labelling.mpp, now.labelling.mpp
    if bool(before) == bool(after):
        return []
    return [
        f"not checked whether the resolution is the same: {mpp_text(before)} where it was trained,"
        f" {mpp_text(after)} here"
    ]


def is_labelled_alike(trained: Description, now: Description) -> bool:
    """Whether a model of one data set can be measured on the other: all of the labelling is the
    same, except case_regex, and what is ignored. Resolutions that may be the same count as the
    same."""
    before = trained.labelling
    after = replace(
        now.labelling,
        case_regex=before.case_regex,
        mpp=before.mpp,
        ignore_value=before.ignore_value,
        ignore_px=before.ignore_px,
    )
    return before == after and not other_resolution(trained, now)


def settings_as_typed(settings: Mapping[str, Any]) -> str:
    """Write the settings of data_prep that are not its defaults as arguments."""
    defaults = flat(dataclasses.asdict(PrepConfig()))
    return "".join(
        " " + shlex.quote(f"{key}={as_typed(value)}")
        for key, value in flat(settings).items()
        if key not in defaults or value != defaults[key]
    )


def changed_settings(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the settings of data_prep that differ, dotted key -> (before, after).

    Those of the labelling come first.
    """
    flat_before, flat_after = flat(before), flat(after)
    keys = dict.fromkeys([*LABELLING, *flat_before, *flat_after])
    pairs = {key: (flat_before.get(key), flat_after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def in_lines(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Write each setting as a line, 'radius_px: 20 -> 12'."""
    return [
        f"{key}: {as_text(before)} -> {as_text(after)}" for key, (before, after) in changed.items()
    ]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Put nested settings under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def moved_cases(trained: Description, now: Description) -> list[str]:
    """List cases that are in another split, or in one data set only.

    A line is 'split: Case_3, Case_4 train -> test'.
    """
    before, after = split_of_case(trained), split_of_case(now)
    moves = defaultdict(list)
    for case in [*before, *(case for case in after if case not in before)]:
        move = before.get(case, NOTHING), after.get(case, NOTHING)
        if move[0] != move[1]:
            moves[move].append(case)
    return [f"split: {named(cases)} {old} -> {new}" for (old, new), cases in moves.items()]


def split_of_case(data: Description) -> dict[str, str]:
    """Return the split of each case."""
    return {case: split for split, cases in data.cases.items() for case in cases}


def as_text(value: Any) -> str:
    """Write a setting to be read."""
    return ", ".join(map(str, value)) or NOTHING if isinstance(value, list) else as_typed(value)


def as_typed(value: Any) -> str:
    """Write a setting as an argument of a command."""
    if isinstance(value, list):
        entries = (
            entry if PLAIN.fullmatch(entry) else json.dumps(entry, ensure_ascii=False)
            for entry in map(str, value)
        )
        return "[" + ",".join(entries) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
