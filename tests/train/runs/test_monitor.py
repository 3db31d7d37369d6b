"""What a run tells, with every step told once however often the run was cut off."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.images.class_colours import colour_of, legend
from tests.train.curves import read_curve
from train.runs.history import read_metrics, read_training
from train.runs.monitor import (
    Done,
    Monitor,
    drop_lines_after,
    panel_strip,
)


def open_monitor(
    run: Path,
    first_step: int,
    epochs: int = 0,
    every_s: float = 1e9,
    enabled: bool = True,
    is_validated: bool = True,
) -> Monitor:
    """A monitor whose event file sorts after those of the starts before it, as time makes it."""
    events = list(run.glob("tensorboard/*"))
    for number, file in enumerate(sorted(events)):
        file.rename(file.with_name(f"events.out.tfevents.{number:010d}.earlier"))
    return Monitor(run, Done(first_step, epochs, is_validated), 12, every_s, enabled)


def train(monitor: Monitor, first_step: int, last_step: int, mark: float) -> None:
    """Steps of a run with a point of the curves each, and an evaluation each fourth."""
    for step in range(first_step + 1, last_step + 1):
        monitor.step()
        monitor.curves(step, (step - 1) // 4, {"train/loss": step + mark})
        if step % 4 == 0:
            monitor.validation(step, step // 4, {"val/dice": step + mark})
            monitor.panels(step, [("panels/a", np.full((4, 6, 3), step, np.uint8))])


@pytest.fixture
def resumed(tmp_path: Path) -> Path:
    """A run killed at step 10 and resumed from the checkpoint of step 6, to step 12."""
    monitor = open_monitor(tmp_path, 0)
    train(monitor, 0, 10, mark=0)
    monitor.close()
    monitor = open_monitor(tmp_path, 6, epochs=1)
    train(monitor, 6, 12, mark=0.5)
    monitor.close()
    return tmp_path


def test_curves_show_each_step_once_after_a_resume(resumed: Path) -> None:
    expected = [(step, step + 0.5 * (step > 6)) for step in range(1, 13)]
    assert read_curve(resumed, "train/loss") == expected
    assert read_curve(resumed, "val/dice") == [(4, 4.0), (8, 8.5), (12, 12.5)]


def test_panels_show_each_step_once_after_a_resume(resumed: Path) -> None:
    events = EventAccumulator(str(resumed / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("panels/a")] == [4, 8, 12]


def test_metrics_have_a_line_an_evaluation_after_a_resume(resumed: Path) -> None:
    assert read_metrics(resumed) == [
        {"step": 4, "epoch": 1, "val/dice": 4.0},
        {"step": 8, "epoch": 2, "val/dice": 8.5},
        {"step": 12, "epoch": 3, "val/dice": 12.5},
    ]


@pytest.fixture
def told_again(tmp_path: Path) -> Path:
    """Stopped at an epoch's last step; resumed, validated, killed before that was saved; again."""
    for _ in range(2):
        monitor = open_monitor(tmp_path, 4, is_validated=False)
        monitor.validation(4, 1, {"val/dice": 0.5})
        monitor.close()
    return tmp_path


def test_an_evaluation_that_was_not_saved_has_one_line(told_again: Path) -> None:
    assert [line["step"] for line in read_metrics(told_again)] == [4]


def test_an_evaluation_that_was_not_saved_has_one_point(told_again: Path) -> None:
    assert [step for step, _ in read_curve(told_again, "val/dice")] == [4]


def test_a_restart_is_said_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, note in ((0, ""), (4, "resumed from step 4"), (6, "resumed from step 6")):
        monitor = open_monitor(tmp_path, step)
        monitor.resumed(step, [note] if note else [])
        monitor.close()
    assert capsys.readouterr().out == "resumed from step 4\nresumed from step 6\n"
    assert read_curve(tmp_path, "run/restarts") == [(4, 1), (6, 2)]


