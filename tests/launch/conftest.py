"""A folder to type in, and raw fields in it."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to type in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def brecahad(raw_folder: Callable[..., Path], here: Path) -> Path:
    """Raw fields where data_prep.fetch would put them."""
    (here / "data").mkdir()
    return raw_folder().rename(here / "data/BreCaHAD")
