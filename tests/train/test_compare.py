"""The command: two real runs, from their evaluations to the page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_imports import loaded_in
from train import compare, evaluate
from train.config import TrainConfig
from train.loop.trainer import Trainer


@pytest.fixture(scope="module")
def pair(
    trained: Path,
    tiny: Callable[..., TrainConfig],
    new_trainer: Callable[..., Trainer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder of two finished runs, of which the second learned more slowly, both evaluated."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(trained, folder / "fast")
    assert new_trainer(tiny(folder / "slow", "lr=0.001")).fit() == 0
    for name in ("fast", "slow"):
        assert evaluate.main([f"run={folder / name}", "amp=off", "figures=0"]) == 0
    return folder


@pytest.fixture
def own_pair(pair: Path, tmp_path: Path) -> Path:
    """The two runs, to do with as one likes."""
    return Path(shutil.copytree(pair, tmp_path / "pair"))


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation" / "test" / "summary.json").read_text())


def test_two_runs_are_compared_as_they_were_evaluated(
    own_pair: Path, cli: Callable[..., Any]
) -> None:
    out = own_pair / "out"
    fast, slow = own_pair / "fast", own_pair / "slow"
    outcome = cli(compare.main, f"runs=[{fast},{slow}]", f"out={out}")
    assert outcome.code == 0, outcome.err
    result = json.loads((out / "compare.json").read_text())
    pixels, nuclei = result["differences"]
    first, second = summary_of(fast), summary_of(slow)
    assert pixels["value"] == pytest.approx(
        second["all_pixels"]["dice"] - first["all_pixels"]["dice"]
    )
    assert nuclei["value"] == pytest.approx(second["detection"]["f1"] - first["detection"]["f1"])
    assert pixels["num_cases"] == 2
    (group,) = result["groups"]
    assert {row["run"]: row["settings"] for row in group["rows"]} == {
        str(fast): {"lr": "0.01"},
        str(slow): {"lr": "0.001"},
    }
    assert pixels["text"] in outcome.out
    assert f"page: {out / 'compare.html'}" in outcome.out
    assert pixels["text"].split(":")[0] in (out / "compare.html").read_text()

    # the other way round, it is the same difference
    again = cli(compare.main, f"runs=[{slow},{fast}]", f"out={out}")
    assert again.code == 0, again.err
    reverse = json.loads((out / "compare.json").read_text())["differences"][0]
    assert reverse["value"] == pytest.approx(-pixels["value"])
    assert reverse["interval"] == pytest.approx([-end for end in reversed(pixels["interval"])])


def test_without_out_nothing_is_written(own_pair: Path, cli: Callable[..., Any]) -> None:
    before = sorted(own_pair.rglob("*"))
    outcome = cli(compare.main, f"runs={own_pair}/*")
    assert outcome.code == 0, outcome.err
    assert sorted(own_pair.rglob("*")) == before
    assert outcome.out.startswith("2 rows validated on Case_3\n")


def test_another_radius_of_matching_is_refused_when_all_is_printed(
    own_pair: Path, cli: Callable[..., Any]
) -> None:
    fast, slow = own_pair / "fast", own_pair / "slow"
    given = [f"run={slow}", "match_radius_px=3", "amp=off", "figures=0"]
    assert cli(evaluate.main, *given).code == 0
    outcome = cli(compare.main, f"runs=[{fast},{slow}]", f"out={own_pair / 'out'}")
    assert outcome.code == 1
    assert "2 rows validated" in outcome.out
    assert "better" not in outcome.out
    assert "with match_radius_px=8" in outcome.err
    commands = [line.split()[3:] for line in outcome.err.splitlines() if "train.evaluate" in line]
    for command in commands:
        assert cli(evaluate.main, *command, "amp=off", "figures=0").code == 0
    assert cli(compare.main, f"runs=[{fast},{slow}]").code == 0


def test_runs_that_are_not_evaluated_yet_get_the_commands(
    own_pair: Path, cli: Callable[..., Any]
) -> None:
    fast, slow = own_pair / "fast", own_pair / "slow"
    outcome = cli(compare.main, f"runs=[{fast},{slow}]", "split=val")
    assert outcome.code == 0
    commands = [line.split()[3:] for line in outcome.out.splitlines() if "train.evaluate" in line]
    assert commands == [[f"run={run}", "split=val"] for run in (fast, slow)]
    for command in commands:
        assert cli(evaluate.main, *command, "amp=off", "figures=0").code == 0
    given = [f"runs=[{fast},{slow}]", "split=val", f"out={own_pair / 'out'}"]
    outcome = cli(compare.main, *given)
    assert "better" in outcome.out
    told = f"{fast}: checkpoint and thresholds were chosen on: Case_3"
    assert f"warning: {told}" in outcome.out
    assert told in (own_pair / "out" / "compare.html").read_text()


def test_two_runs_are_compared_without_torch(pair: Path) -> None:
    """It would take seconds."""
    script = f"""
import sys
from train.compare import main
assert main(["runs=[{pair / "fast"},{pair / "slow"}]"]) == 0
print("LOADED", *sys.modules)
"""
    assert not loaded_in(script) & {"torch", "cv2", "matplotlib", "scipy", "optuna"}


def test_a_run_that_cannot_be_read_is_named_and_the_exit_code_tells(
    own_pair: Path, cli: Callable[..., Any]
) -> None:
    (own_pair / "slow" / "dataset.json").write_text("{")
    outcome = cli(compare.main, f"runs={own_pair}/*")
    assert outcome.code == 1
    assert "1 row validated on Case_3" in outcome.out
    assert f"left out: {own_pair / 'slow' / 'dataset.json'}: missing or damaged" in outcome.out


def test_files_of_others_are_not_replaced(own_pair: Path, cli: Callable[..., Any]) -> None:
    out = own_pair / "out"
    out.mkdir()
    (out / "compare.html").write_text("mine")
    outcome = cli(compare.main, f"runs={own_pair}/fast", f"out={out}")
    assert outcome.code == 1
    assert "compare.html" in outcome.err
    assert (out / "compare.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], ["needs runs=..."]),
        (["runs=[]"], ["runs=[]: name runs"]),
        (["runs=nowhere"], ["runs=nowhere: no such folder"]),
        (["runs=nowhere/*"], ["runs=nowhere/*: no folder"]),
        (["runs=a,b"], ["runs=a,b: takes a list, as in runs=[a,b]"]),
        (["runs=a", "split=tset"], ["split=tset: must be one of train, val, test"]),
        (["runs=/"], ["nothing to compare", "/: no run has begun there"]),
    ],
)
def test_wrong_command_lines(
    settings: list[str], words: list[str], cli: Callable[..., Any]
) -> None:
    outcome = cli(compare.main, *settings)
    assert outcome.code == 2
    for each in words:
        assert each in outcome.err
