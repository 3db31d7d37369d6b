"""A run that is there goes on only as the run that it is."""

import dataclasses
import errno
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from common.command_line import UsageError, UserError
from data_prep.dataset.manifest import Dataset, read_dataset
from train.config import HARMLESS_KEYS, TrainConfig
from train.ranks.distributed import Ranks
from train.runs.open_run import io_errors_explained, open_run
from train.runs.run_folder import read_run
from train.runs.same_data import OtherRunError
from train.runs.same_run import config_sha256, flat_settings

CPU = torch.device("cpu")

Tiny = Callable[..., TrainConfig]


def test_a_new_run_keeps_what_it_was_told_and_trained_on(
    prepared: Dataset, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared.folder.parent)
    config = dataclasses.replace(tiny(tmp_path / "deep" / "run"), data=prepared.folder.name)
    opened, _ = open_run(config, read_dataset(Path(config.data)), CPU)
    assert opened.memory_format in ("contiguous", "channels_last")
    run = read_run(tmp_path / "deep" / "run")
    # so that evaluation finds the data set from wherever it is called
    assert run.config == dataclasses.replace(opened, data=str(prepared.folder))
    assert run.data == prepared.description
    assert run.label_values == [255]


@pytest.mark.parametrize(
    ("setting", "key", "before", "now"),
    [
        ("lr=0.5", "lr", "0.01", "0.5"),
        ("epochs=9", "epochs", "2", "9"),
        ("seed=1", "seed", "0", "1"),
        ("microbatches=2", "microbatches", "4", "2"),
        ("model.width=8", "model.width", "4", "8"),
        ("loss.dice_weight=0.5", "loss.dice_weight", "0.0", "0.5"),
        ("crop.flip=false", "crop.flip", "True", "False"),
        ("tile.overlap_px=4", "tile.overlap_px", "8", "4"),
    ],
)
def test_other_mathematics_is_refused_with_key_and_both_values(
    setting: str,
    key: str,
    before: str,
    now: str,
    prepared: Dataset,
    tiny: Tiny,
    tmp_path: Path,
) -> None:
    open_run(tiny(tmp_path), prepared, CPU)
    content = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match="another run= to start anew") as caught:
        open_run(tiny(tmp_path, setting), prepared, CPU)
    assert f"({key}: {before} -> {now})" in str(caught.value)
    assert (tmp_path / "config.yaml").read_text() == content


HARMLESS = {
    "loader_workers": "2",
    "stage": "/ssd",
    "resume": "override",
    "checkpoint": "blocking",
    "keep_every": "3",
    "rank_timeout_s": "60",
    "save_every_s": "5",
    "keep_checkpoints": "7",
    "log_every_steps": "3",
    "log_every_s": "1",
    "panels": "0",
}


