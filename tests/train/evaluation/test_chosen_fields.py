"""Which fields runs are measured on, what is kept of it, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common import command_line
from common.command_line import UsageError
from data_prep.dataset.description import Labelling
from data_prep.dataset.manifest import read_dataset
from tests.train.conftest import with_other_content
from train.evaluation.chosen_fields import check_apart, choose_groups, truth_of
from train.evaluation.config import EvaluateConfig
from train.evaluation.doubts import chosen_on_val, warnings_about
from train.evaluation.run_evaluation import is_kept
from train.fields.whole_fields import prepared_fields
from train.ranks.distributed import Ranks
from train.runs.run_folder import read_run
from train.runs.thresholds import ClassThresholds, Thresholds


def load(*given: str) -> EvaluateConfig:
    return command_line.load(EvaluateConfig, [*given])


def test_folds_are_measured_on_their_own_data_where_it_was_moved_to(
    cv: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(read_run(cv / "fold-0").config.data, tmp_path / "moved"))
    _, groups = choose_groups(load(f"run={cv}", f"data={moved}"))
    folds = read_dataset(moved).description.folds
    assert [{field.case for field in group.chosen.fields} for group in groups] == [
        set(members) for members in folds
    ]


def test_folds_of_other_data_are_none_of_the_members(cv: Path, tmp_path: Path) -> None:
    other = with_other_content(read_run(cv / "fold-0").config.data, tmp_path / "other")
    with pytest.raises(UsageError, match="no split of it is of all members"):
        choose_groups(load(f"run={cv}", f"data={other}"))


def test_the_same_cases_of_data_sets_that_differ_are_refused(
    trained: Path, own_run: Path, tmp_path: Path
) -> None:
    data = with_other_content(read_run(trained).config.data, tmp_path / "data")
    shutil.copy(data / "dataset.json", own_run)
    config = (own_run / "config.yaml").read_text()
    (own_run / "config.yaml").write_text(config.replace(read_run(trained).config.data, str(data)))
    with pytest.raises(UsageError, match="test the same cases in data sets that differ"):
        choose_groups(load(f"runs=[{trained},{own_run}]", f"out={tmp_path / 'out'}"))


def test_a_case_of_other_data_that_a_member_was_trained_on_is_refused(
    trained: Path, own_run: Path, tmp_path: Path
) -> None:
    data = with_other_content(read_run(trained).config.data, tmp_path / "data")
    given = [f"runs=[{trained},{own_run}]", f"data={data}", f"out={tmp_path / 'out'}"]
    _, (group,) = choose_groups(load(*given))
    assert {field.case for field in group.chosen.fields} == {"Case_4", "Case_5"}
    about = json.loads((own_run / "dataset.json").read_text())
    about["split"]["train"].append("case-04")  # the same case, written otherwise
    (own_run / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match=re.escape(f"{own_run} was trained on Case_4, which")):
        choose_groups(load(*given))
    assert choose_groups(load(*given, "cases=[5]"))


def test_groups_are_apart_only_if_no_spelling_of_a_case_is_in_two(cv: Path) -> None:
    one, other = read_run(cv / "fold-0"), read_run(cv / "fold-1")
    check_apart({("Case_1", "Case_2"): [one], ("Case_3",): [other]})
    with pytest.raises(UsageError, match=r"case-01 is tested by .*fold-0 and by .*fold-1, but"):
        check_apart({("Case_1", "Case_2"): [one], ("Case_3", "case-01"): [other]})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], True),
        (["tta=true", "figures=0"], True),
        (["split=val"], False),
        (["raw=somewhere"], False),
        (["cases=[1]"], False),
        (["checkpoint=latest"], False),
        (["match_radius_px=5"], False),
    ],
)
def test_thresholds_are_kept_of_what_predict_uses_and_of_all_cases(
    given: list[str], expected: bool, cv: Path
) -> None:
    run, groups = choose_groups(load(f"run={cv}"))
    assert is_kept(load(*given), run, groups) is expected
    assert not is_kept(load(*given), run.members[0], groups)


@pytest.mark.parametrize(
    ("given", "on", "words"),
    [
        ("checkpoint=best", "val", "checkpoint and thresholds were"),
        ("checkpoint=latest", "members", "thresholds were"),
        ("checkpoint=best", "out of fold", "checkpoint was"),
        ("checkpoint=latest", "not_chosen", ""),
    ],
)
def test_a_warning_names_what_was_chosen_on_evaluated_cases(
    given: str, on: str, words: str, trained: Path, ranks: Callable[..., Ranks]
) -> None:
    """However their names are written; only what is used."""
    run = read_run(trained)
    found = prepared_fields(read_dataset(Path(run.config.data)), "val")
    fields = [replace(field, case="CASE 03") for field in found]
    thresholds = Thresholds(ClassThresholds.default(1, "given"), ClassThresholds.default(1, on))
    used = chosen_on_val(load(given), thresholds)
    warnings = warnings_about(fields, [(run, run.load_model("best", ranks()))], used)
    expected = [f"{words} chosen on: CASE 03; test on other cases"] if words else []
    assert warnings == expected


@pytest.mark.parametrize(
    ("annotations", "ignored"),
    [("geojson", ("none", 4)), ("masks", (255, 0)), ("", (255, 4))],
)
def test_a_format_ignores_only_what_it_can(
    annotations: str, ignored: tuple[str | int, int]
) -> None:
    """Masks have no points, around which a ring could be; other formats have no values."""
    trained = Labelling({"tumor": 1}, 8, 65535, "(?P<case>.+)", ignore_value=255, ignore_px=4)
    truth = truth_of(annotations, trained)
    assert (truth.ignore_value, truth.ignore_px) == ignored
