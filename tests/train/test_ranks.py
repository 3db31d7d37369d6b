"""Promises 3, 4 and 6 with real processes: kills, signals, and other numbers of ranks."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from common.command_line import EXIT_STOPPED
from tests import ranks
from tests.faults.training import digests
from tests.forked_ranks import ForkedRanks
from tests.train.curves import read_curve
from train.ranks.tree import portions

SETTINGS = (
    "epochs=3",
    "batch_size=4",
    "microbatches=4",
    "lr=0.01",
    "save_every_s=0",
    "crop.size_px=64",
    "model.width=4",
    "model.depth=2",
    "tile.size_px=96",
    "tile.overlap_px=16",
    "amp=off",
)
TRAIN = "train.__main__"
STEPS_PER_EPOCH = 4  # 4 training fields with 4 variants each, by 4


Start = Callable[..., ForkedRanks]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """start("train.__main__", "epochs=3", ranks=2) starts ranks without torchrun, in a moment."""

    def start_ranks(command: str, *arguments: str, ranks: int = 1) -> ForkedRanks:
        log = tmp_path_factory.mktemp("logs") / "ranks.log"
        return ForkedRanks(command, arguments, ranks, log)

    return start_ranks


@pytest.fixture(scope="module")
def prepared(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases 1 and 2 for training, 3 and 4 for validation; two fields each."""
    folder = tmp_path_factory.mktemp("data")
    drawn = ["fields=2", "cases=4", "width_px=200", "height_px=192"]
    start("data_prep.synthetic", f"out={folder / 'raw'}", *drawn).finish()
    split = ["split.val_cases=[3,4]", "split.test=0", "copies=4", "workers=1"]
    start(
        "data_prep.__main__", f"raw={folder / 'raw'}", f"out={folder / 'prepared'}", *split
    ).finish()
    return folder / "prepared"


