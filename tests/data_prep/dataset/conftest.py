"""A prepared data set for the tests of its readers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from data_prep.config import AugmentConfig, PrepConfig, SplitConfig
from data_prep.dataset.manifest import Dataset, read_dataset
from data_prep.prepare import prepare


@pytest.fixture
def prepared(raw_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Dataset]:
    """prepared(pack=True, ...) prepares two training fields of different sizes and one other."""
    raw = raw_folder({"1": 2, "2": 1})
    odd = np.random.default_rng(5).integers(0, 256, (77, 91, 3), np.uint8)
    tifffile.imwrite(raw / "images/Case_1-02.tif", odd, photometric="rgb")

    def run(**settings: object) -> Dataset:
        split = SplitConfig(val=0, test_cases=["2"])
        given = {"copies": 2, "format": "png", "split": split, "workers": 2} | settings
        augment = AugmentConfig(transforms=["gaussian"])
        config = PrepConfig(raw=str(raw), out=str(tmp_path / "out"), augment=augment, **given)  # type: ignore[arg-type]
        prepare(config)
        return read_dataset(tmp_path / "out")

    return run
