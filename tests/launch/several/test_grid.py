"""A trial of a grid is known by its settings and keeps its number."""

import json
from pathlib import Path

import pytest

from common.command_line import UsageError, UserError
from launch.several.asked import Several, recorded
from launch.several.grid import Grid, asked_trials, grid_of, read_grid
from launch.several.members import Member
from launch.sweeps.space import parse

FIRST = ("lr=1e-3,1e-2", "seed=0,1")


def trials(folder: Path, *words: str) -> list[Member]:
    """Return the trials that the words ask for, and record them."""
    space = parse(words)
    grid = grid_of(folder, space, has_folds=False)
    with recorded(folder, grid):
        return asked_trials(grid, space)


def test_the_last_key_changes_first(tmp_path: Path) -> None:
    assert [(each.name, dict(each.settings)) for each in trials(tmp_path, *FIRST)] == [
        ("trial-0", {"lr": "1e-3", "seed": "0"}),
        ("trial-1", {"lr": "1e-3", "seed": "1"}),
        ("trial-2", {"lr": "1e-2", "seed": "0"}),
        ("trial-3", {"lr": "1e-2", "seed": "1"}),
    ]


def test_new_values_make_new_trials_after_the_old_ones(tmp_path: Path) -> None:
    before = trials(tmp_path, *FIRST)
    after = trials(tmp_path, "seed=1,0", "lr=1e-1,0.001,1e-2")  # 0.001 is 1e-3
    assert after[:4] == before
    assert [(each.name, dict(each.settings)) for each in after[4:]] == [
        ("trial-4", {"seed": "1", "lr": "1e-1"}),
        ("trial-5", {"seed": "0", "lr": "1e-1"}),
    ]
    fewer = trials(tmp_path, "lr=1e-1,1e-2", "seed=1,2")
    assert [each.name for each in fewer] == ["trial-3", "trial-4", "trial-6", "trial-7"]
    grid = read_grid(tmp_path)
    assert grid
    assert len(grid.trials) == 8, "a trial that is not asked for is kept"


def test_a_sweep_keeps_whether_it_has_folds(tmp_path: Path) -> None:
    trials(tmp_path, *FIRST)
    with pytest.raises(UsageError, match=r"trains one run of each trial; leave --folds out"):
        grid_of(tmp_path, parse(FIRST), has_folds=True)


def test_with_folds_each_trial_has_a_run_for_each(tmp_path: Path) -> None:
    several = Several("2", ("lr=1e-3,1e-2",))
    members = several.members(several.sweep(tmp_path, []), 2, [])
    assert [each.name for each in members] == [
        "trial-0/fold-0", "trial-0/fold-1", "trial-1/fold-0", "trial-1/fold-1",
    ]  # fmt: skip
    assert dict(members[3].settings) == {"lr": "1e-2", "fold": "1"}


def test_a_failed_submission_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, parse(FIRST), has_folds=False)

    def fail(grid: Grid) -> None:
        with recorded(tmp_path, grid):
            assert (tmp_path / "sweep.json").is_file()
            raise UserError("Slurm refuses the job")

    with pytest.raises(UserError, match="refuses"):
        fail(grid)
    assert not [*tmp_path.iterdir()]
    with recorded(tmp_path, grid):
        pass
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(UserError, match="refuses"):
        fail(grid_of(tmp_path, parse(["lr=1,2"]), has_folds=False))
    assert (tmp_path / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ["no JSON", '{"sweep": ["lr=log(1,2)"], "settings": []}',
     json.dumps({"swept": {}, "trials": [{"run": "../x", "settings": {}}]})],
)  # fmt: skip
def test_another_file_of_this_name_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match="not that of a grid"):
        trials(tmp_path, *FIRST)
    assert (tmp_path / "sweep.json").read_text() == content


@pytest.mark.parametrize(
    ("several", "message"),
    [
        (Several(trials=3), "--trials: says how many settings to try"),
        (Several(swept=("lr=1,2",), prune="off"), "--prune: for the trials of a study"),
        (Several(swept=("lr=1,2",), trials=-1), "--trials -1: from 1 to"),
        (Several(swept=("lr=1,2",), trials=0), "--trials 0: from 1 to"),
    ],
)
def test_flags_that_say_nothing_alone_are_refused(several: Several, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        several.check(has_flag=bool(several.swept))


def test_a_distribution_needs_a_number_of_trials(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--trials 40"):
        Several(swept=("lr=log(1e-4,1e-2)",)).sweep(tmp_path, [])
