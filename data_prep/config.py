"""The settings of `python -m data_prep`: every key, its unit and its default.

This module imports nothing that takes long, so that help and errors of settings come at once.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_prep.cases.names import DEFAULT_REGEX, check_regex

TRANSFORMS = (
    "horizontal_flip",
    "vertical_flip",
    "rotation",
    "elastic",
    "gaussian",
    "barrel",
    "pincushion",
    "scale",
)
PIPELINE = "pipeline"  # the transform that augment.pipeline is
SPLITS = ("train", "val", "test")
IGNORE_LABEL = 254  # in masks: pixels that no loss and no metric counts
MAX_CLASSES = IGNORE_LABEL - 1  # beside the background; 255 is the label of binary masks
MAX_SIDE_PX = 32_766  # of an image: OpenCV's remap counts in 16 bit
BRECAHAD, PREPARED = "data/BreCaHAD", "data/prepared"  # the defaults of all commands
SMALLEST_MPP, LARGEST_MPP = 0.01, 10.0  # micrometres a px that a light microscope may have
MARGIN_PX = 64  # points so far outside a field are kept: their discs may reach into it
OBJECT_TYPES = ("annotation", "detection", "cell")  # of QuPath's, those that are nuclei or areas
ALL_OBJECT_TYPES = (*OBJECT_TYPES, "tile", "tma_core")
FLIPS = ("horizontal_flip", "vertical_flip")  # not random: a second copy would be the same


def check_mpp(mpp: float) -> None:
    """Raise ValueError for a resolution that no light microscope has."""
    if mpp and not SMALLEST_MPP <= mpp <= LARGEST_MPP:  # nor NaN
        raise ValueError(
            f"mpp={mpp}: from {SMALLEST_MPP:g} to {LARGEST_MPP:g} micrometres per px, or 0"
        )


@dataclass(frozen=True)
class SplitConfig:
    """Which cases go to train, val and test: by fraction, by list, or by fold."""

    val: float = 0.15
    """Fraction of the fields for validation, by whole cases; 0 for none."""
    test: float = 0.15
    """Fraction of the fields for the test split, by whole cases; 0 for none."""
    train_cases: list[str] = field(default_factory=list)
    """Cases for training, as in [1,10]; if empty, all cases that are in no other split."""
    val_cases: list[str] = field(default_factory=list)
    """Cases for validation; a list replaces split.val."""
    test_cases: list[str] = field(default_factory=list)
    """Cases for testing; a list replaces split.test."""
    folds: int | Literal["cases"] = 0
    """Number of folds for cross-validation by case, at least 2; 'cases' makes each case a fold; 0
    for none. The set is prepared once, with variants of every case. Training chooses a fold (fold=
    of train): its cases are the test split, those of the next one val, unless split.val is 0. Cases
    are dealt so that every fold has about as many fields, and nuclei of each class."""

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):  # nor NaN
            raise ValueError(
                f"split.val={self.val} and split.test={self.test} must be at least 0"
                " and leave a fraction for training (sum below 1)"
            )
        if self.folds:
            self._check_folds(self.folds)

    def _check_folds(self, folds: int | Literal["cases"]) -> None:
        if self.train_cases or self.val_cases or self.test_cases:
            raise ValueError("split.folds and lists of cases exclude each other")
        if folds != "cases" and folds < self.least_folds:
            raise ValueError(
                f"split.folds={folds}: at least {self.least_folds}"
                + (" (test, val and train; 2 with split.val=0)" if self.val else "")
            )

    @property
    def least_folds(self) -> int:
        """The smallest number of folds that gives each split cases."""
        return 3 if self.val else 2


@dataclass(frozen=True)
class RotationConfig:
    """Rotation about the centre; what turns in from outside mirrors the field."""

    max_deg: float = 180.0
    """Largest angle in degrees; drawn uniformly from -max_deg to max_deg."""

    def __post_init__(self) -> None:
        if not 0 < self.max_deg <= 180:
            raise ValueError(f"augment.rotation.max_deg={self.max_deg}: above 0, at most 180")


@dataclass(frozen=True)
class DisplacementConfig:
    """A random displacement of every pixel, smoothed by a Gaussian."""

    rms_px: float = 3.0
    """Root mean square of the displacement along each axis, in px."""
    sigma_px: float = 10.0
    """Standard deviation of the Gaussian that smooths the displacement, in px."""

    def __post_init__(self) -> None:
        if not (0 < self.rms_px <= 1000 and 1 <= self.sigma_px <= 1000):  # nor NaN
            raise ValueError(
                f"rms_px={self.rms_px} must be above 0 and sigma_px={self.sigma_px} at least 1,"
                " both at most 1000"
            )
        if self.rms_px > 2 * self.sigma_px:
            raise ValueError(
                f"rms_px={self.rms_px}: at most twice sigma_px={self.sigma_px}; beyond that the map"
                " folds everywhere"
            )


@dataclass(frozen=True)
class LensConfig:
    """A radial lens distortion r -> r (1 + k r^2 + k r^4) about the centre, with x in field widths
    and y in field heights."""

    min_k: float = 0.1
    """Smallest magnitude of the coefficient k (no unit)."""
    max_k: float = 0.3
    """Largest magnitude of the coefficient k (no unit)."""

    def __post_init__(self) -> None:
        # a pincushion above 0.36 folds the corners over
        if not 0 < self.min_k <= self.max_k <= 0.35:
            raise ValueError(f"min_k={self.min_k}, max_k={self.max_k}: 0 < min_k <= max_k <= 0.35")


@dataclass(frozen=True)
class ScaleConfig:
    """Resizing about the centre; the output keeps the field's size."""

    min: float = 0.7
    """Smallest factor; below 1 shrinks, and the surround mirrors the field."""
    max: float = 1.4
    """Largest factor; above 1 enlarges, and the outside is cut off."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.min <= self.max <= 10:
            raise ValueError(
                f"augment.scale.min={self.min}, max={self.max}: 0.1 <= min <= max <= 10"
            )


@dataclass(frozen=True)
class AugmentConfig:
    """The transforms that make variants 1, 2, ... of a training field, in turn."""

    border: Literal["mirror", "white", "black"] = "mirror"
    """What comes in from outside the field: its mirror image with its points, or one colour."""
    transforms: list[str] = field(default_factory=lambda: list(TRANSFORMS))
    """Names in the order of use: horizontal_flip, vertical_flip, rotation, elastic, gaussian,
    barrel, pincushion, scale. Flips are used once, the others again with new random values."""
    pipeline: str = ""
    """A YAML file of a pipeline of albumentations, which comes in turn after the transforms, as
    'pipeline' (docs/augmentation.md); its content is recorded. Empty for none."""
    rotation: RotationConfig = field(default_factory=RotationConfig)
    elastic: DisplacementConfig = field(default_factory=DisplacementConfig)
    gaussian: DisplacementConfig = field(
        default_factory=lambda: DisplacementConfig(rms_px=8.0, sigma_px=50.0)
    )
    barrel: LensConfig = field(default_factory=LensConfig)
    pincushion: LensConfig = field(default_factory=LensConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)

    @property
    def turn(self) -> list[str]:
        """The names of all transforms, in the order of use."""
        return [*self.transforms, *([PIPELINE] if self.pipeline else [])]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.transforms) - set(TRANSFORMS))
        if unknown:
            raise ValueError(
                f"augment.transforms: unknown {', '.join(unknown)};"
                f" allowed: {', '.join(TRANSFORMS)}"
            )
        if len(set(self.transforms)) < len(self.transforms):
            raise ValueError(
                f"augment.transforms=[{','.join(self.transforms)}]: one is named twice"
            )


@dataclass(frozen=True)
class PrepConfig:
    """Every setting of `python -m data_prep`."""

    raw: str = BRECAHAD
    """Folder of raw fields: images/ and groundTruth/ as BreCaHAD has them, or all in one folder."""
    annotations: Literal["brecahad", "geojson", "csv", "masks"] = "brecahad"
    """Format of the annotations: 'brecahad', one JSON of points per field; 'geojson', points and
    polygons as QuPath exports them; 'csv', one table of points (file,x,y,class) for all fields;
    'masks', one image per field with 0 for background, 1 for the first of `classes`, and so on."""
    out: str = PREPARED
    """Folder of the prepared data set; made if missing. It holds one data set: fields of an earlier
    preparation that are not in this one are removed."""
    config: str = ""
    """A YAML file of keys; keys on the command line override it."""
    workers: int = 2
    """Number of worker processes, each on one core; does not change the result."""
    pack: bool = False
    """Also write the training images and masks decoded, into one file that training maps into
    memory, so that it decodes nothing. The file takes 5.6 MB of disk for each 1360 x 1024 sample;
    with as much free memory, training reads it from the disk only once."""
    share: str = ""
    """Prepare only the k-th of n shares of the fields, as in 3/8 (for a job array). When all shares
    are done, run without it to join them into the data set."""
    seed: int = 0
    """Seed of the split and of every variant."""
    copies: int = 16
    """Variants of each training field, including the original (val and test have only it)."""
    object_types: list[str] = field(default_factory=lambda: list(OBJECT_TYPES))
    """With annotations=geojson, the types of QuPath's objects that count: annotation, detection,
    cell, tile, tma_core. [detection,cell] leaves out regions that are drawn around cells."""
    empty: Literal["refuse", "accept"] = "refuse"
    """A file that lists no object at all: 'refuse' takes it for a mistake, 'accept' for saying that
    nothing is there. A row with only the file in a csv, and a mask of zeros, always say that."""
    classes: list[str] = field(default_factory=lambda: ["tumor"])
    """Annotated classes to paint into the masks, later ones over earlier ones: BreCaHAD's, or those
    that the annotations name."""
    radius_px: int = 20
    """Radius of the disc painted at each annotated point, in px of the prepared fields, at most 64.
    Areas keep their shape; for them this is the size of a nucleus when nuclei are looked for."""
    mpp: float = 0.0
    """Resolution of the prepared fields, in micrometres per px: fields of another resolution are
    rescaled with their annotations, and images that do not tell theirs are taken to have it. 0
    keeps each image as it is; then images that tell different resolutions are refused."""
    mask_mode: Literal["redraw", "warp"] = "redraw"
    """Masks of variants: 'redraw' paints discs of radius_px at the moved points, so that discs look
    the same in every sample; 'warp' moves the field's discs like its image. Both move areas like
    the image."""
    labels: Literal["binary", "per_class"] = "binary"
    """Mask values: 'binary' gives every class 255, 'per_class' the first class 1, the next 2. 254
    are pixels that no loss and no metric counts: of ignore_value, of ignore_px, and of what
    annotations=geojson or csv name 'ignore' or 'Ignore*', in any letter case. Polygons of that name
    are filled, points become discs of radius_px, over all that is annotated there."""
    ignore_value: int | Literal["none"] = "none"
    """With annotations=masks, the value of pixels that no loss and no metric counts, 0 to 65535;
    255 too, which else means a single class."""
    ignore_px: int = 0
    """Width of a ring around each disc that no loss and no metric counts, in px of the prepared
    fields, as far as nothing is painted there; at most 64 with radius_px."""
    format: Literal["jpg", "png"] = "jpg"
    """Format of prepared images: jpg at jpg_quality, or lossless png. Masks are always png."""
    jpg_quality: int = 95
    """JPG quality, 1 to 100 (no unit)."""
    tile_px: int = 0
    """Cut larger images into tiles with sides of this many px, each a field of its case; 0 keeps
    images whole. A TIF is read tile by tile, so it may be larger than memory."""
    tile_overlap_px: int = 0
    """Smallest overlap of neighbouring tiles, in px; needs tile_px."""
    min_tissue: float = 0.1
    """Leave out a tile without a point if less than this fraction of it is tissue."""
    uint16_white: int = 65535
    """The value of a 16-bit image that becomes 255; v becomes round(255 v / uint16_white), at most
    255. Set 4095 for a 12-bit camera."""
    stain_norm: Literal["none", "macenko"] = "none"
    """Give every field the stains of a reference, hematoxylin and eosin, after Macenko et al. 2009.
    The stains of an image are estimated from the whole of it; one with too little tissue, or of
    other colours, keeps its own and is named. Whoever predicts or evaluates with a model does the
    same without being asked."""
    stain_reference: str = ""
    """With stain_norm=macenko, the reference: an image of much tissue; or its numbers, as
    dataset.json of another data set has them. A field of raw= has to be of a case for training; so
    has one that the image is a copy of, which is not checked. Empty for the reference that is
    published with most implementations. The numbers are recorded."""
    case_regex: str = DEFAULT_REGEX
    """Finds the case (patient) in a file name without its ending: a regular expression with a group
    'case' that matches the whole name; 'each' makes each field a case of its own. A name that does
    not match is a case of its own, too; but if several such names look like one patient's, nothing
    is prepared, and a case_regex that groups them is shown."""
    similar_cases: Literal["stop", "keep"] = "stop"
    """Cases whose names differ only in letter case, separators, leading zeros or Unicode form:
    'stop' names them, for they are most likely one patient; 'keep' takes them as different."""
    on_error: Literal["stop", "skip"] = "stop"
    """Bad input: 'stop' lists every bad file and ends; 'skip' leaves them out and records them."""
    split: SplitConfig = field(default_factory=SplitConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for key, least in (("workers", 1), ("copies", 1), ("radius_px", 1), ("uint16_white", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least {least}")
        if self.radius_px > MARGIN_PX:
            raise ValueError(f"radius_px={self.radius_px}: at most {MARGIN_PX}")
        check_mpp(self.mpp)
        self._check_ignored()
        if self.tile_px and self.tile_px < 64:
            raise ValueError(f"tile_px={self.tile_px}: 0 (whole images) or at least 64")
        if self.tile_px > MAX_SIDE_PX:
            raise ValueError(f"tile_px={self.tile_px}: at most {MAX_SIDE_PX}")
        if self.tile_px and not 0 <= self.tile_overlap_px < self.tile_px:
            raise ValueError(f"tile_overlap_px={self.tile_overlap_px}: 0 to below tile_px")
        if self.tile_overlap_px and not self.tile_px:
            raise ValueError(
                f"tile_overlap_px={self.tile_overlap_px}: tile_px=0 makes no tiles; set their side"
                " too, as in tile_px=1024"
            )
        if self.stain_reference and self.stain_norm == "none":
            raise ValueError(
                f"stain_reference={self.stain_reference}: stain_norm=none needs none; give"
                " stain_norm=macenko too"
            )
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue={self.min_tissue}: from 0 to 1")
        if not 1 <= self.jpg_quality <= 100:
            raise ValueError(f"jpg_quality={self.jpg_quality}: must be from 1 to 100")
        self._check_classes()
        self._check_object_types()
        self.share_numbers()
        check_regex(self.case_regex)
        distinct = 1 + len(set(self.augment.turn) & set(FLIPS))
        if self.copies > distinct and set(self.augment.turn) <= set(FLIPS):
            raise ValueError(
                f"copies={self.copies}: augment.transforms={self.augment.transforms} can make only"
                f" {distinct} different variants; add a random transform such as rotation"
            )

    def share_numbers(self) -> tuple[int, int]:
        """Return k and n of share=k/n; 1 and 1 without one. Raises ValueError for a wrong share."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.share or "1/1")
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"share={self.share}: k/n with k from 1 to n, as in 3/8")
        return int(match[1]), int(match[2])

    def _check_object_types(self) -> None:
        listed = f"object_types=[{','.join(map(str, self.object_types))}]"
        known = ", ".join(ALL_OBJECT_TYPES)
        if not self.object_types or not {*self.object_types} <= {*ALL_OBJECT_TYPES}:
            raise ValueError(f"{listed}: name some of {known}")
        if self.annotations != "geojson" and {*self.object_types} != {*OBJECT_TYPES}:
            raise ValueError(f"{listed}: only annotations=geojson has types of objects")

    def _check_ignored(self) -> None:
        if self.ignore_px and self.annotations == "masks":
            raise ValueError(f"ignore_px={self.ignore_px}: annotations=masks has no points")
        if not 0 <= self.ignore_px <= MARGIN_PX - self.radius_px:
            raise ValueError(
                f"ignore_px={self.ignore_px}: 0 (none) to {MARGIN_PX - self.radius_px} with"
                f" radius_px={self.radius_px}"
            )
        if self.ignore_value != "none" and self.annotations != "masks":
            raise ValueError(f"ignore_value={self.ignore_value}: only annotations=masks has values")
        is_binary = self.labels == "binary" or len(self.classes) == 1
        check_ignore_value(self.ignore_value, self.classes, is_binary=is_binary)

    def _check_classes(self) -> None:
        if not self.classes:
            raise ValueError("classes=[]: name at least one class, as in classes=[tumor]")
        if not all(isinstance(name, str) for name in self.classes):  # YAML reads a: b as a mapping
            raise ValueError(
                "classes: put names that hold a colon into quotes: '[\"Tumor: Positive\"]'"
            )
        if not all(map(is_class_name, self.classes)):
            raise ValueError(f"classes={self.classes!a}: a name holds unprintable characters")
        if len(self.classes) > MAX_CLASSES:
            raise ValueError(
                f"classes: {len(self.classes)}, at most {MAX_CLASSES}: a mask is 8 bit"
            )
        if ignored := [name for name in self.classes if is_ignored(name)]:
            way_out = "; name its value with ignore_value=" if self.annotations == "masks" else ""
            raise ValueError(
                f"classes: {ignored[0]!r} is what no loss and no metric counts; leave it out"
                + way_out
            )
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes=[{','.join(self.classes)}]: a class is named twice")


def check_ignore_value(
    value: int | Literal["none"], classes: Sequence[str], *, is_binary: bool
) -> None:
    """Raise ValueError for a value that no mask has, that is a class, or that leaves nothing to
    tell apart. `is_binary`: whether all that is annotated has one label."""
    if value == "none":
        return
    if not 0 <= value <= 65535:
        raise ValueError(f"ignore_value={value}: 0 to 65535, or none")
    if 1 <= value <= len(classes):
        raise ValueError(
            f"ignore_value={value}: is class {classes[value - 1]!r}, number {value} of classes="
        )
    if value == 0 and is_binary:
        raise ValueError(
            "ignore_value=0: leaves nothing but what is annotated, and no background; at least two"
            " classes with labels=per_class are learned from one another"
        )


def is_ignored(name: str) -> bool:
    """Whether what is annotated under this name is ignored; QuPath names it Ignore*."""
    return name.strip().casefold() in ("ignore", "ignore*")


def is_class_name(name: str) -> bool:
    """Whether all characters of a name can be printed; a blank of any kind can."""
    return all(char.isprintable() or unicodedata.category(char) == "Zs" for char in name)
