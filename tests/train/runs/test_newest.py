"""runs/: a new folder each time, and the newest."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.command_line import UsageError
from train.runs import newest
from train.runs.newest import check_run, free_name, named_or_newest, new_run, newest_run


def test_runs_that_start_in_one_second_have_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run(tmp_path / "runs"), range(24)))
    assert len(set(made)) == 24
    assert all(folder.is_dir() for folder in made)


def test_a_folder_that_another_made_at_this_instant_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["a", "a", "b"])
    monkeypatch.setattr(newest, "free_name", lambda parent: parent / next(names))
    assert [new_run(tmp_path).name, new_run(tmp_path).name] == ["a", "b"]


def test_a_free_name_makes_nothing(tmp_path: Path) -> None:
    assert free_name(tmp_path / "runs").parent == tmp_path / "runs"
    assert not list(tmp_path.iterdir())


def test_the_newest_is_the_one_that_was_trained_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, time_s in {"b": 300, "a": 400, "c": 200}.items():
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", (time_s, time_s))
    (Path("runs") / "queued").mkdir()  # has not begun
    assert newest_run() == Path("runs/a")
    (Path("runs/b") / "progress.json").touch()  # went on: config.yaml stays as it is
    assert newest_run() == Path("runs/b")
    (Path("runs/a") / "submitted").touch()
    os.utime("runs/a/submitted", (100, 100))
    (Path("runs/c") / "submitted").touch()
    assert newest_run(mark="submitted") == Path("runs/c")  # though b said something since
    os.utime("runs/b/progress.json", (350, 350))
    assert named_or_newest("") == Path("runs/a")
    assert capsys.readouterr().out == "run=runs/a, the newest\n"
    assert named_or_newest("elsewhere") == Path("elsewhere")
    (Path("runs/a") / "progress.json").write_text(
        '{"step": 13, "total_steps": 800, "epoch": 1, "is_finished": false, "time_s": 400}'
    )
    named_or_newest("")
    assert "run=runs/a, the newest; its training is at step 13 of 800" in capsys.readouterr().out


def test_where_there_is_none_it_is_said_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train one: python -m train"):
        newest_run(tmp_path / "runs")


def test_a_missing_checkpoint_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    """Before torch is loaded: tests/test_imports.py keeps this module free of it."""
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints/step_00000004").mkdir(parents=True)
    for name in ("999", "x", "best", "..", "\u00b2", "9" * 5000):
        with pytest.raises(UsageError, match="there are: latest, best, step_00000004"):
            check_run(str(tmp_path), name)
    check_run(str(tmp_path), "4")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match="is an exported model and holds one only"):
        check_run(str(tmp_path / "model.safetensors"), "4")
