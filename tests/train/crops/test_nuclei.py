"""crop.centred: crops around annotated nuclei, of each class alike, and of training cases alone."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.command_line import UsageError, UserError
from data_prep.dataset.manifest import Dataset, read_dataset
from data_prep.dataset.pack import TrainingPixels
from tests.faults.training import digests
from tests.forked_ranks import ForkedRanks
from tests.train.conftest import CPU, TINY, prepare_here
from train.__main__ import main as train
from train.config import TrainConfig
from train.crops import nuclei as nuclei_module
from train.crops.fitting import check_fitting
from train.crops.loader import load_microbatches
from train.crops.microbatches import CropKey, TrainingCrops
from train.crops.nuclei import TrainingNuclei
from train.ranks.distributed import Ranks
from train.runs.open_run import open_run

Tiny = Callable[..., TrainConfig]
SIZE_PX = 32
CLASSES = "classes=[tumor,mitosis,apoptosis]"
Found = tuple[str, int, int]
"""A nucleus: the id of its sample, x and y in px."""


@pytest.fixture(scope="module")
def rare(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fields with one mitosis among the training cases and some in the others, in three data
    sets: a mask value for each class, with a pack of these, and one value for all."""
    folder = tmp_path_factory.mktemp("rare")
    fields = Path(shutil.copytree(raw, folder / "raw"))
    for path in sorted(fields.glob("*.json")):
        points = json.loads(path.read_text())["tumor"]
        num = {"Case_1-02": 1, "Case_2-01": 0, "Case_2-02": 0, "Case_1-01": 0}.get(path.stem, 2)
        listed = {"tumor": points[num:], "mitosis": points[:num], "apoptosis": []}
        path.write_text(json.dumps(listed))
    prepare_here(fields, folder / "per_class", CLASSES, "labels=per_class")
    prepare_here(fields, folder / "packed", CLASSES, "labels=per_class", "pack=true")
    prepare_here(fields, folder / "binary", CLASSES)
    return folder


@pytest.fixture
def dataset(rare: Path, request: pytest.FixtureRequest) -> Dataset:
    return read_dataset(rare / getattr(request, "param", "per_class"))


def listed(dataset: Dataset, split: str = "train") -> dict[str, list[Found]]:
    """The nuclei of each class as the files have them, read without our reader."""
    found: dict[str, list[Found]] = {"tumor": [], "mitosis": [], "apoptosis": []}
    for line in (dataset.folder / "manifest.jsonl").read_text().splitlines():
        sample = json.loads(line)
        if sample["split"] == split:
            content = json.loads((dataset.folder / sample["points"]).read_text())
            for name, points in content.items():
                for point in points:
                    x, y = point["x"] * sample["width_px"], point["y"] * sample["height_px"]
                    found[name].append((sample["id"], int(x), int(y)))
    return found


def crops_of(dataset: Dataset, config: TrainConfig) -> TrainingCrops:
    return TrainingCrops(TrainingPixels(dataset), config)


def around(crops: TrainingCrops, crop_key: CropKey) -> Found | None:
    """The nucleus that a crop is placed around."""
    number, place = crops.place(crop_key)
    return place and (crops.pixels.samples[number].id, int(place[0]), int(place[1]))


@pytest.mark.parametrize("dataset", ["per_class", "binary"], indirect=True)
def test_each_nucleus_of_a_class_is_drawn_once_in_as_many_equal_steps(dataset: Dataset) -> None:
    """By its annotated class, also where a mask has one value for all."""
    nuclei, expected = TrainingNuclei(dataset), listed(dataset)
    assert len(expected["mitosis"]) < len(expected["tumor"]) / 10
    assert not expected["apoptosis"]
    for of_class, name in ((0.0, "tumor"), (0.499, "tumor"), (0.5, "mitosis"), (0.999, "mitosis")):
        total = len(expected[name])
        drawn = [nuclei.draw((of_class, (step + 0.5) / total)) for step in range(total)]
        found = [(nuclei.samples[number].id, int(x), int(y)) for number, (x, y) in drawn]
        assert sorted(found) == sorted(expected[name])


def test_classes_are_drawn_alike_and_nuclei_of_a_class_alike(dataset: Dataset, tiny: Tiny) -> None:
    """Chi-squared of 5,000 crops stays below its 99.9% quantile (Wilson & Hilferty)."""
    crops, expected = crops_of(dataset, tiny(Path(), "crop.centred=1")), listed(dataset)
    drawn = [around(crops, (epoch, index)) for epoch in range(500) for index in range(10)]
    counts = Counter(drawn)
    assert None not in counts
    of_class = [sum(counts[each] for each in expected[name]) for name in ("tumor", "mitosis")]
    assert sum(of_class) == 5000
    for seen in (
        of_class,
        *([counts[each] for each in expected[name]] for name in ("tumor", "mitosis")),
    ):
        free = len(seen) - 1
        statistic = np.square(np.array(seen) - np.mean(seen)).sum() / np.mean(seen)
        assert statistic < free * (1 - 2 / (9 * free) + 3.09 * np.sqrt(2 / (9 * free))) ** 3


