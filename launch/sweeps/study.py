"""The study of a sweep: which trial has which settings, and what came of it.

A trial of Optuna's belongs to a run, SWEEP/trial-K, and is one line of the journal, with its
settings and the run's name. So a kill leaves no trial without a run, and a task that starts again
finds its own. Optuna's number of a trial says nothing; K does.

What trial K draws follows from the seed and K, and from K = STARTUP_TRIALS on also from the trials
that have ended. On which node it is drawn, and in which order tasks start, makes no difference.

A lost trial (its job was given up) is told as failed, and another run may take its settings over.
Where two tasks add a trial at the same instant, the one that comes first in the journal counts.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.seeds import derive_seed
from launch.sweeps.journal import load_optuna, open_journal
from launch.sweeps.plan import Plan
from train.runs.several import NAME, STUDY, STUDY_NAME

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

# Trials that are drawn at random, which needs no results. With Optuna's 10, the last of twelve that
# run side by side would depend on which have ended; and TPE begins with more to learn from
STARTUP_TRIALS = 16
JUDGED_AFTER = 5  # trials that have finished, from which on others are compared with their median
RUN, SETTINGS, LOST, TAKEN_FROM = "run", "settings", "lost", "taken_from"  # attributes of a trial
COMPLETE, PRUNED, RUNNING, FAILED = "complete", "pruned", "running", "failed"
STATES = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "RUNNING": RUNNING, "FAIL": FAILED}


class Study:
    """The study of a sweep."""

    def __init__(self, folder: Path) -> None:
        """Open the study of a sweep's folder, or begin it. Raises UserError."""
        self.optuna = load_optuna()
        self.storage = open_journal(folder / STUDY)
        about = {"study_name": STUDY_NAME, "storage": self.storage}
        if any(study.study_name == STUDY_NAME for study in self.storage.get_all_studies()):
            self.study = self.optuna.load_study(**about)  # a study is read without a line written
        else:
            self.study = self.optuna.create_study(
                **about, direction="maximize", load_if_exists=True
            )

    # Which trials there are

    def trials(self) -> "list[FrozenTrial]":
        """Return the trials that count, the first one first."""
        counting: dict[object, FrozenTrial] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if NAME.fullmatch(str(trial.user_attrs.get(RUN))):
                counting.setdefault(trial.user_attrs.get(TAKEN_FROM, trial.user_attrs[RUN]), trial)
        return sorted(counting.values(), key=lambda trial: trial.number)

    def current(self, run: str) -> "FrozenTrial | None":
        """Return the trial of a run: the one that did not fail, else the last one."""
        mine = [trial for trial in self.trials() if trial.user_attrs[RUN] == run]
        last = mine[-1] if mine else None
        return next((trial for trial in mine if state_of(trial) != FAILED), last)

    def newest(self) -> "list[FrozenTrial]":
        """Return the trial of each run that has not failed, by the number of the run."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.trials():
            if state_of(trial) != FAILED:
                found.setdefault(number_of(trial.user_attrs[RUN]), trial)
        return [found[number] for number in sorted(found)]

    # Who trains with which settings

    def take(self, run: str, plan: Plan, is_lost: Callable[[str], bool]) -> "FrozenTrial | None":
        """Return the trial of a run. None if it was lost, and another run has its settings.

        After a restart it is the one that the run had; after a failure there is another with the
        same settings. A new run takes those of a lost trial, or draws its own. `is_lost`: whether
        nothing will come of another run.
        """
        before = self.current(run)
        if before and state_of(before) != FAILED:
            return before
        if before:
            self.add(run, before)
            mine = self.current(run)
            return mine if mine and state_of(mine) != FAILED else None
        self.tell_lost(run, is_lost)
        while not (mine := self.current(run)):
            lost = self.free()
            if lost:
                self.add(run, lost)
            else:
                self.study.add_trial(self.drawn(run, plan))
        return mine

    def tell_lost(self, run: str, is_lost: Callable[[str], bool]) -> None:
        """Tell lost trials of other runs as failed, so that their settings are free."""
        for trial in self.trials():
            other = trial.user_attrs[RUN]
            if state_of(trial) == RUNNING and other != run and is_lost(other):
                with suppress(self.optuna.exceptions.UpdateFinishedTrialError):  # told by another
                    self.handle(trial).set_user_attr(LOST, True)
                self.tell(trial, FAILED)

    def free(self) -> "FrozenTrial | None":
        """Return a lost trial whose settings no run has taken over."""
        trials = self.trials()
        taken = {trial.user_attrs.get(TAKEN_FROM) for trial in trials}
        free = (trial for trial in trials if LOST in trial.user_attrs and trial.number not in taken)
        return next((trial for trial in free if state_of(trial) == FAILED), None)

    def add(self, run: str, before: "FrozenTrial") -> None:
        """Add a trial with the settings of one that has failed."""
        about = {RUN: run, SETTINGS: before.user_attrs[SETTINGS], TAKEN_FROM: before.number}
        self.study.add_trial(self.running(before, about))
        for trial in self.study.get_trials(deepcopy=False):
            is_second = trial.user_attrs == about and trial not in self.trials()
            if is_second and state_of(trial) == RUNNING:
                self.tell(trial, FAILED)

    def drawn(self, run: str, plan: Plan) -> "FrozenTrial":
        """Return a new trial, not yet in the study."""
        number = number_of(run)
        sampler = self.optuna.samplers.TPESampler(
            seed=derive_seed(plan.shared.seed, "sweep", number)
            % 2**32,  # all that numpy's old one takes
            n_startup_trials=STARTUP_TRIALS,
            multivariate=True,
            constant_liar=True,
        )
        known = self.newest() if number >= STARTUP_TRIALS else []
        scratch = self.optuna.create_study(sampler=sampler, direction="maximize")
        scratch.add_trials(known)
        settings = plan.space.suggest(scratch.ask())
        return self.running(scratch.trials[-1], {RUN: run, SETTINGS: settings})

    def running(self, like: "FrozenTrial", about: dict[str, Any]) -> "FrozenTrial":
        """Return a trial that begins now, with the parameters of another."""
        return self.optuna.trial.create_trial(
            state=self.optuna.trial.TrialState.RUNNING,
            params=like.params,
            distributions=like.distributions,
            user_attrs=about,
        )

    # What comes of them

    def report(self, run: str, step: int, value: float) -> None:
        """Note an intermediate value, once, while the trial runs."""
        trial = self.current(run)
        if trial and state_of(trial) == RUNNING and step not in trial.intermediate_values:
            self.handle(trial).report(value, step)

    def is_to_prune(self, run: str, first_step: int) -> bool:
        """Return whether a run is worse than the median of finished trials at its last step.
        `first_step`: no earlier one is judged."""
        trial = self.current(run)
        pruner = self.optuna.pruners.MedianPruner(JUDGED_AFTER, first_step)
        return bool(trial and trial.intermediate_values and pruner.prune(self.study, trial))

    def tell(self, trial: "FrozenTrial", state: str, value: float | None = None) -> None:
        """Note what came of a trial, unless that was noted before."""
        (name,) = (name for name, ours in STATES.items() if ours == state)
        states = self.optuna.trial.TrialState
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError):  # at this very instant
            self.study.tell(trial.number, value, state=states[name], skip_if_finished=True)

    def handle(self, trial: "FrozenTrial") -> "Trial":
        """Return a trial as one that can be changed."""
        study_id = self.storage.get_study_id_from_name(STUDY_NAME)
        number = trial.number
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return self.optuna.trial.Trial(self.study, trial_id)


def trial_states(folder: Path) -> dict[str, str]:
    """Return run -> complete, pruned, running or failed, by the number of the run. {} where there
    is no study. Raises UserError if it cannot be read."""
    if not (folder / STUDY).is_file():
        return {}
    study = Study(folder)
    runs = {trial.user_attrs[RUN] for trial in study.trials()}
    found = ((run, study.current(run)) for run in sorted(runs, key=number_of))
    return {run: state_of(trial) for run, trial in found if trial}


def state_of(trial: "FrozenTrial") -> str:
    """Return the state of a trial in our words."""
    return STATES.get(trial.state.name, FAILED)


def number_of(run: str) -> int:
    """Return K of trial-K."""
    return int(run.rpartition("-")[2])
