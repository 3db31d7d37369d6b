"""The table: what is in a row, and what is ranked."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.dataset.manifest import Dataset
from train.comparison.table import as_lines, read_table

Write = Callable[..., Any]


def rows_of(lines: list[str]) -> list[list[str]]:
    """The words of the lines that are rows of runs."""
    return [line.split() for line in lines if line.startswith(("a ", "b ", "c ", "cv", "other"))]


def test_a_row_a_run_the_best_first(write_run: Write) -> None:
    """10 steps an epoch of 4 crops at 0.25 crops/s: 160 s an epoch."""
    paths = [
        write_run("a", [0.3, 0.4], "lr=0.01", "log_every_steps=5"),
        write_run("b", [0.6, 0.5], "seed=3", "loss.dice_weight=0.5", speed=0.25, restarts=2),
        write_run("c", [None], "lr=0.000123456789", epochs=4),
    ]
    lines = as_lines(read_table(paths, "test"))
    assert lines[0] == "3 rows validated on Case_3"
    assert lines[1].split("  ")[0] == "run"
    # only what differs and can change results
    assert lines[1].split()[:5] == ["run", "seed", "epochs", "lr", "loss.dice_weight"]
    assert [" ".join(row) for row in rows_of(lines)] == [
        "b 3 2 0.001 0.5 0.6000 1 0.3000 20 of 20 0.089 2 finished",
        "a 0 2 0.01 0.0 0.4000 2 0.2000 20 of 20 0.006 0 finished",
        "c 0 4 0.0001235 0.0 - - - 10 of 40 0.003 0 unfinished",
    ]


def test_runs_that_were_validated_on_other_cases_are_not_ranked(
    write_run: Write, in_folds: Dataset
) -> None:
    paths = [
        write_run("a", [0.9], "fold=0", data=in_folds),
        write_run("b", [0.5], "fold=1", data=in_folds),
        write_run("c", [0.6], "fold=1", data=in_folds),
    ]
    table = read_table(paths, "test")
    assert [[row.path.name for row in group.rows] for group in table.groups] == [["c", "b"], ["a"]]
    assert [group.title for group in table.groups] == [
        "validated on Case_3",
        "validated on Case_2",
    ]
    assert as_lines(table)[0].startswith("not all validated on the same fields: 2 groups")


def test_the_same_cases_in_other_data_are_not_ranked(
    write_run: Write, prepared: Dataset, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    about = (prepared.folder / "dataset.json").read_text()
    changed = about.replace('"radius_px": 8', '"radius_px": 6').replace(
        prepared.description.content_sha256, "ab" * 32
    )
    assert changed != about
    paths = [write_run("a", [0.5]), write_run("b", [0.9])]
    (paths[1] / "dataset.json").write_text(changed)
    first, second = read_table(paths, "test").groups
    assert (first.title, [row.path.name for row in first.rows]) == ("validated on Case_3", ["a"])
    assert second.title == "validated on Case_3, on other data (radius_px: 8 -> 6)"


def test_a_folder_of_folds_is_one_row_of_means(write_run: Write, in_folds: Dataset) -> None:
    for name, dice in (("cv1", 0.5), ("cv2", 0.7)):
        for fold in range(5):
            write_run(f"{name}/fold-{fold}", [dice + fold / 100], f"fold={fold}", data=in_folds)
    root = write_run("a", [0.9]).parent
    table = read_table([root / "cv1", root / "cv2"], "test")
    (group,) = table.groups
    assert [row.path.name for row in group.rows] == ["cv2", "cv1"]
    assert [row.dice for row in group.rows] == pytest.approx([0.72, 0.52])
    assert group.rows[0].nuclei_f1 == pytest.approx(0.36)
    assert group.rows[0].steps == (50, 50)
    assert group.rows[0].state == "finished, 5 folds"
    assert group.rows[0].hours == pytest.approx(5 * 10 * 4 / 4 / 3600)
    assert table.settings == []  # every fold is in both

    # with a fold less it is another mean, which is not ranked
    shutil.rmtree(root / "cv2" / "fold-3")
    (root / "cv2" / "fold-3").mkdir()
    groups = read_table([root / "cv1", root / "cv2"], "test").groups
    assert [len(group.rows) for group in groups] == [1, 1]
    assert groups[1].rows[0].state == "4 of 5 folds finished"
    assert groups[1].title.endswith("in 4 folds")


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(write_run: Write) -> None:
    paths = [write_run(name, [0.5]) for name in ("a", "b", "c")]
    (paths[1] / "metrics.jsonl").write_text('{"step": "x"}\n')
    (paths[2] / "config.yaml").write_text("lr: -1\n")
    table = read_table(paths, "test")
    assert [row.path.name for row in table.rows] == ["a"]
    assert len(table.bad) == 2
    lines = as_lines(table)
    for path, words in zip(paths[1:], ("metrics.jsonl: line 1", "lr=-1.0: must be"), strict=True):
        (line,) = [line for line in lines if line.startswith(f"left out: {path}")]
        assert words in line


def test_a_sweep_is_its_trials_and_those_to_come_are_named(write_run: Write) -> None:
    root = write_run("sweep/trial-2", [0.5]).parent
    write_run("sweep/trial-10", [0.6], "lr=0.01")
    (root / "trial-3").mkdir()
    table = read_table([root], "test", pruned=frozenset([root / "trial-2"]))
    assert [row.path.name for row in table.groups[0].rows] == ["trial-10", "trial-2"]
    assert [row.state for row in table.rows] == ["pruned", "finished"]
    assert (table.bad, table.notes) == ([], [f"not begun: {root / 'trial-3'}"])
    by_pattern = read_table(sorted(root.iterdir()), "test")
    assert (by_pattern.bad, by_pattern.notes) == (table.bad, table.notes)


def test_an_evaluation_is_shown_if_it_is_of_the_best_checkpoint(
    write_run: Write, write_evaluation: Write
) -> None:
    paths = [write_run("a", [0.5]), write_run("b", [0.6]), write_run("c", [0.4])]
    counts = {"Case_4-01": ([1, 1, 1, 1], [1, 1, 1, 0])}
    write_evaluation(paths[0], counts)
    write_evaluation(paths[1], counts, checkpoint="step_00000005")
    lines = as_lines(read_table(paths, "test"))
    assert "test Dice" in lines[1]
    figures = {row[0]: row[4:6] for row in rows_of(lines)}
    assert figures == {"a": ["0.7500", "0.7000"], "b": ["-", "-"], "c": ["-", "-"]}
    (line,) = [line for line in lines if line.startswith("evaluation not used")]
    assert str(paths[1]) in line
    assert "step_00000005" in line
