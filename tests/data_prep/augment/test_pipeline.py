"""A pipeline of the user's: read as data, tried out first, with a seed for each picture."""

import io
import json
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.command_line import UsageError
from data_prep import __main__ as command
from data_prep.augment.moving import Annotated, apply
from data_prep.augment.pipeline import (
    MAX_CHARACTERS,
    build,
    read_for_crops,
    read_for_fields,
    seeded,
)
from data_prep.augment.transforms import albumentations
from data_prep.augment.variants import plan_variants
from data_prep.config import AugmentConfig
from data_prep.dataset.manifest import read_dataset
from tests.points import as_lists, as_points

ROOT = Path(__file__).parents[3]
DOCUMENTED, IN_README = (
    (ROOT / page).read_text().split("```yaml\n")[1].split("```")[0]
    for page in ("docs/augmentation.md", "README.md")
)
SIDE_PX = 32
REGISTRY = albumentations.core.serialization.SERIALIZABLE_REGISTRY
# They refuse, too, to be used with their own defaults
SLOW = {"Superpixels"}


def saved(*transforms: Any) -> str:
    """What albumentations writes."""
    text = io.StringIO()
    albumentations.save(albumentations.Compose(transforms), text, data_format="yaml")
    return text.getvalue()


def one(name: str, /, **arguments: Any) -> str:
    """A file of one transform."""
    return json.dumps({"transform": {"__class_fullname__": name, **arguments}})


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    """written(text) is the path of a file that holds the text."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def picture(seed: int, side_px: int = SIDE_PX) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8)


MASK_HW = np.where(np.indices((SIDE_PX, SIDE_PX)).sum(axis=0) > SIDE_PX, 255, 0).astype(np.uint8)


class TestReading:
    @pytest.mark.parametrize("text", [DOCUMENTED, IN_README], ids=["docs", "README"])
    def test_the_documented_file_is_taken_for_fields_and_crops(
        self, text: str, written: Callable[[str], str]
    ) -> None:
        path = written(text)
        content = read_for_fields(path)
        assert content == read_for_crops(path, 256)
        assert json.loads(content)["transform"]["transforms"]
        assert read_for_fields(content) == content  # what is recorded is taken in the file's place

    def test_layout_and_comments_do_not_count_and_arguments_do(
        self, written: Callable[[str], str]
    ) -> None:
        content = read_for_fields(written(DOCUMENTED))
        again = "# mine\n" + DOCUMENTED.replace("[0.3, 1.2]", "\n      - 0.3\n      - 1.2")
        first, second = "    method: random_preset\n", "    intensity_scale_range: [0.85, 1.15]\n"
        again = again.replace(first + second, second + first)
        assert "method: random_preset\n    intensity_shift" in again
        assert read_for_fields(written(again)) == content
        assert read_for_fields(written(DOCUMENTED.replace("1.2]", "1.3]"))) != content

    def test_what_albumentations_saves_does_what_it_did(
        self, written: Callable[[str], str]
    ) -> None:
        mine = [
            albumentations.ColorJitter(hue=(-0.2, 0.2), p=1),
            albumentations.SomeOf([albumentations.Blur(), albumentations.Rotate()], n=1),
        ]
        pipeline = build(read_for_crops(written(saved(*mine)), SIDE_PX), with_points=False)
        expected = albumentations.Compose([albumentations.Compose(mine)])
        expected.set_random_state(np.random.default_rng(5), random.Random(5))
        made = seeded(pipeline, 5)(image=picture(1), mask=MASK_HW)
        wanted = expected(image=picture(1), mask=MASK_HW)
        assert not np.array_equal(made["image"], picture(1))
        for kind in ("image", "mask"):
            assert np.array_equal(made[kind], wanted[kind])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (one("Lambda", name="x"), "Lambda: runs code"),
            (one("FDA", reference_images=["a.png"]), "FDA: needs other images"),
            (one("HistogramMatching", reference_images=["a.png"]), "HistogramMatching: needs"),
            (one("PixelDistributionAdaptation"), "PixelDistributionAdaptation: needs other"),
            (one("OverlayElements"), "OverlayElements: needs other images"),
            (one("Mosaic"), "Mosaic: needs other images"),
            (one("TextImage", font_path="/etc/passwd"), "TextImage: reads a font"),
            (one("TemplateTransform"), "TemplateTransform: no transform of albumentations"),
            (one("os.system"), "os.system: no transform"),
            (one("data_prep.augment.transforms.Lens", border_mode=1, fill=0, k=0.1), "Lens: no"),
            (one("BboxParams", format="coco"), "BboxParams: no transform"),
            (one("SelectiveChannelTransform", transforms=[]), "SelectiveChannelTransform: no"),
            (one("OneOf", transforms=[{"__class_fullname__": "Lambda"}]), "Lambda: runs code"),
            (one("OneOf", transforms="all"), "OneOf: has no list of transforms"),
            (one("Blur", strength=3), "Blur: .*strength"),
            (one("Blur", blur_limit="much"), "Blur: .*blur_limit.* integer"),
            (one("Compose", transforms=[{"__class_fullname__": "Blur"}], p="often"), "Compose: "),
            (one("RandomCrop", height=16, width=16), r"RandomCrop: makes \(16, 16, 3\) uint8 of"),
            (one("Resize", height=64, width=64), "Resize: makes"),
            (one("PadIfNeeded", min_height=64, min_width=64), "PadIfNeeded: makes"),
            (one("RandomScale", scale_limit=[0.5, 0.6]), "RandomScale: makes"),
            (one("Normalize"), "Normalize: makes .* float32"),
            (one("Affine", rotate=[5, 5], mask_interpolation=1), "Affine: mixes labels"),
            ("transform: {p: 1}", "a transform without __class_fullname__"),
            ("transform: [&a [x], *a]", r"\*a is an alias"),
            ("transform: " + "[" * 30 + "]" * 30, "nested more than 20 deep"),
            ("transform: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
            ("transform: {__class_fullname__: Blur, p: .nan}", "not JSON compliant"),
            ("transform: {__class_fullname__: Blur, p: " + "9" * 5000 + "}", "Exceeds the limit"),
            (" " * (MAX_CHARACTERS + 1), "holds more than 32768 characters"),
            ("[1, 2]", "holds no 'transform'"),
        ],
    )
    def test_what_cannot_be_taken_is_named(
        self, text: str, message: str, written: Callable[[str], str]
    ) -> None:
        path = written(text)
        with pytest.raises(UsageError, match=message) as refused:
            read_for_crops(path, SIDE_PX)
        assert f"crop.pipeline={path}: " in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_a_size_that_stays_by_the_crops_size_is_taken(
        self, written: Callable[[str], str]
    ) -> None:
        path = written(one("RandomResizedCrop", size=[SIDE_PX, SIDE_PX]))
        assert read_for_crops(path, SIDE_PX)
        with pytest.raises(UsageError, match="RandomResizedCrop: makes"):
            read_for_crops(path, 2 * SIDE_PX)

    @pytest.mark.parametrize("given", ["nowhere.yaml", "", "/dev/zero", '{"transform": '])
    def test_what_is_no_file_is_refused(self, given: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"^augment.pipeline"):
            read_for_fields(given or str(tmp_path))

    @pytest.mark.parametrize("name", ["Rotate", "ElasticTransform", "Transpose", "CoarseDropout"])
    def test_for_fields_what_moves_or_drops_points_is_refused(
        self, name: str, written: Callable[[str], str]
    ) -> None:
        path = written(one(name))
        with pytest.raises(UsageError, match=f"{name}: moves points.*augment.transforms has"):
            read_for_fields(path)
        read_for_crops(path, SIDE_PX)


class TestDraws:
    def test_every_transform_draws_from_the_seed_alone(self) -> None:
        """What was drawn before, by the same or by others, leaves nothing behind."""
        names = [name for name in REGISTRY if "." not in name and name not in SLOW]
        taken = []
        for name in names:
            try:
                content = read_for_crops(one(name, p=1), SIDE_PX)
            except UsageError:
                continue
            taken.append(name)
            fresh, used = (build(content, with_points=False) for _ in range(2))
            random.seed(1)
            np.random.seed(1)
            for seed in range(3):
                seeded(used, seed)(image=picture(seed), mask=MASK_HW)
            made = [seeded(each, 9)(image=picture(9), mask=MASK_HW) for each in (fresh, used)]
            for kind in ("image", "mask"):
                assert np.array_equal(made[0][kind], made[1][kind]), name
        assert {"HEStain", "ColorJitter", "GaussNoise", "ElasticTransform", "Rotate"} < {*taken}
        assert len(taken) > 60

    def test_transforms_draw_one_after_the_other(self) -> None:
        """albumentations' own seed would flip all that it inverts."""
        transforms = [
            {"__class_fullname__": name, "p": 0.5} for name in ("HorizontalFlip", "InvertImg")
        ]
        pipeline = build(one("Compose", transforms=transforms), with_points=False)
        ramp = np.tile(np.arange(0, 100, 25, dtype=np.uint8)[:, None], (4, 1, 3))
        came = set()
        for seed in range(40):
            image_HWC = seeded(pipeline, seed)(image=ramp, mask=MASK_HW[:4, :4])["image"]
            came.add((int(image_HWC[0, 0, 0]), int(image_HWC[0, 3, 0])))
        assert came == {(0, 75), (75, 0), (255, 180), (180, 255)}


