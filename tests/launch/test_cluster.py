"""Runs on a real Slurm: preempted, out of time, cancelled, hit by crashes and a lost node.

Slurm takes its time, most of which is waiting. So the scenarios run at once, on nodes of their own,
and each test waits for one of them. `-k NAME` runs that one alone.
"""

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.file_records import read_record
from tests import ranks
from tests.launch.cluster import scenarios
from tests.launch.dev_cluster import Cluster, events, restarts, step, why_not
from train.checkpoints.checkpoint_files import STATE, verify
from train.checkpoints.digests import tensors_sha256
from train.checkpoints.load_checkpoint import load_all_tensors
from train.checkpoints.published import find_checkpoint

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
BY_HAND = tuple(setting.removeprefix("train.") for setting in TRAIN)


@dataclass(frozen=True)
class Data:
    """What all scenarios need, made once."""

    raw: Path
    """Four cases of two fields."""
    prepared: Path
    undisturbed: "Future[Path]"
    """The same run on one process of this machine."""


def a_chain_preempted_twice_loses_no_step(cluster: Cluster, data: Data, tmp_path: Path) -> None:
    """2 nodes x 2 ranks, preempted in training and again as it starts: the bits of an undisturbed.

    Unlike Slurm's own rule, which counts a job that saved and left in time as done.
    """
    run = tmp_path / "run"
    asked = ("--nodes", "2", "--gpus-per-node", "pretend:2", "--mem-gb", "1.5")
    settings = (f"raw={data.raw}", *PREPARE, *TRAIN, f"epochs={NUM_EPOCHS}", "evaluate.split=val")
    chain = cluster.submit(run, *asked, *settings)
    assert list(chain) == ["prepare", "join", "train", "evaluate"]
    printed = cluster.call_submit("--dry-run", *asked, *settings, f"run={run}")
    assert queued_scripts(run, chain) == printed_scripts(printed, chain)
    job = chain["train"]
    cluster.wait(lambda: step(run) >= 5, "training is under way", run)
    cluster.preempt(run, job)
    cluster.wait(lambda: events(run, "requeued"), "it is said", run)
    (first,) = events(run, "requeued")
    assert (first["stage"], first["reason"]) == ("train", "preempted")
    assert first["step"] >= 5

    cluster.preempt(run, job)  # as it starts again: before its first step, most likely
    status = cluster.jobs_py("status", str(run))
    assert re.search(rf"^train +{job} .* 2\b", status, re.MULTILINE)

    evaluation = run / "evaluation" / "val" / "summary.json"
    cluster.wait(evaluation.is_file, "the chain ends", run)
    assert newest_state(run) == newest_state(data.undisturbed.result())
    # no step was lost: training went on exactly where it was when it was told to go
    saved = [event["step"] for event in events(run, "requeued")]
    assert set(restarts(run)) <= set(saved)
    assert '"num_fields": 4' in evaluation.read_text()
    status = cluster.jobs_py("status", str(run))
    assert re.search(r"steps 0 to \d+ +requeued: preempted", status)
    assert f"step {NUM_EPOCHS * STEPS_PER_EPOCH} of {NUM_EPOCHS * STEPS_PER_EPOCH}" in status
    assert "resumed from step_" in cluster.jobs_py("logs", str(run), "--stage", "train")


def newest_state(run: Path) -> tuple[str, str]:
    """The digest of the newest checkpoint's tensors, and all the rest of the state."""
    path = find_checkpoint(run / "checkpoints", "latest")
    assert not verify(path)
    with TORCH:
        digest = tensors_sha256(load_all_tensors(path))
    return digest, (path / STATE).read_text()


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