LINES = [json.dumps({"step": step, "epoch": step // 4}) + "\n" for step in (4, 8)]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for cut in range(2, len(LINES[1])):
        path.write_text(LINES[0] + LINES[1][:-cut])
        drop_lines_after(path, "epoch", 2)
        assert path.read_text() == LINES[0], cut


def test_before_the_first_evaluation_there_is_nothing_to_read_or_drop(tmp_path: Path) -> None:
    drop_lines_after(tmp_path / "metrics.jsonl", "epoch", 1)
    assert read_metrics(tmp_path) == []


def test_memory_is_among_the_curves(resumed: Path) -> None:
    steps, values = zip(*read_curve(resumed, "memory/process_mb"), strict=True)
    assert steps == tuple(range(1, 13))
    assert all(50 < value < 1e6 for value in values)


def test_the_training_curves_have_a_line_a_point_after_a_resume(
    resumed: Path, tmp_path: Path
) -> None:
    lines = read_training(resumed)
    assert [(line["step"], line["train/loss"]) for line in lines] == read_curve(
        resumed, "train/loss"
    )
    assert [line["memory/process_mb"] > 50 for line in lines] == [True] * 12
    assert read_training(tmp_path / "none") == []


def test_the_configuration_is_in_tensorboard(tmp_path: Path) -> None:
    monitor = open_monitor(tmp_path, 0)
    monitor.text("config", "lr: 0.01")
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("config/text_summary")
    assert b"lr: 0.01" in event.tensor_proto.string_val[0]


@pytest.mark.parametrize(("every_s", "num_lines"), [(0, 3), (1e9, 0)])
def test_a_log_gets_a_line_an_interval(
    every_s: float, num_lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = open_monitor(tmp_path, 0, every_s=every_s)
    train(monitor, 0, 3, mark=0)
    monitor.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == num_lines
    assert not lines or lines[-1].startswith("step 3 of 12 (epoch 1) loss 3")


def test_an_evaluation_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = open_monitor(tmp_path, 0)
    monitor.validation(8, 2, {"val/dice": 0.25})
    assert capsys.readouterr().out == "epoch 2 (step 8): val/dice 0.2500\n"
    monitor.close()


def test_a_terminal_gets_a_bar_in_place_of_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monitor = open_monitor(tmp_path, 6, every_s=0)
    train(monitor, 6, 7, mark=0)
    monitor.close()
    shown = capsys.readouterr()
    assert "7/12" in shown.err
    assert "step 7 of" not in shown.out


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = open_monitor(tmp_path, 0, every_s=0, enabled=False)
    monitor.say("hello")
    monitor.text("config", "x")
    train(monitor, 0, 4, mark=0)
    monitor.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_lines_of_a_log_are_seen_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Callable] = []
    monkeypatch.setattr(sys.stdout, "flush", lambda: flushed.append(1))
    monitor = open_monitor(tmp_path, 0)
    monitor.say("resumed")
    monitor.close()
    assert flushed


def test_a_strip_has_input_truth_and_prediction_side_by_side() -> None:
    image_HWC = np.full((80, 120, 3), (10, 20, 30), np.uint8)
    truth_HW, predicted_HW = np.zeros((2, 80, 120), np.uint8)
    truth_HW[:, :60], predicted_HW[:40] = 1, 1
    strip = panel_strip(image_HWC, truth_HW, predicted_HW, ["tumor"], height_px=40)
    assert (strip.shape, strip.dtype) == ((40, 3 * 60, 3), np.uint8)
    assert (strip[:, :60] == (10, 20, 30)).all()
    assert (strip[:, 60:90] == 255).all()
    assert (strip[:, 90:120] == 0).all()
    assert (strip[:20, 120:] == 255).all()
    assert (strip[20:, 120:] == 0).all()


def test_a_strip_of_several_classes_has_a_colour_for_each_and_a_legend() -> None:
    """The truth is the first class on the left; the prediction takes it for the second."""
    image_HWC = np.full((80, 120, 3), (10, 20, 30), np.uint8)
    truth_HW = np.repeat([[1, 0]], [60, 60], axis=1) * np.ones((80, 1), np.uint8)
    names = ["tumor", "lumen"]
    strip = panel_strip(image_HWC, truth_HW, 2 * truth_HW, names, height_px=40)
    assert (strip[:40, 60:90] == colour_of(0)).all()
    assert (strip[:40, 120:150] == colour_of(1)).all()
    assert (strip[:40, 90:120] == 0).all()
    assert (strip[40:] == legend(180, names)).all()
    assert len(strip) > 40