class TestVariants:
    def planned(self, content: str, copies: int = 4, **settings: Any) -> Any:
        config = AugmentConfig(pipeline=content, **settings)
        return plan_variants("Case_1-01", copies, config, 0)

    def test_the_pipeline_comes_in_turn_after_the_transforms(self) -> None:
        plan = self.planned("{}", 7, transforms=["vertical_flip", "scale"])
        assert [variant.transform for variant in plan] == [
            *("original", "vertical_flip", "scale", "pipeline", "scale", "pipeline", "scale")
        ]
        assert len({variant.seed for variant in plan}) == 7

    def test_points_go_with_a_flip_and_stay_with_a_stain(self) -> None:
        image_HWC = np.full((48, 80, 3), 230, np.uint8)
        image_HWC[10, 20] = 0
        points = as_points({"tumor": [(20, 10), (-3.5, 47.25)]})
        mask_HW = (image_HWC[..., 0] == 0).astype(np.uint8)
        field = Annotated(image_HWC, points, mask_HW, {"tumor": points["tumor"][:1]})
        transforms = [
            {"__class_fullname__": "HorizontalFlip", "p": 1},
            {"__class_fullname__": "HEStain", "p": 1},
        ]
        content = one("Compose", transforms=transforms)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            original, *moved = apply(field, self.planned(content, transforms=[]), "mirror")
            stain = self.planned(one("HEStain", p=1), 2, transforms=[])
            _, stained = apply(field, stain, "mirror")
        assert original is field
        assert as_lists(stained.points) == as_lists(points)
        assert np.array_equal(stained.mask_HW, mask_HW)
        assert not np.array_equal(stained.image_HWC, image_HWC)
        for variant in moved:
            assert as_lists(variant.points) == {"tumor": [(59, 10), (82.5, 47.25)]}
            assert variant.middles is not None
            assert as_lists(variant.middles) == {"tumor": [(59, 10)]}
            assert variant.mask_HW is not None
            assert np.argwhere(variant.mask_HW).tolist() == [[10, 59]]
            assert np.unravel_index(variant.image_HWC.sum(axis=2).argmin(), (48, 80)) == (10, 59)
            assert variant.image_HWC.dtype == np.uint8
        assert len({variant.image_HWC.tobytes() for variant in moved}) == 3