@pytest.fixture(scope="module")
def uninterrupted(start: Start, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    start(TRAIN, f"data={prepared}", f"run={folder}", *SETTINGS, ranks=2).finish()
    return folder


def latest_step(run: Path) -> int:
    """The step of the newest published checkpoint; 0 for none."""
    pointer = run / "checkpoints" / "latest"
    return int(pointer.read_text().removeprefix("step_")) if pointer.is_file() else 0


def is_in_mid_epoch(run: Path) -> bool:
    """Whether there is a checkpoint that is not of an epoch's end."""
    return latest_step(run) % STEPS_PER_EPOCH in (1, 2)


def test_a_killed_rank_under_torchrun_costs_no_bit(
    prepared: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Promises 3 and 4: kill -9 in mid-epoch, the same command again, the same final weights."""
    run = tmp_path / "killed"
    command = ("train", f"data={prepared}", f"run={run}", *SETTINGS)
    process = ranks.start(*command, ranks=2)
    ranks.wait_for(lambda: is_in_mid_epoch(run), process)
    os.kill(ranks.rank_pid(process, 1), signal.SIGKILL)
    code, _ = ranks.finish(process)
    assert code != 0
    killed_at = latest_step(run)
    assert killed_at < 3 * STEPS_PER_EPOCH

    output = ranks.run(*command, ranks=2)
    assert f"resumed from step_{killed_at:08d}" in output
    assert digests(run) == digests(uninterrupted)


def test_a_finished_run_says_so(start: Start, prepared: Path, uninterrupted: Path) -> None:
    output = start(TRAIN, f"data={prepared}", f"run={uninterrupted}", *SETTINGS, ranks=2).finish()
    assert "is finished: 3 epochs, 12 steps" in output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_to_one_rank_stops_all_at_one_step(
    signum: int, start: Start, prepared: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Promise 3: every rank finishes its step, all save, and nothing is lost.

    The signal goes to rank 1 alone: rank 0, which writes, must learn of it from the ranks.
    """
    run = tmp_path / "stopped"
    command = (TRAIN, f"data={prepared}", f"run={run}", *SETTINGS, "save_every_s=600")
    launch = start(*command, ranks=2)
    launch.wait_for(lambda: latest_step(run) >= STEPS_PER_EPOCH)
    launch.send(1, signum)
    assert launch.end(patience_s=20) == [EXIT_STOPPED] * 2
    told = f"stopped by {signal.Signals(signum).name} at step {latest_step(run)}, saved"
    assert told in launch.output
    start(*command, ranks=2).finish()
    assert digests(run) == digests(uninterrupted)


def test_a_signal_to_the_whole_process_group_leaves_loader_workers_alive(
    prepared: Path, tmp_path: Path
) -> None:
    """As from `timeout` or Slurm: the last step still needs the workers' crops.

    SIGTERM, which would end a worker; of SIGINT it has inherited the training's own handler.
    """
    run = tmp_path / "run"
    settings = (*SETTINGS, "epochs=1000", "save_every_s=600", "loader_workers=1")
    process = ranks.start("train", f"data={prepared}", f"run={run}", *settings)
    ranks.wait_for(lambda: latest_step(run) >= STEPS_PER_EPOCH, process)
    os.killpg(process.pid, signal.SIGTERM)
    code, output = ranks.finish(process)
    assert code == EXIT_STOPPED, output
    assert f"stopped by SIGTERM at step {latest_step(run)}, saved" in output
    assert "Traceback" not in output


def test_more_loader_workers_than_cores_are_the_users_choice(
    start: Start, prepared: Path, tmp_path: Path
) -> None:
    """torch would warn in five lines, twice."""
    workers = f"loader_workers={len(os.sched_getaffinity(0)) + 1}"
    command = (TRAIN, f"data={prepared}", f"run={tmp_path / 'run'}", *SETTINGS)
    output = start(*command, "epochs=1", workers).finish()
    assert "finished: 1 epoch" in output
    assert "Warning" not in output


def test_metrics_do_not_depend_on_the_number_of_ranks(
    start: Start, uninterrupted: Path, tmp_path: Path
) -> None:
    """Promise 6: 3 ranks equal 1, to the byte, though 3 do not divide the 4 fields."""
    summaries, reports = [], []
    for number in (1, 3):
        out = tmp_path / str(number)
        settings = [f"run={uninterrupted}", "split=val", f"out={out}", "amp=off", "figures=1"]
        start("train.evaluate", *settings, ranks=number).finish()
        summaries.append((out / "summary.json").read_bytes())
        reports.append((out / "report.html").read_bytes())
    assert summaries[0] == summaries[1]
    assert reports[0] == reports[1]
    summary = json.loads(summaries[0])
    assert summary["num_fields"] == 4
    assert summary["threshold"]["chosen_on"] == "val"
    assert summary["detection"]["annotated"] > 0


def test_the_bits_do_not_depend_on_the_number_of_ranks(
    start: Start, prepared: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Promise 4: killed on 4 ranks, stopped on 3, ended on 1, as if nothing had happened.

    microbatches=auto: the run keeps the 4 that it began with.
    """
    run = tmp_path / "elastic"
    settings = [setting for setting in SETTINGS if setting != "microbatches=4"]
    command = (TRAIN, f"data={prepared}", f"run={run}", *settings)
    launch = start(*command, ranks=4)
    launch.wait_for(lambda: is_in_mid_epoch(run))
    launch.send(3, signal.SIGKILL)
    launch.end()

    killed_at = latest_step(run)
    launch = start(*command, ranks=3)
    launch.wait_for(lambda: latest_step(run) > killed_at)
    launch.send(0, signal.SIGTERM)
    assert launch.end(patience_s=20) == [EXIT_STOPPED] * 3, launch.output
    assert latest_step(run) < 3 * STEPS_PER_EPOCH

    start(*command).finish()
    assert digests(run) == digests(uninterrupted)


@pytest.mark.parametrize(("microbatches", "num_ranks"), [(8, 3), (6, 2)])
def test_ranks_of_several_subtrees_come_to_the_bits_of_one(
    microbatches: int, num_ranks: int, start: Start, prepared: Path, tmp_path: Path
) -> None:
    """Weights, optimizer, batch normalisation, metrics and the points of the training curves.

    No division of these is into one subtree a rank.
    """
    assert max(len(each.subtrees) for each in portions(microbatches, num_ranks)) > 1
    batch = [f"batch_size={microbatches}", f"microbatches={microbatches}"]
    more = ["epochs=2", "log_every_steps=1", "save_every_s=600", "model.dropout=0.2"]
    ends = []
    for number in (1, num_ranks):
        run = tmp_path / str(number)
        command = (TRAIN, f"data={prepared}", f"run={run}", *SETTINGS, *batch, *more)
        start(*command, ranks=number).finish()
        losses = read_curve(run, "train/loss")
        assert len(losses) == 2 * (16 // microbatches)
        ends.append((digests(run), losses, (run / "metrics.jsonl").read_text()))
    assert ends[0] == ends[1]


OPTIONS = [
    ("optimizer=adamw", "weight_decay=0.1", "clip_norm=0.05", "ema=0.9", "schedule=poly"),
    ("optimizer=sgd", "lr=0.1", "weight_decay=0.01", "clip_norm=0.01", "ema=0.99"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_of_a_step_keeps_the_bits_on_other_ranks_and_after_a_kill(
    options: tuple[str, ...], start: Start, prepared: Path, tmp_path: Path
) -> None:
    """Promise 4: killed on 4 ranks, ended on 2, as on one rank that nothing happened to.

    The norm of a gradient, that a step is clipped by, is added up on every rank by itself; and what
    is averaged is saved.
    """
    runs = tmp_path / "straight", tmp_path / "killed"
    straight, killed = (
        (TRAIN, f"data={prepared}", f"run={run}", *SETTINGS, *options) for run in runs
    )
    start(*straight).finish()
    launch = start(*killed, ranks=4)
    launch.wait_for(lambda: is_in_mid_epoch(runs[1]))
    launch.send(3, signal.SIGKILL)
    launch.end()
    assert 0 < latest_step(runs[1]) < 3 * STEPS_PER_EPOCH
    start(*killed, ranks=2).finish()
    assert digests(runs[1]) == digests(runs[0])
    assert (runs[1] / "metrics.jsonl").read_text() == (runs[0] / "metrics.jsonl").read_text()


def test_ignored_pixels_keep_the_bits_on_other_ranks_and_after_a_kill(
    start: Start, prepared: Path, tmp_path: Path
) -> None:
    """Promise 4 where the loss is over valid pixels, whose number is the batch's of all ranks.

    DDP's own sums come to the same but for rounding.
    """
    raw, data = prepared.parent / "raw", tmp_path / "prepared"
    split = ["split.val_cases=[3,4]", "split.test=0", "copies=4", "workers=1"]
    start("data_prep.__main__", f"raw={raw}", f"out={data}", "ignore_px=9", *split).finish()
    more = ("epochs=2", "loss.dice_weight=0.5", "log_every_steps=1")
    settings = (f"data={data}", *SETTINGS, *more)
    runs = [tmp_path / name for name in ("straight", "killed", "own_sums")]
    start(TRAIN, *settings, f"run={runs[0]}").finish()
    killed = (TRAIN, *settings, f"run={runs[1]}")
    launch = start(*killed, ranks=4)
    launch.wait_for(lambda: is_in_mid_epoch(runs[1]))
    launch.send(3, signal.SIGKILL)
    launch.end()
    start(*killed, ranks=2).finish()
    assert digests(runs[1]) == digests(runs[0])
    assert (runs[1] / "metrics.jsonl").read_text() == (runs[0] / "metrics.jsonl").read_text()

    own = (TRAIN, *settings, f"run={runs[2]}", "epochs=1", "reproducible=off")
    start(*own, ranks=2).finish()
    tree, of_ddp = (
        [loss for _, loss in read_curve(run, "train/loss")][:STEPS_PER_EPOCH]
        for run in (runs[0], runs[2])
    )
    assert of_ddp == pytest.approx(tree, rel=1e-3)


def test_ddps_own_sums_are_the_same_but_for_rounding(
    start: Start, prepared: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    reference = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").open()]
    run = tmp_path / "three"
    settings = (f"data={prepared}", f"run={run}", *SETTINGS, "reproducible=off")
    start(TRAIN, *settings, ranks=3).finish()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["step"] for line in metrics] == [4, 8, 12]
    for line, expected in zip(metrics, reference, strict=True):
        # Adam turns roundings of small gradients into steps, and later steps rest on those
        near = 1e-3 if line["step"] == STEPS_PER_EPOCH else 5e-3
        assert line["val/loss"] == pytest.approx(expected["val/loss"], rel=near)


def test_a_run_says_that_it_waits_for_data_whichever_rank_does(
    start: Start, prepared: Path, tmp_path: Path
) -> None:
    """Rank 0, which says so, has its crops in time: it stands still in the sum of the gradients."""
    run = tmp_path / "run"
    command = ("tests.train.slow_rank", f"data={prepared}", f"run={run}", *SETTINGS)
    output = start(*command, "epochs=1", "log_every_steps=1", ranks=2).finish()
    assert "waits for data" in output
    _, *shares = [share for _, share in read_curve(run, "speed/data_wait_share")]
    assert len(shares) == STEPS_PER_EPOCH - 1
    # The loader hands over several microbatches at once, so not every step waits
    assert 0.5 < max(shares) <= 1


def test_too_many_ranks_are_refused(start: Start, prepared: Path, tmp_path: Path) -> None:
    """A rank without a microbatch would wait for nothing; the message has commands that work."""
    command = (TRAIN, f"data={prepared}", f"run={tmp_path / 'run'}", *SETTINGS, "microbatches=2")
    launch = start(*command, ranks=3)
    assert any(launch.end(patience_s=20))
    assert "3 ranks, but microbatches=2" in launch.output
    assert f"  torchrun --nproc-per-node 2 -m train data={prepared}" in launch.output


def test_as_many_ranks_as_are_asked_for(start: Start, prepared: Path, tmp_path: Path) -> None:
    """8 ranks without a word on the batch: 8 crops, one per rank, and how each gets more."""
    run = tmp_path / "run"
    settings = [s for s in SETTINGS if not s.startswith(("batch_size", "microbatches", "epochs"))]
    command = (TRAIN, f"data={prepared}", f"run={run}", *settings, "epochs=1")
    output = start(*command, ranks=8).finish()
    assert "8 crops a step in 8 microbatches, 1 per rank" in output
    assert "batch_per_rank=8 lr_scale=sqrt gives each rank 8" in output
    config = (run / "config.yaml").read_text()
    assert "\nbatch_size: 8\n" in config
    assert "\nmicrobatches: 8\n" in config
    assert "is finished" in start(*command).finish()
