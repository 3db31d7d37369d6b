"""Runs on a real Slurm: preempted, out of time, cancelled, hit by crashes and a lost node."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ranks
from tests.launch.cluster import Cluster, events, restarts, step, why_not

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a Slurm"),
    pytest.mark.timeout(600),
]

PREPARE = ("copies=4", "split.val_cases=[3,4]", "split.test=0")
TRAIN = (
    "batch_size=4",
    "microbatches=4",
    "lr=0.01",
    "log_every_steps=1",
    "crop.size_px=64",
    "model.width=4",
    "model.depth=2",
    "tile.size_px=96",
    "tile.overlap_px=16",
    "train.amp=off",
    "panels=0",
)
NUM_EPOCHS, STEPS_PER_EPOCH = 12, 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of four pretend nodes; up is tried twice, as a contributor would."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "dev")
    for _ in range(2):
        done = cluster.manage("up")
        assert done.returncode == 0, done.stdout + done.stderr
    yield cluster
    cluster.manage("down")
    assert "down" in cluster.manage("status").stderr


@pytest.fixture(autouse=True)
def no_jobs_left(cluster: Cluster) -> Iterator[None]:
    """A test that fails takes its jobs with it, and not the tests after it."""
    yield
    cluster.call("scancel", "--user=root")
    cluster.wait_until_empty()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases of two fields."""
    folder = tmp_path_factory.mktemp("raw") / "raw"
    size = ["fields=2", "cases=4", "width_px=200", "height_px=192"]
    ranks.run("data_prep.synthetic", f"out={folder}", *size)
    return folder


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on one process of this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data, run = folder / "prepared", folder / "run"
    ranks.run("data_prep", f"raw={raw}", f"out={data}", *PREPARE)
    settings = [setting.removeprefix("train.") for setting in TRAIN]
    ranks.run("train", f"data={data}", f"run={run}", f"epochs={NUM_EPOCHS}", *settings)
    return run


def digests(run: Path) -> list[str]:
    """Step and digests of the newest checkpoint."""
    shown = ranks.run("train.show", f"run={run}").splitlines()
    return [line for line in shown if line.startswith(("step", "model", "state"))]