@pytest.mark.usefixtures("warm_workers")
class TestPreparing:
    @pytest.fixture
    def prepare(
        self, raw_folder: Callable[..., Path], cli: Callable[..., Any]
    ) -> Callable[..., Any]:
        """prepare(out, "workers=2") prepares two training fields with two variants each."""
        raw = raw_folder({"1": 1, "2": 1, "3": 1, "4": 1})
        given = ["split.val_cases=[3]", "split.test_cases=[4]", "augment.transforms=[]", "copies=3"]
        return lambda out, *more: cli(command.main, f"raw={raw}", f"out={out}", *given, *more)

    def test_any_workers_make_the_same_bytes_and_a_changed_file_others(
        self, prepare: Callable[..., Any], written: Callable[[str], str], tmp_path: Path
    ) -> None:
        path, out = written(DOCUMENTED), tmp_path / "out"
        for workers in (1, 2):
            done = prepare(
                tmp_path / f"by {workers}", f"augment.pipeline={path}", f"workers={workers}"
            )
            assert (done.code, done.err) == (0, "")
        first, second = (read_dataset(tmp_path / f"by {workers}") for workers in (1, 2))
        assert first.description == second.description
        variants = [s for s in first.samples if s.transform == "pipeline"]
        assert len(variants) == 4
        assert len({s.image_sha256 for s in first.samples}) == 4 + 4
        # what is recorded is enough to make it again, and only what changed is made anew
        content = first.description.settings["augment"]["pipeline"]
        assert json.loads(content)["transform"]["transforms"][0]["method"] == "random_preset"
        (tmp_path / "by 1").rename(out)
        done = prepare(out, f"augment.pipeline={content}")
        assert "kept as they were: 4 fields" in done.out
        done = prepare(out, f"augment.pipeline={written(DOCUMENTED.replace('1.2', '2.4'))}")
        assert "kept as they were: 2 fields" in done.out  # of val and test, which have no variants
        assert read_dataset(out).description.content_sha256 != first.description.content_sha256

    def test_a_refused_file_is_a_wrong_command_line_and_nothing_is_made(
        self, prepare: Callable[..., Any], written: Callable[[str], str], tmp_path: Path
    ) -> None:
        done = prepare(tmp_path / "out", f"augment.pipeline={written(one('Mosaic'))}")
        assert done.code == 2
        assert re.fullmatch(r"error: augment.pipeline=\S+mine.yaml: Mosaic: .*\n", done.err)
        assert not (tmp_path / "out").exists()
