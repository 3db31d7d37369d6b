"""Check that a run goes on with the settings and the data that it began with."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.schema import json_sha256
from data_prep.dataset.description import DATASET, Description, read_description
from model.encoder_cache import without_folder
from train.checkpoints.published import published_checkpoints
from train.config import AUTO, FIXED_KEYS, HARMLESS_KEYS, TrainConfig, with_whole_paths
from train.runs.newest import CHECKPOINTS, OTHER_VERSION, read_config
from train.runs.same_data import OtherRunError, as_typed, differences, flat
from train.runs.warm_start import are_weights_moved, is_moved

MOVED = {"init": is_moved, "model.weights": are_weights_moved}
"""What tells whether a key names what the run began with, in another place."""


def check_same_run(
    config: TrainConfig, data: Description | None, pipeline: str
) -> tuple[TrainConfig, list[str]]:
    """Check that the run in config.run, which has begun, may go on.

    `config`: with the content of crop.pipeline; `pipeline`: its file, to be named. `data`: the data
    set as its fold sees it, None if it is not prepared yet. Returns the configuration with the
    choices of 'auto' that the run began with, and a line for each setting that differs.

    Raises OtherRunError for other data, for settings that the saved state does not fit
    (FIXED_KEYS), and with resume=same for every setting that changes results (all but
    HARMLESS_KEYS).
    """
    folder = Path(config.run)
    begun = read_config(folder)
    config = resolve_auto(config, begun.amp, begun.memory_format, begun.scheduled_epochs)
    config = with_whole_paths(config)
    # of a begun run the number counts: auto with other epochs would be another schedule
    numbered = dataclasses.replace(begun, schedule_epochs=begun.scheduled_epochs)
    before, now = (flat_settings(settings) for settings in (numbered, config))
    changed = {key: f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]}
    if "crop.pipeline" in changed:
        named = "crop.pipeline" if pipeline.startswith("{") else f"crop.pipeline={pipeline}"
        changed["crop.pipeline"] = f"{named}: not the transforms that the run began with"
    same = [key for key, is_same in MOVED.items() if key in changed and is_same(config, begun)]
    fixed = [key for key in changed if key not in same and is_fixed(key, before[key], now[key])]
    free = [key for key in changed if key not in (*fixed, *same, *HARMLESS_KEYS)]
    trained = read_description(folder / DATASET, OTHER_VERSION).of_fold(begun.fold)
    now_lines = differences(trained, data.of_fold(begun.fold)) if data else []
    data_lines = [f"data: {line}" for line in now_lines]
    if fixed or data_lines or (free and config.resume == "same"):
        lines = [*(changed[key] for key in fixed), *data_lines, *(changed[key] for key in free)]
        ways = [] if data_lines else ways_out(before, fixed, free)
        raise other_run(folder, lines, bool(fixed or data_lines), ways)
    silent = {"run", "resume"}
    if Path(before["data"]).resolve() == Path(now["data"]).resolve():  # absolute in one
        silent.add("data")
    told = [key for key in changed if key not in silent]
    overridden = dict.fromkeys(free, " (overridden)")
    return config, [f"changed {changed[key]}{overridden.get(key, '')}" for key in told]


def is_fixed(key: str, before: Any, now: Any) -> bool:
    """Whether the saved state does not fit a change. Without ema= there is no average in it."""
    return key.startswith(FIXED_KEYS) or (key == "ema" and 0 in (before, now))


def ways_out(
    before: Mapping[str, Any], fixed: Sequence[str], free: Sequence[str]
) -> list[dict[str, str]]:
    """Return the settings as the run began, and if its state fits the new ones, to override."""
    found = []
    if "crop.pipeline" not in free:  # too long to be typed
        found.append({key: as_typed(before[key]) for key in (*fixed, *free)})
    return found if fixed else [*found, {"resume": "override"}]


def other_run(
    folder: Path, lines: Sequence[str], is_fixed: bool, ways: Sequence[Mapping[str, str]]
) -> OtherRunError:
    """Return the error that lists what differs from a run."""
    anew = "another run= to start anew"
    if not published_checkpoints(folder / CHECKPOINTS):
        anew += " (nothing is saved in this one: it can be removed)"
    override = "" if is_fixed else "resume=override to go on with the new ones, or "
    return OtherRunError(
        f"run={folder} was begun with other settings ({'; '.join(lines)}); give those it has, or"
        f" {override}{anew}",
        ways,
    )


def resolve_auto(
    config: TrainConfig, amp: str, memory_format: str, schedule_epochs: int
) -> TrainConfig:
    """Replace 'auto' in the configuration."""
    resolved: dict[str, Any] = {}
    if config.amp == "auto":
        resolved["amp"] = amp
    if config.memory_format == "auto":
        resolved["memory_format"] = memory_format
    if config.schedule_epochs == AUTO:
        resolved["schedule_epochs"] = schedule_epochs
    return dataclasses.replace(config, **resolved)


def config_sha256(config: TrainConfig) -> str:
    """Hash all settings that can change results; of files that it began with, only the name."""
    settings = flat_settings(config)
    settings |= {"init": Path(config.init).name}
    settings |= {"model.weights": without_folder(config.model.weights)}
    kept = {key: value for key, value in settings.items() if key not in HARMLESS_KEYS}
    return json_sha256(kept)


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings by dotted key."""
    return flat(dataclasses.asdict(config))
