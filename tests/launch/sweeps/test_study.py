"""The study of a sweep with the real Optuna: kills, restarts, several tasks at once."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from common.command_line import UserError
from launch.sweeps import journal
from launch.sweeps.plan import Plan, record_plan
from launch.sweeps.study import (
    COMPLETE,
    FAILED,
    JUDGED_AFTER,
    PRUNED,
    RUNNING,
    Study,
    number_of,
    state_of,
    trial_states,
)
from train.runs.several import STUDY, trial_name

pytest.importorskip("optuna")

PLAN = Plan(["lr=log(1e-5,1e-1)", "model.width=int(8,64,8)", "schedule=constant,cosine"], [])
fork = multiprocessing.get_context("fork")


def nobody(run: str) -> bool:
    """No run is lost."""
    return False


def take(folder: Path, *numbers: int) -> None:
    """What the tasks of some trials do when they start."""
    study = Study(folder)
    for number in numbers:
        study.take(trial_name(number), PLAN, nobody)


def settings_of(folder: Path) -> dict[str, dict[str, str]]:
    """Run -> the settings of the trial that counts."""
    return {
        trial.user_attrs["run"]: trial.user_attrs["settings"] for trial in Study(folder).newest()
    }


def at_once(action: Callable[..., None], *arguments: Sequence[object]) -> None:
    """Do something in several processes at once."""
    processes = [fork.Process(target=action, args=tuple(given)) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_trials_draw_the_same_in_whichever_order_and_process_they_start(tmp_path: Path) -> None:
    """And it is the number of the run that decides, not Optuna's."""
    in_order, mixed, other = (tmp_path / name for name in ("in_order", "mixed", "other"))
    for folder in (in_order, mixed, other):
        folder.mkdir()
    take(in_order, *range(12))
    at_once(take, (mixed, 11, 2, 5, 8), (mixed, 7, 1, 10, 4), (mixed, 0, 9, 3, 6))
    expected = settings_of(in_order)
    assert len({json.dumps(settings) for settings in expected.values()}) == 12
    assert settings_of(mixed) == expected
    numbers = {trial.user_attrs["run"]: trial.number for trial in Study(mixed).newest()}
    assert any(number != number_of(run) for run, number in numbers.items())
    study = Study(other)
    study.take("trial-0", Plan(PLAN.sweep, ["seed=1"]), nobody)
    assert settings_of(other)["trial-0"] != expected["trial-0"]


def test_later_trials_learn_from_results_and_not_from_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TPE, with what is known sorted by the runs; before, nothing is learned."""
    num_drawn_at_random = 11  # the fewest of which TPE takes two as the best: their order may count
    monkeypatch.setattr("launch.sweeps.study.STARTUP_TRIALS", num_drawn_at_random)
    drawn = []
    for name, order in (("a", 1), ("b", -1), ("c", 1)):
        folder = tmp_path / name
        folder.mkdir()
        study = Study(folder)
        for number in [*range(num_drawn_at_random)][::order]:
            trial = study.take(trial_name(number), PLAN, nobody)
            assert trial
            # best where lr is largest, and in the third study where it is smallest
            study.tell(trial, COMPLETE, trial.params["lr"] * (-1 if name == "c" else 1))
        study.take(trial_name(num_drawn_at_random), PLAN, nobody)
        drawn.append(settings_of(folder))
    a, b, c = drawn
    last = trial_name(num_drawn_at_random)
    assert a == b
    assert c.pop(last) != a.pop(last)
    assert c == a


@pytest.mark.filterwarnings("ignore:The value of `grace_period`")
def test_a_kill_at_any_instant_of_a_first_start_leaves_one_trial_with_its_settings(
    tmp_path: Path, kills: Callable[..., Iterator[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start goes on with it, or draws the same; and waits for no dead process's lock."""
    import optuna  # in the forked processes it takes a second each

    assert optuna
    monkeypatch.setattr(journal, "GRACE_S", 0.2)
    before, undisturbed = tmp_path / "before", tmp_path / "undisturbed"
    before.mkdir()
    undisturbed.mkdir()
    take(undisturbed, 3)
    for killed in kills(before, lambda folder: take(folder, 3)):
        take(killed, 3)
        assert settings_of(killed) == settings_of(undisturbed)
        assert len(Study(killed).study.get_trials()) == 1


