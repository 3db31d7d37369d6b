"""A task of a trial with real trainings: restarts, pruning, folds, several ranks, failures."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
import torch

from common.command_line import EXIT_STOPPED, UsageError, UserError
from common.stop_request import REQUESTED, StopRequest
from launch.record.events import note, read_events
from launch.sweeps import pruning
from launch.sweeps.plan import Plan, record_plan
from launch.sweeps.pruning import dice_by_epoch
from launch.sweeps.study import COMPLETE, FAILED, JUDGED_AFTER, PRUNED, RUNNING, Study, trial_states
from launch.sweeps.trial_stage import FirstRank, is_lost, run_trial
from tests.forked_ranks import ForkedRanks
from tests.launch.fakes import answer
from tests.processes import prepare_alone
from tests.train.conftest import TINY
from train.ranks.lock import RunLock
from train.runs.newest import read_config
from train.runs.several import trial_name

optuna = pytest.importorskip("optuna")

WORDS = ["lr=log(1e-3,1e-1)"]
SHARED = [word for word in TINY if not word.startswith(("lr=", "epochs="))]
SHARED.append("loss.positive_weight=9")  # so that some pixels are found, and Dice is above 0
LONG = 500  # epochs; nobody waits for them


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are trained faster by one, which waits for no other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases, also dealt to three folds; each has one field and a nucleus."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "raw").mkdir()
    for case in range(1, 5):
        image_HWC = cv2.randu(cv2.UMat(64, 96, cv2.CV_8UC3), 40 * case, 40 * case + 60).get()
        cv2.imwrite(str(folder / f"raw/Case_{case}-01.png"), image_HWC)
        (folder / f"raw/Case_{case}-01.json").write_text('{"tumor": [{"x": 0.5, "y": 0.5}]}')
    given = [f"raw={folder / 'raw'}", "copies=4", "radius_px=12", "format=png"]
    prepare_alone(*given, f"out={folder / 'folds'}", "split.folds=3")
    cases = ["split.val_cases=[3]", "split.test_cases=[4]"]
    prepare_alone(*given, f"out={folder / 'one'}", *cases)
    prepare_alone(*given, f"out={folder / 'no_val'}", "split.val=0", "split.test=0.25")
    return folder


@pytest.fixture
def sweep(data: Path, tmp_path: Path) -> Callable[..., Callable[..., int]]:
    """sweep(epochs=2, ...) plans one; what it returns runs trial K: trial(3, stop=...)."""

    def begin(
        epochs: int = 2, name: str = "one", folder: str = "sweep", **about: object
    ) -> Callable[..., int]:
        given = [*SHARED, f"data={data / name}", f"epochs={epochs}"]
        about.setdefault("sweep", WORDS)
        record_plan(tmp_path / folder, Plan(settings=given, **about))  # type: ignore[arg-type]

        def trial(number: int, *more: str, after: Callable[[], object] | None = None) -> int:
            with StopRequest() as stop:
                if after:
                    threading.Thread(target=after, daemon=True).start()
                run = tmp_path / folder / trial_name(number)
                return run_trial(run, [*given, *more], stop)

        return trial

    return begin


def finish_others(folder: Path, plan: Plan, epochs: int, dice: float) -> None:
    """Trials that have finished, each with this Dice in every epoch."""
    study = Study(folder)
    for number in range(100, 100 + JUDGED_AFTER):
        drawn = study.drawn(trial_name(number), plan)
        finished = optuna.trial.create_trial(
            params=drawn.params,
            distributions=drawn.distributions,
            user_attrs=drawn.user_attrs,
            value=dice,
            intermediate_values=dict.fromkeys(range(epochs + 1), dice),
        )
        study.study.add_trial(finished)


def test_a_trial_trains_with_its_settings_and_tells_its_best_dice(
    sweep: Callable[..., Callable[..., int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial, folder = sweep(sweep=[*WORDS, "loss.dice_weight=0.5,1"]), tmp_path / "sweep"
    assert trial(1) == 0
    (told,) = Study(folder).newest()
    config = read_config(folder / "trial-1")
    assert config.lr == told.params["lr"]
    assert config.loss.dice_weight == float(told.params["loss.dice_weight"])
    dice = dice_by_epoch(folder / "trial-1")
    assert sorted(dice) == [1, 2]
    assert told.intermediate_values == dice
    assert told.value == max(dice.values())
    assert trial_states(folder) == {"trial-1": COMPLETE}
    capsys.readouterr()
    assert trial(1) == 0
    assert capsys.readouterr().out == "trial-1 is complete: nothing to train\n"


def test_settings_that_are_refused_without_a_swept_one_reach_a_trial(
    data: Path, tmp_path: Path
) -> None:
    """freeze_epochs= without weights is: the trial begins with what all share."""
    shared = [f"data={data / 'one'}", "model.name=smp", "freeze_epochs=1"]
    folder = tmp_path / "sweep"
    record_plan(folder, Plan(settings=shared, sweep=["model.weights=a.pth,b.pth"]))
    with StopRequest() as stop:
        assert FirstRank(folder / "trial-0", shared, stop).config.freeze_epochs == 1


def test_a_stopped_trial_goes_on_as_the_same_one(
    sweep: Callable[..., Callable[..., int]], tmp_path: Path
) -> None:
    """And its table is that of an undisturbed one, bit for bit."""
    trial, undisturbed = sweep(3), sweep(3, folder="undisturbed")
    run = tmp_path / "sweep/trial-0"

    def preempt() -> None:
        while not dice_by_epoch(run):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    assert trial(0, after=preempt) == EXIT_STOPPED
    assert trial_states(run.parent) == {"trial-0": RUNNING}
    assert trial(0) == 0
    assert undisturbed(0) == 0
    found = [Study(tmp_path / name).newest()[0] for name in ("sweep", "undisturbed")]
    a, b = [(each.params, each.value, each.intermediate_values) for each in found]
    assert a == b


@pytest.mark.parametrize("prune", ["median", "off"])
def test_a_trial_below_the_median_of_others_ends_early(
    sweep: Callable[..., Callable[..., int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prune: str,
) -> None:
    monkeypatch.setattr(pruning, "LOOK_S", 0.02)
    epochs = LONG if prune == "median" else 2
    trial, folder = sweep(epochs, prune=prune), tmp_path / "sweep"
    monkeypatch.setattr(pruning, "FIRST_JUDGED", 1 / LONG)
    finish_others(folder, Plan(WORDS, [], prune="off"), epochs, 1.1)
    assert trial(0) == 0
    told = Study(folder).current("trial-0")
    assert told
    if prune == "off":
        assert trial_states(folder)["trial-0"] == COMPLETE
        return
    assert trial_states(folder)["trial-0"] == PRUNED
    dice = dice_by_epoch(folder / "trial-0")
    assert 1 <= len(dice) < LONG
    assert told.intermediate_values == dice
    (event,) = [each for each in read_events(folder / "trial-0") if each["event"] == "pruned"]
    assert event["reason"].endswith("worse than the median of the trials that have finished")
    assert "stopped by this program at step" in capsys.readouterr().out
    assert trial(0) == 0
    assert capsys.readouterr().out == "trial-0 is pruned: nothing to train\n"


def test_a_signal_that_came_first_is_no_pruning(
    sweep: Callable[..., Callable[..., int]], tmp_path: Path
) -> None:
    trial, folder = sweep(LONG), tmp_path / "sweep"
    finish_others(folder, Plan(WORDS, []), LONG, 1.1)

    def preempt() -> None:
        while not (folder / "trial-0/config.yaml").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    assert trial(0, after=preempt) == EXIT_STOPPED
    assert trial_states(folder)["trial-0"] == RUNNING


def test_a_request_gives_way_to_a_signal() -> None:
    with StopRequest() as stop:
        stop.request()
        assert stop.signum == REQUESTED
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.request()
        assert stop.signum == signal.SIGTERM


def test_a_loss_that_is_not_finite_fails_the_trial_for_good(
    sweep: Callable[..., Callable[..., int]], tmp_path: Path
) -> None:
    trial = sweep(sweep=["lr=1e30,2e30"])
    with pytest.raises(UserError, match="the loss is not finite") as failed:
        trial(0)
    assert not failed.value.can_heal
    assert trial_states(tmp_path / "sweep") == {"trial-0": FAILED}


def test_an_error_that_may_heal_leaves_the_trial_running(
    sweep: Callable[..., Callable[..., int]], tmp_path: Path
) -> None:
    trial, run = sweep(), tmp_path / "sweep/trial-0"
    with RunLock(run), pytest.raises(UserError, match="is training it") as failed:
        trial(0)
    assert failed.value.can_heal
    assert trial_states(run.parent) == {"trial-0": RUNNING}
    assert trial(0) == 0
    assert trial_states(run.parent) == {"trial-0": COMPLETE}


def test_a_trial_with_folds_tells_the_mean_over_them(
    sweep: Callable[..., Callable[..., int]], tmp_path: Path
) -> None:
    trial, folder = sweep(1, "folds", has_folds=True), tmp_path / "sweep"
    assert trial(0) == 0
    members = [folder / f"trial-0/fold-{fold}" for fold in range(3)]
    assert [read_config(member).fold for member in members] == [0, 1, 2]
    assert len({read_config(member).lr for member in members}) == 1
    best = [max(dice_by_epoch(member).values()) for member in members]
    assert len(set(best)) > 1
    told = Study(folder).current("trial-0")
    assert told
    assert told.value == pytest.approx(sum(best) / 3, abs=1e-12)
    means = {number: sum(best[: number + 1]) / (number + 1) for number in range(3)}
    assert told.intermediate_values == pytest.approx(means, abs=1e-12)


def test_a_trial_with_folds_is_pruned_between_them(
    sweep: Callable[..., Callable[..., int]], tmp_path: Path
) -> None:
    trial, folder = sweep(1, "folds", has_folds=True), tmp_path / "sweep"
    finish_others(folder, Plan(WORDS, []), 3, 1.1)
    assert trial(0) == 0
    assert trial_states(folder)["trial-0"] == PRUNED
    assert sorted(path.name for path in (folder / "trial-0").glob("fold-*")) == ["fold-0", "fold-1"]


def test_after_a_restart_a_fold_is_not_judged_again(
    sweep: Callable[..., Callable[..., int]], tmp_path: Path
) -> None:
    """By the last fold that was told, and as if only this one were done."""
    trial, folder = sweep(1, "folds", has_folds=True), tmp_path / "sweep"
    finish_others(folder, Plan(WORDS, []), 3, 1.1)
    study = Study(folder)
    study.take("trial-0", Plan(WORDS, []), lambda run: False)
    for fold in range(3):
        study.report("trial-0", fold, 0.0)
    assert trial(0) == 0
    assert trial_states(folder)["trial-0"] == COMPLETE


@pytest.mark.parametrize(
    ("name", "has_folds", "message"),
    [("no_val", False, "no validation split"), ("one", True, "has no folds")],
)
def test_data_that_no_trial_can_be_compared_on_are_refused(
    sweep: Callable[..., Callable[..., int]], name: str, has_folds: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep(name=name, has_folds=has_folds)(0)


@pytest.mark.parametrize("has_folds", [False, True])
def test_all_ranks_train_with_the_settings_that_the_first_one_took(
    data: Path, tmp_path: Path, has_folds: bool
) -> None:
    given = [*SHARED, f"data={data / ('folds' if has_folds else 'one')}", "epochs=1"]
    record_plan(tmp_path, Plan(WORDS, given, has_folds=has_folds))
    command, log = "launch.sweeps.trial_stage", tmp_path / "log"
    arguments = [str(tmp_path / "trial-0"), *given]
    output = ForkedRanks(command, arguments, 2, log).finish()
    assert output.count("2 ranks on cpu") == (3 if has_folds else 1)
    assert trial_states(tmp_path) == {"trial-0": COMPLETE}
    if not has_folds:
        again = ForkedRanks(command, arguments, 2, log).finish()
        assert again == "trial-0 is complete: nothing to train\n"


def test_pruning_ends_all_ranks_with_success(data: Path, tmp_path: Path) -> None:
    given = [*SHARED, f"data={data / 'one'}", f"epochs={LONG}"]
    record_plan(tmp_path, Plan(WORDS, given))
    finish_others(tmp_path, Plan(WORDS, []), LONG, 1.1)
    study = Study(tmp_path)  # it has come far already
    study.take("trial-0", Plan(WORDS, []), lambda run: False)
    study.report("trial-0", LONG - 1, 0.0)
    arguments = [str(tmp_path / "trial-0"), *given]
    ForkedRanks("launch.sweeps.trial_stage", arguments, 2, tmp_path / "log").finish()
    assert trial_states(tmp_path)["trial-0"] == PRUNED


@pytest.mark.parametrize(
    ("events", "queue", "expected"),
    [
        ([], "", False),
        (["queued"], "", False),  # and was cancelled before it began: it has no settings
        (["started"], "", False),
        (["started", "requeued"], "PENDING", False),
        (["started", "requeued"], "", True),  # cancelled while it waited: nobody notes that
        (["started", "cancelled", "stopped"], "COMPLETING", False),
        (["started", "cancelled", "stopped"], "CANCELLED", True),  # scancel, which it outlived
        (["started", "stopped"], "", True),
        (["started", "gave up"], "FAILED", True),
        (["started", "requeue refused"], "COMPLETED", True),
        (["started", "gave up", "started"], "", False),
        (["started", "gave up", "queued"], "PENDING", False),
        (["started", "gave up", "queued"], "CANCELLED", True),
        (["started", "gave up"], None, False),  # Slurm does not answer
    ],
)
def test_a_run_is_lost_when_its_newest_start_has_ended_and_no_job_of_it_is_in_the_queue(
    events: list[str],
    queue: str | None,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "launch").mkdir()
    for event in events:
        about = {"jobs": {"trial": "7"}} if event == "queued" else {"job": "7"}
        note(tmp_path, event, "train", **about)
    if queue is not None:
        answer(tmp_path, "scontrol", f"JobId=7 JobState={queue}" if queue else "No jobs")
    assert is_lost(tmp_path) == expected


@pytest.mark.parametrize("arguments", [[], ["lr=1"]])
def test_by_hand_it_needs_the_trial(arguments: list[str]) -> None:
    from launch.sweeps.trial_stage import main

    with pytest.raises(UsageError, match="SWEEP/trial-K"):
        main(arguments)
