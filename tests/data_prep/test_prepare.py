"""The whole preparation: no leak, the same bytes again, only what changed, nothing in silence.

Most runs draw one cheap transform; the promise about bytes is checked with all of them.
"""

import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from common import lease
from common.command_line import UserError
from common.files import file_sha256
from common.workers import WorkerError
from data_prep import __main__ as data_prep_main
from data_prep import plan, records
from data_prep import prepare as prepare_module
from data_prep.config import TRANSFORMS, AugmentConfig, PrepConfig, ScaleConfig, SplitConfig
from data_prep.dataset import pack
from data_prep.dataset.manifest import FILES, read_dataset
from data_prep.field import FieldTask, PreparedField, prepare_field
from data_prep.plan import FOLDERS
from data_prep.prepare import Summary
from data_prep.raw import BadInputFilesError
from tests.processes import map_here, survives

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("warm_workers")]

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "data_prep"
IN_SILENCE: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
CHEAP = AugmentConfig(transforms=["gaussian"])
BY_LIST = SplitConfig(val_cases=["2"], test_cases=["3"])
ALL_TRAINING = SplitConfig(val=0, test=0)

RawFolder = Callable[..., Path]


def prepare(raw: Path, out: Path, **settings: Any) -> Summary:
    settings = {"copies": 1, "augment": CHEAP, "split": BY_LIST, "workers": 2} | settings
    return prepare_module.prepare(PrepConfig(raw=str(raw), out=str(out), **settings))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def times(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def about(out: Path) -> dict[str, Any]:
    return json.loads((out / "dataset.json").read_text())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Pillow.open(path))


def raw_pixels(raw: Path, stem: str) -> np.ndarray:
    return tifffile.imread(raw / f"images/{stem}.tif")


def expected_mask(raw: Path, stem: str, classes: list[str], radius: int) -> np.ndarray:
    """1, 2, ... for the classes in order, drawn by numpy."""
    height, width = raw_pixels(raw, stem).shape[:2]
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    annotation = json.loads((raw / f"groundTruth/{stem}.json").read_text())
    for label, name in enumerate(classes, start=1):
        for point in annotation[name]:
            centre = int(point["x"] * width), int(point["y"] * height)
            mask[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2] = label
    return mask


