"""Random seeds keyed by what they are for, so that no draw depends on the order of others.

This module imports nothing of the project, so every package may use it.
"""

import hashlib
import json
import struct

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: derive_seed(0, "augment", "Case_1-01", 3)."""
    return int.from_bytes(hashlib.sha256(key_of(seed, *purpose)).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))


def uniforms(count: int, seed: int, *purpose: str | int) -> list[float]:
    """As many numbers from 0 to below 1 for one purpose, where a generator would cost too much.

    Of SHAKE-256, an output of any length in which every bit is as good as drawn.
    """
    drawn = hashlib.shake_256(key_of(seed, *purpose)).digest(8 * count)
    return [(word >> 11) * 2.0**-53 for word in struct.unpack(f">{count}Q", drawn)]


def key_of(seed: int, *purpose: str | int) -> bytes:
    """What is hashed."""
    return json.dumps([seed, *purpose]).encode()
