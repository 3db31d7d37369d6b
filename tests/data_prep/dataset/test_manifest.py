"""manifest.jsonl and dataset.json: written last and whole, and refused where they are not."""

import dataclasses
import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UsageError
from data_prep.config import PrepConfig
from data_prep.dataset.description import DatasetError, Labelling
from data_prep.dataset.manifest import (
    Sample,
    check_unchanged,
    count_samples,
    read_dataset,
    write_dataset,
)
from data_prep.images.stains import Stains

STAINS = "hematoxylin 0.6 0.8 0.0 eosin 0.0 0.8 0.6 maxima 2.0 1.5"
ABOUT = {
    "labels": {"tumor": 1, "lumen": 2},
    "mpp": 0.25,
    "split": {"train": ["Case_1"], "val": ["Case_2"], "test": ["Case_3", "Case_4"]},
    "config": {
        "radius_px": 12,
        "uint16_white": 4095,
        "case_regex": "(?P<case>.+)-x",
        "annotations": "csv",
        "object_types": ["annotation", "detection", "cell"],
        "empty": "accept",
        "ignore_value": "none",
        "ignore_px": 5,
        "stain_norm": "macenko",
        "stain_reference": STAINS,
    },
}


BAD_REGEX = {"case_regex": "("}


def make_sample(field: str, split: str, variant: int = 0, **others: Any) -> Sample:
    sample_id = f"{field}_v{variant:02d}"
    values: dict[str, Any] = {
        "id": sample_id,
        "case": field.split("-")[0],
        "field": field,
        "variant": variant,
        "transform": "rotation" if variant else "original",
        "parameters": {"angle_deg": 12.5} if variant else {},
        "seed": 2**62 + variant,
        "split": split,
        "image": f"images/{sample_id}.jpg",
        "mask": f"masks/{sample_id}.png",
        "points": f"points/{sample_id}.json",
        "height_px": 120,
        "width_px": 160,
        "foreground_px": 7,
        "ignored_px": 0,
        "nuclei": {"tumor": 2},
        "image_bytes": 5,
        "mask_bytes": 6,
        "points_bytes": 7,
        "image_sha256": "a" * 64,
        "mask_sha256": "b" * 64,
        "points_sha256": "c" * 64,
    }
    return Sample(**values | others)