@pytest.mark.parametrize("key", HARMLESS)
def test_harmless_keys_may_change_and_are_kept(
    key: str, prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    before = tiny(tmp_path)
    assert open_run(before, prepared, CPU)[1] == []
    changed = tiny(tmp_path, f"{key}={HARMLESS[key]}")
    told = [f"changed {key}: {getattr(before, key)} -> {getattr(changed, key)}"]
    assert open_run(changed, prepared, CPU)[1] == (told if key != "resume" else [])
    assert getattr(read_run(tmp_path).config, key) == getattr(changed, key)


def test_every_other_key_touches_what_is_computed() -> None:
    """A key that is added must be put on one side or the other by hand."""
    keys = set(flat_settings(TrainConfig(data="", run="")))
    assert set(HARMLESS_KEYS) == set(HARMLESS) | {"data", "run", "preset", "config"}
    assert set(HARMLESS_KEYS) < keys
    assert {"model.width", "crop.size_px", "loss.dice_weight", "tile.size_px"} < keys


def test_resume_override_takes_other_mathematics_and_tells(
    prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    open_run(tiny(tmp_path), prepared, CPU)
    config, changes = open_run(tiny(tmp_path, "lr=0.5", "resume=override"), prepared, CPU)
    assert changes == ["changed lr: 0.01 -> 0.5 (overridden)"]
    assert read_run(tmp_path).config.lr == config.lr == 0.5
    # the run has the new settings now
    assert open_run(tiny(tmp_path, "lr=0.5"), prepared, CPU)[1] == []


@pytest.mark.parametrize(
    "setting",
    ["model.width=8", "batch_size=8", "crop.per_sample=2", "optimizer=sgd", "ema=0.9"],
)
def test_what_the_state_cannot_follow_is_not_overridden(
    setting: str, prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    open_run(tiny(tmp_path), prepared, CPU)
    with pytest.raises(UserError, match=f"{setting.split('=')[0]}: .*another run= to start anew"):
        open_run(tiny(tmp_path, setting, "lr=0.5", "resume=override"), prepared, CPU)


def test_an_average_may_be_of_other_steps_but_not_end(
    prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    open_run(tiny(tmp_path, "ema=0.9"), prepared, CPU)
    with pytest.raises(UserError, match=r"ema: 0\.9 -> 0\.0\); give those it has, or another run="):
        open_run(tiny(tmp_path, "resume=override"), prepared, CPU)
    _, changes = open_run(tiny(tmp_path, "ema=0.99", "resume=override"), prepared, CPU)
    assert changes == ["changed ema: 0.9 -> 0.99 (overridden)"]


def test_a_run_keeps_the_length_of_its_schedule(
    prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    """Two epochs, of a run that is to have four; config.yaml of a new run leaves it to epochs, for
    it may be the config= of a longer one."""
    opened, _ = open_run(tiny(tmp_path), prepared, CPU)
    assert (opened.schedule_epochs, opened.scheduled_epochs) == ("auto", 2)
    longer, changes = open_run(tiny(tmp_path, "epochs=4", "resume=override"), prepared, CPU)
    assert changes == ["changed epochs: 2 -> 4 (overridden)"]
    assert longer.scheduled_epochs == read_run(tmp_path).config.schedule_epochs == 2
    again, changes = open_run(tiny(tmp_path, "epochs=4"), prepared, CPU)
    assert (again.scheduled_epochs, changes) == (2, [])
    given = ("epochs=4", "schedule_epochs=4")
    with pytest.raises(OtherRunError, match=r"\(schedule_epochs: 2 -> 4\)") as refused:
        open_run(tiny(tmp_path, *given), prepared, CPU)
    for settings in refused.value.accepted(given):
        taken, _ = open_run(tiny(tmp_path, *settings), prepared, CPU)
    assert (taken.schedule_epochs, taken.scheduled_epochs) == ("auto", 4)  # the last overrides


def test_the_hash_of_the_settings_is_of_the_mathematics(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(tmp_path)
    assert config_sha256(config) == config_sha256(
        tiny(tmp_path / "x", "panels=0", "resume=override")
    )
    assert config_sha256(config) != config_sha256(tiny(tmp_path, "crop.flip=false"))


def test_the_same_folder_of_data_by_another_path_is_no_change(
    prepared: Dataset, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run(tiny(tmp_path), prepared, CPU)
    monkeypatch.chdir(prepared.folder.parent)
    again = dataclasses.replace(tiny(tmp_path), data=prepared.folder.name)
    assert open_run(again, prepared, CPU)[1] == []
    monkeypatch.chdir(tmp_path)
    (told,) = open_run(again, prepared, CPU)[1]
    assert told == f"changed data: {prepared.folder} -> {prepared.folder.name}"


def test_of_other_settings_it_is_said_whether_anything_would_be_lost(
    prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    open_run(tiny(tmp_path), prepared, CPU)
    for setting in ("lr=0.5", "model.width=8"):
        with pytest.raises(
            UserError, match=r"\(nothing is saved in this one: it can be removed\)$"
        ):
            open_run(tiny(tmp_path, setting), prepared, CPU)
    (tmp_path / "checkpoints/step_00000004").mkdir(parents=True)
    for setting in ("lr=0.5", "model.width=8"):
        with pytest.raises(UserError, match=r"another run= to start anew$"):
            open_run(tiny(tmp_path, setting), prepared, CPU)


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        (["lr=0.5", "seed=1"], [["lr=0.01", "seed=0"], ["lr=0.5", "seed=1", "resume=override"]]),
        (["train.lr=0.5"], [["train.lr=0.01"], ["train.lr=0.5", "resume=override"]]),
        (["model.width=8", "panels=0"], [["model.width=4", "panels=0"]]),
    ],
)
def test_a_refusal_holds_settings_that_are_accepted(
    given: list[str], accepted: list[list[str]], prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    open_run(tiny(tmp_path), prepared, CPU)
    with pytest.raises(OtherRunError) as refused:
        open_run(tiny(tmp_path, *(each.removeprefix("train.") for each in given)), prepared, CPU)
    error = pickle.loads(pickle.dumps(refused.value))  # as it goes to the other ranks
    assert error.accepted(given) == accepted
    for settings in accepted:
        taken = tiny(tmp_path, *(each.removeprefix("train.") for each in settings))
        assert open_run(taken, prepared, CPU)


@pytest.mark.parametrize("is_saved", [True, False])
def test_an_error_of_the_disk_speaks_of_checkpoints_where_there_are(
    is_saved: bool, tmp_path: Path
) -> None:
    if is_saved:
        (tmp_path / "checkpoints/step_00000004").mkdir(parents=True)
    end = "the same command again" + ": the last checkpoint is whole" * is_saved
    expected = pytest.raises(UserError, match=f"left on device; mend that and run {end}$")
    with expected, io_errors_explained(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_same_data_elsewhere_passes_and_other_data_is_refused(
    prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    open_run(tiny(run), prepared, CPU)
    moved = read_dataset(Path(shutil.copytree(prepared.folder, tmp_path / "moved")))
    open_run(dataclasses.replace(tiny(run), data=str(moved.folder)), moved, CPU)
    assert read_run(run).config.data == str(tmp_path / "moved")

    sha256 = "0123456789abcdef" * 4
    description = dataclasses.replace(prepared.description, content_sha256=sha256)
    with pytest.raises(UserError, match=r"data: the images or annotations .* -> 0123456789ab"):
        open_run(tiny(run), dataclasses.replace(prepared, description=description), CPU)


def test_a_folder_of_something_else_is_refused_and_left_alone(
    prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="holds files that are not a run's"):
        open_run(tiny(tmp_path), prepared, CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["config.yaml", "dataset.json"])
def test_a_file_of_the_users_that_a_run_has_too_is_left_alone(
    name: str, prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    """As config.yaml of another project, or the one that was given as config=."""
    (tmp_path / name).write_text("epochs: 3\n")
    with pytest.raises(UserError, match=r"holds files that are not|in the way.*: dataset\.json"):
        open_run(tiny(tmp_path), prepared, CPU)
    assert (tmp_path / name).read_text() == "epochs: 3\n"
    assert {path.name for path in tmp_path.iterdir()} <= {name, ".eosin"}


def test_a_config_that_somebody_has_changed_is_not_replaced(
    prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    open_run(tiny(tmp_path), prepared, CPU)
    config = tmp_path / "config.yaml"
    open_run(tiny(tmp_path, "log_every_steps=7"), prepared, CPU)
    assert "log_every_steps: 7" in config.read_text()
    config.write_text(config.read_text() + "# my notes\n")
    before = config.read_text()
    with pytest.raises(UserError, match=r"in the way.*: config\.yaml; .*, or name another run="):
        open_run(tiny(tmp_path, "log_every_steps=7"), prepared, CPU)
    assert config.read_text() == before


@pytest.mark.parametrize("is_new", [True, False])
def test_a_kill_while_a_run_is_opened_does_not_end_it(
    is_new: bool,
    prepared: Dataset,
    tiny: Tiny,
    tmp_path: Path,
    kills: Callable[..., Iterator[Path]],
) -> None:
    """Promise 3: the same command again goes on."""
    before = tmp_path / "before"
    before.mkdir()
    if not is_new:
        open_run(tiny(before), prepared, CPU)
    for folder in kills(before, lambda folder: open_run(tiny(folder), prepared, CPU)):
        open_run(tiny(folder), prepared, CPU)
        assert read_run(folder).data == prepared.description


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "config.yaml").unlink(), "not a run"),
        (
            lambda run: (run / "config.yaml").write_text("epochs: many"),
            "config.yaml: epochs: expected a whole number",
        ),
        (lambda run: (run / "config.yaml").write_text("{"), "config.yaml"),
        (lambda run: (run / "dataset.json").unlink(), "dataset.json: missing or damaged"),
        (lambda run: (run / "dataset.json").write_text("{"), "dataset.json: missing or damaged"),
        (
            lambda run: edit(run / "dataset.json", format=9),
            "dataset.json: format 9; .*: use the version of Eosin that",
        ),
    ],
)
def test_a_damaged_run_folder_is_named(
    damage: Callable[[Path], object], words: str, own_run: Path
) -> None:
    damage(own_run)
    with pytest.raises(UserError, match=words):
        read_run(own_run)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["latest", "best", "4"])
def test_a_model_is_loaded_from_its_checkpoint(
    name: str, own_run: Path, ranks: Callable[[], Ranks]
) -> None:
    model, path, state = read_run(own_run).load_model(name, ranks())
    assert path.name == f"step_{state['step']:08d}"
    again, _, _ = read_run(own_run).load_model(str(state["step"]), ranks())
    other, _, _ = read_run(own_run).load_model("4" if state["step"] == 8 else "8", ranks())
    image_BCHW = torch.rand(1, 3, 16, 16)
    expected = model.eval()(image_BCHW)
    assert torch.equal(again.eval()(image_BCHW), expected)
    assert not torch.equal(other.eval()(image_BCHW), expected)


@pytest.mark.parametrize("begun", ["fp16", "bf16", "off"])
def test_auto_means_what_the_run_began_with(
    begun: str, prepared: Dataset, tiny: Tiny, tmp_path: Path
) -> None:
    """Brought back on other hardware, auto must not change the arithmetic in silence."""
    open_run(tiny(tmp_path, f"amp={begun}"), prepared, CPU)
    assert open_run(tiny(tmp_path, "amp=auto"), prepared, CPU)[0].amp == begun
