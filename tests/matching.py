"""One-to-one matching by an algorithm of others."""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching


def num_pairs(found: np.ndarray, annotated: np.ndarray, radius_px: float) -> int:
    """How many of the found can be matched one to one, by Hopcroft and Karp's algorithm."""
    is_near = np.linalg.norm(found[:, None] - annotated[None], axis=-1) <= radius_px
    return int((maximum_bipartite_matching(csr_array(is_near)) >= 0).sum())