SAMPLES = [
    make_sample("Case_1-01", "train"),
    make_sample("Case_1-01", "train", variant=1),
    make_sample("Case_1-02", "train"),
    make_sample("Case_2-01", "val"),
    make_sample("Case_3-01", "test"),
    make_sample("Case_4-é", "test"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path, SAMPLES, ABOUT)
    return tmp_path


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def test_what_was_written_is_read_back(folder: Path) -> None:
    dataset = read_dataset(folder)
    assert dataset.folder == folder
    assert dataset.samples == SAMPLES
    assert dataset.description.cases == ABOUT["split"]
    labelling = dataset.description.labelling
    regex = "(?P<case>.+)-x"
    labels = {"tumor": 1, "lumen": 2}
    others = {"ignore_px": 5, "stain_norm": "macenko", "stain_reference": STAINS}
    assert labelling == Labelling(labels, 12, 4095, regex, "csv", mpp=0.25, **others)
    assert labelling.stains == Stains((0.6, 0.8, 0), (0, 0.8, 0.6), (2, 1.5))
    assert labelling.empty == "accept"
    assert list(labelling.labels) == ["tumor", "lumen"]


def test_the_manifest_has_a_line_a_sample_in_order(folder: Path) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [sample.id for sample in SAMPLES]
    assert json.loads(lines[1]) == dataclasses.asdict(SAMPLES[1])


def test_the_content_hash_is_the_manifests(folder: Path) -> None:
    digest = hashlib.sha256((folder / "manifest.jsonl").read_bytes()).hexdigest()
    assert json.loads((folder / "dataset.json").read_text())["content_sha256"] == digest
    assert read_dataset(folder).description.content_sha256 == digest


def test_dataset_json_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is the first that goes where the set is another."""
    changes: list[str] = []

    def told(event: str, change: Callable[..., object]) -> Callable[..., object]:
        def call(*paths: Path) -> object:
            if paths[-1].parent == tmp_path:
                changes.append(f"{event} {paths[-1].name}")
            return change(*paths)

        return call

    for event in ("rename", "unlink"):
        monkeypatch.setattr(os, event, told(event, getattr(os, event)))
    write_dataset(tmp_path, SAMPLES, ABOUT)
    come = ["rename manifest.jsonl", "rename dataset.json"]
    assert changes == come
    changes.clear()
    write_dataset(tmp_path, SAMPLES, ABOUT)
    assert changes == []
    write_dataset(tmp_path, SAMPLES[1:], ABOUT)
    assert changes == ["unlink dataset.json", "unlink manifest.jsonl", *come]


def test_a_split_has_its_samples_and_its_originals(folder: Path) -> None:
    dataset = read_dataset(folder)
    assert dataset.split("train") == SAMPLES[:3]
    assert dataset.split("train", originals_only=True) == [SAMPLES[0], SAMPLES[2]]
    assert dataset.split("test") == SAMPLES[4:]
    assert dataset.split("none") == []


def test_counts_are_of_cases_fields_and_samples() -> None:
    assert count_samples(SAMPLES) == {
        "train": {"cases": 1, "fields": 2, "samples": 3, "nuclei": {"tumor": 4}},
        "val": {"cases": 1, "fields": 1, "samples": 1, "nuclei": {"tumor": 2}},
        "test": {"cases": 2, "fields": 2, "samples": 2, "nuclei": {"tumor": 4}},
    }
    assert count_samples([])["val"] == {"cases": 0, "fields": 0, "samples": 0, "nuclei": {}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "dataset.json").unlink(), r"no dataset\.json.*run python -m data_prep raw"),
        (lambda f: (f / "dataset.json").write_text("{"), r"dataset\.json: .*damaged"),
        (lambda f: (f / "dataset.json").write_text("[]"), r"dataset\.json: .*damaged"),
        (
            lambda f: change(f / "dataset.json", lambda a: a | {"config": a["config"] | BAD_REGEX}),
            r"dataset\.json: .*damaged: case_regex=\(: missing \)",
        ),
        (
            lambda f: change(f / "dataset.json", lambda about: about | {"mpp": 300}),
            r"dataset\.json: .*damaged: mpp 300.0 is no resolution",
        ),
        (lambda f: (f / "manifest.jsonl").unlink(), r"manifest\.jsonl: missing"),
        (lambda f: (f / "manifest.jsonl").write_text("{}\n"), r"manifest\.jsonl: .*damaged"),
        (lambda f: (f / "manifest.jsonl").write_text("half a li"), r"manifest\.jsonl: .*damaged"),
        (
            lambda f: change(f / "dataset.json", lambda about: about | {"format": 99}),
            "format 99; this version reads 6: prepare the data again with data_prep, into another",
        ),
        (
            lambda f: change(f / "dataset.json", lambda about: about | {"content_sha256": "0"}),
            r"not the one that dataset\.json was written with",
        ),
        (lambda f: lose_a_line(f / "manifest.jsonl"), "not the one that"),
    ],
)
def test_a_folder_that_is_no_whole_data_set_is_refused_in_one_line(
    folder: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *[
            ("field", value, "is not a plain file name")
            for value in ("../x", "/x", "", "..", "a/b")
        ],
        ("field", "a\x1b[2J", r"field 'a\\x1b\[2J' is not a plain file name"),
        ("case", "a\nb", "case .* is not a plain file name"),
        ("id", "../../x", "id '../../x' is not a plain"),
        ("image", "../x.jpg", "image .* is not a path inside the data set"),
        ("mask", "/etc/passwd", "mask '/etc/passwd' is not a path inside the data set"),
        ("points", "points/../../x", "points .* is not a path inside the data set"),
        ("points", "points//x", "points .* is not a path inside the data set"),
        ("image", 7, "image: expected a valid string, found 7"),
        ("height_px", "9", "height_px: expected a valid integer, found '9'"),
        ("height_px", True, "height_px: expected a valid integer, found True"),
        ("height_px", 1.5, "height_px: expected a valid integer, found 1.5"),
        ("parameters", {"angle_deg": "x"}, "parameters.angle_deg: expected a valid number"),
        ("parameters", {"angle_deg": float("nan")}, "NaN is no JSON"),
        ("parameters", [], r"parameters: expected a valid dictionary, found \[\]"),
        ("split", None, "split: expected a valid string, found None"),
    ],
)
def test_a_name_in_a_manifest_is_a_name_and_no_path(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    """As in a set from elsewhere, whose hashes are as they should be."""
    samples = [*SAMPLES[:2], dataclasses.replace(SAMPLES[2], **{name: value})]
    write_dataset(tmp_path, samples, ABOUT)
    with pytest.raises(DatasetError, match=rf"manifest\.jsonl: line 3 is damaged: .*{message}"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [("sample", "Case_1-01_v00 of Case_1 is in"), ("cases", "split: 'Case_1' is listed twice")],
)
def test_a_case_of_two_splits_is_refused(tmp_path: Path, place: str, message: str) -> None:
    """As in a set from elsewhere: a patient in training and test would flatter every figure."""
    samples, about = [*SAMPLES], dict(ABOUT)
    if place == "sample":
        samples[0] = dataclasses.replace(SAMPLES[0], split="test")
    else:
        about["split"] = ABOUT["split"] | {"test": ["Case_1", "Case_3", "Case_4"]}
    write_dataset(tmp_path, samples, about)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["labels"].update(tumor="1"), "labels.tumor: expected a valid integer"),
        (lambda a: a["labels"].update(tumor=0), "labels: .*expected 1 to 253, or 255,"),
        (lambda a: a["labels"].update(tumor=256), "labels: .*expected 1 to 253, or 255,"),
        (lambda a: a["labels"].update(tumor=254), "labels: .*expected 1 to 253, or 255,"),
        (lambda a: a["config"].update(ignore_px=53), "ignore_px: 53; expected 0 to 52"),
        (lambda a: a["config"].update(ignore_px=-1), "ignore_px: -1; expected 0 to 52"),
        (lambda a: a["config"].update(ignore_value="all"), "ignore_value"),
        (
            lambda a: a["config"].update(ignore_value=2, annotations="masks"),
            "ignore_value=2: is class 'lumen'",
        ),
        (lambda a: a["labels"].clear(), "labels: .*expected 1 to 253, or 255,"),
        (lambda a: a["labels"].update({"a\x1b[2J": 1}), "labels: .*holds a control character"),
        (lambda a: a["split"].update(train="Case_1"), "split.train: expected a valid list"),
        (lambda a: a["split"].update(train=[1]), "split.train.0: expected a valid string"),
        (lambda a: a.update(split=["Case_1"]), "split: expected a valid dictionary"),
        (lambda a: a["split"].pop("val"), r"split: .*; expected train, val, test"),
        (lambda a: a["split"].update(more=[]), r"split: .*; expected train, val, test"),
        (lambda a: a["split"]["test"].append("Case_2"), "split: 'Case_2' is listed twice"),
        (lambda a: a["config"].update(split=7), "config.split: expected a valid dictionary"),
        (lambda a: a["config"].update(radius_px=10**9), "radius_px: 1000000000; expected 1 to 64"),
        (lambda a: a["config"].update(uint16_white=-1), "uint16_white: -1; expected at least 1"),
        (lambda a: a["config"].update(stain_norm="reinhard"), "stain_norm: expected 'none' or"),
        (lambda a: a["config"].update(stain_reference=7), "stain_reference: expected a valid str"),
        (lambda a: a["config"].update(stain_reference="a.tif"), "stain_reference: expected 'hema"),
        (
            lambda a: a["config"].update(stain_reference=STAINS.replace("2.0", "nan")),
            "stain_reference: maxima nan 1.5: expected above 0",
        ),
        (lambda a: a["config"].update(annotations="pickle"), "annotations: 'pickle'; expected one"),
        (lambda a: a["config"].update(note="\x1b]0;x"), "config.note: .*holds a control character"),
        (lambda a: a["config"].pop("annotations"), "annotations: is missing"),
        (lambda a: a.pop("content_sha256"), "content_sha256: is missing"),
    ],
)
def test_a_strangers_description_is_refused_by_its_key(
    folder: Path, change: Callable[[Any], Any], message: str
) -> None:
    about = json.loads((folder / "dataset.json").read_text())
    change(about)
    (folder / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(DatasetError, match=rf"dataset\.json: missing or damaged: .*{message}"):
        read_dataset(folder)


def test_numbers_of_a_transform_may_be_whole(tmp_path: Path) -> None:
    write_dataset(tmp_path, [make_sample("Case_1-01", "train", parameters={"angle_deg": 1})], ABOUT)
    assert read_dataset(tmp_path).samples[0].parameters == {"angle_deg": 1}


def test_a_manifest_is_read_line_by_line(folder: Path) -> None:
    """Any length is read (a limit would refuse what data_prep wrote for days), but no endless line,
    and a rank never holds the text of all samples."""
    path, about = folder / "manifest.jsonl", json.loads((folder / "dataset.json").read_text())
    lines = [line.ljust(900_000) + b"\n" for line in path.read_bytes().splitlines()] * 5
    path.write_bytes(b"".join(lines))
    about["content_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(about))
    tracemalloc.start()
    assert read_dataset(folder).samples == SAMPLES * 5
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * path.stat().st_size
    path.write_bytes(lines[0].rjust(1_000_001))
    with pytest.raises(DatasetError, match=r"damaged: a line is longer than 1000000 bytes; run"):
        read_dataset(folder)


def test_very_many_cases_can_be_described(tmp_path: Path) -> None:
    """dataset.json names each case; what check_unchanged cannot read, it could not compare."""
    cases = ["Case_1", *(f"{number:0190}" for number in range(60_000))]  # 12 MB
    about = {**ABOUT, "split": {**ABOUT["split"], "train": cases}}  # type: ignore[dict-item]
    write_dataset(tmp_path, [make_sample("Case_1-01", "train")], about)
    dataset = read_dataset(tmp_path)
    assert dataset.description.cases["train"] == cases
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace('"content_sha256": "', '"content_sha256": "0'))
    with pytest.raises(DatasetError, match="was prepared anew"):
        check_unchanged(dataset)


def lose_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none: no such folder; python -m data_prep out="):
        read_dataset(tmp_path / "none")


def test_the_settings_that_readers_need_are_those_of_data_prep() -> None:
    assert set(ABOUT["config"]) <= {*PrepConfig.__dataclass_fields__}
