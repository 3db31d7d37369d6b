"""The models that a run's weights come from: what they were, and which cases they have seen.

A run that began with the weights of another (init=) records them in RUN/init.json, and an exported
model in its metadata: the model that it began with, the one which that began with, and so on; and
where the weights are from that the first one's encoder began with (model.weights=).
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
from model.encoder_cache import NONE, EncoderSource
from train.config import TrainConfig

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
    encoder: EncoderSource | None
    """Where the first weights of its encoder are from, or of the last origin's; None if they were
    random."""

    def __bool__(self) -> bool:
        return bool(self.origins or self.encoder)


@dataclass(frozen=True)
class InitFile:
    """The schema of init.json."""

    origins: list[dict[str, Any]]
    made_anew: list[str]
    encoder: dict[str, Any] | None
    sha256: str


def beginning_as_json(beginning: Beginning) -> bytes:
    """Return the content of init.json."""
    content = dataclasses.asdict(beginning)
    return (json.dumps({**content, "sha256": json_sha256(content)}, indent=2) + "\n").encode()


def read_beginning(run: Path, config: TrainConfig) -> Beginning:
    """Read the init.json of a run with this init= and model.weights=; with neither it has none.

    Raises UserError if it is missing, damaged or without what these name: which cases the weights
    have seen, and where they are from, would not be known.
    """
    file, init, weights = run / INIT, config.init, config.model.weights
    if not init and weights == NONE and not file.is_file():
        return Beginning([], [], None)
    try:
        found = validated(InitFile, read_small(file))
        content = {key: value for key, value in vars(found).items() if key != "sha256"}
        if found.sha256 != json_sha256(content):
            raise ValueError("sha256 differs")
        require_printable(found.made_anew, "made_anew")
        origins, encoder = beginning_in(config, found.origins, found.encoder)
        return Beginning(origins, found.made_anew, encoder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: missing or damaged: {getattr(error, 'strerror', None) or error}; it says"
            " where the weights that the run began with are from, and which cases they have seen."
            " Restore it, or train again into another run=",
            can_heal=False,
        ) from None


def beginning_in(
    config: TrainConfig, origins: Iterable[Any], encoder: Any
) -> tuple[list[Origin], EncoderSource | None]:
    """Return parsed JSON as what a run with these settings began with. Raises ValueError if it is
    none, or lacks what they name."""
    found, init, weights = origins_in(origins), config.init, config.model.weights
    if bool(init) != bool(found):
        raise ValueError(f"{len(found)} origins, of a run with init={short(init)}")
    source = None if encoder is None else checked(EncoderSource, encoder)
    if bool(source) != (weights != NONE) and not (source and init):
        raise ValueError(f"encoder: {short(encoder)}, of a run with model.weights={short(weights)}")
    return found, source


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