def test_a_fraction_of_the_crops_is_placed_so_and_the_others_stay_as_they_were(
    dataset: Dataset, tiny: Tiny
) -> None:
    keys = [(epoch, index) for epoch in range(50) for index in range(16)]
    plain, some = (
        crops_of(dataset, tiny(Path(), f"crop.centred={fraction}")) for fraction in (0, 0.3)
    )
    is_placed = [around(some, key) is not None for key in keys]
    assert 0.25 < np.mean(is_placed) < 0.35  # 800 of them: three standard deviations
    few = list(zip(keys, is_placed, strict=True))[:64]
    for key, is_other in few:
        (before,), (after,) = plain.cut([key]), some.cut([key])
        is_same = all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
        assert is_same != is_other


@pytest.mark.parametrize("dataset", ["per_class", "packed"], indirect=True)
def test_the_nucleus_lies_in_the_central_half_however_the_crop_is_turned_and_scaled(
    dataset: Dataset, tiny: Tiny
) -> None:
    """Its disc is there in the crop's mask, or that of a class that is painted over it."""
    config = tiny(Path(), "crop.centred=1", "crop.scale=1.5", f"crop.size_px={SIZE_PX}")
    crops, labels = crops_of(dataset, config), dataset.description.labelling.labels
    class_of = {each: name for name, found in listed(dataset).items() for each in found}
    for key in [(epoch, index) for epoch in range(20) for index in range(16)]:
        nucleus, (_, plan), ((_, mask_HW),) = around(crops, key), crops.plan(key), crops.cut([key])
        assert nucleus is not None
        linear, offset = plan.to_image[:, :2], plan.to_image[:, 2]
        place = np.linalg.inv(linear) @ (np.array(nucleus[1:]) - offset)
        assert np.all(np.abs(place - (SIZE_PX - 1) / 2) <= SIZE_PX / 4)
        column, row = np.round(place).astype(int)
        assert mask_HW[row, column] >= labels[class_of[nucleus]]


