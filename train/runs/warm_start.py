"""Begin a run with the weights of another model (init=), which has not seen what the run tests on,
or with weights for its encoder (model.weights=).

    RUN/init.json    which models the weights come from, and which cases those have seen; where the
                     first weights of the encoder are from

They are read as long as nothing of the run is saved. Later its checkpoints hold everything, and
init.json still says what the weights have seen.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import UsageError, UserError, named
from common.files import file_sha256
from data_prep.dataset.description import Description
from model.encoder_cache import IMAGENET, NONE, names_file, read_fetched
from train.checkpoints.published import published_checkpoints
from train.config import TrainConfig
from train.exchange.origin import (
    INIT,
    Beginning,
    Origin,
    beginning_as_json,
    chosen_among,
    read_beginning,
    trained_among,
)
from train.runs.newest import CHECKPOINTS, CONFIG, check_run
from train.runs.same_data import OtherRunError, as_typed, other_resolution, settings_as_typed
from train.runs.several import members_of, trials_of

if TYPE_CHECKING:
    from torch import Tensor

    from model.weights import Weights
    from train.ranks.distributed import Ranks
    from train.runs.run_folder import LoadedModel, Run

MEASURED = ("val", "test")
FITS_ANY = {"dropout", "weights"}  # settings of a network that its weights do not depend on
BEST = "best"


def is_fresh(config: TrainConfig) -> bool:
    """Whether nothing of a run is saved."""
    return not (config.run and published_checkpoints(Path(config.run) / CHECKPOINTS))


def is_to_begin(config: TrainConfig) -> bool:
    """Whether a run needs the model of its init=: there is one, and nothing of the run is saved."""
    return bool(config.init) and is_fresh(config)


def needs_encoder(config: TrainConfig) -> bool:
    """Whether a run needs the weights of its model.weights=, in the same way."""
    return config.model.weights != NONE and is_fresh(config)


def check_weights_exist(config: TrainConfig) -> None:
    """Raise UserError if what a run is to begin with is not there. Loads no torch."""
    check_init_exists(config)
    if not needs_encoder(config):
        return
    if config.model.weights == IMAGENET:
        read_fetched(config.model.encoder)
    else:
        check_file_exists(config.model.weights)


def check_file_exists(weights: str) -> None:
    """Raise UsageError if the file that model.weights= names is not there."""
    if names_file(weights) and not Path(weights).is_file():
        raise UsageError(
            f"model.weights={weights}: no such file; give {NONE}, {IMAGENET}, or a file of weights"
        )


def check_init(config: TrainConfig, data: Description | None) -> tuple["Run", list[str]]:
    """Check that a run may begin with the model of init=; return that and lines for the user.

    `data`: the data set as its fold sees it; None if it is not known yet. Raises UserError for what
    is no model, and OtherRunError, with settings that would be accepted, for another network and
    for a model that was trained on a case that the run measures.
    """
    check_init_exists(config)  # before torch is loaded
    run = read_model(config.init)
    before, now = (dataclasses.asdict(each.model) for each in (run.config, config))
    other = [key for key in now if before[key] != now[key] and key not in FITS_ANY]
    if other:
        listed = "; ".join(f"model.{key}: {before[key]} there, {now[key]} here" for key in other)
        same = {f"model.{key}": as_typed(before[key]) for key in other}
        raise OtherRunError(
            f"init={config.init}: of another network ({listed}); use that one, or begin with random"
            " weights",
            [same, from_random(config)],
        )
    if data is None:
        return run, []
    refuse_leaks(config, data, run)
    notes = [f"init={config.init}: {line}" for line in other_resolution(run.data, data)]
    if chosen := chosen_among(measured(data), data, origins_of(run)):
        cases = named(f"{case} ({measured(data)[case]})" for case in chosen)
        notes.append(
            f"warning: init={config.init}: its checkpoint was chosen by what it finds in {cases}:"
            " figures on these are a little too good"
        )
    return run, notes


def check_init_exists(config: TrainConfig) -> None:
    """Raise UserError if there is no model that a run is to begin with. Loads no torch."""
    if not is_to_begin(config):
        return
    if several := [*members_of(Path(config.init)), *trials_of(Path(config.init))]:
        raise UsageError(
            f"init={config.init}: a folder of several runs; name one of them, as in"
            f" init={several[0]}"
        )
    with naming_init(config.init):
        check_run(config.init, BEST)


def read_model(init: str) -> "Run":
    """Read what init= names. Raises UserError if it is no run, and no exported model."""
    with naming_init(init):
        from train.runs.run_folder import read_run

        return read_run(Path(init))


def from_random(config: TrainConfig) -> dict[str, str]:
    """Return the settings with which a run begins with random weights instead."""
    neutral = {"freeze_epochs": 0, "encoder_lr_factor": 1}
    changed = {key: str(to) for key, to in neutral.items() if getattr(config, key) != to}
    return {"init": ""} | changed


@contextmanager
def naming_init(init: str) -> Iterator[None]:
    """While this context lasts, let an error about a run name init=."""
    try:
        yield
    except UserError as error:
        kind = UsageError if isinstance(error, UsageError) else UserError
        text = str(error).removeprefix(f"run={init}: ")
        raise kind(f"init={init}: {text}", can_heal=error.can_heal) from None


def origins_of(run: "Run") -> list[Origin]:
    """Return a model as the origin of a run, and those that it comes from itself."""
    return [run.as_origin(BEST, 0, ""), *run.origins]


def measured(data: Description) -> dict[str, str]:
    """Return case -> its split for each case that a run does not train on."""
    return {case: split for split in MEASURED for case in data.cases[split]}


# The guard


def refuse_leaks(config: TrainConfig, data: Description, run: "Run") -> None:
    """Raise OtherRunError if the model has seen cases of val or test: figures on them would not
    show new patients."""
    origins, split_of = origins_of(run), measured(data)
    seen = trained_among(split_of, data, origins)
    if not seen:
        return
    lines = defaultdict(list)
    for case, origin in seen.items():
        is_own = origin == origins[0]
        by = "it" if is_own else f"{origin.source}, from whose weights it comes,"
        lines[by].append(f"{case} ({split_of[case]})")
    listed = "; ".join(f"{by} was trained on {named(cases)}" for by, cases in lines.items())
    ways = [
        {"fold": str(fold)}
        for fold in range(len(data.folds))
        if not trained_among(measured(data.of_fold(fold)), data, origins)
    ]
    ways += [{"fold": "all"}] if data.folds else []
    raise OtherRunError(
        f"init={config.init}: has seen cases that this run would be measured on: {listed}. Begin"
        " with a model that has not, or with random weights, or train on these cases too"
        f"{other_split(data, seen)}. If they are other patients of the same names, rename the"
        " files, and prepare them again",
        [*ways, from_random(config)],
    )


def other_split(data: Description, seen: Mapping[str, Origin]) -> str:
    """Return the command that prepares the data with these cases for training; '' if there is no
    case left to measure on, or folds decide."""
    left = {split: [case for case in data.cases[split] if case not in seen] for split in MEASURED}
    if data.folds or not any(left.values()):
        return ""
    split: dict[str, Any] = {f"{name}_cases": cases for name, cases in left.items() if cases}
    split |= {name: 0 for name, cases in left.items() if not cases}
    settings = settings_as_typed({**data.settings, "split": split})
    return f": python -m data_prep raw=... out=...{settings}"


# The weights


def begin(config: TrainConfig, data: Description) -> tuple[dict[str, bytes], list[str]]:
    """Return the file that records what a run begins with, by its name, and lines for the user; no
    file without init= and model.weights=.

    A run of which nothing is saved yet still begins with the weights that its first start recorded.
    Raises UserError as check_init(), and if a run that goes on has lost its record, or the weights.
    """
    folder = Path(config.run)
    if needs_encoder(config):
        return begin_with_encoder(config)
    if not is_to_begin(config):
        has_any = read_beginning(folder, config)
        return ({INIT: (folder / INIT).read_bytes()} if has_any else {}), []
    from data_prep.images.masks import channel_names

    run, notes = check_init(config, data)
    before, now = (channel_names(each.labelling.labels) for each in (run.data, data))
    if (folder / CONFIG).is_file():
        beginning = read_beginning(folder, config)
        load_recorded(config, run, beginning.origins[0])
    else:
        beginning = new_beginning(config, run, is_headless=before != now)
    told = f"begins with the weights of {config.init} (step {beginning.origins[0].step})"
    if beginning.made_anew:
        classes = " -> ".join(", ".join(labels) for labels in (before, now))
        told += f", but for the last layer, which is made anew: other classes ({classes})"
    return {INIT: beginning_as_json(beginning)}, [told, *notes]


def new_beginning(config: TrainConfig, run: "Run", *, is_headless: bool) -> Beginning:
    """Return what a new run begins with: the best checkpoint of the model of init=, perhaps without
    its last layer."""
    from model.build import HEAD
    from train.checkpoints.digests import model_sha256

    loaded = load(config, run, BEST)
    checkpoint = BEST if loaded.checkpoint == run.path else loaded.checkpoint.name
    own = run.as_origin(checkpoint, loaded.state["step"], model_sha256(loaded.model))
    return Beginning([own, *run.origins], [HEAD] if is_headless else [], run.encoder)


def begin_with_encoder(config: TrainConfig) -> tuple[dict[str, bytes], list[str]]:
    """Return what begin() does, for a run with model.weights=."""
    source = read_encoder(config).source
    notes = [f"its encoder begins with {source}"]
    if names_file(config.model.weights):
        notes.append(
            f"model.weights={config.model.weights}: Eosin does not know what it was trained on:"
            " figures on cases that are among that would be too good"
        )
    return {INIT: beginning_as_json(Beginning([], [], source))}, notes


def read_encoder(config: TrainConfig) -> "Weights":
    """Read the weights of model.weights=. Raises UserError if they cannot be used, or if the run
    has recorded others."""
    from model.weights import read_weights

    weights = read_weights(config.model)
    if not (Path(config.run) / CONFIG).is_file():
        return weights
    recorded = read_beginning(Path(config.run), config).encoder
    if recorded and recorded.sha256 == weights.source.sha256:
        return weights
    raise UserError(
        f"model.weights={config.model.weights}: not the weights that run={config.run} was to begin"
        f" with ({recorded}), and it has saved nothing yet: remove its folder, or name another"
        " run=, to begin with what is there now",
        can_heal=False,
    )


def initial_weights(config: TrainConfig, ranks: "Ranks") -> dict[str, "Tensor"]:
    """Return the weights, by name, that a run takes over from the model of its init=, or for its
    encoder from model.weights=; none without these, or if the run has a checkpoint. Rank 0 reads
    them for all. Collective.

    Raises UserError if they are not those that init.json records.
    """
    return ranks.first_does(lambda: recorded_weights(config))


def recorded_weights(config: TrainConfig) -> dict[str, "Tensor"]:
    """Return what initial_weights() does, on one rank."""
    if needs_encoder(config):
        return read_encoder(config).tensors
    if not is_to_begin(config):
        return {}
    beginning = read_beginning(Path(config.run), config)
    model = load_recorded(config, read_model(config.init), beginning.origins[0]).model
    anew = tuple(f"{part}." for part in beginning.made_anew)
    return {name: kept for name, kept in model.state_dict().items() if not name.startswith(anew)}


def load_recorded(config: TrainConfig, run: "Run", origin: Origin) -> "LoadedModel":
    """Load the checkpoint of the model of init= that a run has recorded. Raises UserError if that
    model no longer has it, or not with these weights."""
    from train.checkpoints.digests import model_sha256

    try:
        loaded = load(config, run, origin.checkpoint)
    except UserError as error:
        problem = str(error)
    else:
        if model_sha256(loaded.model) == origin.model_sha256:
            return loaded
        problem = f"init={config.init}: the weights of {origin.checkpoint} are others"
    raise UserError(
        f"{problem}; run={config.run} was to begin with those of step {origin.step}, and has saved"
        " nothing yet: remove its folder, or name another run=, to begin with what is there now",
        can_heal=False,
    )


def is_moved(config: TrainConfig, begun: TrainConfig) -> bool:
    """Whether init= names the model that a run began with, which was elsewhere then.

    Where its weights cannot be read any more, its name must be the same. Raises UserError if the
    run has lost its record.
    """
    if not (begun.init and config.init):
        return False
    from train.checkpoints.digests import model_sha256
    from train.runs.run_folder import name_of

    origin = read_beginning(Path(config.run), begun).origins[0]
    try:
        loaded = load(config, read_model(config.init), origin.checkpoint)
    except UserError:
        return name_of(Path(config.init)) == origin.source
    return model_sha256(loaded.model) == origin.model_sha256


def are_weights_moved(config: TrainConfig, begun: TrainConfig) -> bool:
    """Whether model.weights= names the file that a run began with, in the same way."""
    if not (names_file(config.model.weights) and names_file(begun.model.weights)):
        return False
    file, source = Path(config.model.weights), read_beginning(Path(config.run), begun).encoder
    assert source
    with suppress(OSError):
        if file.is_file():
            return file_sha256(file) == source.sha256
    return file.name == source.source


def load(config: TrainConfig, run: "Run", checkpoint: str) -> "LoadedModel":
    """Load a checkpoint of the model of init=, on this rank's CPU. Raises UserError."""
    import torch

    from train.ranks.distributed import Ranks

    with naming_init(config.init):
        return run.load_model(checkpoint, Ranks(0, 1, torch.device("cpu")))
