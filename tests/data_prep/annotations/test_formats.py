"""Every format of annotations through the whole preparation: the same data, the same masks."""

import json
import re
import shutil
import tracemalloc
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from common.command_line import UsageError
from data_prep import __main__ as data_prep_main
from data_prep import prepare as prepare_module
from data_prep.annotations.formats import READERS
from data_prep.config import AugmentConfig, PrepConfig, SplitConfig
from data_prep.dataset.manifest import Sample, read_dataset
from data_prep.image_files.open_image import open_image
from data_prep.images.arrays import Box
from data_prep.prepare import Summary
from data_prep.raw import BadInputFilesError

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("warm_workers")]

WIDTH, HEIGHT = 160, 120  # of the fixture's images
CASES = {"1": 2, "2": 1, "3": 1}
Drawn = dict[str, list[tuple[str, np.ndarray]]]  # field -> (class, outline) of each area

RawFolder = Callable[..., Path]


def prepare(raw: Path, out: Path, annotations: str, **settings: Any) -> Summary:
    given = {"copies": 1, "format": "png", "workers": 2, "split": SplitConfig(val=0, test=0)}
    given |= {"raw": str(raw), "out": str(out), "annotations": annotations} | settings
    return prepare_module.prepare(PrepConfig(**given))


def pixels_of(raw: Path) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """Field -> class -> the pixels of BreCaHAD's points."""
    return {
        path.stem: {
            name: [(int(point["x"] * WIDTH), int(point["y"] * HEIGHT)) for point in listed]
            for name, listed in json.loads(path.read_text()).items()
        }
        for path in sorted(raw.glob("groundTruth/*.json"))
    }


def feature(name: str, kind: str, coordinates: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"classification": {"name": name}},
    }