def test_a_chain_preempted_twice_loses_no_step(
    cluster: Cluster, raw: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """2 nodes x 2 ranks, preempted in training and again as it starts: the bits of an undisturbed.

    Unlike Slurm's own rule, which counts a job that saved and left in time as done.
    """
    run = tmp_path / "run"
    asked = ("--nodes", "2", "--gpus-per-node", "pretend:2", "--mem-gb", "1.5")
    settings = (f"raw={raw}", *PREPARE, *TRAIN, f"epochs={NUM_EPOCHS}", "evaluate.split=val")
    chain = cluster.submit(run, *asked, *settings)
    assert list(chain) == ["prepare", "join", "train", "evaluate"]
    printed = cluster.call_submit("--dry-run", *asked, *settings, f"run={run}")
    assert queued_scripts(run, chain) == printed_scripts(printed, chain)
    job = chain["train"]
    cluster.wait(lambda: step(run) >= 5, "training is under way", run)
    cluster.preempt(job, run)
    (first,) = events(run, "requeued")
    assert (first["stage"], first["reason"]) == ("train", "preempted")
    assert first["step"] >= 5

    cluster.preempt(job, run)  # as it starts again: before its first step, most likely
    assert "2" in cluster.jobs("status", str(run)).splitlines()[5].split()

    evaluation = run / "evaluation" / "val" / "summary.json"
    cluster.wait(evaluation.is_file, "the chain ends", run)
    assert digests(run) == digests(undisturbed)
    # no step was lost: training went on exactly where it was when it was told to go
    saved = [event["step"] for event in events(run, "requeued")]
    assert set(restarts(run)) <= set(saved)
    assert json.loads(evaluation.read_text())["num_fields"] == 4
    status = cluster.jobs("status", str(run))
    assert "train requeued at step" in status
    assert f"step {NUM_EPOCHS * STEPS_PER_EPOCH} of {NUM_EPOCHS * STEPS_PER_EPOCH}" in status
    assert "resumed from step_" in cluster.jobs("logs", str(run), "--stage", "train")


def queued_scripts(run: Path, chain: dict[str, str]) -> dict[str, str]:
    """Label -> the script that was queued, without the time of its snapshot."""
    jobs = run / "launch" / "jobs"
    texts = {label: (jobs / job / f"{job}_submission.sh") for label, job in chain.items()}
    return {
        label: re.sub(r"code-[\d-]+", "code", path.read_text()) for label, path in texts.items()
    }


def printed_scripts(text: str, chain: dict[str, str]) -> dict[str, str]:
    """The same of what --dry-run printed, with the ids that the jobs were given."""
    text = re.sub(r"'afterok:<id of (\w+)>'", lambda match: f"afterok:{chain[match[1]]}", text)
    text = re.sub(r"code-[\d-]+", "code", text)
    parts = re.findall(r"^##### (\w+)\n(.*?)\n# The stage in each task", text, re.DOTALL | re.M)
    return dict(parts)


def test_the_time_limit_brings_back_and_scancel_does_not(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGUSR2 ahead of the limit: saved and requeued. scancel: saved, and it stays cancelled."""
    run = tmp_path / "run"
    data = undisturbed.parent / "prepared"
    # Slurm may send the signal a minute early: between 20 s and 80 s after the start
    limits = ("--stages", "train", "--time-min", "2", "--signal-lead-s", "40")
    job = cluster.submit(run, *limits, f"data={data}", *TRAIN, "epochs=2000")["train"]
    cluster.wait(lambda: events(run, "requeued"), "the limit is near", run)
    (requeued,) = events(run, "requeued")
    assert requeued["reason"] == "time limit"
    assert requeued["step"] > 0
    cluster.start_now(job, run)
    cluster.wait(lambda: restarts(run), "it goes on", run)
    assert restarts(run) == [requeued["step"]]

    cluster.wait(lambda: step(run) > requeued["step"], "it gets further", run)
    cluster.jobs("cancel", str(run))
    cluster.wait(lambda: cluster.state(job) == "CANCELLED", "it is cancelled", run)
    cluster.wait(lambda: events(run, "stopped"), "it has saved", run)
    assert len(events(run, "requeued")) == 1
    assert events(run, "stopped")[-1]["step"] > requeued["step"]


def test_by_hand_without_submitit(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """slurm/train.sbatch, as its first lines say, comes back after preemption too."""
    run, log = tmp_path / "run", tmp_path / "log"
    variables = f"ALL,DATA={undisturbed.parent / 'prepared'},RUN={run}"
    settings = [setting.removeprefix("train.") for setting in TRAIN]
    job = cluster.call(
        "sbatch", "--parsable", "--partition=low", "--cpus-per-task=1", f"--output={log}",
        f"--export={variables}", "slurm/train.sbatch", *settings, f"epochs={NUM_EPOCHS}",
    ).strip()  # fmt: skip
    cluster.wait(lambda: step(run) >= 5, "training is under way", run)
    cluster.preempt(job, run)
    cluster.wait(lambda: cluster.state(job) == "COMPLETED", "it ends", run)
    assert digests(run) == digests(undisturbed)
    (requeued,) = events(run, "requeued")
    assert restarts(run) == [requeued["step"]]
    assert "resumed from step_" in log.read_text()


def test_two_jobs_of_one_run(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """A second submission is refused; a second job by hand gives up, and the first goes on."""
    run = tmp_path / "run"
    data = undisturbed.parent / "prepared"
    settings = ("--stages", "train", f"data={data}", *TRAIN, "epochs=100000", "save_every_s=0")
    first = cluster.submit(run, *settings)["train"]
    cluster.wait(lambda: step(run) >= 5, "training is under way", run)
    refusal = cluster.call_submit(*settings, f"run={run}", code=2)
    assert f"still in the queue: train {first} (RUNNING); nothing was queued" in refusal

    variables = f"ALL,DATA={data},RUN={run},RETRIES=1"
    by_hand = [setting.removeprefix("train.") for setting in TRAIN]
    second = cluster.call(
        "sbatch", "--parsable", "--partition=low", "--nodes=1", "--cpus-per-task=1",
        "--output=/dev/null", f"--export={variables}", "slurm/train.sbatch", *by_hand,
        "epochs=100000",
    ).strip()  # fmt: skip
    cluster.wait(lambda: events(run, "failed"), "the second is refused", run)
    (failed,) = events(run, "failed")
    assert failed["job"] == second
    assert "is training it" in failed["reason"]
    status = cluster.jobs("status", str(run))
    assert re.search(rf"^train +{first} +RUNNING", status, re.MULTILINE)
    assert re.search(rf"^train +{second} +(PENDING|COMPLETING)", status, re.MULTILINE)
    cluster.start_now(second, run)
    cluster.wait(lambda: cluster.state(second) == "FAILED", "the second gives up", run)
    assert [event["job"] for event in events(run, "gave up")] == [second]
    assert cluster.state(first) == "RUNNING"
    assert events(run, "gave up")[0]["step"] > failed["step"], "the first has stood still"

    assert cluster.jobs("cancel", str(run)).startswith(f"cancelled {first};")
    cluster.wait(lambda: events(run, "stopped"), "the first has saved", run)
    assert "no job of" in cluster.jobs("cancel", str(run)) or cluster.state(first) == "COMPLETING"


def test_a_killed_rank_is_brought_back(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of a rank: the others end, the job comes back, with the reason in `status`."""
    run = tmp_path / "run"
    data = undisturbed.parent / "prepared"
    settings = (f"data={data}", *TRAIN, f"epochs={NUM_EPOCHS}", "save_every_s=0")
    job = cluster.submit(run, "--stages", "train", "--nodes", "2", *settings)["train"]
    cluster.wait(lambda: step(run) >= 6, "training is under way", run)
    (rank,) = cluster.processes({f"SLURM_JOB_ID={job}", "SLURM_PROCID=3"})
    os.kill(rank, signal.SIGKILL)
    cluster.wait(lambda: events(run, "failed"), "the failure is noted", run)
    cluster.start_now(job, run)
    cluster.wait(lambda: cluster.state(job) == "COMPLETED", "it ends", run)
    assert digests(run) == digests(undisturbed)
    assert "train failed at step" in cluster.jobs("status", str(run))


def test_a_job_that_only_fails_is_given_up(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    """Brought back as often as asked without progress between, then left, with the reason."""
    run = tmp_path / "run"
    data = undisturbed.parent / "prepared"
    # a loss that is no number, at once: no retry can mend it
    settings = ("lr=1e30", "--retries", "1", "--stages", "train", "--gpus-per-node", "1")
    job = cluster.submit(run, f"data={data}", *TRAIN[2:], "epochs=9", "batch_size=4", *settings)[
        "train"
    ]
    cluster.wait(lambda: events(run, "failed"), "it fails", run)
    cluster.start_now(job, run)
    cluster.wait(lambda: events(run, "gave up"), "it is given up", run)
    assert "the loss is not finite" in events(run, "gave up")[0]["reason"]
    cluster.wait(lambda: cluster.state(job) == "FAILED", "it stays failed", run)
    assert len(events(run, "failed")) == 1


def test_a_preempted_preparation_loses_and_repeats_no_field(
    cluster: Cluster, raw: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The array is taken away in the middle; it comes back and the set is the same to the byte."""
    run, data = tmp_path / "run", tmp_path / "prepared"
    many = ("copies=800", "split.val=0", "split.test=0", "format=png")
    chain = cluster.submit(run, "--stages", "prepare", f"raw={raw}", f"data={data}", *many)
    records = data / ".eosin" / "fields"
    cluster.wait(lambda: any(records.glob("*.json")), "a field is done", run)
    # held until they are told to leave (Slurm sends SIGCONT first), however fast they are
    tasks = cluster.processes({f"SLURM_ARRAY_JOB_ID={chain['prepare']}", "SLURM_PROCID=0"})
    for pid in tasks:
        os.kill(pid, signal.SIGSTOP)
    assert len(tasks) == 2
    before = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    urgent = cluster.call(
        "sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive",
        "--output=/dev/null", "--wrap=sleep 300",
    ).strip()  # fmt: skip
    cluster.wait(lambda: len(events(run, "requeued")) == 2, "both tasks are queued again", run)
    cluster.call("scancel", urgent)
    for task in ("0", "1"):
        cluster.start_now(f"{chain['prepare']}_{task}", run)
    cluster.wait((data / "dataset.json").is_file, "the shares are joined", run)
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in records.glob("*.json")}.items()
    whole = tmp_path / "whole"
    ranks.run("data_prep", f"raw={raw}", f"out={whole}", *many)
    assert (whole / "dataset.json").read_bytes() == (data / "dataset.json").read_bytes()


def test_a_lost_node_is_replaced(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of a slurmd: Slurm brings the job back on the nodes that are left.

    The last of these tests: it costs the cluster a node.
    """
    run = tmp_path / "run"
    data = undisturbed.parent / "prepared"
    settings = (f"data={data}", *TRAIN, "epochs=2000", "save_every_s=0")
    job = cluster.submit(run, "--stages", "train", "--nodes", "2", *settings)["train"]
    cluster.wait(lambda: step(run) >= 6, "training is under way", run)
    cluster.kill_node("n2")
    cluster.start_now(job, run)
    cluster.wait(lambda: restarts(run), "it goes on", run)
    assert restarts(run)[0] >= 5
    assert "n2" not in events(run, "started")[-1]["nodes"].replace("n[1-2]", "n1,n2")
    cluster.jobs("cancel", str(run))
