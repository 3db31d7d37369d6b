"""Promises 3 and 4 under faults: whatever happens to a run, it ends as if nothing had."""

from pathlib import Path

import pytest

from common import seeds
from tests.faults.__main__ import (
    change_ranks,
    disturb,
    kill_at,
    kill_at_each_instant,
    make_reference,
)
from tests.faults.faults import FAULTS, Reference, Trial, can_mount, random_trial

NAMED_INSTANTS = (
    (0, "tear checkpoints/.step.tmp/__0_0.distcp"),
    (0, "fsync checkpoints/.step.tmp/.metadata.tmp"),
    (0, "tear checkpoints/.step.tmp/COMPLETE"),
    (0, "rename checkpoints/.step.tmp"),
    (0, "rename checkpoints/latest"),
    (0, "rename checkpoints/best"),
    (0, "rename config.yaml"),
    (0, "remove checkpoints/step/COMPLETE"),
    (1, "tear checkpoints/.step.tmp/__1_0.distcp"),
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A run that nothing happened to."""
    return make_reference(tmp_path_factory.mktemp("reference"), "off")


@pytest.mark.parametrize(("rank", "name"), NAMED_INSTANTS, ids=str)
def test_a_kill_at_a_named_instant_costs_no_bit(
    rank: int, name: str, reference: Reference, tmp_path: Path
) -> None:
    trial = Trial(tmp_path / "run", tmp_path, reference, seeds.generator(0, "instant", name))
    kill_at(trial, rank, name, reference.instants[rank == 0][name])
    trial.finish()


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[*FAULTS])
def test_a_fault_of_each_kind_loses_no_run(
    number: int, reference: Reference, tmp_path: Path
) -> None:
    """A signal that is heeded costs no step either (Trial.must_repeat_nothing)."""
    kind = [*FAULTS][number]
    if kind == "the disk full" and not can_mount(tmp_path / "disk"):
        pytest.skip("mounting a small disk takes root")
    random_trial(kind, number, 0, tmp_path / "trial", reference)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_any_numbers_of_ranks_in_turn_give_the_same_bits(
    amp: str, reference: Reference, tmp_path: Path
) -> None:
    """With batch normalisation, dropout and augmentation, killed at each change."""
    undisturbed = reference if amp == "off" else make_reference(tmp_path / "reference", amp)
    assert not change_ranks([1, 3, 4, 2], tmp_path, undisturbed)


@pytest.mark.repeats
@pytest.mark.timeout(800)
def test_a_kill_at_each_write_fsync_and_rename_costs_no_bit(
    reference: Reference, tmp_path: Path
) -> None:
    assert {name for _, name in NAMED_INSTANTS} <= {
        name for names in reference.instants.values() for name in names
    }
    assert not kill_at_each_instant(tmp_path, reference)


@pytest.mark.repeats
@pytest.mark.timeout(800)
def test_no_run_is_lost_to_a_random_fault(reference: Reference, tmp_path: Path) -> None:
    """Each kind at least twice, on 1 to 4 ranks, ended on another number of them."""
    assert not disturb([*FAULTS], range(25), 0, tmp_path, reference)
