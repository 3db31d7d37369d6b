"""Maps on a lattice: what lies between the nodes, and the way back."""

from collections.abc import Callable

import numpy as np
import pytest

from data_prep.augment.lattice import SOLVED_PX, Lattice, LatticeMap
from data_prep.config import MARGIN_PX

HEIGHT, WIDTH = 200, 260


def lattice_map(
    displace: Callable[[np.ndarray, np.ndarray], tuple[object, object]], step_px: int = 4
) -> LatticeMap:
    """The map with a displacement that is a formula of x and y."""
    lattice = Lattice(HEIGHT, WIDTH, step_px)
    x, y = np.moveaxis(lattice.nodes(), -1, 0)
    displacement = [np.broadcast_to(along, x.shape) for along in displace(x, y)]
    return LatticeMap(lattice, np.stack(displacement, axis=-1).astype(np.float32))


def pixels() -> np.ndarray:
    return np.dstack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))).astype(float)


@pytest.mark.parametrize("step_px", [1, 5, 8])
def test_a_linear_map_is_exact_at_pixels_and_between_them(step_px: int) -> None:
    linear = lattice_map(lambda x, y: (0.25 * x - 3, 0.5 * y + 0.125 * x), step_px)
    expected = pixels() @ [[1.25, 0.125], [0, 1.5]] + [-3, 0]
    assert np.abs(linear.at_pixels() - expected).max() < 1e-3
    between = np.array([[-MARGIN_PX, 17.3], [WIDTH + MARGIN_PX - 1.0, 0.25]])
    assert linear.at(between) == pytest.approx(between @ [[1.25, 0.125], [0, 1.5]] + [-3, 0])


def test_no_displacement_moves_nothing() -> None:
    assert np.array_equal(lattice_map(lambda x, y: (0, 0)).at_pixels(), pixels())


def test_the_inverse_leads_back() -> None:
    bent = lattice_map(lambda x, y: (9 * np.sin(y / 20), 9 * np.sin(x / 15)))
    sources = np.random.default_rng(0).uniform(0, (WIDTH, HEIGHT), (300, 2))
    seen, is_found = bent.inverse(sources)
    assert is_found.all()
    assert np.abs(seen - sources).max() > 5
    assert np.abs(bent.at(seen) - sources).max() < SOLVED_PX


def test_hardly_a_position_is_lost_where_the_map_folds_over() -> None:
    folds = lattice_map(lambda x, y: (20 * np.sin(x / 12), 20 * np.sin(y / 12)))
    seen = np.random.default_rng(0).uniform(0, (WIDTH, HEIGHT), (300, 2))
    found, is_found = folds.inverse(folds.at(seen))
    assert is_found.mean() > 0.95
    assert np.abs(folds.at(found) - folds.at(seen))[is_found].max() < SOLVED_PX
    assert np.mean(np.abs(found - seen).max(axis=1) > 5) > 0.2, "it did not fold"


def test_no_positions_stay_none() -> None:
    seen, is_found = lattice_map(lambda x, y: (3, 4)).inverse(np.zeros((0, 2)))
    assert seen.shape == (0, 2)
    assert is_found.shape == (0,)
