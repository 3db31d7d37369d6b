"""What is read of Optuna's record of a sweep."""

import sys
from pathlib import Path

import pytest

from train.comparison.study import pruned_trials, read_study, study_file

optuna = pytest.importorskip("optuna")


def make_study(sweep: Path, num_trials: int, num_pruned: int = 0) -> Path:
    """A study in which lr decides all, and the schedule nothing."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    sweep.mkdir(exist_ok=True)
    file = sweep / "study.log"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(file))),
        study_name="eosin",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    for number in range(num_trials):
        trial = study.ask()
        lr = trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        trial.suggest_categorical("schedule", ["constant", "cosine"])
        trial.report(lr, 1)
        trial.set_user_attr("run", f"trial-{number + 100}")  # a sweep's numbers are its own
        if number < num_pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, 100 * lr)
    return file


def test_importances_say_what_decided(tmp_path: Path) -> None:
    file = make_study(tmp_path, num_trials=30, num_pruned=2)
    study = read_study(file)
    assert study.why_none == ""
    assert list(study.importances) == ["lr", "schedule"]
    assert study.importances["lr"] > 0.9
    assert study.logarithmic == {"lr"}
    assert len(study.trials) == 30
    pruned, done = study.trials[1], study.trials[2]
    assert pruned.is_pruned
    assert pruned.dice == pruned.settings["lr"]  # the last that was reported
    assert done.dice == pytest.approx(100 * done.settings["lr"])
    assert pruned_trials(file, study) == {tmp_path / "trial-100", tmp_path / "trial-101"}


def test_few_trials_have_no_importances(tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path, num_trials=5, num_pruned=2))
    assert study.importances == {}
    assert study.why_none == "3 finished trials: importances need 4 at least"


@pytest.mark.parametrize("content", [b"", b"{}\n", b"not JSON\n{}\n", b'{"op_code": 4}\n'])
def test_a_damaged_study_is_said(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "study.log"
    file.write_bytes(content)
    assert str(file) in read_study(file).why_none
    assert file.read_bytes() == content


def test_without_optuna_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_study(tmp_path, num_trials=1)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install --editable '.[sweep]'" in read_study(file).why_none


def test_the_study_is_that_of_the_sweep_that_all_are_of(tmp_path: Path) -> None:
    sweep, other = tmp_path / "sweep", tmp_path / "other"
    file = make_study(sweep, num_trials=1)
    other.mkdir()
    assert study_file([sweep]) == file
    assert study_file([sweep / "trial-0", sweep / "trial-1"]) == file
    assert study_file([sweep / "trial-0", other / "trial-1"]) is None
    assert study_file([other]) is None