def write_geojson(path: Path, features: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def with_images_of(raw: Path, folder: Path) -> Path:
    """A raw folder with the same images, and no annotations yet."""
    shutil.copytree(raw / "images", folder / "images")
    (folder / "groundTruth").mkdir()
    return folder


def as_geojson(raw: Path, folder: Path) -> Path:
    with_images_of(raw, folder)
    for field, classes in pixels_of(raw).items():
        features = [
            feature(name, "MultiPoint", [[x + 0.25, y + 0.99] for x, y in pixels])
            for name, pixels in classes.items()
            if pixels
        ]
        write_geojson(folder / f"groundTruth/{field}.geojson", features)
    return folder


def as_csv(raw: Path, folder: Path) -> Path:
    with_images_of(raw, folder)
    lines = ["file,x,y,class"] + [
        f"{field}.tif,{x},{y},{name}"
        for field, classes in pixels_of(raw).items()
        for name, pixels in classes.items()
        for x, y in pixels
    ]
    (folder / "groundTruth/points.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def drawn() -> Drawn:
    """Nuclei as outlines of eight corners, of two classes."""
    rng = np.random.default_rng(0)
    angle = np.arange(8) * np.pi / 4
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return {
        f"Case_{case}-{number:02d}": [
            (name, rng.uniform(20, (WIDTH - 20, HEIGHT - 20)) + unit * rng.uniform(5, 14, (8, 1)))
            for name in ("tumor", "tumor", "tumor", "lumen")
        ]
        for case, num_fields in CASES.items()
        for number in range(1, num_fields + 1)
    }


def as_polygons(raw: Path, folder: Path, drawn: Drawn) -> Path:
    with_images_of(raw, folder)
    for field, areas in drawn.items():
        features = [feature(name, "Polygon", [ring.tolist()]) for name, ring in areas]
        write_geojson(folder / f"groundTruth/{field}.geojson", features)
    return folder


def as_masks(prepared: Path, raw: Path, folder: Path) -> Path:
    """The masks of a prepared set's originals as raw ones."""
    with_images_of(raw, folder)
    for sample in originals(prepared):
        shutil.copy(prepared / sample.mask, folder / f"groundTruth/{sample.field}.png")
    return folder


def originals(out: Path) -> list[Sample]:
    return read_dataset(out).split("train", originals_only=True)


def mask(out: Path, sample: Sample) -> np.ndarray:
    return np.asarray(Pillow.open(out / sample.mask))


def points(out: Path, sample: Sample, name: str) -> list[tuple[int, int]]:
    """Their pixels."""
    size = (sample.width_px, sample.height_px)
    listed = json.loads((out / sample.points).read_text())[name]
    return [(int(entry["x"] * size[0]), int(entry["y"] * size[1])) for entry in listed]


def files(out: Path, *folders: str) -> dict[str, bytes]:
    return {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in folders
        for path in (out / folder).iterdir()
    }


def test_the_same_points_make_the_same_masks_in_every_format(
    raw_folder: RawFolder, tmp_path: Path
) -> None:
    raw = raw_folder(CASES)
    given = {"brecahad": raw, "geojson": as_geojson(raw, tmp_path / "g")}
    given["csv"] = as_csv(raw, tmp_path / "c")
    settings = {"copies": 3, "classes": ["tumor", "lumen"], "labels": "per_class", "radius_px": 9}
    for annotations, folder in given.items():
        prepare(folder, tmp_path / f"out_{annotations}", annotations, **settings)
    brecahad = tmp_path / "out_brecahad"
    expected = files(brecahad, "images", "masks")
    assert len(expected) == 2 * 4 * 3
    for annotations in ("geojson", "csv"):
        out = tmp_path / f"out_{annotations}"
        assert files(out, "images", "masks") == expected
        for sample, other in zip(originals(out), originals(brecahad), strict=True):
            for name in ("tumor", "lumen", "non_tumor"):
                assert points(out, sample, name) == points(brecahad, other, name)
        assert read_dataset(out).description.labelling.annotations == annotations


@pytest.mark.parametrize(("labels", "mask_mode"), [("binary", "redraw"), ("per_class", "warp")])
def test_areas_are_the_same_as_polygons_and_as_masks_in_all_variants(
    raw_folder: RawFolder, tmp_path: Path, drawn: Drawn, labels: str, mask_mode: str
) -> None:
    raw, classes = raw_folder(CASES), ["tumor", "lumen"]
    polygons = as_polygons(raw, tmp_path / "p", drawn)
    one, other, ready = tmp_path / "one", tmp_path / "other", tmp_path / "ready"
    settings = {"classes": classes, "copies": 4, "mask_mode": mask_mode}
    prepare(polygons, ready, "geojson", classes=classes, labels="per_class")
    prepare(polygons, one, "geojson", labels=labels, **settings)
    prepare(as_masks(ready, raw, tmp_path / "m"), other, "masks", labels=labels, **settings)
    assert files(one, "images", "masks") == files(other, "images", "masks")
    for sample in originals(one):
        rings = [ring for name, ring in drawn[sample.field] if name == "tumor"]
        found = points(one, sample, "tumor")
        assert np.allclose(np.array(found) + 0.5, [ring.mean(axis=0) for ring in rings], atol=3)


def test_areas_are_moved_as_the_image_is(
    raw_folder: RawFolder, tmp_path: Path, drawn: Drawn
) -> None:
    """The image is white where the areas are: so it is in every variant."""
    raw = raw_folder(CASES)
    for field, areas in drawn.items():
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for name, ring in areas:
            if name == "tumor":
                cv2.fillPoly(picture, [np.floor(ring).astype(np.int32)], (255, 255, 255))
        tifffile.imwrite(raw / f"images/{field}.tif", picture, photometric="rgb")
    folder = with_images_of(raw, tmp_path / "m")
    for field in drawn:
        picture = tifffile.imread(raw / f"images/{field}.tif")
        tifffile.imwrite(folder / f"groundTruth/{field}.tif", picture[..., 0])
    prepare(folder, tmp_path / "out", "masks", copies=16)
    for sample in read_dataset(tmp_path / "out").samples:
        image = np.asarray(Pillow.open(tmp_path / "out" / sample.image))[..., 0] > 127
        differing = image != (mask(tmp_path / "out", sample) > 0)
        assert differing.mean() < 0.01, sample.transform
        outlines, _ = cv2.findContours(image.astype(np.uint8), cv2.RETR_EXTERNAL, 2)
        distance = cv2.distanceTransform((~image).astype(np.uint8), cv2.DIST_L2, 5)
        for x, y in points(tmp_path / "out", sample, "tumor"):  # a middle stays in its area
            assert distance[y, x] < 2 or not outlines


def test_points_and_areas_of_one_file_are_drawn_together(
    raw_folder: RawFolder, tmp_path: Path
) -> None:
    """Discs keep their size in a variant that is scaled, areas are scaled."""
    folder = with_images_of(raw_folder({"1": 1}), tmp_path / "raw2")
    square = [[20, 20], [40, 20], [40, 40], [20, 40], [20, 20]]
    features = [feature("tumor", "Polygon", [square]), feature("tumor", "Point", [120.5, 80.5])]
    write_geojson(folder / "groundTruth/Case_1-01.geojson", features)
    augment = AugmentConfig(transforms=["scale"], border="black")
    prepare(folder, tmp_path / "out", "geojson", copies=4, augment=augment, radius_px=9)
    samples = read_dataset(tmp_path / "out").samples
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc = (x - 120) ** 2 + (y - 80) ** 2 <= 81
    area = (x >= 20) & (x < 40) & (y >= 20) & (y < 40)
    assert np.array_equal(mask(tmp_path / "out", samples[0]) > 0, disc | area)
    assert points(tmp_path / "out", samples[0], "tumor") == [(120, 80), (30, 30)]
    for sample in samples[1:]:
        factor = sample.parameters["factor"]
        num, _, about, _ = cv2.connectedComponentsWithStats(mask(tmp_path / "out", sample))
        sizes = sorted(about[1:, cv2.CC_STAT_AREA].tolist())
        if num == 3 and 0.72 < factor < 1.3:  # both in the picture
            assert disc.sum() in sizes
            (scaled,) = [size for size in sizes if size != disc.sum()]
            assert scaled == pytest.approx(400 * factor**2, rel=0.1)


@pytest.mark.parametrize("annotations", ["csv", "masks"])
def test_large_images_are_cut_with_whatever_is_annotated(
    raw_folder: RawFolder, tmp_path: Path, drawn: Drawn, annotations: str
) -> None:
    raw = raw_folder(CASES)
    whole, tiled = tmp_path / "whole", tmp_path / "tiled"
    if annotations == "masks":
        prepare(as_polygons(raw, tmp_path / "p", drawn), tmp_path / "ready", "geojson")
        folder = as_masks(tmp_path / "ready", raw, tmp_path / "m")
    else:
        folder = as_csv(raw, tmp_path / "r")
    prepare(folder, whole, annotations, radius_px=9)
    prepare(folder, tiled, annotations, radius_px=9, tile_px=64, tile_overlap_px=8)
    wholes = {sample.field: sample for sample in originals(whole)}
    assert len(originals(tiled)) == 4 * 3 * 2
    for sample in originals(tiled):
        field, x, y = re.fullmatch(r"(.+)_x(\d+)_y(\d+)", sample.field).groups()  # type: ignore[union-attr]
        left, top = int(x), int(y)
        expected = mask(whole, wholes[field])[top : top + 64, left : left + 64]
        assert np.array_equal(mask(tiled, sample), expected)
        if annotations != "masks":
            inside = {
                (x - left, y - top)
                for x, y in points(whole, wholes[field], "tumor")
                if 0 <= x - left < 64 and 0 <= y - top < 64
            }
            assert set(points(tiled, sample, "tumor")) == inside


def test_a_tile_with_a_part_of_an_area_is_no_glass(raw_folder: RawFolder, tmp_path: Path) -> None:
    folder = with_images_of(raw_folder({"1": 1}), tmp_path / "raw2")
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    tifffile.imwrite(folder / "images/Case_1-01.tif", white, photometric="rgb")
    square = [[70, 10], [90, 10], [90, 30], [70, 30], [70, 10]]  # its middle is at x = 80
    write_geojson(folder / "groundTruth/Case_1-01.geojson", [feature("tumor", "Polygon", [square])])
    summary = prepare(folder, tmp_path / "out", "geojson", tile_px=80)
    assert [sample.field for sample in summary.samples] == ["Case_1-01_x0_y0", "Case_1-01_x80_y0"]
    assert summary.num_glass == 2


class TestClasses:
    """Names are free, but those asked for must be there."""

    @pytest.fixture
    def folder(self, raw_folder: RawFolder, tmp_path: Path) -> Path:
        folder = with_images_of(raw_folder(CASES), tmp_path / "raw2")
        for stem in pixels_of(raw_folder(CASES)):
            name = "plasma cell" if stem == "Case_2-01" else "lymphocyte"
            write_geojson(
                folder / f"groundTruth/{stem}.geojson", [feature(name, "Point", [30, 30])]
            )
        return folder

    def test_a_field_may_have_none_of_a_class(self, folder: Path, tmp_path: Path) -> None:
        out, classes = tmp_path / "out", ["lymphocyte", "plasma cell"]
        prepare(folder, out, "geojson", classes=classes, labels="per_class")
        assert {sample.field: mask(out, sample).max() for sample in originals(out)} == {
            "Case_1-01": 1,
            "Case_1-02": 1,
            "Case_2-01": 2,
            "Case_3-01": 1,
        }
        listed = [json.loads((out / sample.points).read_text()) for sample in originals(out)]
        assert all(set(classes) <= set(entry) for entry in listed)

    def test_a_class_that_is_nowhere_is_refused_with_those_there_are(
        self, folder: Path, tmp_path: Path
    ) -> None:
        """By a share of the fields too, though plasma cells are in the other share."""
        expected = r"classes: no 'Lymphocyte' anywhere in .*; there are: lymphocyte, plasma cell; "
        expected += "'lymphocyte' is written otherwise than 'Lymphocyte': give it in classes= as"
        expected += " it is written$"
        with pytest.raises(UsageError, match=expected):
            prepare(
                folder,
                tmp_path / "out",
                "geojson",
                classes=["lymphocyte", "Lymphocyte"],
                share="1/2",
            )
        assert not (tmp_path / "out").exists()

    def test_so_is_one_that_no_mask_has(
        self, raw_folder: RawFolder, tmp_path: Path, drawn: Drawn
    ) -> None:
        raw = raw_folder(CASES)
        prepare(as_polygons(raw, tmp_path / "p", drawn), tmp_path / "ready", "geojson")
        for path in (tmp_path / "ready/masks").iterdir():
            Pillow.fromarray(np.asarray(Pillow.open(path)) // 255).save(path)
        folder = as_masks(tmp_path / "ready", raw, tmp_path / "m")
        with pytest.raises(UsageError, match=r"no 'lumen' anywhere in .*; there are: tumor$"):
            prepare(folder, tmp_path / "out", "masks", classes=["tumor", "lumen"])

    def test_names_with_a_colon_want_quotes(self, folder: Path, cli: Callable[..., Any]) -> None:
        outcome = cli(data_prep_main.main, f"raw={folder}", "out=x", "classes=[Tumor: Positive]")
        assert outcome.code == 2
        assert "put names that hold a colon into quotes: '[\"Tumor: Positive\"]'" in outcome.err
        given = [f"raw={folder}", "out=x", "annotations=geojson", 'classes=["Tumor: Positive"]']
        outcome = cli(data_prep_main.main, *given)
        assert "no 'Tumor: Positive' anywhere" in outcome.err

    def test_without_any_field_the_files_are_told(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError) as caught:
            prepare(raw_folder(CASES), tmp_path / "out", "masks")
        assert str(caught.value).endswith(
            ": 4 images in images/, but no annotation (.png or .tif or .tiff); it holds"
            " groundTruth/ (4 .json), images/ (4 .tif); expected, for Case_1-01.tif,"
            " groundTruth/Case_1-01.png or Case_1-01_mask.png (annotations=masks);"
            " annotations=brecahad finds 4 fields; annotations=geojson finds 4 fields"
        )

    def test_bad_files_are_told_before_classes_that_may_be_in_them(
        self, folder: Path, tmp_path: Path
    ) -> None:
        for path in (folder / "groundTruth").iterdir():
            path.write_text("{")
        with pytest.raises(BadInputFilesError, match="invalid JSON"):
            prepare(folder, tmp_path / "out", "geojson", classes=["lymphocyte"])


class TestBadFiles:
    """Named with their reasons, or left out."""

    def check(self, folder: Path, out: Path, annotations: str, file: str, reason: str) -> None:
        with pytest.raises(BadInputFilesError) as caught:
            prepare(folder, out, annotations)
        assert str(caught.value).splitlines()[1].startswith(f"  {file}: {reason}")
        summary = prepare(folder, out, annotations, on_error="skip")
        assert [(entry.file, entry.reason[: len(reason)]) for entry in summary.bad] == [
            (file, reason)
        ]
        assert [sample.field for sample in summary.samples] == [
            "Case_1-01",
            "Case_2-01",
            "Case_3-01",
        ]

    def test_of_geojson(self, raw_folder: RawFolder, tmp_path: Path) -> None:
        folder = as_geojson(raw_folder(CASES), tmp_path / "g")
        path = folder / "groundTruth/Case_1-02.geojson"
        write_geojson(path, [feature("tumor", "Point", [WIDTH + 1, 5])])
        reason = "features[0]: x = 161 is outside the image (0 to 160 px)"
        self.check(folder, tmp_path / "out", "geojson", "groundTruth/Case_1-02.geojson", reason)

    @pytest.mark.parametrize(
        ("y", "reason"),
        [
            ("120.5", "y = 120.5 is outside the image (0 to 120 px)"),
            ("top", "x=5, y=top: expected two numbers"),
        ],
    )
    def test_of_a_table(self, raw_folder: RawFolder, tmp_path: Path, y: str, reason: str) -> None:
        folder = as_csv(raw_folder(CASES), tmp_path / "c")
        path = folder / "groundTruth/points.csv"
        lines = path.read_text().splitlines()
        number = next(n for n, line in enumerate(lines) if line.startswith("Case_1-02.tif"))
        lines[number] = f"Case_1-02.tif,5,{y},tumor"
        path.write_text("\n".join(lines))
        where = f"line {number + 1} (Case_1-02.tif): {reason}"
        self.check(folder, tmp_path / "out", "csv", "groundTruth/points.csv", where)

    def test_of_masks(self, raw_folder: RawFolder, tmp_path: Path, drawn: Drawn) -> None:
        raw = raw_folder(CASES)
        prepare(as_polygons(raw, tmp_path / "p", drawn), tmp_path / "ready", "geojson")
        folder = as_masks(tmp_path / "ready", raw, tmp_path / "m")
        path = folder / "groundTruth/Case_1-02.png"
        values = np.asarray(Pillow.open(path)).copy()
        values[3, 3] = 7
        Pillow.fromarray(values).save(path)
        reason = "values 7 mean no class; in the order of classes=: 0 background, 1 tumor, 255"
        self.check(folder, tmp_path / "out", "masks", "groundTruth/Case_1-02.png", reason)


def test_of_a_table_only_the_field_whose_row_changed_is_redone(
    raw_folder: RawFolder, tmp_path: Path
) -> None:
    folder, out = as_csv(raw_folder(CASES), tmp_path / "c"), tmp_path / "out"
    prepare(folder, out, "csv", copies=2)
    path = folder / "groundTruth/points.csv"
    first, *rows = path.read_text().splitlines()
    path.write_text("\n".join([first, "Case_1-02,1,1,tumor", *reversed(rows)]))
    path.write_text("\n".join([first, "Case_1-02,1,1,tumor", *rows]))
    assert prepare(folder, out, "csv", copies=2).num_reused == 3
    fresh = tmp_path / "fresh"
    prepare(folder, fresh, "csv", copies=2)
    kinds = ("images", "masks", "points", ".eosin/fields")
    assert files(out, *kinds) == files(fresh, *kinds)


def test_shares_of_a_table_join_to_the_same_bytes(raw_folder: RawFolder, tmp_path: Path) -> None:
    folder, joined = as_csv(raw_folder(CASES), tmp_path / "c"), tmp_path / "joined"
    for share in ("1/2", "2/2"):
        prepare(folder, joined, "csv", share=share)
    assert prepare(folder, joined, "csv").num_reused == 4
    prepare(folder, tmp_path / "whole", "csv")
    assert files(joined, "masks", "points") == files(tmp_path / "whole", "masks", "points")


def test_an_empty_field_is_one(raw_folder: RawFolder, tmp_path: Path) -> None:
    """A row of nothing in a table; a mask that is all background."""
    raw = raw_folder({"1": 1, "2": 1})
    table = with_images_of(raw, tmp_path / "c")
    (table / "groundTruth/a.csv").write_text("file,x,y,class\nCase_1-01,9,9,t\nCase_2-01,,,\n")
    ready = with_images_of(raw, tmp_path / "m")
    for case in (1, 2):
        values = np.zeros((HEIGHT, WIDTH), np.uint8)
        values[9, 9] = 2 - case
        Pillow.fromarray(values).save(ready / f"groundTruth/Case_{case}-01.png")
    for annotations, folder in (("csv", table), ("masks", ready)):
        out = tmp_path / f"out_{annotations}"
        samples = prepare(folder, out, annotations, classes=["t"], copies=9).samples
        assert [sample.foreground_px > 0 for sample in samples if sample.variant == 0] == [
            True,
            False,
        ]
        assert json.loads((out / samples[9].points).read_text()) == {"t": []}


def test_of_a_large_mask_only_a_part_is_read(tmp_path: Path) -> None:
    """9 MB of labels, in tiles that are compressed and as they are in one strip."""
    labels = np.random.default_rng(0).integers(0, 3, (3000, 3000), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "tiles.tif", labels, tile=(256, 256), compression="deflate")
    tifffile.imwrite(tmp_path / "strip.tif", labels, rowsperstrip=3000)
    for name in ("tiles.tif", "strip.tif"):
        with open_image(tmp_path / name) as mask:
            mask.read_labels(Box(0, 0, 1, 1))  # imports
            tracemalloc.start()
            part = mask.read_labels(Box(1000, 2000, 500, 400))
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert np.array_equal(part, labels[2000:2400, 1000:1500])
        assert most_bytes < 3e6


def test_every_format_that_can_be_asked_for_has_a_reader() -> None:
    hint = typing.get_type_hints(PrepConfig)["annotations"]
    assert set(typing.get_args(hint)) == set(READERS)


def test_the_reader_that_contributing_shows_works(
    raw_folder: RawFolder, tmp_path: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code on the page, through a preparation in this process."""
    page = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    shown: dict[str, Any] = {}
    exec(code, shown)
    monkeypatch.setitem(READERS, "labelme", shown["LabelMeReader"]())
    monkeypatch.setattr(
        prepare_module, "map_tasks", lambda run, tasks, *_: enumerate(map(run, tasks))
    )
    raw = raw_folder(CASES)
    folder = with_images_of(raw, tmp_path / "l")
    for field, areas in drawn.items():
        shapes = [
            {"label": name, "points": ring.tolist(), "shape_type": "polygon", "flags": {}}
            for name, ring in areas
        ]
        shapes.append({"label": "tumor", "points": [[9.5, 9.5]], "shape_type": "point"})
        (folder / f"groundTruth/{field}.json").write_text(json.dumps({"shapes": shapes}))
    polygons = as_polygons(raw, tmp_path / "p", drawn)
    for path in (polygons / "groundTruth").iterdir():
        features = json.loads(path.read_text())["features"]
        write_geojson(path, [*features, feature("tumor", "Point", [9.5, 9.5])])
    prepare(folder, tmp_path / "one", "labelme", copies=3)
    prepare(polygons, tmp_path / "other", "geojson", copies=3)
    kinds = ("images", "masks", "points")
    assert files(tmp_path / "one", *kinds) == files(tmp_path / "other", *kinds)
    path = folder / "groundTruth/Case_1-02.json"
    for content, reason in (
        ("{", "no JSON of LabelMe's"),
        (
            '{"shapes": [{"label": "tumor", "shape_type": "circle", "points": []}]}',
            "shapes[0]: neit",
        ),
        (
            '{"shapes": [{"label": "t", "shape_type": "point", "points": [[1, "b"]]}]}',
            "shapes[0]: ex",
        ),
    ):
        path.write_text(content)
        with pytest.raises(BadInputFilesError, match=re.escape(f"Case_1-02.json: {reason}")):
            prepare(folder, tmp_path / "one", "labelme")