def the_time_limit_brings_back_and_scancel_does_not(
    cluster: Cluster, data: Data, tmp_path: Path
) -> None:
    """SIGUSR2 ahead of the limit: saved and requeued. scancel: saved, and it stays cancelled."""
    run = tmp_path / "run"
    # Slurm looks every 30 s and may send the signal that early: 40 s to 70 s after the start
    limits = ("--time-min", "2", "--signal-lead-s", "50", "--gpus-per-node", "1")
    settings = ("--stages", "train", f"data={data.prepared}", *TRAIN, "epochs=20000")
    job = cluster.submit(run, *limits, *settings)["train"]
    cluster.wait(lambda: events(run, "requeued"), "the limit is near", run)
    (requeued,) = events(run, "requeued")
    assert requeued["reason"] == "time limit"
    assert requeued["step"] > 0
    cluster.start_now(job, run)
    cluster.wait(lambda: restarts(run), "it goes on", run)
    assert restarts(run) == [requeued["step"]]

    cluster.wait(lambda: step(run) > requeued["step"], "it gets further", run)
    cluster.jobs_py("cancel", str(run))
    cluster.wait(lambda: cluster.state(job) == "CANCELLED", "it is cancelled", run)
    cluster.wait(lambda: events(run, "stopped"), "it has saved", run)
    assert len(events(run, "requeued")) == 1
    assert events(run, "stopped")[-1]["step"] > requeued["step"]


def training_by_hand_comes_back(cluster: Cluster, data: Data, tmp_path: Path) -> None:
    """slurm/train.sbatch, as its first lines say, comes back after preemption too."""
    run, log = tmp_path / "run", tmp_path / "log"
    epochs = f"epochs={NUM_EPOCHS}"
    job = cluster.sbatch_train(data.prepared, run, *BY_HAND, epochs, log=str(log))
    cluster.wait(lambda: step(run) >= 5, "training is under way", run)
    cluster.preempt(run, job)
    cluster.wait(lambda: cluster.state(job) == "COMPLETED", "it ends", run)
    assert newest_state(run) == newest_state(data.undisturbed.result())
    (requeued,) = events(run, "requeued")
    assert restarts(run) == [requeued["step"]]
    assert "resumed from step_" in log.read_text()


def of_two_jobs_of_one_run_the_first_goes_on(cluster: Cluster, data: Data, tmp_path: Path) -> None:
    """A second submission is refused; a second job by hand gives up, and the first goes on."""
    run = tmp_path / "run"
    settings = ("--stages", "train", "--gpus-per-node", "1", f"data={data.prepared}", *TRAIN)
    settings += ("epochs=100000", "save_every_s=0")
    first = cluster.submit(run, *settings)["train"]
    cluster.wait(lambda: step(run) >= 5, "training is under way", run)
    refusal = cluster.call_submit(*settings, f"run={run}", code=2)
    assert f"still in the queue: train {first} (RUNNING); nothing was queued" in refusal

    by_hand = (*BY_HAND, "epochs=100000")
    second = cluster.sbatch_train(data.prepared, run, *by_hand, log="/dev/null", RETRIES="1")
    cluster.wait(lambda: events(run, "failed"), "the second is refused", run)
    (failed,) = events(run, "failed")
    assert failed["job"] == second
    assert "is training it" in failed["reason"]
    status = cluster.jobs_py("status", str(run))
    assert re.search(rf"^train +{first} +RUNNING", status, re.MULTILINE)
    assert re.search(rf"^train +{second} +(PENDING|COMPLETING)", status, re.MULTILINE)
    cluster.start_now(second, run)
    cluster.wait(lambda: cluster.state(second) == "FAILED", "the second gives up", run)
    assert [event["job"] for event in events(run, "gave up")] == [second]
    assert cluster.state(first) == "RUNNING"
    assert events(run, "gave up")[0]["step"] > failed["step"], "the first has stood still"

    assert cluster.jobs_py("cancel", str(run)).startswith(f"cancelled {first};")
    cluster.wait(lambda: events(run, "stopped"), "the first has saved", run)
    cluster.wait(lambda: cluster.state(first) == "CANCELLED", "the first has gone", run)
    assert cluster.jobs_py("cancel", str(run)).startswith(f"nothing of {run} is in the queue")


