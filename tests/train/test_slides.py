"""A slide from its annotation to its prediction, by the real commands."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import __main__ as data_prep_main
from data_prep.dataset.manifest import read_dataset
from data_prep.dataset.samples import read_sample
from data_prep.image_files.tif_image import TifImage
from data_prep.images.arrays import Box, Image
from tests.slide_files import write_svs
from train import __main__ as train_main
from train import predict

pytestmark = pytest.mark.usefixtures("warm_workers")

HEIGHT, WIDTH, TILE_PX, NUCLEUS_PX = 512, 1280, 128, 10
GLASS, PINK, DARK = (245, 245, 245), (230, 160, 200), (70, 30, 110)
TINY = ["epochs=5", "batch_size=4", "microbatches=4", "lr=0.02", "loader_workers=0", "amp=off"]
TINY += ["crop.size_px=64", "model.width=4", "model.depth=1"]
TINY += ["tile.size_px=64", "tile.overlap_px=16"]


def slide(number: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Draw glass, tissue from (128, 128) to (512, 384), and in it nuclei; return their corners."""
    rng = np.random.default_rng(number)
    image = np.full((HEIGHT, WIDTH, 3), GLASS, np.uint8)
    image[128:384, 128:512] = PINK
    corners = []
    for top in range(136, 370, 32):
        for left in range(136, 500, 32):
            x, y = left + int(rng.integers(0, 8)), top + int(rng.integers(0, 8))
            image[y : y + NUCLEUS_PX, x : x + NUCLEUS_PX] = DARK
            corners.append((x, y))
    return image, corners


def square(x: int, y: int) -> dict[str, Any]:
    side = NUCLEUS_PX
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": "nucleus"}},
    }


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("slides")
    for name in ("images", "groundTruth"):
        (raw / name).mkdir()
    for number in (1, 2, 3):
        image, corners = slide(number)
        name = f"Case_{number}-01"
        write_svs(raw / f"images/{name}.svs", image, tile_px=64)
        features = [square(x, y) for x, y in corners]
        (raw / f"groundTruth/{name}.geojson").write_text(json.dumps(features))
    return raw


@pytest.fixture(scope="module")
def prepared(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    given = [f"raw={slides}", f"out={out}", "annotations=geojson", "classes=[nucleus]", "copies=10"]
    given += [f"tile_px={TILE_PX}", "format=png", "workers=1", "radius_px=6"]
    given += ["split.train_cases=[1]", "split.val_cases=[2]", "split.test_cases=[3]"]
    assert data_prep_main.main(given) == 0
    return out


def test_tiles_with_tissue_are_prepared_with_their_nuclei(prepared: Path) -> None:
    """2 x 3 of 4 x 10 tiles are tissue; the macro, larger than the slide, would give others."""
    dataset = read_dataset(prepared)
    originals = [sample for sample in dataset.samples if sample.variant == 0]
    assert len(originals) == 3 * 6
    for sample in originals:
        image, mask = read_sample(dataset.folder, sample)
        assert np.abs(image[mask == 0].astype(int) - PINK).mean() < 6
        assert np.abs(image[mask > 0].astype(int) - DARK).mean() < 12


def test_a_slide_is_predicted_as_geojson_in_its_own_px(
    slides: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nuclei are found where they were drawn; glass is seen in the pyramid and not read."""
    run, out = tmp_path / "run", tmp_path / "out"
    assert train_main.main([f"data={prepared}", f"run={run}", *TINY]) == 0
    boxes: list[Box] = []
    read = TifImage.read

    def noting(image: TifImage, box: Box) -> Image:
        boxes.append(box)
        return read(image, box)

    monkeypatch.setattr(TifImage, "read", noting)
    path = slides / "images/Case_3-01.svs"
    assert predict.main([f"run={run}", f"input={path}", f"out={out}", "amp=off"]) == 0
    (written,) = out.glob("*_nuclei.geojson")
    listed = json.loads(written.read_text())
    features = listed["features"] if isinstance(listed, dict) else listed
    found = np.array([feature["geometry"]["coordinates"] for feature in features])
    expected = np.array(slide(3)[1]) + NUCLEUS_PX / 2
    distances = np.linalg.norm(found[:, None] - expected, axis=-1)
    assert distances.min(axis=0).max() < 3
    assert distances.min(axis=1).max() < 3
    assert len(found) == len(expected)
    # read in boxes of 256 px and more; the right half of the slide is glass
    assert 0 < max(box.x + box.width for box in boxes) <= 768
