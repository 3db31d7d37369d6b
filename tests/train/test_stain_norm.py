"""A run whose fields were given the stains of a reference: whoever uses it gives them, unasked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from data_prep.dataset.description import read_description
from data_prep.dataset.manifest import read_dataset
from data_prep.dataset.samples import read_image
from data_prep.images.stains import PUBLISHED, Stains
from tests.data_prep.images.stained import ONE, OTHER, draw
from tests.processes import prepare_alone
from tests.train.conftest import TINY
from train import __main__ as train_main
from train import evaluate, export, predict
from train.config import TileConfig
from train.exchange import exported_model
from train.fields.whole_fields import raw_fields
from train.prediction.band_reader import BandReader
from train.prediction.result_files import Task
from train.prediction.tiles import cut_into_bands
from train.runs.export_run import field_tiles
from train.runs.run_folder import read_run

Cli = Callable[..., Any]
HEIGHT, WIDTH = 150, 220
OF_CASE = {"1": ONE, "2": OTHER, "3": OTHER, "4": ONE}
PUBLISHED_TEXT = PUBLISHED.text()


def save(path: Path, stains: Stains, seed: int) -> None:
    image_HWC = draw(stains, HEIGHT, WIDTH, seed)
    tifffile.imwrite(path, image_HWC, photometric="rgb", rowsperstrip=8)
    points = [{"x": x, "y": y} for x, y in ((0.2, 0.3), (0.7, 0.6))]
    path.with_suffix(".json").write_text(json.dumps({"tumor": points}))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stained")
    for seed, (case, stains) in enumerate(OF_CASE.items()):
        save(folder / f"Case_{case}-01.tif", stains, seed)
    return folder


def prepare_here(raw: Path, out: Path, *settings: str) -> Path:
    given = [f"raw={raw}", f"out={out}", "copies=1", "format=png", "radius_px=8"]
    prepare_alone(*given, "split.val_cases=[3]", "split.test_cases=[4]", *settings)
    return out


@pytest.fixture(scope="module")
def data(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_here(raw, tmp_path_factory.mktemp("data") / "data", "stain_norm=macenko")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    short = [*TINY, "epochs=1", "batch_size=2", "microbatches=1"]
    assert train_main.main([f"data={data}", f"run={run}", *short]) == 0
    return run


@pytest.fixture(scope="module")
def prepared_picture(data: Path) -> np.ndarray:
    """The prepared picture of Case 4."""
    (sample,) = read_dataset(data).split("test")
    return read_image(data, sample)


def test_prepared_evaluated_and_predicted_pictures_are_the_same_bytes(
    run: Path, raw: Path, prepared_picture: np.ndarray
) -> None:
    labelling = read_run(run).data.labelling
    assert labelling.stains == PUBLISHED
    path = raw / "Case_4-01.tif"
    assert (prepared_picture != tifffile.imread(path)).mean() > 0.5
    (field,) = [each for each in raw_fields(raw, labelling, run) if each.case == "Case_4"]
    np.testing.assert_array_equal(field.read().image_HWC, prepared_picture)
    bands = cut_into_bands(HEIGHT, WIDTH, TileConfig(48, 8), 1, 1)
    assert len(bands) > 2
    reader = BandReader(labelling.uint16_white, 0, labelling.stains)
    for band in bands:
        found_HWC, _ = reader.read(Task(path, path.parent, HEIGHT, WIDTH, bands, {}), band)
        np.testing.assert_array_equal(found_HWC, prepared_picture[band.top : band.bottom])
    ((_, tile_BCHW),) = field_tiles(str(path), of_large_tiles(run))
    expected_BCHW = prepared_picture.transpose(2, 0, 1)[None] / np.float32(255)
    np.testing.assert_allclose(tile_BCHW.numpy(), expected_BCHW, atol=1e-6)


def of_large_tiles(run: Path) -> Any:
    found = read_run(run)
    tile = TileConfig(256, 8)
    object.__setattr__(found.config, "tile", tile)
    return found


def evaluated(run: Path, out: Path, cli: Cli, *settings: str) -> dict[str, Any]:
    outcome = cli(evaluate.main, f"run={run}", f"out={out}", "amp=off", "figures=0", *settings)
    assert outcome.code == 0, outcome.err
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def test_raw_fields_give_an_exported_model_what_their_split_gives_the_run(
    run: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    file = tmp_path / "model.safetensors"
    assert cli(export.main, f"run={run}", f"out={file}").code == 0
    of_split = evaluated(run, tmp_path / "split", cli)
    of_raw = evaluated(file, tmp_path / "raw", cli, f"raw={raw}", "cases=[4]")
    assert of_raw["per_field"] == of_split["per_field"]
    assert "colours" not in " ".join(of_raw["warnings"])
    about = exported_model.read(file)
    assert about.data.labelling.stains == PUBLISHED
    with exported_model.open_file(file) as opened:
        written = json.loads(opened.metadata()["eosin"])
    assert written["preprocessing"]["stains"] == {
        "hematoxylin": [0.5626, 0.7201, 0.4062],
        "eosin": [0.2159, 0.8012, 0.5581],
        "maxima": [1.9705, 1.0308],
    }


def predicted(run: Path, image: Path, out: Path, cli: Cli) -> tuple[np.ndarray, str]:
    given = [f"run={run}", f"input={image}", f"out={out}", "amp=off", "min_tissue=0"]
    outcome = cli(predict.main, *given)
    assert outcome.code == 0, outcome.err
    return tifffile.imread(out / f"{image.stem}_probability.tif"), outcome.err


def test_a_picture_is_predicted_as_its_prepared_copy_is_without_normalisation(
    run: Path, raw: Path, prepared_picture: np.ndarray, tmp_path: Path, cli: Cli
) -> None:
    plain = Path(shutil.copytree(run, tmp_path / "plain"))
    about = json.loads((plain / "dataset.json").read_text())
    about["config"] |= {"stain_norm": "none", "stain_reference": ""}
    (plain / "dataset.json").write_text(json.dumps(about))
    tifffile.imwrite(tmp_path / "Case_4-01.tif", prepared_picture, photometric="rgb")

    found, _ = predicted(run, raw / "Case_4-01.tif", tmp_path / "out", cli)
    expected, _ = predicted(plain, tmp_path / "Case_4-01.tif", tmp_path / "expected", cli)
    np.testing.assert_array_equal(found, expected)
    other, _ = predicted(plain, raw / "Case_4-01.tif", tmp_path / "other", cli)
    assert (found != other).any()
    settings = json.loads((tmp_path / "out/Case_4-01_settings.json").read_text())
    assert settings["stain_norm"] == "macenko"
    assert settings["stain_reference"] == PUBLISHED_TEXT
    assert settings["not_normalised"] == ""


def test_a_picture_that_keeps_its_colours_is_named(
    run: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    grey = tmp_path / "grey" / "Case_5-01.tif"
    grey.parent.mkdir()
    save(grey, ONE, 5)
    pixels = draw(ONE, HEIGHT, WIDTH)[..., :1].repeat(3, axis=2)
    tifffile.imwrite(grey, pixels, photometric="rgb")
    line = (
        "1 of 1 image keeps its colours, since its stains cannot be estimated: Case_5-01.tif (it"
        " has one stain only)"
    )
    for _ in range(2):  # predicted, and done before
        _, told = predicted(run, grey, tmp_path / "out", cli)
        assert f"warning: {line}\n" in told
    settings = json.loads((tmp_path / "out/Case_5-01_settings.json").read_text())
    assert settings["not_normalised"] == "it has one stain only"
    assert line in evaluated(run, tmp_path / "eval", cli, f"raw={grey.parent}")["warnings"]


def test_data_of_other_stains_are_refused(run: Path, raw: Path, tmp_path: Path, cli: Cli) -> None:
    """With the settings that would prepare them as before; those are accepted."""
    plain = prepare_here(raw, tmp_path / "plain")
    outcome = cli(evaluate.main, f"run={run}", f"data={plain}", f"out={tmp_path / 'out'}")
    assert outcome.code == 1
    assert "stain_norm: macenko -> none" in outcome.err
    assert f"stain_norm=macenko 'stain_reference={PUBLISHED_TEXT}'" in outcome.err
    again = prepare_here(
        raw, tmp_path / "again", "stain_norm=macenko", f"stain_reference={PUBLISHED_TEXT}"
    )
    evaluated(run, tmp_path / "out", cli, f"data={again}")

    other = prepare_here(
        raw, tmp_path / "other", "stain_norm=macenko", f"stain_reference={OTHER.text()}"
    )
    outcome = cli(evaluate.main, f"run={run}", f"data={other}", f"out={tmp_path / 'out'}")
    assert f"stain_reference: {PUBLISHED_TEXT} -> {OTHER.text()}" in outcome.err


def test_runs_of_other_stains_are_no_ensemble(
    run: Path, raw: Path, tmp_path: Path, cli: Cli
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    plain = prepare_here(raw, tmp_path / "plain")
    assert read_description(plain / "dataset.json").labelling.stains is None
    shutil.copy(plain / "dataset.json", other / "dataset.json")
    image = raw / "Case_4-01.tif"
    outcome = cli(
        predict.main, f"runs=[{run},{other}]", f"input={image}", f"out={tmp_path / 'out'}"
    )
    assert outcome.code == 2
    assert "stain_norm: none -> macenko" in outcome.err
