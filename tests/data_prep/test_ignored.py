"""Pixels that no loss and no metric counts: 254 in prepared masks, wherever they come from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from common import command_line
from common.command_line import UsageError
from data_prep import __main__ as data_prep_main
from data_prep.config import PrepConfig
from data_prep.dataset.description import labelling_of
from data_prep.dataset.manifest import Dataset, Sample, read_dataset
from data_prep.dataset.samples import read_mask, read_points
from data_prep.images.masks import not_ignored, paint_mask
from data_prep.raw import BadInputFilesError
from data_prep.tools.contact_sheet import outlined
from tests.points import as_lists, as_points
from tests.processes import prepare_alone

HEIGHT, WIDTH = 96, 128
IGNORED = 254


@pytest.fixture
def raw(tmp_path: Path) -> Callable[[dict[str, str | np.ndarray]], Path]:
    """raw({"a-1.geojson": text, "b-1.png": mask}) writes annotations, and an image for each."""

    def write(annotations: dict[str, str | np.ndarray], name: str = "raw") -> Path:
        folder = tmp_path / name
        for part in ("images", "groundTruth"):
            (folder / part).mkdir(parents=True)
        for number, (file, content) in enumerate(annotations.items()):
            rng = np.random.default_rng(number)
            image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(image).save(folder / "images" / f"{Path(file).stem}.tif")
            path = folder / "groundTruth" / file
            if isinstance(content, str):
                path.write_text(content)
            else:
                Image.fromarray(content).save(path)
        return folder

    return write


def prepare(raw: Path, *settings: str) -> Dataset:
    out = raw.parent / f"prepared-{raw.name}"
    given = [f"raw={raw}", f"out={out}", "format=png", "split.val=0", "split.test=0", "copies=1"]
    prepare_alone(*given, *settings)
    return read_dataset(out)


def mask_of(dataset: Dataset, number: int = 0) -> np.ndarray:
    return read_mask(dataset.folder, dataset.samples[number])


def feature(name: str, kind: str, coordinates: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"classification": {"name": name}},
    }


def geojson(*features: dict[str, Any]) -> str:
    return json.dumps({"type": "FeatureCollection", "features": list(features)})


def rectangle(name: str, left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return feature(name, "Polygon", [ring])


def disc(x: int, y: int, radius: int) -> np.ndarray:
    """What OpenCV paints as a disc in an empty field."""
    return cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (x, y), radius, 1, cv2.FILLED) > 0


# Mask images


@pytest.mark.parametrize(
    ("classes", "value", "settings", "stored"),
    [
        ("[a]", 255, [], np.uint8),  # as VOC has it: 0, 1, and 255 for what is not known
        ("[a]", 7, [], np.uint8),
        ("[a,b]", 0, ["labels=per_class"], np.uint8),
        ("[a,b]", 255, ["labels=per_class"], np.uint8),
        ("[a,b]", 65535, ["labels=per_class"], np.uint16),
    ],
)
def test_a_value_of_mask_images_is_ignored(
    classes: str, value: int, settings: list[str], stored: Any, raw: Callable[..., Path]
) -> None:
    given = np.zeros((HEIGHT, WIDTH), stored)
    given[10:30, 10:40] = 1
    given[50:60, 50:90] = 2 if "b" in classes else 1
    given[20:55, 30:70] = value
    dataset = prepare(
        raw({"a-1.png": given}),
        *("annotations=masks", f"classes={classes}", f"ignore_value={value}", *settings),
    )
    labels = dataset.description.labelling.labels
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, label in enumerate(labels.values(), start=1):
        expected[given == number] = label
    expected[given == value] = IGNORED
    assert np.array_equal(mask_of(dataset), expected)
    (sample,) = dataset.samples
    assert sample.ignored_px == np.count_nonzero(given == value)
    assert sample.foreground_px == np.count_nonzero(np.isin(given, [1, 2]) & (given != value))
    assert dataset.description.labelling.ignore_value == value


def test_a_mask_of_one_bit_has_values_too(raw: Callable[..., Path]) -> None:
    given = np.zeros((HEIGHT, WIDTH), bool)
    given[:50] = True
    two = np.full((HEIGHT, WIDTH), 2, np.uint8)
    dataset = prepare(
        raw({"a-1.png": given, "b-1.png": two}),
        *("annotations=masks", "classes=[a,b]", "labels=per_class", "ignore_value=0"),
    )
    assert np.array_equal(mask_of(dataset), np.where(given, 1, IGNORED))


def test_an_unknown_value_is_still_refused_and_names_the_way_out(raw: Callable[..., Path]) -> None:
    given = np.zeros((HEIGHT, WIDTH), np.uint8)
    given[:9] = 1
    given[40:50] = 9
    folder = raw({"a-1.png": given})
    settings = ["annotations=masks", "classes=[a]"]
    with pytest.raises(BadInputFilesError, match=r"values 9 mean no class.*; ignore_value=9 leave"):
        prepare(folder, *settings)
    with pytest.raises(BadInputFilesError, match="0 background, 1 a, 255 a, 7 ignored"):
        prepare(folder, *settings, "ignore_value=7")
    assert prepare(folder, *settings, "ignore_value=9").samples[0].ignored_px == 10 * WIDTH


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["annotations=masks", "classes=[a,b]", "ignore_value=2"], "ignore_value=2: is class 'b'"),
        (["annotations=masks", "classes=[a]", "ignore_value=1"], "ignore_value=1: is class 'a'"),
        (["annotations=masks", "classes=[a]", "ignore_value=0"], "ignore_value=0: leaves nothing"),
        (["annotations=masks", "classes=[a]", "ignore_value=-1"], "ignore_value=-1: 0 to 65535"),
        (["annotations=masks", "classes=[a]", "ignore_value=65536"], "65536: 0 to 65535, or none"),
        (["annotations=geojson", "ignore_value=9"], "only annotations=masks has values"),
        (["annotations=masks", "ignore_px=4"], "ignore_px=4: annotations=masks has no points"),
        (["ignore_px=-1"], "ignore_px=-1: 0 (none) to 44 with radius_px=20"),
        (["ignore_px=45"], "ignore_px=45: 0 (none) to 44 with radius_px=20"),
        (["annotations=geojson", "classes=[a,Ignore*]"], "classes: 'Ignore*' is what no loss"),
        (["annotations=csv", "classes=[IGNORE]"], "classes: 'IGNORE' is what no loss"),
        (["annotations=masks", "classes=[a,ignore]"], "name its value with ignore_value="),
        (
            ["annotations=masks", f"classes=[{','.join(f'c{n}' for n in range(254))}]"],
            "classes: 254, at most 253",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    settings: list[str], message: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = cli(data_prep_main.main, f"raw={tmp_path}", f"out={tmp_path / 'out'}", *settings)
    assert outcome.code == 2
    assert message in outcome.err


def test_253_classes_are_as_many_as_there_may_be() -> None:
    names = [f"c{number}" for number in range(253)]
    config = PrepConfig(classes=names, annotations="masks", labels="per_class", ignore_value=254)
    assert config.ignore_value == 254


# Polygons and points of a class of that name


@pytest.mark.parametrize("name", ["ignore", "Ignore*", "IGNORE"])
def test_areas_of_that_name_lie_over_all_and_are_no_nuclei(
    name: str, raw: Callable[..., Path]
) -> None:
    text = geojson(
        rectangle(name, 20, 20, 60, 60),  # first in the file, over all the same
        rectangle("a", 40, 40, 80, 80),
        feature("a", "Point", [58, 22]),
        feature("a", "Point", [110, 20]),
    )
    dataset = prepare(
        raw({"a-1.geojson": text}), "annotations=geojson", "classes=[a]", "radius_px=6"
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[40:80, 40:80] = 255
    expected[disc(58, 22, 6) | disc(110, 20, 6)] = 255
    expected[20:60, 20:60] = IGNORED
    assert np.array_equal(mask_of(dataset), expected)
    (sample,) = dataset.samples
    # the point at (58, 22) lies in an ignored pixel; the middle of the area, (60, 60), does not
    assert sample.nuclei == {"a": 2}
    assert as_lists(read_points(dataset.folder, sample, ["a"])) == {"a": [(110, 20), (60, 60)]}
    assert sample.ignored_px == 1600


def test_points_of_that_name_are_discs_also_of_a_table(raw: Callable[..., Path]) -> None:
    folder = raw({"a-1.csv": "file,x,y,class\na-1.tif,30,40,a\na-1.tif,36,40,Ignore\n"})
    dataset = prepare(folder, "annotations=csv", "classes=[a]", "radius_px=5")
    expected = disc(30, 40, 5) * np.uint8(255)
    expected[disc(36, 40, 5)] = IGNORED
    assert np.array_equal(mask_of(dataset), expected)


def test_a_preparation_says_what_is_ignored(
    raw: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    text = geojson(rectangle("Ignore*", 20, 20, 60, 60), rectangle("a", 70, 40, 80, 80))
    folder = raw({"a-1.geojson": text})
    given = [f"raw={folder}", f"out={folder.parent / 'out'}", "annotations=geojson", "classes=[a]"]
    outcome = cli(data_prep_main.main, *given, "split.val=0", "split.test=0", "copies=1")
    assert "annotated to be ignored: Ignore* 1\n" in outcome.out
    assert "ignored by loss and metrics: 13.021% of the pixels" in outcome.out  # 40^2 of 128 x 96
    assert "not learned" not in outcome.out


def test_what_is_hidden_under_an_ignored_area_changes_no_prepared_byte(
    raw: Callable[..., Path],
) -> None:
    """Other points and areas there: the same content, with variants."""
    contents = []
    for number, hidden in enumerate(([40, 40], [50, 60])):
        text = geojson(
            feature("a", "MultiPoint", [hidden, [100, 30]]),
            rectangle("a", 30 + number, 30, 40, 50),
            rectangle("ignore", 20, 20, 70, 80),
        )
        folder = raw({"a-1.geojson": text}, f"raw{number}")
        settings = ["annotations=geojson", "classes=[a]", "radius_px=6", "ignore_px=3"]
        dataset = prepare(folder, *settings, "copies=6")
        assert dataset.samples[0].nuclei == {"a": 1}
        contents.append(dataset.description.content_sha256)
    assert contents[0] == contents[1]


# Rings around discs


def test_rings_are_ignored_where_nothing_is_painted() -> None:
    """Two classes, an area and a border; a third class that is not learned has no ring."""
    points = as_points({"a": [(30, 30), (42, 30)], "b": [(0, 90)], "c": [(100, 20)]})
    areas_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    areas_HW[40:50, 20:40] = 2
    values = {"a": 1, "b": 2}
    mask_HW = paint_mask(points, values, 6, HEIGHT, WIDTH, areas_HW, ignore_px=5)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x, y in ((30, 30), (42, 30), (0, 90)):
        expected[disc(x, y, 11)] = IGNORED
    expected[disc(30, 30, 6) | disc(42, 30, 6)] = 1
    expected[areas_HW == 2] = 2
    expected[disc(0, 90, 6)] = 2
    assert np.array_equal(mask_HW, expected)
    plain_HW = paint_mask(points, values, 6, HEIGHT, WIDTH, areas_HW)
    assert np.array_equal(plain_HW, np.where(expected == IGNORED, 0, expected))


def test_points_count_unless_their_pixel_is_ignored() -> None:
    mask_HW = np.zeros((4, 4), np.uint8)
    mask_HW[1, 2] = IGNORED
    points = as_points({"a": [(2, 1), (1.51, 1.49), (1.49, 1), (3.4, 3.4), (-0.5, -0.5)]})
    kept = not_ignored(points, mask_HW)
    assert as_lists(kept) == {"a": [(1.49, 1), (3.4, 3.4), (-0.5, -0.5)]}


def brecahad(*points: tuple[int, int]) -> str:
    listed = [{"x": (x + 0.5) / WIDTH, "y": (y + 0.5) / HEIGHT} for x, y in points]
    return json.dumps({"tumor": listed})


def test_tiles_have_the_rings_of_the_whole(raw: Callable[..., Path]) -> None:
    """Also of points in other tiles; and no ring lies over a disc."""
    folder = raw({"a-1.json": brecahad((60, 40), (70, 40), (66, 70), (20, 62), (100, 66))})
    settings = ["radius_px=7", "ignore_px=6", "min_tissue=0"]
    whole = mask_of(prepare(folder, *settings))
    assert {*np.unique(whole)} == {0, IGNORED, 255}
    dataset = prepare(folder, *settings, "tile_px=64")
    assert len(dataset.samples) == 4
    for sample in dataset.samples:
        x, y = (int(part[1:]) for part in sample.field.split("_")[-2:])
        tile = read_mask(dataset.folder, sample)
        assert np.array_equal(tile, whole[y : y + 64, x : x + 64]), sample.field


@pytest.mark.parametrize("mode", ["redraw", "warp"])
def test_variants_have_rings_about_the_moved_points(mode: str, raw: Callable[..., Path]) -> None:
    """Redrawn masks are those of the moved points; a flip moves the mask of the field."""
    folder = raw({"a-1.json": brecahad((30, 40), (45, 40), (100, 90))})
    settings = ["radius_px=7", "ignore_px=4", f"mask_mode={mode}", "copies=4"]
    transforms = "augment.transforms=[horizontal_flip,rotation,barrel]"
    dataset = prepare(folder, *settings, transforms)
    original, flipped, *others = dataset.samples
    flip = read_mask(dataset.folder, flipped)
    assert np.array_equal(flip, read_mask(dataset.folder, original)[:, ::-1])
    for sample in others:
        mask_HW = read_mask(dataset.folder, sample)
        assert sample.ignored_px == np.count_nonzero(mask_HW == IGNORED) > 0
        points = read_points(dataset.folder, sample, ["tumor"])
        redrawn = paint_mask(points, {"tumor": 255}, 7, HEIGHT, WIDTH, None, 4)
        inner = (slice(12, -12), slice(12, -12))  # points outside have discs too
        if mode == "redraw":
            assert np.array_equal(mask_HW[inner], redrawn[inner]), sample.id
        else:
            assert {*np.unique(mask_HW)} == {0, IGNORED, 255}


def test_a_tile_of_glass_with_nothing_but_an_ignored_area_is_left_out(
    raw: Callable[..., Path],
) -> None:
    text = geojson(rectangle("ignore", 70, 2, 90, 20), rectangle("a", 10, 10, 20, 20))
    folder = raw({"a-1.geojson": text})
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    Image.fromarray(white).save(folder / "images/a-1.tif")
    dataset = prepare(folder, "annotations=geojson", "classes=[a]", "tile_px=64")
    assert [sample.field for sample in dataset.samples] == ["a-1_x0_y0"]


# Records, pictures


def test_settings_are_recorded_as_they_were_given(raw: Callable[..., Path]) -> None:
    dataset = prepare(raw({"a-1.json": brecahad((30, 40))}), "ignore_px=4")
    about = json.loads((dataset.folder / "dataset.json").read_text())
    labelling = labelling_of(about["labels"], about["config"], about["mpp"])
    assert (labelling.ignore_px, labelling.ignore_value) == (4, "none")
    sample: Sample = dataset.samples[0]
    assert sample.ignored_px == (disc(30, 40, 24) & ~disc(30, 40, 20)).sum()


def test_a_contact_sheet_shows_ignored_areas_as_no_class() -> None:
    image_HWC = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[20:60, 20:60] = IGNORED
    shown = outlined(image_HWC, mask_HW, {}, {"a": 255}, WIDTH)
    expected = np.where((mask_HW == IGNORED)[..., None], 164, image_HWC)
    assert np.array_equal(shown, expected)


def test_none_is_the_default() -> None:
    config = command_line.load(PrepConfig, ["ignore_value=none"])
    assert (config.ignore_value, config.ignore_px) == ("none", 0)
    with pytest.raises(UsageError, match="ignore_value"):
        command_line.load(PrepConfig, ["ignore_value=some"])