def test_half_a_line_is_cut_off_before_the_next_one(tmp_path: Path) -> None:
    take(tmp_path, 0)
    whole = (tmp_path / STUDY).read_bytes()
    (tmp_path / STUDY).write_bytes(whole + whole[: len(whole) // 3])
    take(tmp_path, 1)
    assert (tmp_path / STUDY).read_bytes().startswith(whole + b'{"op_code"')
    assert sorted(settings_of(tmp_path)) == ["trial-0", "trial-1"]


def test_another_file_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / STUDY).write_text("my notes\nof the study\n")
    with pytest.raises(UserError, match=r"study\.log: damaged, or not the journal") as refused:
        trial_states(tmp_path)
    assert not refused.value.can_heal
    assert (tmp_path / STUDY).read_text() == "my notes\nof the study\n"


def test_a_restart_goes_on_with_the_same_trial_and_reports_nothing_twice(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    take(tmp_path, 0, 1)
    study = Study(tmp_path)
    study.report("trial-1", 1, 0.5)
    again = Study(tmp_path)
    trial = again.take("trial-1", PLAN, nobody)
    assert trial
    again.report("trial-1", 1, 0.5)
    again.report("trial-1", 2, 0.25)
    (kept,) = [each for each in again.newest() if each.user_attrs["run"] == "trial-1"]
    assert (kept.number, kept.intermediate_values) == (trial.number, {1: 0.5, 2: 0.25})
    assert trial_states(tmp_path) == {"trial-0": RUNNING, "trial-1": RUNNING}
    assert not recwarn.list


def test_two_tasks_of_one_trial_have_one_trial(tmp_path: Path) -> None:
    take(tmp_path, 9)  # the study is there
    at_once(take, *[(tmp_path, 0)] * 4)
    assert sorted(settings_of(tmp_path)) == ["trial-0", "trial-9"]
    study = Study(tmp_path)
    numbers = {study.current("trial-0").number, study.take("trial-0", PLAN, nobody).number}
    assert len(numbers) == 1


def test_what_came_of_a_trial_is_told_once(tmp_path: Path) -> None:
    study = Study(tmp_path)
    trial = study.take("trial-0", PLAN, nobody)
    assert trial
    study.tell(trial, COMPLETE, 0.75)
    study.tell(trial, PRUNED)
    study.report("trial-0", 1, 0.5)
    assert trial_states(tmp_path) == {"trial-0": COMPLETE}
    assert study.study.best_value == 0.75
    assert state_of(study.take("trial-0", PLAN, nobody)) == COMPLETE


def test_another_run_takes_the_settings_of_a_lost_one(tmp_path: Path) -> None:
    take(tmp_path, 0, 1)
    expected = settings_of(tmp_path)
    study = Study(tmp_path)
    taken = study.take("trial-5", PLAN, lambda run: run == "trial-1")
    assert taken
    assert taken.user_attrs["settings"] == expected["trial-1"]
    assert trial_states(tmp_path) == {"trial-0": RUNNING, "trial-1": FAILED, "trial-5": RUNNING}
    # the next one draws its own; and where the lost one comes back, nothing is left for it
    other = study.take("trial-6", PLAN, lambda run: run == "trial-1")
    assert other
    assert other.user_attrs["settings"] not in expected.values()
    assert study.take("trial-1", PLAN, nobody) is None
    # what was taken over may be lost again
    third = study.take("trial-7", PLAN, lambda run: run == "trial-5")
    assert third
    assert third.user_attrs["settings"] == expected["trial-1"]


def test_a_lost_run_that_comes_back_first_has_its_own_settings(tmp_path: Path) -> None:
    take(tmp_path, 0)
    expected = settings_of(tmp_path)["trial-0"]
    study = Study(tmp_path)
    study.tell_lost("trial-1", lambda run: True)
    assert trial_states(tmp_path) == {"trial-0": FAILED}
    again = study.take("trial-0", PLAN, nobody)
    assert again
    assert again.user_attrs["settings"] == expected
    other = study.take("trial-1", PLAN, nobody)
    assert other
    assert other.user_attrs["settings"] != expected


def test_settings_that_fail_for_good_are_not_given_to_another_run(tmp_path: Path) -> None:
    study = Study(tmp_path)
    trial = study.take("trial-0", PLAN, nobody)
    assert trial
    study.tell(trial, FAILED)
    other = study.take("trial-1", PLAN, lambda run: True)
    assert other
    assert other.user_attrs["settings"] != trial.user_attrs["settings"]


def take_lost(folder: Path, number: int) -> None:
    """What a task does that finds trial-0 lost."""
    Study(folder).take(trial_name(number), PLAN, lambda run: run == "trial-0")


def test_one_of_several_runs_takes_a_lost_one_over(tmp_path: Path) -> None:
    take(tmp_path, 0)
    lost = settings_of(tmp_path)["trial-0"]
    at_once(take_lost, *((tmp_path, number) for number in range(1, 6)))
    states = trial_states(tmp_path)
    assert states == {"trial-0": FAILED} | {trial_name(number): RUNNING for number in range(1, 6)}
    settings = list(settings_of(tmp_path).values())
    assert settings.count(lost) == 1
    raw = [trial for trial in Study(tmp_path).study.get_trials() if state_of(trial) == RUNNING]
    assert len(raw) == len(settings) == 5


def test_a_lost_trial_is_told_once_by_several_tasks(tmp_path: Path) -> None:
    take(tmp_path, 0)
    first, second = Study(tmp_path), Study(tmp_path)

    def told_meanwhile(run: str) -> bool:
        second.tell_lost("trial-8", lambda run: True)
        return True

    first.tell_lost("trial-9", told_meanwhile)
    assert trial_states(tmp_path) == {"trial-0": FAILED}


def test_a_trial_below_the_median_is_pruned(tmp_path: Path) -> None:
    """By hand: five finished trials have 0.1 to 0.5 at epoch 2, whose median is 0.3."""
    study = Study(tmp_path)
    for number in range(JUDGED_AFTER):
        trial = study.take(trial_name(number), PLAN, nobody)
        assert trial
        study.report(trial_name(number), 1, 0.9)
        study.report(trial_name(number), 2, 0.1 * (number + 1))
        if number == JUDGED_AFTER - 1:
            study.take("trial-20", PLAN, nobody)
            study.report("trial-20", 2, 0.0)
            assert not study.is_to_prune("trial-20", 0), "four trials are too few"
        study.tell(trial, COMPLETE, 0.9)
    assert study.is_to_prune("trial-20", 2)
    assert not study.is_to_prune("trial-20", 3), "it is not judged yet"
    study.take("trial-21", PLAN, nobody)
    assert not study.is_to_prune("trial-21", 0), "it has reported nothing"
    study.report("trial-21", 2, 0.31)
    assert not study.is_to_prune("trial-21", 0)


def test_without_a_study_no_trial_has_a_state(tmp_path: Path) -> None:
    assert trial_states(tmp_path) == {}
    record_plan(tmp_path, PLAN)
    assert trial_states(tmp_path) == {}
    assert not (tmp_path / STUDY).exists()


def test_reading_the_states_writes_nothing(tmp_path: Path) -> None:
    take(tmp_path, 0)
    before = (tmp_path / STUDY).read_bytes()
    assert trial_states(tmp_path) == {"trial-0": RUNNING}
    assert (tmp_path / STUDY).read_bytes() == before


def test_without_optuna_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install --editable '\.\[sweep\]'"):
        Study(tmp_path)
