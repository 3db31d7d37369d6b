"""The models that a run's weights come from: what they were, and which cases they have seen.

A run that began with the weights of another (init=) records them in RUN/init.json, and an exported
model in its metadata: the model that it began with, the one which that began with, and so on.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import UserError
from common.schema import checked, json_sha256, read_small, require_printable, short, validated
from data_prep.cases.names import check_regex, find_cases
from data_prep.cases.similar import essence
from data_prep.dataset.description import Description

INIT = "init.json"  # in a run's folder


@dataclass(frozen=True)
class Origin:
    """A trained model, as far as those who go on from its weights must know it."""

    source: str
    """Name of the run's folder, of a fold as cv/fold-0, or of the exported file."""
    checkpoint: str
    """Name of the checkpoint in the run's folder; 'best' of an exported file."""
    step: int
    model_sha256: str
    """Digest of the weights, as `train.show` prints it."""
    train: list[str]
    """Cases that it was trained on, itself."""
    val: list[str]
    """Cases that its checkpoint and thresholds were chosen on."""
    case_regex: str
    """How these cases were found in the names of fields."""

    def __post_init__(self) -> None:
        check_regex(self.case_regex)


@dataclass(frozen=True)
class Beginning:
    """The content of RUN/init.json: what a run began with."""

    origins: list[Origin]
    """The model of init=, then the one that it began with itself, and so on; none without init=."""
    made_anew: list[str]
    """Parts of the network that are not of the first origin."""


@dataclass(frozen=True)
class InitFile:
    """The schema of init.json."""

    origins: list[dict[str, Any]]
    made_anew: list[str]
    sha256: str


def beginning_as_json(beginning: Beginning) -> bytes:
    """Return the content of init.json."""
    content = dataclasses.asdict(beginning)
    return (json.dumps({**content, "sha256": json_sha256(content)}, indent=2) + "\n").encode()


def read_beginning(run: Path, init: str) -> Beginning:
    """Read the init.json of a run with this init=; '' has none.

    Raises UserError if it is missing, damaged or without the model of init=: which cases the
    weights have seen would not be known.
    """
    file = run / INIT
    if not init and not file.is_file():
        return Beginning([], [])
    try:
        found = validated(InitFile, read_small(file))
        content = {"origins": found.origins, "made_anew": found.made_anew}
        if found.sha256 != json_sha256(content):
            raise ValueError("sha256 differs")
        require_printable(found.made_anew, "made_anew")
        origins = origins_in(found.origins)
        if bool(init) != bool(origins):
            raise ValueError(f"{len(origins)} origins, of a run with init={short(init)}")
        return Beginning(origins, found.made_anew)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: missing or damaged: {getattr(error, 'strerror', None) or error}; it says"
            " which cases the weights that the run began with (init=) have seen. Restore it, or"
            " train again into another run=",
            can_heal=False,
        ) from None


def origins_in(entries: Iterable[Any]) -> list[Origin]:
    """Return parsed JSON as origins. Raises ValueError if it is none."""
    found = [checked(Origin, entry) for entry in entries]
    for origin in found:
        texts = [origin.source, origin.checkpoint, origin.model_sha256, *origin.train, *origin.val]
        require_printable(texts, "origin")
    return found


def trained_among(
    cases: Iterable[str], data: Description, origins: Sequence[Origin]
) -> dict[str, Origin]:
    """Return those of a data set's cases that an origin was trained on, with the first such one."""
    return among(cases, data, [(origin, origin.train) for origin in origins])


def chosen_among(
    cases: Iterable[str], data: Description, origins: Sequence[Origin]
) -> dict[str, Origin]:
    """Return those of a data set's cases that an origin's checkpoint was chosen on, with it."""
    return among(cases, data, [(origin, origin.val) for origin in origins])


def among(
    cases: Iterable[str], data: Description, used: Sequence[tuple[Origin, list[str]]]
) -> dict[str, Origin]:
    """Return those of the cases that are among the used ones, each with the first origin.

    Names that differ only in how they are written are one case (data_prep.cases.similar), unless
    the data set says that they are not. If its case_regex is another one than the origin's, then
    Case_1-01 of one may be of Case_1 of the other. Raises UsageError as find_cases().
    """
    cases, found = list(cases), dict[str, Origin]()
    case_regex, is_exact = data.labelling.case_regex, data.settings.get("similar_cases") == "keep"
    for origin, names in used:
        regexes = [case_regex, origin.case_regex] if case_regex != origin.case_regex else []
        theirs = set().union(*spellings(names, regexes, is_exact).values())
        for case, mine in spellings(cases, regexes, is_exact).items():
            if case not in found and mine & theirs:
                found[case] = origin
    return found


def spellings(
    cases: Sequence[str], regexes: Iterable[str], is_exact: bool
) -> dict[str, set[str | tuple[str, ...]]]:
    """Return case -> what is compared of its name, and of the cases that expressions find in it."""
    key = str if is_exact else essence
    found = {case: {key(case)} for case in cases}
    for regex in regexes:
        for case, inner in find_cases(cases, regex).items():
            found[case].add(key(inner))
    return found
