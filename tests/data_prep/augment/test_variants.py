"""What a plan of variants holds, and settings that cannot work."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from data_prep.augment.variants import plan_variants
from data_prep.config import (
    FLIPS,
    TRANSFORMS,
    AugmentConfig,
    DisplacementConfig,
    LensConfig,
    PrepConfig,
    RotationConfig,
    ScaleConfig,
)

WARPS = [name for name in TRANSFORMS if name not in FLIPS]


class TestPlan:
    def plan(self, field: str = "Case_1-01", copies: int = 16, seed: int = 0, **config: Any) -> Any:
        return plan_variants(field, copies, AugmentConfig(**config), seed)

    def test_162_fields_become_2592_samples(self) -> None:
        assert PrepConfig().copies == 16
        plans = [self.plan(f"Case_{case}-01") for case in range(162)]
        assert sum(map(len, plans)) == 2592

    def test_16_variants_are_the_original_two_flips_and_all_others_in_turn(self) -> None:
        plan = self.plan()
        assert [one.index for one in plan] == list(range(16))
        names = [one.transform for one in plan]
        assert names == ["original", *TRANSFORMS, *WARPS, "rotation"]
        assert Counter(names) == {
            "original": 1,
            "horizontal_flip": 1,
            "vertical_flip": 1,
            "rotation": 3,
            **dict.fromkeys(["elastic", "gaussian", "barrel", "pincushion", "scale"], 2),
        }

    @pytest.mark.parametrize("copies", [1, 2, 5, 40])
    def test_as_many_variants_as_asked_for(self, copies: int) -> None:
        plan = self.plan(copies=copies)
        assert len(plan) == copies
        assert plan == self.plan(copies=40)[:copies]  # more copies keep the first ones

    def test_a_field_has_draws_of_its_own(self) -> None:
        one, same, other_field, other_seed = (
            self.plan(),
            self.plan(),
            self.plan("Case_1-02"),
            self.plan(seed=1),
        )
        assert one == same
        for other in (other_field, other_seed):
            assert not {v.seed for v in one[1:]} & {v.seed for v in other[1:]}
            angles = [
                [v.parameters["angle_deg"] for v in plan if v.transform == "rotation"]
                for plan in (one, other)
            ]
            assert not set(angles[0]) & set(angles[1])

    def test_only_the_transforms_asked_for_are_used_in_their_order(self) -> None:
        plan = self.plan(copies=6, transforms=["scale", "vertical_flip", "barrel"])
        names = [one.transform for one in plan]
        assert names == ["original", "scale", "vertical_flip", "barrel", "scale", "barrel"]

    def test_draws_fill_the_configured_ranges(self) -> None:
        config = {
            "rotation": RotationConfig(max_deg=30.0),
            "barrel": LensConfig(min_k=0.2, max_k=0.3),
            "pincushion": LensConfig(min_k=0.05, max_k=0.1),
            "scale": ScaleConfig(min=0.5, max=2.0),
            "elastic": DisplacementConfig(rms_px=2.0, sigma_px=7.0),
        }
        drawn: dict[str, list[dict[str, float]]] = {name: [] for name in WARPS}
        for one in self.plan(copies=600, **config)[3:]:
            drawn[one.transform].append(one.parameters)
        for name, key, low, high in (
            ("rotation", "angle_deg", -30.0, 30.0),
            ("barrel", "k", 0.2, 0.3),
            ("pincushion", "k", -0.1, -0.05),
            ("scale", "factor", 0.5, 2.0),
        ):
            values = np.array([parameters[key] for parameters in drawn[name]])
            assert low <= values.min() < low + 0.1 * (high - low), name
            assert high - 0.1 * (high - low) < values.max() <= high, name
        assert all(one == {"rms_px": 2.0, "sigma_px": 7.0} for one in drawn["elastic"])
        assert all(one == {"rms_px": 8.0, "sigma_px": 50.0} for one in drawn["gaussian"])
        factors = np.array([one["factor"] for one in drawn["scale"]])
        assert abs(np.mean(factors < 1) - 0.5) < 0.15  # as often smaller as larger


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotationConfig(max_deg=0), "max_deg=0"),
        (lambda: RotationConfig(max_deg=181), "max_deg=181"),
        (lambda: DisplacementConfig(rms_px=0), "rms_px=0"),
        (lambda: DisplacementConfig(rms_px=float("nan")), "rms_px=nan"),
        (lambda: DisplacementConfig(sigma_px=0.5), r"sigma_px=0\.5"),
        (lambda: LensConfig(min_k=0), "min_k=0"),
        (lambda: LensConfig(min_k=0.3, max_k=0.2), "min_k <= max_k"),
        (lambda: LensConfig(max_k=0.9), r"max_k=0\.9"),
        (lambda: ScaleConfig(min=0), r"scale\.min=0"),
        (lambda: ScaleConfig(min=1.2, max=1.1), "min <= max"),
        (lambda: AugmentConfig(transforms=["blur"]), "unknown blur; allowed: horizontal_flip, "),
        (lambda: PrepConfig(copies=4, augment=AugmentConfig(transforms=list(FLIPS))), "copies=4"),
        (lambda: PrepConfig(copies=2, augment=AugmentConfig(transforms=[])), "copies=2"),
        (lambda: PrepConfig(copies=0), "copies=0: must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_flips_alone_make_three_variants() -> None:
    config = PrepConfig(copies=3, augment=AugmentConfig(transforms=list(FLIPS)))
    plan = plan_variants("Case_1-01", 3, config.augment, 0)
    assert [one.transform for one in plan] == ["original", *FLIPS]