def batches(
    dataset: Dataset, config: TrainConfig, everyone: list[Ranks], first_step: int = 0
) -> list[bytes]:
    """Images and masks of each microbatch, rank after rank within a step."""
    crops = crops_of(dataset, config)
    loaded = [iter(load_microbatches(crops, config, rank, first_step)) for rank in everyone]
    each, found = config.batch.num_microbatches // len(everyone), []
    for _ in range(first_step, 8):  # two epochs of four
        for of_rank in loaded:
            made = [next(of_rank) for _ in range(each)]
            found += [image.numpy().tobytes() + mask.numpy().tobytes() for image, mask in made]
    assert all(next(of_rank, None) is None for of_rank in loaded)
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_workers_ranks_a_pack_and_a_resume_change_no_crop(
    rare: Path, tiny: Tiny, ranks: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, packed = read_dataset(rare / "per_class"), read_dataset(rare / "packed")
    config = tiny(Path(), "crop.centred=0.5")
    alone = batches(files, config, [ranks()])
    assert len(set(alone)) == 8 * 4
    assert set(batches(files, tiny(Path()), [ranks()])) & set(alone) != set(alone)
    assert batches(files, config, [ranks()], first_step=3) == alone[3 * 4 :]
    for dataset, workers, num in ((files, 0, 2), (packed, 2, 1), (packed, 1, 4)):
        config = tiny(Path(), "crop.centred=0.5", f"loader_workers={workers}")
        assert batches(dataset, config, [ranks(rank, num) for rank in range(num)]) == alone
    monkeypatch.setattr(nuclei_module, "MOST_KEPT", 2)
    assert batches(files, tiny(Path(), "crop.centred=0.5"), [ranks()]) == alone


def test_points_are_kept_for_a_number_of_samples_only(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nuclei_module, "MOST_KEPT", 3)
    nuclei = TrainingNuclei(dataset)
    for step in range(40):
        nuclei.draw((0.0, step / 40))
        assert 1 <= len(nuclei.kept) <= 3


def test_damaged_points_end_training_with_their_file(
    rare: Path, tiny: Tiny, ranks: Callable[..., Ranks], tmp_path: Path
) -> None:
    dataset = read_dataset(Path(shutil.copytree(rare / "per_class", tmp_path / "data")))
    for sample in dataset.split("train"):
        (dataset.folder / sample.points).write_text("{")
    config = tiny(Path(), "crop.centred=1", "loader_workers=1")
    with pytest.raises(UserError, match=r"points/Case_\S+\.json: missing or damaged: .*data_prep"):
        next(load_microbatches(crops_of(dataset, config), config, ranks(), 0))
    next(load_microbatches(crops_of(dataset, tiny(Path())), tiny(Path()), ranks(), 0))


def test_the_weights_are_the_same_on_one_rank_and_on_four(rare: Path, tmp_path: Path) -> None:
    """With class weights and the focal loss."""
    given = [f"data={rare / 'per_class'}", *TINY, "epochs=1", "device=cpu", "crop.centred=0.5"]
    given += ["loss.class_weights=[1,8,2]", "loss.focal_gamma=2", "loss.dice_weight=1"]
    assert train([*given, f"run={tmp_path / 'one'}"]) == 0
    four = [*given, f"run={tmp_path / 'four'}"]
    ForkedRanks("train.__main__", four, 4, tmp_path / "log").finish()
    assert digests(tmp_path / "one") == digests(tmp_path / "four")


# What a user types


def test_a_start_says_which_classes_are_drawn_and_which_have_no_nucleus(
    rare: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """Four nuclei in each of the four training fields, one of which is a mitosis."""
    given = [f"data={rare / 'per_class'}", f"run={tmp_path / 'run'}", *TINY, "epochs=1"]
    done = cli(
        train, *given, "crop.centred=0.25", "loss.class_weights=[1,8,1]", "loss.focal_gamma=2"
    )
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if "placed around" in line)
    assert line == (
        "25% of the crops are placed around nuclei, each class as often as any other: tumor (15),"
        " mitosis (1); there is no apoptosis in the training cases"
    )
    assert (
        "placed around" not in cli(train, *given[:1], f"run={tmp_path / 'other'}", *given[2:]).out
    )


@pytest.mark.parametrize("fraction", ["-0.1", "1.5", "nan"])
def test_what_is_no_fraction_is_refused(fraction: str, tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=f"crop.centred={fraction}: 0 .* to 1 "):
        tiny(Path(), f"crop.centred={fraction}")


def test_without_any_nucleus_it_is_refused_before_a_run_is_made(
    raw: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """There are mitoses in the cases of val and test alone."""
    fields = Path(shutil.copytree(raw, tmp_path / "raw"))
    for path in fields.glob("*.json"):
        points, held_out = json.loads(path.read_text())["tumor"], path.stem[5] in "345"
        content = {"tumor": points, "mitosis": points[:1] if held_out else [], "apoptosis": []}
        path.write_text(json.dumps(content))
    dataset = prepare_here(fields, tmp_path / "data", "classes=[mitosis,apoptosis]")
    given = [f"data={dataset.folder}", f"run={tmp_path / 'run'}", *TINY]
    done = cli(train, *given, "crop.centred=0.5")
    assert done.code == 2
    assert done.err.strip() == (
        "error: crop.centred=0.5: places crops around annotated nuclei, but the training cases have"
        " none (mitosis, apoptosis); set crop.centred=0"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("per_class", "[1,2.5]", "3 classes to learn (tumor, mitosis, apoptosis); give a weight"),
        ("binary", "[1,2.5]", "1 class to learn (tumor+mitosis+apoptosis); give a weight"),
    ],
)
def test_weights_that_are_not_one_for_each_class_are_refused_with_their_names(
    name: str, weights: str, words: str, rare: Path, tiny: Tiny
) -> None:
    dataset = read_dataset(rare / name)
    with pytest.raises(UsageError) as refused:
        check_fitting(tiny(Path(), f"loss.class_weights={weights}"), dataset)
    assert str(refused.value).startswith(
        f"loss.class_weights={weights}: data={dataset.folder} has "
    )
    assert words in str(refused.value)
    accepted = str(refused.value).rpartition("as in ")[2]
    check_fitting(tiny(Path(), accepted), dataset)


def test_a_run_keeps_what_it_is_trained_for(rare: Path, tiny: Tiny, tmp_path: Path) -> None:
    dataset = read_dataset(rare / "per_class")
    own = [f"data={dataset.folder}", "loss.class_weights=[1,1,8]", "loss.focal_gamma=2"]
    own.append("crop.centred=0.5")
    open_run(tiny(tmp_path, *own), dataset, CPU)
    for other in ("loss.class_weights=[1,1,9]", "loss.focal_gamma=0", "crop.centred=0"):
        key = other.partition("=")[0]
        with pytest.raises(UsageError, match=f"begun with other settings .{key}: ") as refused:
            open_run(tiny(tmp_path, *own, other), dataset, CPU)
        first = refused.value.accepted([*own, other])[0]  # type: ignore[attr-defined]
        assert open_run(tiny(tmp_path, *first), dataset, CPU)[1] == []
    _, changes = open_run(tiny(tmp_path, *own, other, "resume=override"), dataset, CPU)
    assert changes == ["changed crop.centred: 0.5 -> 0.0 (overridden)"]