def a_killed_rank_is_brought_back(cluster: Cluster, data: Data, tmp_path: Path) -> None:
    """kill -9 of a rank: the others end, the job comes back, with the reason in `status`."""
    run = tmp_path / "run"
    settings = (f"data={data.prepared}", *TRAIN, f"epochs={NUM_EPOCHS}", "save_every_s=0")
    job = cluster.submit(run, "--stages", "train", *settings)["train"]
    cluster.wait(lambda: step(run) >= 6, "training is under way", run)
    (rank,) = cluster.processes({f"SLURM_JOB_ID={job}", "SLURM_PROCID=1"})
    os.kill(rank, signal.SIGKILL)
    cluster.wait(lambda: events(run, "failed"), "the failure is noted", run)
    cluster.start_now(job, run)
    cluster.wait(lambda: cluster.state(job) == "COMPLETED", "it ends", run)
    assert newest_state(run) == newest_state(data.undisturbed.result())
    assert re.search(r"steps 0 to \d+ +failed: ", cluster.jobs_py("status", str(run)))


def a_job_that_only_fails_is_given_up(cluster: Cluster, data: Data, tmp_path: Path) -> None:
    """Brought back as often as asked without progress between, then left, with the reason."""
    run = tmp_path / "run"
    # a loss that is no number, at once: no retry can mend it
    settings = ("lr=1e30", "--retries", "1", "--stages", "train", "--gpus-per-node", "1")
    training = [setting for setting in TRAIN if not setting.startswith(("lr=", "microbatches="))]
    job = cluster.submit(run, f"data={data.prepared}", *training, "epochs=9", *settings)["train"]
    cluster.wait(lambda: events(run, "failed"), "it fails", run)
    cluster.start_now(job, run)
    cluster.wait(lambda: events(run, "gave up"), "it is given up", run)
    assert "the loss is not finite" in events(run, "gave up")[0]["reason"]
    cluster.wait(lambda: cluster.state(job) == "FAILED", "it stays failed", run)
    assert len(events(run, "failed")) == 1


def a_preempted_preparation_loses_and_repeats_no_field(
    cluster: Cluster, data: Data, tmp_path: Path
) -> None:
    """The array is taken away in the middle; it comes back and the set is the same to the byte."""
    run, out = tmp_path / "run", tmp_path / "prepared"
    many = ("copies=800", "split.val=0", "split.test=0", "format=png")
    stages = ("--stages", "prepare", f"raw={data.raw}", f"data={out}")
    array = cluster.submit(run, *stages, *many)["prepare"]

    def done() -> dict[str, int]:
        """Complete records: their notes come once all files of a field have their names."""
        paths = (out / ".eosin" / "fields").glob("*.json")
        return {path.name: path.stat().st_mtime_ns for path in paths if read_record(path).about}

    cluster.wait(lambda: bool(done()), "a field is done", run)
    # held until they are told to leave (Slurm sends SIGCONT first), however fast they are
    tasks = cluster.processes({f"SLURM_ARRAY_JOB_ID={array}", "SLURM_PROCID=0"})
    for pid in tasks:
        os.kill(pid, signal.SIGSTOP)
    assert len(tasks) == 2
    before = done()
    cluster.preempt(run, f"{array}_0", f"{array}_1")
    assert len(events(run, "requeued")) == 2
    cluster.wait((out / "dataset.json").is_file, "the shares are joined", run)
    assert before.items() <= done().items()
    whole = tmp_path / "whole"
    ranks.run("data_prep", f"raw={data.raw}", f"out={whole}", *many)
    assert (whole / "dataset.json").read_bytes() == (out / "dataset.json").read_bytes()


