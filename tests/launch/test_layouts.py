"""As many ranks as are asked for, or whole commands that are accepted."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from common.command_line import UsageError, as_yaml
from data_prep.__main__ import main as data_prep
from data_prep.dataset.description import DATASET
from launch.cluster.profiles import Profile
from launch.layouts import resolve_ranks, with_batch
from launch.stages import Request, load_training
from launch.submit import main as submit
from train.config import TrainConfig
from train.loop.batch import resolve_batch
from train.runs.newest import CONFIG

pytestmark = pytest.mark.usefixtures("here")


class TestRanks:
    """As many as are asked for, or whole commands that are accepted."""

    @pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (3, 1), (3, 4), (16, 8)])
    def test_any_number_is_accepted(self, nodes: int, gpus: int, here: Path) -> None:
        resolve_ranks(Request({}, here / "a"), Profile(nodes=nodes, gpus_per_node=gpus), [])

    @pytest.mark.parametrize(
        ("settings", "batch"),
        [
            ({}, ["batch_size=8", "microbatches=8"]),
            ({"microbatches": "16"}, ["batch_size=16", "microbatches=16"]),
            ({"batch_per_rank": "3"}, ["batch_size=24", "microbatches=8", "batch_per_rank=0"]),
        ],
    )
    def test_the_batch_is_that_of_the_largest_number_of_nodes(
        self, settings: dict[str, str], batch: list[str], here: Path
    ) -> None:
        """A job that starts on fewer computes the same."""
        profile = Profile(nodes="1-4", gpus_per_node=2)
        resolved = resolve_ranks(Request(settings, here / "a"), profile, [])
        arguments = {"train": ["epochs=2", *(f"{key}={n}" for key, n in settings.items())]}
        assert with_batch(arguments, resolved) == {"train": ["epochs=2", *batch]}
        for num_ranks in (2, 4, 6, 8):
            given = with_batch(arguments, resolved)["train"]
            assert resolve_batch(load_training(given), num_ranks, None).batch == resolved.batch

    @pytest.mark.parametrize(
        ("argv", "profile", "commands"),
        [
            (
                ["--nodes", "1-4", "microbatches=2"],
                Profile(nodes="1-4"),
                ["--nodes 1-4", "--nodes 1-2 microbatches=2"],
            ),
            (
                ["--nodes", "2-4", "microbatches=2"],
                Profile(nodes="2-4"),
                ["--nodes 2-4", "--nodes 2 microbatches=2"],
            ),
            (
                ["--nodes", "3", "microbatches=2", "epochs=2"],
                Profile(nodes=3),
                ["--nodes 3 epochs=2", "--nodes 2 microbatches=2 epochs=2"],
            ),
            (
                ["--nodes=3", "--gpus-per-node", "4", "--dry-run", "microbatches=8"],
                Profile(nodes=3, gpus_per_node=4),
                [
                    "--nodes 3 --gpus-per-node 4 --dry-run",
                    "--nodes 2 --gpus-per-node 4 --dry-run microbatches=8",
                ],
            ),
            (
                ["--gpus-per-node", "3", "microbatches=2"],
                Profile(gpus_per_node=3),
                ["--gpus-per-node 3", "--gpus-per-node 2 microbatches=2"],
            ),
            (
                ["--gpus-per-node", "a100:3", "microbatches=2"],
                Profile(gpus_per_node="a100:3"),
                ["--gpus-per-node a100:3", "--gpus-per-node a100:2 microbatches=2"],
            ),
            (
                ["batch_size=8", "--nodes", "16"],
                Profile(nodes=16),
                ["--nodes 16", "--nodes 8 batch_size=8"],
            ),
            (
                ["--profile", "cpu", "train.microbatches=2"],
                Profile(nodes=1, gpus_per_node=0, ranks_per_node=4),
                ["--profile cpu", "--profile cpu --ranks-per-node 2 train.microbatches=2"],
            ),
        ],
    )
    def test_a_refusal_shows_commands_that_are_accepted(
        self, argv: list[str], profile: Profile, commands: list[str], here: Path
    ) -> None:
        settings = dict(word.split("=", 1) for word in argv if "=" in word and word[0] != "-")
        with pytest.raises(UsageError) as refused:
            resolve_ranks(Request(settings, here / "a"), profile, argv)
        shown = [line.strip() for line in str(refused.value).splitlines()[1:]]
        assert shown == [f"python launch/submit.py {command}" for command in commands]

    def test_a_shown_command_is_accepted_as_it_stands(
        self, brecahad: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(UsageError) as refused:
            submit(["--dry-run", "--nodes", "3", "--gpus-per-node", "2", "batch_size=4"])
        shown = [line.strip() for line in str(refused.value).splitlines()[1:]]
        assert len(shown) == 2
        for command in shown:
            assert submit(shlex.split(command)[2:]) == 0, command
            capsys.readouterr()

    def test_a_run_goes_on_on_as_many_ranks_as_it_has_parts(self, here: Path) -> None:
        begun = resolve_batch(TrainConfig(), 4, None)
        (here / "run").mkdir()
        settings = {"batch_size": begun.batch.size, "microbatches": begun.batch.num_microbatches}
        (here / "run" / CONFIG).write_text(json.dumps({"data": "d", **settings}))
        request = Request({"run": "run"}, here / "run")
        resolve_ranks(request, Profile(nodes=3), [])
        with pytest.raises(
            UsageError, match=r"8 ranks, but microbatches=4: .* as the run began"
        ) as refused:
            resolve_ranks(request, Profile(nodes=8), ["--nodes", "8", "run=run"])
        assert str(refused.value).splitlines()[1:] == [
            "  python launch/submit.py --nodes 4 run=run"
        ]


FITTING = ["batch_size=4", "crop.size_px=64"]  # four fields of 160 x 120 px


class TestBegun:
    """What the run's job would refuse on its node is refused before anything is queued."""

    @pytest.fixture
    def begin(self, brecahad: Path, here: Path) -> Path:
        """A run that has begun, as the first start of a training leaves it."""
        assert data_prep(["copies=1", "workers=1", "split.val=0", "split.test=0"]) == 0
        run, given = here / "run", ["epochs=1", *FITTING]
        resolved = resolve_batch(load_training([f"run={run}", *given]), 1, None)
        run.mkdir()
        (run / CONFIG).write_text(as_yaml(replace(resolved, amp="off", memory_format="contiguous")))
        (run / DATASET).write_bytes((here / "data/prepared" / DATASET).read_bytes())
        return run

    def test_other_settings_are_refused_with_commands_that_are_accepted(
        self, begin: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = ["--dry-run", "--stages", "train", "run=run", "epochs=2", *FITTING]
        with pytest.raises(UsageError, match=r"other settings \(epochs: 1 -> 2\)") as refused:
            submit(given)
        first, second = [line.strip() for line in str(refused.value).splitlines()[1:]]
        shown = " ".join(FITTING)
        start = "python launch/submit.py --dry-run --stages train run=run"
        assert first == f"{start} epochs=1 {shown}"
        assert second == f"{start} epochs=2 {shown} resume=override"
        for command in (first, second):
            assert submit(shlex.split(command)[2:]) == 0
            capsys.readouterr()

    @pytest.mark.parametrize(
        ("steps", "rate"),
        [
            (0, "follows its schedule over 1 epoch, and then stays at"),
            (1, "stays at 1.0e-03, where"),
        ],
    )
    def test_what_more_epochs_do_to_the_rate_is_said_before_anything_is_queued(
        self, steps: int, rate: str, begin: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """An epoch of one step, at the whole rate; of two, the second has a half of it."""
        if steps:
            (begin / f"checkpoints/step_{steps:08d}").mkdir(parents=True)
        given = ["--dry-run", "--stages", "train", "run=run", "resume=override", *FITTING]
        assert submit([*given, "epochs=1", "schedule=cosine"]) == 0
        assert "learning rate" not in capsys.readouterr().err
        assert submit([*given, "epochs=2", "schedule=cosine"]) == 0
        printed = capsys.readouterr()
        assert f"train: epochs: 1 -> 2: the learning rate {rate}" in printed.err
        next_rate = "5.0e-04" if steps else "1.0e-03"
        end = f"; schedule_epochs=2 stretches the schedule instead: {next_rate} at the next step"
        assert end in printed.err
        assert "learning rate" not in printed.out

    def test_data_that_were_prepared_anew_are_refused(self, begin: Path, here: Path) -> None:
        again = ["copies=1", "workers=1", "split.val=0", "split.test=0", "radius_px=9"]
        assert data_prep(again) == 0
        with pytest.raises(UsageError, match="data: radius_px: 20 -> 9"):
            submit(["--dry-run", "--stages", "train", "run=run", "epochs=1", *FITTING])


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_queued(
    brecahad: Path, here: Path
) -> None:
    assert data_prep(["copies=1", "workers=1", "split.val=0", "split.test=0"]) == 0
    num_fields = len([*brecahad.rglob("*.tif")])
    more, enough = str(num_fields + 1), "give batch_size=%d or less, or crop.per_sample=2 or more"
    with pytest.raises(UsageError, match=enough % num_fields):
        submit(["--dry-run", "--stages", "train", f"batch_size={more}", "crop.size_px=64"])
