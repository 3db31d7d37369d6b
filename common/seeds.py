"""Make random seeds keyed by their purpose, so that no draw depends on the order of others.

This module imports nothing of the project, so every package may use it.
"""

import hashlib
import json
import struct

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose: derive_seed(0, "augment", "Case_1-01", 3)."""
    return int.from_bytes(hashlib.sha256(key_of(seed, *purpose)).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a numpy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))


def uniforms(count: int, seed: int, *purpose: str | int) -> list[float]:
    """Return `count` numbers in [0, 1) for one purpose, faster than a new generator would.

    They are bits of SHAKE-256, whose output has any length and looks random in every bit.
    """
    content = hashlib.shake_256(key_of(seed, *purpose)).digest(8 * count)
    return [(word >> 11) * 2.0**-53 for word in struct.unpack(f">{count}Q", content)]


def key_of(seed: int, *purpose: str | int) -> bytes:
    """Encode a seed and its purpose for hashing."""
    return json.dumps([seed, *purpose]).encode()