def a_lost_node_is_replaced(cluster: Cluster, data: Data, tmp_path: Path) -> None:
    """kill -9 of a slurmd: Slurm brings the job back on the nodes that are left.

    The only scenario of its nodes, for it costs one of them.
    """
    run = tmp_path / "run"
    settings = (f"data={data.prepared}", *TRAIN, "epochs=2000", "save_every_s=0")
    wanted = ("--stages", "train", "--nodes", "2", "--gpus-per-node", "1")
    job = cluster.submit(run, *wanted, *settings)["train"]
    cluster.wait(lambda: step(run) >= 6, "training is under way", run)
    listed = cluster.call("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()
    lost = cluster.call("scontrol", "show", "hostnames", listed).split()[1]
    cluster.kill_node(lost)
    cluster.start_now(job, run)
    cluster.wait(lambda: restarts(run), "it goes on", run)
    assert restarts(run)[0] >= 5
    nodes = cluster.call("scontrol", "show", "hostnames", events(run, "started")[-1]["nodes"])
    assert lost not in nodes.split()
    cluster.jobs_py("cancel", str(run))


def as_many_nodes_as_are_free(cluster: Cluster, data: Data, tmp_path: Path) -> None:
    """--nodes 1-4 starts on one node, is preempted onto three, and ends on all four: no step is
    lost, and the bits are those of one rank that nobody disturbed."""
    run = tmp_path / "run"
    first, *others = cluster.nodes.split("|")
    taken = [cluster.take(run, node) for node in others]
    settings = ("--stages", "train", f"data={data.prepared}", *TRAIN, f"epochs={NUM_EPOCHS}")
    job = cluster.submit(run, "--nodes", "1-4", "--gpus-per-node", "1", *settings)["train"]
    cluster.wait(lambda: step(run) >= 3, "training is under way on one node", run)
    urgent = cluster.take(run, first)
    cluster.wait(lambda: cluster.state(job) == "PENDING", "the job is queued again", run)
    cluster.call("scancel", *taken)
    cluster.start_now(job, run)
    cluster.wait(lambda: step(run) >= restarts(run)[0] + 3 if restarts(run) else False, "3", run)
    cluster.call("scancel", urgent)
    urgent = cluster.take(run, others[0])
    cluster.wait(lambda: cluster.state(job) == "PENDING", "the job is queued again", run)
    cluster.call("scancel", urgent)
    cluster.start_now(job, run)
    cluster.wait(lambda: cluster.state(job) == "COMPLETED", "it ends", run)

    nodes = [event["nodes"] for event in events(run, "started")]
    names = [cluster.call("scontrol", "show", "hostnames", listed).split() for listed in nodes]
    assert [len(listed) for listed in names] == [1, 3, 4]
    assert restarts(run) == [event["step"] for event in events(run, "requeued")]
    assert newest_state(run) == newest_state(data.undisturbed.result())
    status = cluster.jobs_py("status", str(run))
    assert all(listed in status for listed in nodes)


def a_fold_that_is_taken_away_goes_on_and_the_others_do_not_notice(
    cluster: Cluster, data: Data, tmp_path: Path
) -> None:
    """--folds cases: an array of four trainings. The same command then has nothing left to do."""
    folder, epochs = tmp_path / "CV", "epochs=6"
    asked = ("--folds", "cases", "--stages", "prepare,train", "--gpus-per-node", "1")
    settings = (*asked, f"raw={data.raw}", "copies=4", *TRAIN, epochs)
    array = cluster.submit(folder, *settings)["train"]
    runs = [folder / f"fold-{number}" for number in range(4)]
    cluster.wait(lambda: step(runs[1]) >= 5, "training is under way", runs[1])
    cluster.call("scontrol", "requeue", f"{array}_1")
    cluster.start_now(f"{array}_1", runs[1])
    states = {"COMPLETED"}
    tasks = [f"{array}_{number}" for number in range(4)]
    cluster.wait(lambda: {cluster.state(task) for task in tasks} == states, "all end", runs[1])
    assert restarts(runs[1]) == [events(runs[1], "stopped")[0]["step"]]
    for run in (runs[0], *runs[2:]):
        assert [event["event"] for event in events(run)] == ["queued", "started", "finished"]
    whole = tmp_path / "whole"
    given = (f"data={folder}/prepared", f"run={whole}", "fold=1", epochs, *BY_HAND)
    ranks.run("train", *given)
    assert newest_state(runs[1]) == newest_state(whole)
    status = cluster.jobs_py("status", str(folder))
    assert re.search(rf"^fold-1 +{array}_1 +finished +24 of 24 +1 ", status, re.MULTILINE)
    told = cluster.call_submit(*settings, "--stages", "train", f"run={folder}")
    assert told.endswith("nothing to do\n")


Scenario = Callable[[Cluster, Data, Path], None]
# Nodes -> what happens on them, one after the other
LANES: dict[str, list[Scenario]] = {
    "n1|n2": [a_chain_preempted_twice_loses_no_step, a_killed_rank_is_brought_back],
    "n3|n4|n5": [a_lost_node_is_replaced],
    "n6|n7": [
        training_by_hand_comes_back,
        a_preempted_preparation_loses_and_repeats_no_field,
        of_two_jobs_of_one_run_the_first_goes_on,
        a_fold_that_is_taken_away_goes_on_and_the_others_do_not_notice,
    ],
    "n8": [
        the_time_limit_brings_back_and_scancel_does_not,
        a_job_that_only_fails_is_given_up,
    ],
    "n9|n10|n11|n12": [as_many_nodes_as_are_free, scenarios.a_site_that_exports_nothing_trains],
    "n13": [
        scenarios.a_container_holds_all_that_a_chain_needs,
        scenarios.weights_that_submit_fetches_train_without_a_network,
    ],
}
TORCH = threading.Lock()  # one thread at a time loads a checkpoint
TURNS = threading.Semaphore(3)  # scenarios at once: more would only slow one another on two cores


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of pretend nodes; up is tried twice, as a contributor would."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "dev")
    for _ in range(2):
        done = cluster.manage("up")
        assert done.returncode == 0, done.stdout + done.stderr
    yield cluster
    cluster.manage("down")
    assert "down" in cluster.manage("status").stderr


@pytest.fixture(scope="module")
def outcomes(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[Scenario, "Future[None]"]]:
    """The scenarios that are to be tested, under way."""
    folder = tmp_path_factory.mktemp("data")
    raw, prepared, run = folder / "raw", folder / "prepared", folder / "run"
    size = ["fields=2", "cases=4", "width_px=200", "height_px=192"]
    ranks.run("data_prep.synthetic", f"out={raw}", *size)
    ranks.run("data_prep", f"raw={raw}", f"out={prepared}", *PREPARE)

    def train_undisturbed() -> Path:
        ranks.run("train", f"data={prepared}", f"run={run}", f"epochs={NUM_EPOCHS}", *BY_HAND)
        return run

    def play(scenario: Scenario, nodes: str, data: Data) -> None:
        part = Cluster(cluster.folder, nodes)
        try:
            with TURNS:
                scenario(part, data, tmp_path_factory.mktemp(scenario.__name__))
        finally:
            part.cancel_all()

    wanted = {called(item) for item in request.session.items}
    with ExitStack() as pools:
        undisturbed = pools.enter_context(ThreadPoolExecutor(1)).submit(train_undisturbed)
        data = Data(raw, prepared, undisturbed)
        lanes = {nodes: pools.enter_context(ThreadPoolExecutor(1)) for nodes in LANES}
        yield {
            scenario: lanes[nodes].submit(play, scenario, nodes, data)
            for nodes, scenarios in LANES.items()
            for scenario in scenarios
            if scenario in wanted
        }


def called(item: Any) -> Scenario | None:
    """The scenario of a test, None for another test."""
    found: Scenario | None = getattr(item, "callspec", None) and item.callspec.params.get(
        "scenario"
    )
    return found


@pytest.mark.parametrize(
    "scenario",
    [scenario for scenarios in LANES.values() for scenario in scenarios],
    ids=lambda scenario: scenario.__name__,
)
def test_on_a_real_slurm(scenario: Scenario, outcomes: dict[Scenario, "Future[None]"]) -> None:
    if scenario is scenarios.a_container_holds_all_that_a_chain_needs and scenarios.why_not():
        pytest.skip(scenarios.why_not())
    outcomes[scenario].result()
