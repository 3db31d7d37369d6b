"""How a batch is divided: what auto becomes, which ranks are refused, and the ways out."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from common import command_line
from common.command_line import UsageError
from train.config import Batch, TrainConfig
from train.loop.batch import RanksError, accepted_starts, resolve_batch


def load(settings: Sequence[str]) -> TrainConfig:
    return command_line.load(TrainConfig, settings)


def batch(num_ranks: int, *settings: str, begun: TrainConfig | None = None) -> Batch:
    return resolve_batch(load(settings), num_ranks, begun).batch


class TestAuto:
    """A run that begins."""

    @pytest.mark.parametrize(
        ("num_ranks", "expected"), {1: (8, 1), 4: (8, 4), 8: (8, 8), 32: (32, 32)}.items()
    )
    def test_eight_crops_then_one_per_rank_in_a_part_per_rank(
        self, num_ranks: int, expected: tuple[int, int]
    ) -> None:
        assert batch(num_ranks) == expected

    @pytest.mark.parametrize(
        ("num_ranks", "expected"), {3: (9, 3), 5: (10, 5), 12: (12, 12)}.items()
    )
    def test_other_numbers_of_ranks_get_the_next_multiple(
        self, num_ranks: int, expected: tuple[int, int]
    ) -> None:
        assert batch(num_ranks) == expected

    @pytest.mark.parametrize(
        ("num_ranks", "expected"), {3: (8, 4), 4: (8, 4), 5: (8, 8), 7: (8, 8)}.items()
    )
    def test_a_batch_that_is_given_is_cut_into_parts_for_every_rank(
        self, num_ranks: int, expected: tuple[int, int]
    ) -> None:
        assert batch(num_ranks, "batch_size=8") == expected

    def test_what_is_given_is_kept(self) -> None:
        assert batch(2, "microbatches=4") == (8, 4)
        assert batch(2, "batch_size=6") == (6, 2)
        assert batch(3, "microbatches=8") == (8, 8)
        assert batch(4, "microbatches=32") == (32, 32)
        assert batch(4, "batch_per_rank=8") == (32, 4)
        assert batch(4, "batch_per_rank=4", "microbatches=8") == (16, 8)

    def test_numbers_that_contradict_are_refused(self) -> None:
        with pytest.raises(UsageError, match="batch_size=16 and batch_per_rank=8 are not the same"):
            batch(8, "batch_size=16", "batch_per_rank=8")

    def test_the_settings_of_another_run_can_be_used(self) -> None:
        """config=RUN/config.yaml holds what batch_per_rank came to, too."""
        assert batch(2, "batch_size=32", "batch_per_rank=8", "microbatches=4") == (32, 4)


class TestBegun:
    """A run that goes on keeps its numbers."""

    def test_on_fewer_ranks(self) -> None:
        begun = resolve_batch(load([]), 16, None)
        assert batch(1, begun=begun) == batch(4, begun=begun) == (16, 16)
        assert batch(3, begun=begun) == batch(13, begun=begun) == (16, 16)

    def test_per_rank_is_of_the_ranks_it_began_with(self) -> None:
        begun = resolve_batch(load(["batch_per_rank=8"]), 4, None)
        assert batch(2, "batch_per_rank=8", begun=begun) == (32, 4)
        again = resolve_batch(load([]), 2, begun)
        assert (again.batch, again.batch_per_rank) == ((32, 4), 8)

    def test_more_ranks_than_parts_are_refused_and_the_run_named(self) -> None:
        begun = resolve_batch(load([]), 1, None)
        with pytest.raises(RanksError, match=r"2 ranks, but microbatches=1: .*\(run=a\)"):
            batch(2, "run=a", begun=begun)

    def test_a_number_that_is_given_is_not_replaced(self) -> None:
        """open_run refuses it: it is another training."""
        begun = resolve_batch(load([]), 4, None)
        assert batch(4, "microbatches=8", begun=begun) == (8, 8)


@pytest.mark.parametrize(
    ("num_ranks", "settings", "reason", "ways"),
    [
        (
            16,
            ["batch_size=8"],
            "batch_size=8 crops cannot be cut into microbatches=16 equal parts",
            [(16, []), (8, ["batch_size=8"])],
        ),
        (
            8,
            ["microbatches=4", "epochs=2"],
            "8 ranks, but microbatches=4: a rank would have nothing to do",
            [(8, ["epochs=2"]), (4, ["microbatches=4", "epochs=2"])],
        ),
        (
            3,
            ["train.batch_per_rank=4", "microbatches=8"],
            "batch_size=12 crops cannot be cut into microbatches=8 equal parts",
            [(3, ["batch_per_rank=4"]), (2, ["batch_per_rank=4", "microbatches=8"])],
        ),
    ],
)
def test_a_refusal_has_ways_out_that_are_accepted(
    num_ranks: int, settings: list[str], reason: str, ways: list[tuple[int, list[str]]]
) -> None:
    def load_stripped(given: Sequence[str]) -> TrainConfig:
        return load([setting.removeprefix("train.") for setting in given])

    with pytest.raises(RanksError, match=reason):
        resolve_batch(load_stripped(settings), num_ranks, None)
    counts = range(num_ranks, 0, -1)
    found = accepted_starts(settings, counts, load_stripped, None)
    stripped = [
        (number, [setting.removeprefix("train.") for setting in given]) for number, given in found
    ]
    assert stripped == ways
    for number, given in stripped:
        resolve_batch(load(given), number, None)


def test_a_settled_configuration_survives_its_file(tmp_path: Path) -> None:
    resolved = resolve_batch(load(["batch_per_rank=4"]), 2, None)
    file = tmp_path / "config.yaml"
    file.write_text(command_line.as_yaml(resolved))
    again = command_line.load(TrainConfig, [f"config={file}"], preset_folder=tmp_path)
    assert again.batch == (8, 2)
    assert again.batch_per_rank == 4
