"""Seeds: fixed by what they are for, and nothing else."""

import hashlib
import itertools

import numpy as np

import seeds


def test_the_seed_is_the_head_of_a_hash_over_seed_and_purpose() -> None:
    """Written out, because a change of this rule changes every prepared data set and run."""
    digest = hashlib.sha256(b'[0, "augment", "Case_1-01", 3]').hexdigest()
    assert seeds.derive_seed(0, "augment", "Case_1-01", 3) == int(digest[:16], 16) // 2


def test_every_part_of_a_purpose_counts_and_so_does_its_kind() -> None:
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "b", "a"), (0, 1)]
    keys += [(0, "1"), (0, "a", 1), (0, "a", 11), (0, "a", 1, 1), (-1,)]
    drawn = [seeds.derive_seed(*key) for key in keys]
    assert len(set(drawn)) == len(keys)


def test_seeds_are_spread_over_63_bits() -> None:
    drawn = [seeds.derive_seed(0, "x", index) for index in range(200)]
    assert all(0 <= seed < 2**63 for seed in drawn)  # fits a signed integer, as torch wants it
    assert max(drawn) > 2**62
    assert all(left != right for left, right in itertools.pairwise(drawn))


def test_a_generator_repeats_for_one_purpose_and_differs_for_another() -> None:
    first, same, other = (seeds.generator(3, "split", key).random(8) for key in ("a", "a", "b"))
    assert np.array_equal(first, same)
    assert not np.any(first == other)
