"""Plan the variants of a field: one named transform each, with parameters drawn from a seed."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common import seeds
from data_prep.config import FLIPS, PIPELINE, AugmentConfig, DisplacementConfig, LensConfig

Border = Literal["mirror", "white", "black"]
ORIGINAL = "original"


@dataclass(frozen=True)
class Variant:
    """One variant of a field: `transform` with the parameters drawn from `seed`."""

    index: int
    transform: str
    seed: int
    parameters: dict[str, float]
    pipeline: str = ""
    """The content of augment.pipeline, as JSON, where that is the transform."""


def plan_variants(field: str, copies: int, config: AugmentConfig, seed: int) -> list[Variant]:
    """Variant 0, the original, and copies - 1 others that go through the transforms in turn.

    A flip draws nothing, so it is used once; the others come again with new draws.
    """
    variants = [Variant(0, ORIGINAL, 0, {})]
    names = config.turn
    while len(variants) < copies:
        for name in names[: copies - len(variants)]:
            variant_seed = seeds.derive_seed(seed, "augment", field, len(variants))
            parameters = draw_parameters(name, config, variant_seed)
            pipeline = config.pipeline if name == PIPELINE else ""
            variants.append(Variant(len(variants), name, variant_seed, parameters, pipeline))
        names = [name for name in config.turn if name not in FLIPS]
    return variants


def draw_parameters(name: str, config: AugmentConfig, seed: int) -> dict[str, float]:
    """The drawn numbers of a transform; displacements are drawn from the seed when applied."""
    rng = np.random.default_rng(seed)
    if name == "rotation":
        return {"angle_deg": rng.uniform(-config.rotation.max_deg, config.rotation.max_deg)}
    if name in ("elastic", "gaussian"):
        displacement: DisplacementConfig = getattr(config, name)
        return {"rms_px": displacement.rms_px, "sigma_px": displacement.sigma_px}
    if name in ("barrel", "pincushion"):
        lens: LensConfig = getattr(config, name)
        k = rng.uniform(lens.min_k, lens.max_k)
        return {"k": k if name == "barrel" else -k}
    if name == "scale":
        low, high = math.log(config.scale.min), math.log(config.scale.max)
        return {"factor": math.exp(rng.uniform(low, high))}
    return {}
