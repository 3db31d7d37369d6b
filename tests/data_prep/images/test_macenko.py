"""Stains are estimated as they were drawn, and pictures are given those of a reference."""

import numpy as np
import pytest

from data_prep.images.macenko import Conversion, NoStainsError, estimate
from data_prep.images.stains import PUBLISHED, Stains, angle_deg
from tests.data_prep.images.stained import ONE, OTHER, draw

RNG = np.random.default_rng(1)


def estimate_of(image_HWC: np.ndarray) -> Stains:
    return estimate(image_HWC.reshape(-1, 3))


@pytest.mark.parametrize("stains", [ONE, OTHER])
def test_the_stains_that_a_picture_was_drawn_with_are_found(stains: Stains) -> None:
    """Hematoxylin first; the third of glass changes nothing."""
    found = estimate_of(draw(stains))
    assert angle_deg(found.hematoxylin, stains.hematoxylin) < 1
    assert angle_deg(found.eosin, stains.eosin) < 1
    assert found.maxima == pytest.approx(stains.maxima, rel=0.02)
    with_glass = np.concatenate([draw(stains), np.full((2000, 320, 3), 250, np.uint8)])
    assert estimate_of(with_glass) == found


def test_a_picture_becomes_the_one_that_the_reference_would_have_made() -> None:
    """White stays white."""
    made = Conversion(ONE, OTHER)(draw(ONE))
    expected = draw(OTHER)
    assert np.abs(made.astype(int) - expected).max() <= 2
    assert (made[expected == 255] == 255).all()
    estimated = Conversion(estimate_of(draw(ONE)), OTHER)(draw(ONE))
    assert np.abs(estimated.astype(int) - expected).max() <= 4


def textbook(image_HWC: np.ndarray, reference: Stains) -> np.ndarray:
    """The paper's steps, with numpy's decompositions of whole matrices."""
    density_3N = -np.log(np.maximum(image_HWC.reshape(-1, 3).T, 1) / 255)
    tissue_3N = density_3N[:, density_3N.mean(axis=0) / np.log(10) > 0.15]
    axes_32 = np.linalg.svd(tissue_3N, full_matrices=False)[0][:, :2]
    axes_32 *= np.sign(axes_32.sum(axis=0)[0])
    in_plane_2N = axes_32.T @ tissue_3N
    angles_N = np.angle(in_plane_2N[0] + 1j * in_plane_2N[1])
    ends = np.percentile(angles_N, [1, 99])
    own_32 = axes_32 @ np.array([np.cos(ends), np.sin(ends)])
    own_32 = own_32[:, np.argsort(-own_32[0])]
    maxima_2 = np.percentile(np.linalg.lstsq(own_32, tissue_3N, rcond=None)[0], 99, axis=1)
    amounts_2N = np.linalg.lstsq(own_32, density_3N, rcond=None)[0]
    amounts_2N *= (np.array(reference.maxima) / maxima_2)[:, None]
    light_3N = np.exp(-np.array([reference.hematoxylin, reference.eosin]).T @ amounts_2N)
    return np.clip(np.rint(255 * light_3N), 0, 255).T.reshape(image_HWC.shape)


def test_it_is_what_the_textbook_does() -> None:
    """On a noisy picture, whose densities leave the plane."""
    image_HWC = np.clip(draw(ONE) + RNG.normal(0, 4, (240, 320, 3)), 0, 255).astype(np.uint8)
    made = Conversion(estimate_of(image_HWC), PUBLISHED)(image_HWC)
    difference = np.abs(made - textbook(image_HWC, PUBLISHED))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05


def test_a_black_border_of_a_scan_is_no_stain() -> None:
    border = RNG.integers(0, 4, (300, 320, 3), np.uint8)
    assert estimate_of(np.concatenate([draw(ONE), border])) == estimate_of(draw(ONE))


def test_what_stains_have_made_is_converted_to_what_the_eye_expects() -> None:
    """Darker stays darker: no channel of a purer stain is brighter than that of a paler one."""
    conversion = Conversion(estimate_of(draw(ONE)), PUBLISHED)
    amounts = np.linspace(0, 2, 200)[:, None]
    for vector in (ONE.hematoxylin, ONE.eosin):
        ramp = np.rint(255 * np.exp(-amounts * vector)).astype(np.uint8)[None]
        assert (np.diff(conversion(ramp)[0].astype(int), axis=0) <= 1).all()


def of_one_stain(vector: tuple[float, ...], noise: float = 3) -> np.ndarray:
    amounts = RNG.gamma(3, 0.35, (200, 200, 1))
    light = 255 * np.exp(-amounts * np.array(vector)) + RNG.normal(0, noise, (200, 200, 3))
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def of_two(one: tuple[int, int, int], other: tuple[int, int, int]) -> np.ndarray:
    return np.array([one, other], np.uint8)[RNG.integers(0, 2, (100, 100))]


GREY = RNG.integers(0, 256, (200, 200, 1), np.uint8).repeat(3, axis=2)


@pytest.mark.parametrize(
    ("image_HWC", "reason"),
    [
        (np.full((200, 200, 3), 255, np.uint8), "too little tissue"),
        (np.zeros((200, 200, 3), np.uint8), "too little tissue"),
        (np.full((200, 200, 3), 244, np.uint8), "too little tissue"),
        (draw(ONE, 20, 40), "too little tissue"),
        (np.zeros((0, 4, 3), np.uint8), "too little tissue"),
        (np.full((200, 200, 3), (150, 90, 160), np.uint8), "one stain"),
        (of_one_stain(ONE.hematoxylin), "one stain"),
        (of_one_stain(ONE.hematoxylin, noise=0), "one stain"),
        (of_one_stain(ONE.eosin), "one stain"),
        (GREY, "one stain"),
        (RNG.integers(0, 256, (200, 200, 3), np.uint8), "two stains"),
        (of_two((0, 200, 0), (200, 0, 200)), "hematoxylin and eosin"),
        (of_two((0, 60, 200), (200, 200, 0)), "hematoxylin and eosin"),
    ],
)
def test_what_has_not_two_stains_is_refused(image_HWC: np.ndarray, reason: str) -> None:
    with pytest.raises(NoStainsError, match=reason):
        estimate_of(image_HWC)
