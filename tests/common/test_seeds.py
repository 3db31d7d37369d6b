"""Seeds: fixed by what they are for, and nothing else."""

import hashlib
import itertools

import numpy as np

from common import seeds


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


def test_uniforms_are_of_a_hash_over_the_same_key() -> None:
    """Written out, because a change of this rule changes every run."""
    digest = hashlib.shake_256(b'[7, "crop", 2, 31]').hexdigest(16)
    words = int(digest[:16], 16), int(digest[16:], 16)
    assert seeds.uniforms(2, 7, "crop", 2, 31) == [(word // 2**11) / 2**53 for word in words]


def test_uniforms_are_uniform_and_independent() -> None:
    drawn = np.array([seeds.uniforms(3, 0, "x", index) for index in range(4000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for column in drawn.T:  # the greatest distance from the even distribution, 1.95 of its spread
        assert np.abs(np.sort(column) - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / np.sqrt(4000)
    assert np.abs(np.corrcoef(drawn.T)[np.triu_indices(3, 1)]).max() < 3.5 / np.sqrt(4000)
    assert np.abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 3.5 / np.sqrt(4000)
