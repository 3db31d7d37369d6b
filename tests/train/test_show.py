"""What train.show says of a checkpoint, and how one notices that it is damaged."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from train import show
from train.checkpoints.load_checkpoint import load_all_tensors
from train.checkpoints.save_checkpoint import save_checkpoint
from train.ranks.distributed import Ranks


def shown(outcome: Any) -> dict[str, str]:
    """The lines, by the words they begin with."""
    lines = outcome.out.splitlines()
    return {line[:14].strip(): line[14:] for line in lines}


def test_a_checkpoint_is_shown_with_its_digests(own_run: Path, cli: Callable[..., Any]) -> None:
    outcome = cli(show.main, f"run={own_run}")
    assert outcome.code == 0
    lines = shown(outcome)
    path = own_run / "checkpoints" / "step_00000008"
    assert lines["checkpoint"] == str(path)
    assert lines["intact"] == "yes"
    assert (lines["step"], lines["epoch"]) == ("8", "2 of 2 done")
    last = json.loads((own_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(lines["val/dice"]) == pytest.approx(last["val/dice"], abs=1e-6)
    assert re.fullmatch(r"val/dice \d\.\d+ at step (4|8)", lines["best"])
    assert all(re.fullmatch("[0-9a-f]{64}", lines[f"{part} sha256"]) for part in ("model", "state"))
    assert cli(show.main, f"run={own_run}").out == outcome.out


def save_changed(run: Path, change: Callable[[dict, dict], None]) -> None:
    """Save the latest checkpoint again, with something changed."""
    folder = run / "checkpoints"
    path = folder / "step_00000008"
    tensors = load_all_tensors(path)
    state = json.loads((path / "state.json").read_text())
    change(tensors, state)
    save_checkpoint(folder, 8, tensors, state, "0" * 64, Ranks(0, 1, torch.device("cpu")))


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (lambda tensors, state: None, set()),
        (lambda tensors, state: tensors["model.head.bias"].add_(1), {"model", "state"}),
        (lambda tensors, state: tensors["optimizer.head.bias.exp_avg"].add_(1), {"state"}),
        (lambda tensors, state: state.update(best_dice=0.99), {"state"}),
    ],
    ids=["nothing", "a weight", "a moment of Adam", "the best"],
)
def test_digests_tell_what_differs(
    change: Callable[[dict, dict], None],
    differ: set[str],
    own_run: Path,
    cli: Callable[..., Any],
) -> None:
    before = shown(cli(show.main, f"run={own_run}"))
    save_changed(own_run, change)
    after = shown(cli(show.main, f"run={own_run}"))
    for part in ("model", "state"):
        assert (before[f"{part} sha256"] != after[f"{part} sha256"]) == (part in differ)


@pytest.mark.parametrize("name", ["best", "latest", "4"])
def test_a_checkpoint_is_shown_by_its_name(
    name: str, own_run: Path, cli: Callable[..., Any]
) -> None:
    lines = shown(cli(show.main, f"run={own_run}", f"checkpoint={name}"))
    pointer = own_run / "checkpoints" / name
    expected = pointer.read_text().strip() if pointer.is_file() else "step_00000004"
    assert lines["checkpoint"].endswith(expected)
    assert int(lines["step"]) == int(expected.removeprefix("step_"))


def test_a_damaged_checkpoint_is_said_to_be_and_gives_exit_code_1(
    own_run: Path, cli: Callable[..., Any]
) -> None:
    (own_run / "checkpoints" / "step_00000008" / "state.json").write_text("{}")
    outcome = cli(show.main, f"run={own_run}")
    assert outcome.code == 1
    assert re.search(r"^intact +no: state\.json has 2 bytes", outcome.out, re.M)
    assert "sha256" not in outcome.out


@pytest.mark.parametrize("given", ["checkpoint=5", "checkpoint=bset"])
def test_a_checkpoint_that_is_not_there_is_refused(
    given: str, own_run: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli(show.main, f"run={own_run}", given)
    assert outcome.code == 2
    assert "there are: latest, best, step_00000004, step_00000008" in outcome.err


def test_a_run_without_a_checkpoint_says_so(own_run: Path, cli: Callable[..., Any]) -> None:
    shutil.rmtree(own_run / "checkpoints")
    outcome = cli(show.main, f"run={own_run}")
    assert outcome.code == 2
    assert "checkpoint=latest: no checkpoint was saved yet in" in outcome.err


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, cli: Callable[..., Any]) -> None:
    outcome = cli(show.main, f"run={tmp_path}")
    assert outcome.code == 2
    assert "not a run" in outcome.err
