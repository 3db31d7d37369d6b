"""What Optuna recorded of a sweep: its trials, and how much each drawn setting mattered."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.command_line import counted
from train.runs.several import STUDY, STUDY_NAME, trial_name

FEWEST_TRIALS = 4  # finished ones; of fewer, importances are noise


@dataclass(frozen=True)
class Trial:
    """A trial of a study."""

    run: str
    """The name of its folder."""
    dice: float | None
    """Its result; of a pruned trial, the last one before it was pruned."""
    settings: dict[str, Any]
    is_pruned: bool


@dataclass(frozen=True)
class StudyResults:
    """What came of a sweep's study, as far as it is done."""

    trials: list[Trial] = field(default_factory=list)
    logarithmic: frozenset[str] = frozenset()
    """The settings that are drawn by their logarithm."""
    importances: dict[str, float] = field(default_factory=dict)
    """Setting -> importance; together 1. The most important first."""
    why_none: str = ""
    """Why there are no importances."""


def study_file(paths: Sequence[Path]) -> Path | None:
    """Return the study of the sweep that all paths are, or are trials of; None if there is none."""
    sweeps = {path if (path / STUDY).is_file() else path.parent for path in paths}
    files = [sweep / STUDY for sweep in sweeps if (sweep / STUDY).is_file()]
    return files[0] if len(sweeps) == 1 and files else None


def read_study(file: Path) -> StudyResults:
    """Read a study. Where that cannot be done, `why_none` says so."""
    try:
        from optuna import load_study  # here: only sweeps need it, and it takes a while
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        why = "Optuna is not installed here: pip install --editable '.[sweep]'"
        return StudyResults(why_none=why)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = JournalStorage(JournalFileBackend(str(file)))
            study = load_study(study_name=STUDY_NAME, storage=storage)
        trials = study.trials
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return StudyResults(why_none=f"{file}: cannot be read: {error!r}")
    found = [trial_of(trial) for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    spaces = [trial.distributions.items() for trial in trials]
    logarithmic = {key for space in spaces for key, kind in space if getattr(kind, "log", False)}
    importances, why = importances_of(study, found)
    return StudyResults(found, frozenset(logarithmic), importances, why)


def trial_of(trial: Any) -> Trial:
    """Take what is shown out of one of Optuna's trials."""
    is_pruned = trial.state.name == "PRUNED"
    values = trial.intermediate_values
    last = values[max(values)] if values else None
    dice = last if is_pruned else trial.value
    run = trial.user_attrs.get("run", trial_name(trial.number))
    return Trial(str(run), dice, dict(trial.params), is_pruned)


def importances_of(study: Any, trials: Sequence[Trial]) -> tuple[dict[str, float], str]:
    """Return the importance of each setting by PED-ANOVA, or why there are none."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    done = [trial for trial in trials if trial.dice is not None and not trial.is_pruned]
    if len(done) < FEWEST_TRIALS:
        finished = counted(len(done), "finished trial")
        return {}, f"{finished}: importances need {FEWEST_TRIALS} at least"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError) as error:
        return {}, f"Optuna finds no importances: {error}"
    return dict(found), "" if found else "no setting was drawn in every trial"


def pruned_trials(file: Path, study: StudyResults) -> frozenset[Path]:
    """Return the folders of the trials that were pruned."""
    return frozenset(file.parent / trial.run for trial in study.trials if trial.is_pruned)