class TestWhatIsWritten:
    @pytest.mark.parametrize("format", ["png", "jpg"])
    def test_originals_are_the_raw_pixels(
        self, raw_folder: RawFolder, tmp_path: Path, format: str
    ) -> None:
        raw = raw_folder({"1": 2, "2": 1, "3": 1})
        prepare(raw, tmp_path / "out", format=format)
        assert len(manifest(tmp_path / "out")) == 4
        for sample in manifest(tmp_path / "out"):
            assert sample["image"].endswith(f".{format}")
            written = pixels(tmp_path / "out" / sample["image"]).astype(int)
            off = np.abs(written - raw_pixels(raw, sample["field"]))
            if format == "png":
                assert off.max() == 0
            else:  # colours bleed where two squares meet, by JPG's coarser chroma
                assert np.median(off) <= 1
                assert off.mean() < 8

    @pytest.mark.parametrize(
        ("labels", "classes", "radius"),
        [
            ("binary", ["tumor", "lumen"], 7),
            ("per_class", ["lumen", "tumor", "non_tumor"], 20),
        ],
    )
    def test_masks_are_the_discs_of_the_classes_in_their_order(
        self, raw_folder: RawFolder, tmp_path: Path, labels: str, classes: list[str], radius: int
    ) -> None:
        raw, out = raw_folder({"1": 1, "2": 1, "3": 1}), tmp_path / "out"
        prepare(raw, out, labels=labels, classes=classes, radius_px=radius)
        for sample in manifest(out):
            expected = expected_mask(raw, sample["field"], classes, radius)
            if labels == "binary":
                expected = np.where(expected > 0, 255, 0)
            assert Pillow.open(out / sample["mask"]).mode == "L"
            assert np.array_equal(pixels(out / sample["mask"]), expected)
            assert sample["foreground_px"] == np.count_nonzero(expected)
        values = range(1, 9) if labels == "per_class" else [255] * 8
        assert about(out)["labels"] == dict(zip(classes, values, strict=False))
        assert about(out)["classes"] == classes

    def test_every_variant_is_written_and_told(self, raw_folder: RawFolder, tmp_path: Path) -> None:
        raw, out = raw_folder({"1": 1, "2": 1, "3": 1}), tmp_path / "out"
        settings = {"labels": "per_class", "classes": ["tumor", "lumen"], "format": "png"}
        prepare(raw, out, copies=9, augment=AugmentConfig(), **settings)
        variants = [sample for sample in manifest(out) if sample["field"] == "Case_1-01"]
        assert [sample["transform"] for sample in variants] == ["original", *TRANSFORMS]
        assert [sample["variant"] for sample in variants] == list(range(9))
        assert len({(out / sample["image"]).read_bytes() for sample in variants}) == 9
        for sample in variants:
            image, mask = pixels(out / sample["image"]), pixels(out / sample["mask"])
            assert image.shape == (120, 160, 3)
            assert mask.shape == (120, 160) == (sample["height_px"], sample["width_px"])
            assert set(np.unique(mask)) <= {0, 1, 2}
            assert np.count_nonzero(mask) == sample["foreground_px"] > 0
        for sample, axis in ((variants[1], 1), (variants[2], 0)):
            flipped = np.flip(raw_pixels(raw, "Case_1-01"), axis)
            mask = np.flip(expected_mask(raw, "Case_1-01", ["tumor", "lumen"], 20), axis)
            assert np.array_equal(pixels(out / sample["image"]), flipped)
            assert np.array_equal(pixels(out / sample["mask"]), mask)

    def test_sizes_and_hashes_are_those_of_the_files(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        summary = prepare(raw_folder(), tmp_path / "out", copies=3)
        for sample in manifest(tmp_path / "out"):
            for kind in FILES:
                content = (tmp_path / "out" / sample[kind]).read_bytes()
                assert sample[f"{kind}_bytes"] == len(content)
                assert sample[f"{kind}_sha256"] == hashlib.sha256(content).hexdigest()
        content = (tmp_path / "out/manifest.jsonl").read_bytes()
        assert about(tmp_path / "out")["content_sha256"] == hashlib.sha256(content).hexdigest()
        assert summary.content_sha256 == about(tmp_path / "out")["content_sha256"]
        assert read_dataset(tmp_path / "out").samples == summary.samples

    def test_16_copies_of_a_training_field_and_one_of_the_others(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        raw = raw_folder({"1": 2, "2": 1, "3": 2}, width_px=64, height_px=48)
        prepare(raw, tmp_path / "out", copies=16)
        assert about(tmp_path / "out")["counts"] == {
            "train": {"cases": 1, "fields": 2, "samples": 32, "nuclei": {"tumor": 8}},
            "val": {"cases": 1, "fields": 1, "samples": 1, "nuclei": {"tumor": 4}},
            "test": {"cases": 1, "fields": 2, "samples": 2, "nuclei": {"tumor": 8}},
        }
        assert len(list((tmp_path / "out/images").iterdir())) == 35

    def test_16_bit_images_are_scaled_by_the_setting(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        raw = raw_folder({"1": 1, "2": 1, "3": 1})
        values = np.full((40, 50, 3), 2048, np.uint16)
        tifffile.imwrite(raw / "images/Case_1-01.tif", values, photometric="rgb")
        for white, expected in ((65535, 8), (4095, 128)):  # 255 * 2048 / white, rounded
            prepare(raw, tmp_path / "out", format="png", uint16_white=white)
            assert np.all(
                pixels(tmp_path / "out" / manifest(tmp_path / "out")[0]["image"]) == expected
            )

    def test_the_configuration_is_kept_but_not_where_or_how_fast(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        prepare(raw_folder(), tmp_path / "out", radius_px=9, seed=4)
        config = about(tmp_path / "out")["config"]
        assert (config["radius_px"], config["seed"], config["jpg_quality"]) == (9, 4, 95)
        assert config["split"]["val_cases"] == ["2"]
        assert not {"raw", "out", "workers"} & config.keys()

    def test_the_sample_gives_the_published_number_of_pixels(
        self, real_data: Path, tmp_path: Path
    ) -> None:
        raw = tmp_path / "raw"
        for stem in ("Case_1-01", "Case_10-03", "Case_11-07"):
            for name in (f"images/{stem}.tif", f"groundTruth/{stem}.json"):
                (raw / name).parent.mkdir(parents=True, exist_ok=True)
                (raw / name).symlink_to(real_data / name)
        split = SplitConfig(val_cases=["10"], test_cases=["11"])
        prepare(raw, tmp_path / "out", split=split)
        first = manifest(tmp_path / "out")[0]
        assert (first["field"], first["foreground_px"]) == ("Case_1-01", 172_413)
        assert np.count_nonzero(pixels(tmp_path / "out" / first["mask"])) == 172_413


class TestNoLeak:
    """Promise 1."""

    @pytest.mark.parametrize(
        "split",
        [
            SplitConfig(val=0.3, test=0.3),
            SplitConfig(val_cases=["10"], test_cases=["Case_3"]),
        ],
        ids=["shares", "lists"],
    )
    def test_no_case_and_no_copy_is_in_two_splits(
        self, raw_folder: RawFolder, tmp_path: Path, split: SplitConfig
    ) -> None:
        sizes = {"1": 2, "2": 3, "3": 2, "10": 1, "11": 2}
        raw, out = raw_folder(sizes, width_px=64, height_px=48), tmp_path / "out"
        prepare(raw, out, split=split, copies=3)
        samples = manifest(out)
        for kind in ("case", "field"):
            splits_of: dict[str, set[str]] = {}
            for sample in samples:
                splits_of.setdefault(sample[kind], set()).add(sample["split"])
            assert all(len(splits) == 1 for splits in splits_of.values()), splits_of
        assert {sample["split"] for sample in samples} == {"train", "val", "test"}
        for sample in samples:
            assert sample["field"].startswith(f"{sample['case']}-")
            assert sample["image"].startswith(f"images/{sample['field']}_v")
            assert sample["variant"] == 0 or sample["split"] == "train"
            assert sample["case"] in about(out)["split"][sample["split"]]
        originals = [sample["field"] for sample in samples if sample["variant"] == 0]
        assert len(originals) == len(set(originals)) == 10
        training = [sample["field"] for sample in samples if sample["split"] == "train"]
        assert all(training.count(field) == 3 for field in training)
        assert num_pictures_in_two_splits(out, samples) == 0

    def test_moving_a_case_out_of_training_removes_its_copies(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        raw, out = raw_folder({"1": 1, "2": 1, "3": 1, "4": 1}), tmp_path / "out"
        prepare(raw, out, copies=3)
        assert len(list((out / "images").glob("Case_4-01_*"))) == 3
        prepare(raw, out, copies=3, split=SplitConfig(val_cases=["2"], test_cases=["3", "4"]))
        assert [path.name for path in (out / "images").glob("Case_4-01_*")] == [
            "Case_4-01_v00_original.jpg"
        ]
        assert [s["split"] for s in manifest(out) if s["case"] == "Case_4"] == ["test"]

    def test_one_picture_under_two_cases_is_refused(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        raw = raw_folder({"1": 1, "2": 1, "3": 1, "4": 2})
        shutil.copy(raw / "images/Case_1-01.tif", raw / "images/Case_4-02.tif")
        with pytest.raises(BadInputFilesError) as caught:
            prepare(raw, tmp_path / "out")
        reason = r"two cases have the same picture \(Case_1-01, Case_4-02\)"
        for name in ("Case_1-01", "Case_4-02"):
            assert caught.match(rf"images/{name}\.tif: {reason}")

    def test_one_picture_twice_in_a_case_is_fine_and_in_one_split(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        """BreCaHAD's Case_10-07 and Case_10-08."""
        raw = raw_folder({"1": 2, "2": 1, "3": 1})
        shutil.copy(raw / "images/Case_1-01.tif", raw / "images/Case_1-02.tif")
        prepare(raw, tmp_path / "out")
        assert [s["split"] for s in manifest(tmp_path / "out")] == ["train", "train", "val", "test"]


def num_pictures_in_two_splits(out: Path, samples: list[dict[str, Any]]) -> int:
    splits_of: dict[bytes, set[str]] = {}
    for sample in samples:
        splits_of.setdefault((out / sample["image"]).read_bytes(), set()).add(sample["split"])
    return sum(len(splits) > 1 for splits in splits_of.values())


class TestSameBytes:
    """Promise 2."""

    def test_on_1_2_and_4_workers(self, raw_folder: RawFolder, tmp_path: Path) -> None:
        raw = raw_folder({"1": 3, "2": 1, "3": 1, "4": 1})
        trees = []
        for workers in (1, 2, 4):
            out = tmp_path / f"on_{workers}"
            prepare(raw, out, workers=workers, copies=10, augment=AugmentConfig())
            trees.append(tree(out))
        assert sum(name.startswith("images/") for name in trees[0]) == 4 * 10 + 2
        assert trees[0] == trees[1] == trees[2]

    @pytest.mark.parametrize(
        ("shares", "settings", "num_fields"),
        [
            (["6/6", "1/6", "2/6", "5/6", "4/6", "3/6"], {}, 4),  # two have no field
            (["2/2", "1/2"], {"tile_px": 64, "tile_overlap_px": 8}, 4 * 6),
        ],
        ids=["6", "tiles"],
    )
    def test_in_shares_and_joined(
        self,
        raw_folder: RawFolder,
        tmp_path: Path,
        shares: list[str],
        settings: dict[str, int],
        num_fields: int,
    ) -> None:
        raw, whole, joined = raw_folder(), tmp_path / "whole", tmp_path / "joined"
        prepare(raw, whole, copies=3, **settings)
        for share in shares:
            assert not (joined / "dataset.json").exists()
            prepare(raw, joined, copies=3, share=share, **settings)
        assert prepare(raw, joined, copies=3, **settings).num_reused == num_fields
        assert tree(whole) == tree(joined)

    def test_another_seed_draws_other_variants_of_the_same_originals(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        raw = raw_folder({"1": 1, "2": 1, "3": 1})
        for seed in (0, 1):
            prepare(raw, tmp_path / f"{seed}", seed=seed, copies=3, augment=CHEAP)
        one, other = (tree(tmp_path / f"{seed}") for seed in (0, 1))
        assert one.keys() == other.keys()
        images = [name for name in one if name.startswith("images/")]
        changed = {name for name in images if one[name] != other[name]}
        assert changed == {name for name in images if "_v00_" not in name}

    def test_a_new_field_changes_no_other(self, raw_folder: RawFolder, tmp_path: Path) -> None:
        out = tmp_path / "out"
        prepare(raw_folder({"1": 2, "2": 1, "3": 1}), out, copies=3)
        before, written = tree(out), times(out)
        summary = prepare(raw_folder({"0": 1, "1": 3, "2": 1, "3": 1}), out, copies=3)
        assert summary.num_reused == 4
        others = {"manifest.jsonl", "dataset.json", ".eosin/dataset/dataset.json"}
        kept = before.keys() - others
        assert {name: tree(out)[name] for name in kept} == {name: before[name] for name in kept}
        assert {name: times(out)[name] for name in kept} == {name: written[name] for name in kept}
        assert len(manifest(out)) == 4 * 3 + 2


class TestAgain:
    """Running again redoes only what changed."""

    @pytest.fixture
    def raw(self, raw_folder: RawFolder) -> Path:
        return raw_folder({"1": 2, "2": 1, "3": 1})

    @pytest.fixture
    def out(self, raw: Path, tmp_path: Path) -> Path:
        prepare(raw, tmp_path / "out", copies=3)
        return tmp_path / "out"

    def test_nothing_when_nothing_changed(self, raw: Path, out: Path) -> None:
        before, written = tree(out), times(out)
        summary = prepare(raw, out, copies=3, workers=1)
        assert summary.num_reused == 4
        assert tree(out) == before
        untouched = {name for name in written if written[name] == times(out)[name]}
        assert set(written) - untouched <= {"manifest.jsonl", "dataset.json"}

    @pytest.mark.parametrize("file", ["groundTruth/Case_1-02.json", "images/Case_1-02.tif"])
    def test_only_the_field_whose_file_changed(
        self, raw: Path, out: Path, tmp_path: Path, file: str
    ) -> None:
        written = times(out)
        if file.endswith("json"):
            (raw / file).write_text('{"tumor": [{"x": 0.5, "y": 0.5}]}')
        else:
            tifffile.imwrite(raw / file, raw_pixels(raw, "Case_1-01")[::-1], photometric="rgb")
        assert prepare(raw, out, copies=3).num_reused == 3
        changed = {name for name, time in times(out).items() if time != written[name]}
        of_the_field = {name for name in written if "/Case_1-02" in name}
        assert len(of_the_field) == 3 + 3 + 3 + 1, "with its record"
        of_the_set = {"manifest.jsonl", "dataset.json", ".eosin/dataset/dataset.json"}
        assert changed == of_the_field | of_the_set
        prepare(raw, tmp_path / "fresh", copies=3)
        assert tree(out) == tree(tmp_path / "fresh")

    @pytest.mark.parametrize(
        ("settings", "num_reused"),
        [
            ({"format": "png"}, 0),
            ({"classes": ["tumor", "lumen"]}, 0),
            ({"labels": "per_class"}, 0),
            ({"radius_px": 5}, 0),
            ({"jpg_quality": 50}, 0),
            ({"copies": 2}, 2),  # val and test are originals
            ({"copies": 1}, 2),
            ({"seed": 1}, 2),
            ({"augment": AugmentConfig(transforms=["horizontal_flip", "gaussian"])}, 2),
            ({"augment": AugmentConfig(transforms=["gaussian"], border="white")}, 2),
            ({"mask_mode": "warp"}, 2),
            ({"tile_px": 160}, 4),  # as large as the images: they stay whole
            ({"min_tissue": 0.9}, 4),
            ({"tile_px": 159}, 0),
        ],
        ids=str,
    )
    def test_other_settings_redo_what_they_can_change_and_leave_nothing_of_the_old_ones(
        self, raw: Path, out: Path, tmp_path: Path, settings: dict[str, Any], num_reused: int
    ) -> None:
        old = tree(out)
        assert prepare(raw, out, **{"copies": 3} | settings).num_reused == num_reused
        prepare(raw, tmp_path / "fresh", **{"copies": 3} | settings)
        assert tree(out) == tree(tmp_path / "fresh")
        assert tree(out) != old

    def test_all_where_the_code_or_a_library_is_another(
        self, raw: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a copy of the package one file is longer by a line; then one library's release is."""
        copied = shutil.copytree(PACKAGE, tmp_path / "copied", ignore=shutil.ignore_patterns("__*"))
        monkeypatch.setattr(records, "__file__", str(copied / "records.py"))
        releases = {name: version(name) for name in records.LIBRARIES}
        monkeypatch.setattr(records, "version", releases.__getitem__)
        records.code_and_libraries.cache_clear()
        assert prepare(raw, out, copies=3).num_reused == 4
        with (copied / "augment" / "lattice.py").open("a") as file:
            file.write("# another line\n")
        records.code_and_libraries.cache_clear()
        assert prepare(raw, out, copies=3).num_reused == 0
        releases["pillow"] = "99"
        records.code_and_libraries.cache_clear()
        assert prepare(raw, out, copies=3).num_reused == 0
        monkeypatch.undo()
        records.code_and_libraries.cache_clear()
        assert prepare(raw, out, copies=3).num_reused == 0

    def test_the_code_that_counts_is_all_that_a_worker_loads(self) -> None:
        loaded = "import sys, data_prep.field, data_prep.augment.transforms"
        listed = f"{loaded}; print(*sys.modules)"
        command = [sys.executable, "-c", listed]
        loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = {name for name in loaded.stdout.split() if name.startswith("data_prep.")}
        counted = {
            ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in records.code_files()
        }
        # the case itself is in a field's key
        of_no_byte = {"dataset.description", "dataset.folds", "dataset.manifest"}
        of_no_byte |= {"records", "cases.names"}
        rooms = {"annotations", "augment", "cases", "dataset", "images", "image_files"}
        assert names - {f"data_prep.{name}" for name in of_no_byte | rooms} <= counted

    def test_a_file_made_again_is_another(self, raw: Path, out: Path, tmp_path: Path) -> None:
        """A copy of a set by hard links keeps its own bytes."""
        mask = next((out / "masks").iterdir())
        before = mask.read_bytes()
        (tmp_path / "copy.png").hardlink_to(mask)
        prepare(raw, out, copies=3, radius_px=5)
        assert mask.read_bytes() != before
        assert (tmp_path / "copy.png").read_bytes() == before

    def test_no_png_for_the_quality_of_jpgs(self, raw: Path, out: Path) -> None:
        assert prepare(raw, out, copies=3, format="png").num_reused == 0
        assert prepare(raw, out, copies=3, format="png", jpg_quality=50).num_reused == 4

    def test_what_else_lies_in_its_folders_is_left_and_named(
        self, raw: Path, out: Path, tmp_path: Path, cli: Callable[..., Any]
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "kept.jpg").touch()
        (out / "images/a link to a folder").symlink_to(elsewhere)
        (out / "images/a link to nothing").symlink_to(elsewhere / "nothing")
        (out / "masks/a folder/in a folder").mkdir(parents=True)
        (out / "masks/a folder/notes.txt").write_text("mine")
        (out / "points/.notes.123.tmp").write_text("mine")
        (out / ".mine.tmp").write_text("mine")
        before = tree(out)
        given = ["split.val_cases=[2]", "split.test_cases=[3]", "workers=1", "copies=3"]
        given.append("augment.transforms=[gaussian]")
        outcome = cli(data_prep_main.main, f"raw={raw}", f"out={out}", *given)
        assert outcome.code == 0
        assert outcome.err == (
            "left as they are, since data_prep did not write them: images/a link to a folder,"
            " images/a link to nothing, masks/a folder, points/.notes.123.tmp\n"
        )
        assert prepare(raw, out, copies=2, radius_px=5).num_reused == 0
        after = tree(out)
        mine = ["masks/a folder/notes.txt", "points/.notes.123.tmp", ".mine.tmp"]
        assert [after[name] for name in mine] == [before[name] for name in mine]
        assert (out / "images/a link to nothing").is_symlink()
        assert (elsewhere / "kept.jpg").exists()

    @pytest.mark.parametrize(
        ("file", "change"),
        [
            ("masks/Case_1-01_v01_gaussian.png", "nothing"),
            ("masks/Case_1-01_v01_gaussian.png", "a field is gone"),
            ("images/Case_3-01_v00_original.jpg", "a setting"),
            ("points/Case_2-01_v00_original.json", "a field is gone"),
            ("manifest.jsonl", "a setting"),
            ("dataset.json", "nothing"),
        ],
    )
    def test_a_corrected_file_stops_the_run_before_anything_changes(
        self, raw: Path, out: Path, file: str, change: str
    ) -> None:
        content = bytearray((out / file).read_bytes())
        content[5] ^= 1
        (out / file).write_bytes(content)
        if change == "a field is gone":
            for path in ("images/Case_1-01.tif", "groundTruth/Case_1-01.json"):
                (raw / path).unlink()
        before, written = tree(out), times(out)
        with pytest.raises(UserError, match=rf"1 file in the way.*: {file}; move away what is"):
            prepare(raw, out, copies=3, radius_px=5 if change == "a setting" else 20)
        assert tree(out) == before
        assert times(out) == written

    def test_moved_away_it_is_made_again(self, raw: Path, out: Path, tmp_path: Path) -> None:
        before = tree(out)
        mask = out / "masks/Case_1-01_v00_original.png"
        mask.write_bytes(b"corrected")
        mask.rename(tmp_path / "corrected.png")
        assert prepare(raw, out, copies=3).num_reused == 3
        assert tree(out) == before

    @pytest.mark.parametrize("stranger", ["file", "link", "folder"])
    def test_what_stands_under_the_name_of_a_new_file_stops_the_run(
        self, raw: Path, out: Path, tmp_path: Path, stranger: str
    ) -> None:
        """A fourth variant is asked for, whose name somebody has taken."""
        path, mine = out / "masks/Case_1-02_v03_gaussian.png", tmp_path / "mine"
        mine.write_text("mine")
        if stranger == "file":
            path.write_text("mine")
        elif stranger == "link":
            path.symlink_to(mine)
        else:
            path.mkdir()
        before = tree(out)
        with pytest.raises(UserError, match=r"in the way.*masks/Case_1-02_v03_gaussian\.png; move"):
            prepare(raw, out, copies=4)
        with pytest.raises(UserError, match=r"in the way.*masks/Case_1-02_v03_gaussian\.png; move"):
            prepare(raw, out, copies=4, share="1/1")
        assert tree(out) == before
        assert mine.read_text() == "mine"

    def test_a_mask_corrected_while_its_field_is_prepared_is_kept(
        self, raw: Path, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mask, run_tasks = out / "masks/Case_1-02_v00_original.png", prepare_module.run_tasks

        def corrected_meanwhile(*arguments: Any) -> Any:
            mask.write_bytes(b"corrected")
            return run_tasks(*arguments)

        monkeypatch.setattr(prepare_module, "run_tasks", corrected_meanwhile)
        with pytest.raises(WorkerError, match=r"Case_1-02: .*in the way.*v00_original\.png; move"):
            prepare(raw, out, copies=3, radius_px=5)
        assert mask.read_bytes() == b"corrected"

    @pytest.mark.parametrize("folder", [*FOLDERS, ".eosin", ".eosin/fields"])
    def test_a_folder_that_is_a_link_is_refused(
        self, raw: Path, out: Path, tmp_path: Path, folder: str
    ) -> None:
        (out / folder).rename(tmp_path / "elsewhere")
        (out / folder).symlink_to(tmp_path / "elsewhere")
        before = tree(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=rf"out/{folder}: "):
            prepare(raw, out, copies=2)
        assert tree(tmp_path / "elsewhere") == before

    def test_a_set_that_was_copied_is_ours(self, raw: Path, out: Path, tmp_path: Path) -> None:
        """With other times: by the files' hashes."""
        shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copyfile)
        before = tree(out)
        assert prepare(raw, tmp_path / "copy", copies=3).num_reused == 4
        assert prepare(raw, tmp_path / "copy", copies=3, radius_px=5).num_reused == 0
        assert prepare(raw, tmp_path / "copy", copies=3).num_reused == 0
        assert tree(tmp_path / "copy") == before

    def test_a_field_that_is_gone_leaves_nothing(
        self, raw: Path, out: Path, tmp_path: Path
    ) -> None:
        for file in ("images/Case_1-02.tif", "groundTruth/Case_1-02.json"):
            (raw / file).unlink()
        summary = prepare(raw, out, copies=3)
        assert (summary.num_reused, summary.num_removed) == (3, 1)
        assert not [name for name in tree(out) if "Case_1-02" in name]
        prepare(raw, tmp_path / "fresh", copies=3)
        assert tree(out) == tree(tmp_path / "fresh")

    def test_what_was_lost_or_emptied_by_a_power_loss_is_made_again(
        self, raw: Path, out: Path
    ) -> None:
        """Emptied it has its name, and the disk has nothing of it."""
        before = tree(out)
        (out / manifest(out)[1]["mask"]).unlink()
        assert prepare(raw, out, copies=3).num_reused == 3
        assert tree(out) == before
        for kind in ("image", "mask", "points"):
            (out / manifest(out)[1][kind]).write_bytes(b"")
        assert prepare(raw, out, copies=3).num_reused == 3
        assert tree(out) == before

    def test_files_whose_record_is_lost_are_not_known_as_ours(self, raw: Path, out: Path) -> None:
        (out / ".eosin/fields/Case_1-01.json").write_text('{"files": ')
        before = tree(out)
        with pytest.raises(UserError, match=r"9 files in the way.*images/Case_1-01_v00_orig"):
            prepare(raw, out, copies=3)
        assert tree(out) == before


# What an interrupted run is: `python -m data_prep`, killed as soon as two fields are done
KILLED_AFTER_TWO = """
import os, signal, sys
from common import command_line
from data_prep import __main__, prepare

def track(items, label, **others):
    for done, item in enumerate(items, start=1):
        yield item
        if (label, done) == ("prepare", 2):
            os.kill(os.getpid(), signal.SIGKILL)

prepare.track = track
command_line.run(__main__.main, sys.argv[1:])
"""


class TestInterrupted:
    def kill(self, raw: Path, out: Path, *others: str) -> None:
        """Start a run, let it be killed, and wait until its workers have ended too."""
        arguments = [f"raw={raw}", f"out={out}", "workers=2", "copies=3"]
        arguments += ["augment.transforms=[gaussian]", "split.val=0", "split.test=0", *others]
        ended = subprocess.run(
            [sys.executable, "-c", KILLED_AFTER_TWO, *arguments],
            cwd=ROOT,
            capture_output=True,  # the workers hold these pipes: reading to their end waits
            timeout=60,
            check=False,
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()

    def test_it_goes_on_to_the_same_bytes(self, raw_folder: RawFolder, tmp_path: Path) -> None:
        """Over a finished set of another seed."""
        raw, out = raw_folder({"1": 3, "2": 2, "3": 1}), tmp_path / "out"
        prepare(raw, out, copies=3, seed=9, split=ALL_TRAINING)
        assert (out / "dataset.json").is_file()
        self.kill(raw, out)
        assert not (out / "dataset.json").exists(), "an unfinished data set passes for a whole one"

        for kind in ("dataset", "fields"):
            (out / f".eosin/{kind}/.0123456789abcdef.tmp").write_bytes(b"half")
        summary = prepare(raw, out, copies=3, split=ALL_TRAINING)
        assert 2 <= summary.num_reused <= 3  # two were done, and one was in a worker's hands
        prepare(raw, tmp_path / "fresh", copies=3, split=ALL_TRAINING)
        assert tree(out) == tree(tmp_path / "fresh")

    def test_workers_of_a_killed_run_stop_at_once(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        """They would write over what the next run, with other settings, has done."""
        raw, out = raw_folder({"1": 1}), tmp_path / "out"
        large = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
        tifffile.imwrite(raw / "images/Case_1-01.tif", large, photometric="rgb")
        command = [sys.executable, "-m", "data_prep", f"raw={raw}", f"out={out}", "workers=1"]
        command += ["split.val=0", "split.test=0", "format=png"]
        started_ns = time.time_ns()
        run = subprocess.Popen(command, cwd=ROOT, **IN_SILENCE)
        while written_since(out, started_ns) < 3:
            assert run.poll() is None
            time.sleep(0.001)
        run.kill()
        run.wait()
        time.sleep(0.3)
        stopped_ns = time.time_ns()
        assert len(scan(out / "images")) < 16
        time.sleep(1)
        assert written_since(out, stopped_ns) == 0

    @pytest.mark.repeats
    def test_killed_ten_times_at_any_instant(self, raw_folder: RawFolder, tmp_path: Path) -> None:
        """Each run is killed with its workers once it has written a few more files."""
        raw, out = raw_folder({"1": 4, "2": 3, "3": 3}), tmp_path / "out"
        command = [sys.executable, "-m", "data_prep", f"raw={raw}", f"out={out}", "workers=2"]
        command += ["copies=6", "augment.transforms=[gaussian]", "split.val=0", "split.test=0"]
        rng = np.random.default_rng(3)
        num_killed = 0
        for _ in range(10):
            started_ns = time.time_ns()
            run = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **IN_SILENCE)
            wanted = rng.integers(1, 16)
            while run.poll() is None and written_since(out, started_ns) < wanted:
                time.sleep(0.001)
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                num_killed += 1
            run.wait()
            assert run.returncode == 0 or not (out / "dataset.json").exists()
        assert num_killed >= 5
        prepare(raw, out, copies=6, split=ALL_TRAINING)
        prepare(raw, tmp_path / "fresh", copies=6, split=ALL_TRAINING)
        assert tree(out) == tree(tmp_path / "fresh")


@pytest.mark.parametrize("a_field_is_gone", [True, False])
def test_killed_at_each_change_of_a_file_while_publishing(
    raw_folder: RawFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kills: Callable[..., Iterator[Path]],
    a_field_is_gone: bool,
) -> None:
    """A set is never taken as whole that is none, and the next run makes the bytes of a fresh one.

    A case moved to another split, so manifest, dataset.json and pack are others.
    """
    raw, out = raw_folder({"1": 2, "2": 1, "3": 1}), tmp_path / "out"
    for module in (prepare_module, pack):
        monkeypatch.setattr(module, "map_tasks", map_here)
    settings: dict[str, Any] = {"copies": 1, "pack": True, "format": "png"}
    prepare(raw, out, **settings)
    if a_field_is_gone:
        for file in ("images/Case_1-02.tif", "groundTruth/Case_1-02.json"):
            (raw / file).unlink()
    settings["split"] = SplitConfig(val=0.0, test_cases=["3"])
    prepare(raw, tmp_path / "fresh", **settings)
    before, fresh = tree(out), tree(tmp_path / "fresh")
    wholes = [before["dataset.json"], fresh["dataset.json"]]
    monkeypatch.setattr(lease, "BEAT_S", 0.1)  # a blank lock is waited for
    for folder in kills(out, lambda folder: prepare(raw, folder, **settings)):
        now = tree(folder)
        if "dataset.json" in now:
            whole = [before, fresh][wholes.index(now["dataset.json"])]
            names = [name for name in whole if name.startswith(("images", "masks", "points", "m"))]
            assert {name: now.get(name) for name in names} == {name: whole[name] for name in names}
        packs = {name: now[name] for name in now if name.endswith(".u8")}
        assert packs.items() <= before.items() | fresh.items(), "a pack that is not whole"
        prepare(raw, folder, **settings)
        assert without_packs_record(tree(folder)) == without_packs_record(fresh)
    assert now == fresh, "the last one came to its end"


def without_packs_record(files: dict[str, bytes]) -> dict[str, bytes]:
    """After a kill at the very end of its writing it still has the pack of before."""
    return {name: files[name] for name in files if name != ".eosin/pack/pack.json"}


def test_killed_at_each_change_of_a_field_what_is_ours_and_what_is_not_stays_known(
    raw_folder: RawFolder, tmp_path: Path
) -> None:
    """Each run after a kill makes the bytes of a fresh one, and a file of the user's that stands
    where one of ours was to come is refused."""
    raw, out = raw_folder({"1": 1, "2": 1, "3": 1}), tmp_path / "out"
    prepare(raw, out)
    prepare(raw, tmp_path / "fresh", radius_px=5)
    fresh = tree(tmp_path / "fresh")
    kept = shutil.copytree(out, tmp_path / "kept")
    config = PrepConfig(
        raw=str(raw), out=str(out), copies=1, augment=CHEAP, split=BY_LIST, radius_px=5
    )
    (task, *_) = plan.make_plan(config, *plan.find_fields(config)).tasks
    for instant in range(100):
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        is_done = survives(lambda: prepare_field(task), instant)
        half = shutil.copytree(out, tmp_path / f"half_{instant}")
        prepare_module.check_conflicts([task], {task.name: records.read_state(out, task.name)}, out)
        (half / "masks/Case_1-01_v00_original.png").write_bytes(b"mine")
        with pytest.raises(UserError, match=r"in the way.*: masks/Case_1-01_v00_original\.png"):
            prepare(raw, half, radius_px=5)
        if is_done:
            break
    assert instant >= 14, "3 files made, 2 records, dataset.json, 3 go, 3 come"
    prepare(raw, out, radius_px=5)
    assert tree(out) == fresh


@pytest.mark.parametrize("file", ["groundTruth/Case_1-02.json", "images/Case_1-02.tif"])
def test_a_file_that_changes_while_it_is_prepared_is_refused(
    raw_folder: RawFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Its record would say that the field was made of the file as it was before."""
    raw, out = raw_folder({"1": 2, "2": 1, "3": 1}), tmp_path / "out"
    content, run_tasks = (raw / file).read_bytes(), prepare_module.run_tasks

    def changed_meanwhile(*arguments: Any) -> Any:
        other = raw / file.replace("1-02", "2-01")
        (raw / file).write_bytes(other.read_bytes())
        return run_tasks(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "run_tasks", changed_meanwhile)
        with pytest.raises(BadInputFilesError, match=rf"{file}: was changed meanwhile; run again"):
            prepare(raw, out)
    (raw / file).write_bytes(content)
    prepare(raw, out)
    prepare(raw, tmp_path / "fresh")
    assert tree(out) == tree(tmp_path / "fresh")


def test_a_file_that_changes_while_its_hash_is_made_is_refused(
    raw_folder: RawFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_folder({"1": 2, "2": 1, "3": 1})

    def changed_behind(path: Path) -> str:
        found = file_sha256(path)
        if path.name == "Case_1-02.json":
            path.write_bytes((raw / "groundTruth/Case_2-01.json").read_bytes())
        return found

    monkeypatch.setattr(plan, "file_sha256", changed_behind)
    with pytest.raises(BadInputFilesError, match=r"Case_1-02\.json: was changed meanwhile"):
        prepare(raw, tmp_path / "out")


def test_other_rows_of_a_table_may_change_meanwhile(
    raw_folder: RawFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, run_tasks = raw_folder({"1": 2, "2": 1, "3": 1}), prepare_module.run_tasks
    shutil.rmtree(raw / "groundTruth")
    (raw / "groundTruth").mkdir()
    table = raw / "groundTruth/points.csv"
    rows = [f"{path.name},5,6,tumor\n" for path in sorted((raw / "images").iterdir())]
    table.write_text("".join(["file,x,y,class\n", *rows]))

    def added_to(*arguments: Any) -> Any:
        table.write_text("".join(["file,x,y,class\n", "Case_4-01.tif,7,8,tumor\n", *rows]))
        return run_tasks(*arguments)

    monkeypatch.setattr(prepare_module, "run_tasks", added_to)
    assert len(prepare(raw, tmp_path / "out", annotations="csv").samples) == 4


def test_a_file_that_the_disk_does_not_give_is_bad(
    raw_folder: RawFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such an error names no file."""

    def broken(path: Path) -> str:
        if path.name == "Case_1-02.tif":
            raise OSError(errno.EIO, "Input/output error")
        return file_sha256(path)

    monkeypatch.setattr(plan, "file_sha256", broken)
    with pytest.raises(BadInputFilesError, match=r"images/Case_1-02\.tif: cannot be read: Input"):
        prepare(raw_folder({"1": 2, "2": 1, "3": 1}), tmp_path / "out")


@pytest.mark.parametrize("size", [(16, 30_000), (30_000, 16)])
def test_a_field_too_large_for_a_variant_is_bad(
    raw_folder: RawFolder, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Its pixels would come from places that 16 bit do not count to."""
    raw = raw_folder({"1": 1, "2": 1, "3": 1})
    long = np.zeros(size, np.uint8)
    tifffile.imwrite(raw / "images/Case_1-01.tif", long, photometric="minisblack")
    shrunk = AugmentConfig(
        transforms=["horizontal_flip", "scale"], scale=ScaleConfig(min=0.7, max=0.7)
    )
    with pytest.raises(BadInputFilesError, match=r"variant 2 \(scale\).*: cut it with tile_px="):
        prepare(raw, tmp_path / "out", copies=3, augment=shrunk)
    assert len(prepare(raw, tmp_path / "out", copies=2, augment=shrunk).samples) == 4


def written_since(out: Path, time_ns: int) -> int:
    """Files of samples that were written or begun after a time."""
    files = [entry for kind in (*FOLDERS, ".eosin/fields") for entry in scan(out / kind)]
    return sum(written_ns(entry) > time_ns for entry in files)


def written_ns(entry: os.DirEntry[str]) -> int:
    """When a file was written; 0 where it has just been removed, to be made again."""
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def scan(folder: Path) -> list[os.DirEntry[str]]:
    return list(os.scandir(folder)) if folder.is_dir() else []


def test_a_field_called_as_anothers_tile_is_refused(raw_folder: RawFolder, tmp_path: Path) -> None:
    raw = raw_folder()
    for folder, ending in (("images", "tif"), ("groundTruth", "json")):
        source = raw / folder / f"Case_2-01.{ending}"
        source.rename(raw / folder / f"Case_1-01_x0_y0.{ending}")
    small = np.zeros((60, 60, 3), np.uint8)
    tifffile.imwrite(raw / "images/Case_1-01_x0_y0.tif", small, photometric="rgb")
    with pytest.raises(UserError, match=r"Case_1-01.tif and Case_1-01_x0_y0.tif both give a field"):
        prepare(raw, tmp_path / "out", tile_px=64, split=ALL_TRAINING, case_regex="each")


def killed_at_case_2(task: FieldTask) -> PreparedField:
    """A worker's function, found by name: the kernel kills it at one field."""
    if task.name == "Case_2-01":
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare_field(task)


class TestKilledWorker:
    def test_it_is_named_nothing_is_published_and_the_next_run_goes_on(
        self, raw_folder: RawFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw, out = raw_folder({"1": 2, "2": 1, "3": 1}), tmp_path / "out"
        with monkeypatch.context() as patch:
            patch.setattr(prepare_module, "prepare_field", killed_at_case_2)
            with pytest.raises(WorkerError) as caught:
                prepare(raw, out, workers=1)
        assert caught.match(r"^Case_2-01: .*killed by SIGKILL, most likely because memory ran out")
        assert caught.value.exit_code == 1
        assert not (out / "dataset.json").exists()
        assert prepare(raw, out).num_reused == 2
        prepare(raw, tmp_path / "fresh")
        assert tree(out) == tree(tmp_path / "fresh")


def tif_bytes() -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    tifffile.imwrite(file, values, photometric="rgb", compression="lzw")
    return file.getvalue()


GOOD_JSON = b'{"tumor": [{"x": 0.5, "y": 0.5}]}'
# field -> (image, annotation, the file to blame, its reason)
BAD_FIELDS: dict[str, tuple[bytes | None, bytes | None, str, str]] = {
    "Case_9-01": (tif_bytes(), None, "image", "has no annotation"),
    "Case_9-02": (None, GOOD_JSON, "annotation", "has no image"),
    "Case_9-03": (tif_bytes()[:5000], GOOD_JSON, "image", "cut short"),
    "Case_9-04": (b"no picture at all", GOOD_JSON, "image", "unreadable"),
    "Case_9-05": (b"", GOOD_JSON, "image", "is empty"),
    "Case_9-06": (tif_bytes(), b'{"tumor": [', "annotation", "invalid JSON"),
    "Case_9-07": (tif_bytes(), b'{"tumour": []}', "annotation", "unknown class 'tumour'"),
    "Case_9-08": (
        tif_bytes(),
        b'{"tumor": [{"x": 1.5, "y": 0}]}',
        "annotation",
        "tumor[0].x = 1.5: outside [0, 1]",
    ),
    "Case_9-09": (
        tif_bytes(),
        b'{"tumor": [{"x": 0, "y": NaN}]}',
        "annotation",
        "tumor[0].y = nan: outside [0, 1]",
    ),
    "Case_9-10": (tif_bytes(), b'{"tumor": []}', "annotation", "annotates nothing"),
    "Case_9-11": (
        tif_bytes(),
        b'{"lumen": [{"x": 0, "y": 0}]}',
        "annotation",
        "has no list for class 'tumor'",
    ),
}


class TestBadInput:
    """Promise 7."""

    @pytest.fixture
    def raw(self, raw_folder: RawFolder) -> Path:
        """Three good cases, and one of every kind of bad field."""
        raw = raw_folder({"1": 2, "2": 1, "3": 1})
        for stem, (image, annotation, _, _) in BAD_FIELDS.items():
            if image is not None:
                (raw / f"images/{stem}.tif").write_bytes(image)
            if annotation is not None:
                (raw / f"groundTruth/{stem}.json").write_bytes(annotation)
        return raw

    @pytest.fixture
    def expected(self, raw: Path) -> dict[str, str]:
        """Bad file -> what its reason must say."""
        reasons = {
            f"images/{stem}.tif" if blamed == "image" else f"groundTruth/{stem}.json": reason
            for stem, (_, _, blamed, reason) in BAD_FIELDS.items()
        }
        (raw / "images/Case_9-12.tif").write_bytes(b"both are bad")
        (raw / "groundTruth/Case_9-12.json").write_bytes(b"both are bad")
        reasons |= {"images/Case_9-12.tif": "unreadable", "groundTruth/Case_9-12.json": "invalid"}
        for name in ("images/Case_9-13.tif", "images/Case_9-13.png", "groundTruth/Case_9-13.json"):
            (raw / name).write_bytes(b"")
            reasons[name] = "two fields of one name: Case_9-13.png, Case_9-13.tif"
        for name in ("images/Case_8-01.tif", "images/Case_9-14.tif"):
            (raw / name).write_bytes(tif_bytes() + b"one picture under two cases")
            (raw / name).parents[1].joinpath(f"groundTruth/{Path(name).stem}.json").write_bytes(
                GOOD_JSON
            )
            reasons[name] = "two cases have the same picture (Case_8-01, Case_9-14)"
        return reasons

    def test_stop_lists_every_bad_file_with_its_reason_and_publishes_nothing(
        self, raw: Path, expected: dict[str, str], tmp_path: Path
    ) -> None:
        with pytest.raises(BadInputFilesError) as caught:
            prepare(raw, tmp_path / "out")
        first, *listed, last = str(caught.value).splitlines()
        assert first == f"{len(expected)} bad file(s):"
        assert_reasons(dict(line.strip().split(": ", 1) for line in listed), expected)
        assert "on_error=skip" in last
        assert caught.value.exit_code == 1
        assert not (tmp_path / "out/dataset.json").exists()

    def test_skip_goes_on_without_them_and_records_them(
        self, raw: Path, expected: dict[str, str], tmp_path: Path
    ) -> None:
        summary = prepare(raw, tmp_path / "out", on_error="skip")
        skipped = about(tmp_path / "out")["skipped"]
        assert_reasons({entry["file"]: entry["reason"] for entry in skipped}, expected)
        assert len(skipped) == len(summary.bad) == len(expected)
        fields = [sample["field"] for sample in manifest(tmp_path / "out")]
        assert fields == ["Case_1-01", "Case_1-02", "Case_2-01", "Case_3-01"]
        assert not [name for name in tree(tmp_path / "out") if "Case_9" in name]

    def test_mended_they_are_taken_up_and_spoilt_they_are_dropped(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        raw, out = raw_folder({"1": 2, "2": 1, "3": 1}), tmp_path / "out"
        good = (raw / "groundTruth/Case_1-02.json").read_bytes()
        whole = prepare(raw, out, on_error="skip").content_sha256
        (raw / "groundTruth/Case_1-02.json").write_bytes(good[:-1])
        prepare(raw, out, on_error="skip")
        assert [entry["file"] for entry in about(out)["skipped"]] == ["groundTruth/Case_1-02.json"]
        assert not [name for name in tree(out) if "Case_1-02" in name]
        (raw / "groundTruth/Case_1-02.json").write_bytes(good)
        assert prepare(raw, out, on_error="skip").content_sha256 == whole
        assert about(out)["skipped"] == []

    @pytest.mark.parametrize("on_error", ["stop", "skip"])
    def test_a_split_that_lost_all_its_fields_is_an_error(
        self, raw_folder: RawFolder, tmp_path: Path, on_error: str
    ) -> None:
        raw = raw_folder({"1": 1, "2": 1, "3": 1})
        os.truncate(raw / "images/Case_3-01.tif", 1000)
        with pytest.raises(UserError, match=r"images/Case_3-01\.tif: .*cut short"):
            prepare(raw, tmp_path / "out", on_error=on_error)
        assert not (tmp_path / "out/dataset.json").exists()

    @pytest.mark.parametrize("split", [SplitConfig(), BY_LIST], ids=["shares", "lists"])
    def test_bad_files_are_listed_even_where_the_rest_cannot_be_split(
        self, raw_folder: RawFolder, tmp_path: Path, split: SplitConfig
    ) -> None:
        """Two cases are left of three: what has to be mended is the file, not the split."""
        raw = raw_folder({"1": 1, "2": 1, "3": 1})
        (raw / "groundTruth/Case_3-01.json").unlink()
        with pytest.raises(UserError, match=r"images/Case_3-01\.tif: has no annotation") as caught:
            prepare(raw, tmp_path / "out", split=split)
        assert str(caught.value).endswith("there are too few cases for the splits")

    def test_nothing_but_bad_fields_is_an_error_whatever_is_asked_for(
        self, raw_folder: RawFolder, tmp_path: Path
    ) -> None:
        raw = raw_folder({"1": 1})
        (raw / "images/Case_1-01.png").write_bytes(b"")
        for on_error in ("stop", "skip"):
            with pytest.raises(BadInputFilesError, match="two fields of one name") as caught:
                prepare(raw, tmp_path / "out", on_error=on_error)
            assert str(caught.value).endswith("without them there are no fields")

    def test_empty_images_are_told_as_empty(self, raw_folder: RawFolder, tmp_path: Path) -> None:
        """Not as one picture under two cases, though their bytes are the same."""
        raw = raw_folder({"1": 1, "2": 1, "3": 1})
        for case in "12":
            (raw / f"images/Case_{case}-01.tif").write_bytes(b"")
        with pytest.raises(BadInputFilesError) as caught:
            prepare(raw, tmp_path / "out")
        assert str(caught.value).count("is empty (0 bytes)") == 2


def assert_reasons(found: dict[str, str], expected: dict[str, str]) -> None:
    assert found.keys() == expected.keys()
    assert not {file: found[file] for file in found if expected[file] not in found[file]}


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_a_full_disk_names_the_folder_and_nothing_unfinished_stays(
    raw_folder: Callable[..., Path], small_disk: Path
) -> None:
    """Not of the workers either that were killed while they wrote, since they keep it full."""
    raw = raw_folder({"1": 4})
    split = SplitConfig(val=0, test=0)
    config = PrepConfig(raw=str(raw), out=str(small_disk / "set"), workers=2, split=split)
    with pytest.raises(WorkerError, match="disk/set: No space left on device; make room"):
        prepare_module.prepare(config)
    assert not [*small_disk.rglob("*.tmp")]
