"""Random seeds keyed by what they are for, so that no draw depends on the order of others.

This module imports nothing of the project, so every package may use it.
"""

import hashlib
import json

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: derive_seed(0, "augment", "Case_1-01", 3)."""
    key = json.dumps([seed, *purpose]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))
