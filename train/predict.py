"""Predict images of any size: masks, probability maps, overlays and nuclei.

    python -m train.predict input=FILE|DIR out=DIR [run=DIR checkpoint=best threshold=0.4 tta=true]

Without run= it is the newest run in runs/.

Writes for each image

  NAME_mask.tif          the data set's mask values; the same as NAME_mask.png up to 4000 px a side
  NAME_probability.tif   0 to 255 for probabilities of 0 to 1, one plane a class
  NAME_overlay.png       outlines on the image, shrunk to 4000 px a side
  NAME_nuclei.geojson    a point a nucleus with class and probability, for QuPath
  NAME.json              the same points in BreCaHAD's form; either, corrected, goes to data_prep
  NAME_settings.json     what they were made with

The TIFs are tiled pyramids. A TIF that is read may be larger than memory. On several ranks
(torchrun) all work on each image. Interrupted, the same command goes on where it was. It replaces
only what it wrote itself: an image is left out, and named, where out= holds a file under the name
of a result that is another's, or that somebody has changed since. Of an image that is done with the
same settings, a changed result is named and kept.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from omegaconf import MISSING

from common import command_line, ownership
from common.command_line import EXIT_FAILED, UsageError, UserError, make_output_folder, named, track
from data_prep.images import image_files
from data_prep.images.image_files import Image
from data_prep.raw import IMAGE_SUFFIXES, BadInputError
from model.precision import choose_precision
from train.checkpoints import checkpoint
from train.config import check_threshold
from train.prediction.band_store import CERTAIN
from train.prediction.bands import Reader
from train.prediction.results import BANDS, KIND, OUTPUTS, SMALL_MASK, Results, Task
from train.prediction.tiles import Band, Blend, Corner, cut_into_bands, predict_tiles, stride_of
from train.ranks.distributed import Ranks, start_ranks
from train.ranks.lock import output_locked, part_for
from train.runs.newest import named_or_newest
from train.runs.run_folder import (
    CHOSEN_ON,
    NUCLEI_THRESHOLD,
    Run,
    choose_threshold,
    load_model,
    read_run,
)

FORMAT = 2  # of the results; with another number they are made anew
POLL_S = 0.2  # between looks at how far writing is
BAND_PX = 2**24  # a field of view is one band; what an image takes of memory hangs on it

NumberedBand = tuple[Task, int, Band]


class Progress(NamedTuple):
    """What was done since the one before."""

    tiles: int
    """Predicted."""
    rows: int
    """Written, see Results.num_rows."""


@dataclass(frozen=True)
class PredictConfig:
    """Everything `python -m train.predict` can be told."""

    run: str = ""
    """Folder of the run, or a model.safetensors that train.export wrote; the newest in runs/ where
    empty."""
    input: str = MISSING
    """An image, or a folder of images (.tif, .png, .jpg)."""
    out: str = MISSING
    """Folder of the results; made if it is not there."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    threshold: str = "auto"
    """Probability above which a pixel counts as predicted, and a nucleus as found, 0 to 1;
    auto: the best of each on the validation split, as the checkpoint has them; 0.5 where there was
    none."""
    tta: bool = False
    """Average over the eight flips and quarter turns of each tile: eight times the work."""
    tiles_at_once: int = 0
    """Tiles that go through the network at once, as many as fit into memory; 0: the run's
    tile.batch."""
    min_tissue: float = 0.01
    """Share of a tile that must be tissue: one with less is glass, gets a probability of 0 and is
    not computed. A pyramid is judged by a smaller level, and its glass not even read. 0 computes
    all."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto asks the hardware, as in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.tiles_at_once < 0:
            raise ValueError(f"tiles_at_once={self.tiles_at_once}: 1 or more, or 0 for the run's")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min_tissue={self.min_tissue}: from 0 to 1")


@dataclass(frozen=True)
class Plan:
    """What there is to do."""

    tasks: list[Task]
    num_done: int
    changed: list[str]
    """Results of images that are done which somebody has changed since."""
    bad: dict[Path, str]
    """Images that cannot be used -> why."""


def main(argv: list[str]) -> int:
    """Predict every image; a bad one is named and the rest goes on."""
    if command_line.wants_help(argv):
        print(command_line.help_text(PredictConfig, __doc__ or ""))
        return 0
    config = command_line.load(PredictConfig, argv)
    paths = find_images(Path(config.input))
    out = Path(config.out)
    if out.resolve() == Path(config.input).resolve():
        raise UsageError(f"out={out}: is the input; name a folder for what is predicted")
    with start_ranks(config.device) as ranks:
        run = ranks.first_does(lambda: read_run(named_or_newest(config.run)))
        make_output_folder(out)
        # an array's tasks may predict other images into the same folder
        part = part_for(Path(config.input))
        with output_locked(out, KIND, "writing results into it", ranks, part) as check_ours:
            predictor = Predictor(config, run, ranks, check_ours)
            plan = ranks.first_does(lambda: predictor.plan(paths))
            predictor.bad |= plan.bad
            for _ in tracked(predictor, plan.tasks):
                pass
    if ranks.is_first:
        report(predictor, plan, len(paths))
    return EXIT_FAILED if predictor.bad else 0


def report(predictor: "Predictor", plan: Plan, num_images: int) -> None:
    """What was predicted, what was left out, and what was there."""
    for path, reason in sorted(predictor.bad.items()):
        print(f"left out {path}: {reason}", file=sys.stderr)
    if plan.changed:
        they_were = "it was" if len(plan.changed) == 1 else "they were"
        print(f"kept as {they_were} changed: {named(plan.changed)}", file=sys.stderr)
    there = f" ({plan.num_done} were there)" if plan.num_done else ""
    print(
        f"predicted {num_images - len(predictor.bad)} of {num_images} images into"
        f" {predictor.config.out}{there}, threshold {predictor.threshold:g}"
        f" ({CHOSEN_ON[predictor.chosen_on]}), of nuclei {predictor.nuclei_threshold:g}"
        f" ({CHOSEN_ON[predictor.nuclei_chosen_on]})"
    )


def tracked(predictor: "Predictor", tasks: Sequence[Task]) -> Iterator[Progress]:
    """Predict and write images, showing both: files are still written when all is predicted."""
    missing = predictor.missing_bands(tasks)
    num_tiles = sum(len(band.corners) for _, _, band in missing)
    progress = track(
        predictor.predict(tasks),
        total=predictor.num_rows(tasks),
        label="write",
        unit="row",
        count=lambda done: done.rows,
    )
    return track(
        progress, total=num_tiles, label="predict", unit="tile", count=lambda done: done.tiles
    )


def find_images(source: Path) -> list[Path]:
    """The image, or the images of the folder. Raises UsageError where there is none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"input={source}: no such file or folder")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        nested = source / "images"
        hint = f"; did you mean input={nested}?" if nested.is_dir() else ""
        raise UsageError(f"input={source}: no images ({', '.join(IMAGE_SUFFIXES)}){hint}")
    stems = [path.stem for path in paths]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UsageError(f"input={source}: images of one name: {', '.join(repeated)}")
    check_results(source, paths)
    return paths


def check_results(source: Path, paths: Sequence[Path]) -> None:
    """Refuse images of which a result would have the name of another's. Raises UsageError."""
    images_of = defaultdict(list)
    for path in paths:
        for ending in (SMALL_MASK, *OUTPUTS):
            images_of[path.stem + ending].append(path.name)
    for name, given in images_of.items():
        if len(given) > 1:
            raise UsageError(
                f"input={source}: {' and '.join(given)} would both give {name}; rename one"
            )


class Predictor:
    """A rank's part in predicting images.

    As many images are worked on at a time as there are ranks: the ranks share out their bands, and
    then each writes the results of one.
    """

    def __init__(
        self,
        config: PredictConfig,
        run: Run,
        ranks: Ranks,
        check_ours: Callable[[], None] = lambda: None,
    ) -> None:
        """`check_ours` raises UserError where another process has taken out= over."""
        self.config, self.run, self.ranks, self.check_ours = config, run, ranks, check_ours
        self.model, path, state = load_model(run, config.checkpoint, ranks)
        self.threshold, self.chosen_on = choose_threshold(config.threshold, state)
        self.nuclei_threshold, self.nuclei_chosen_on = choose_threshold(
            config.threshold, state, NUCLEI_THRESHOLD
        )
        self.model.eval()
        self.precision = choose_precision(ranks.device, config.amp, run.config.memory_format)
        self.tiles_at_once = config.tiles_at_once or run.config.tile.batch
        self.reader = Reader(run.data.labelling.uint16_white, config.min_tissue)
        self.bad: dict[Path, str] = {}
        self.num_written, self.num_told = 0, 0  # rows, by the thread that writes; and told by ours
        self.settings = {
            "format": FORMAT,
            "run": run.folder.name,
            "checkpoint": path.name,
            "model_sha256": checkpoint.digest({"model": self.model.state_dict()}),
            "tile_px": run.config.tile.size_px,
            "tile_overlap_px": run.config.tile.overlap_px,
            "amp": self.precision.amp,
            "tta": config.tta,
            "min_tissue": config.min_tissue,
            "threshold": self.threshold,
            "nuclei_threshold": self.nuclei_threshold,
        }

    def plan(self, paths: Sequence[Path]) -> Plan:
        """What there is to do, with the folders for it made. For one rank to call."""
        tasks, num_done, changed, bad = [], 0, list[str](), {}
        out = Path(self.config.out)
        for kind in (KIND, BANDS):
            ownership.begin(out, kind)
        for path in paths:
            try:
                task = self.task(path)
            except BadInputError as error:
                bad[path] = str(error)
                continue
            standing = task.look()
            if standing.is_done:
                num_done += 1
                changed += standing.in_the_way
                continue
            if standing.in_the_way:
                bad[path] = str(ownership.refusal(out, standing.in_the_way))
                continue
            ownership.begin(out, task.bands_kind)
            task.store.begin(task.settings)
            tasks.append(task)
        return Plan(tasks, num_done, changed, bad)

    def task(self, path: Path) -> Task:
        """An image, cut up. Raises BadInputError."""
        height, width = image_files.read_size(path)
        about = path.stat()
        settings = {
            "image": {"name": path.name, "bytes": about.st_size, "mtime_ns": about.st_mtime_ns},
            **self.settings,
        }
        stride_px = stride_of(self.model)
        bands = cut_into_bands(height, width, self.run.config.tile, stride_px, BAND_PX)
        return Task(path, Path(self.config.out), height, width, bands, settings)

    def missing_bands(self, tasks: Sequence[Task]) -> list[NumberedBand]:
        """This rank's share of the bands, of each group of tasks, without those that are there."""
        missing: list[NumberedBand] = []
        for group in self.groups(tasks):
            bands = [(task, *numbered) for task in group for numbered in enumerate(task.bands)]
            # shared out first: what is there may change while another rank looks
            own = self.ranks.share(bands)
            missing += [entry for entry in own if not entry[0].store.has(entry[1])]
        return missing

    def groups(self, tasks: Sequence[Task]) -> list[Sequence[Task]]:
        """Runs of as many tasks as there are ranks."""
        size = self.ranks.world_size
        return [tasks[start : start + size] for start in range(0, len(tasks), size)]

    def num_rows(self, tasks: Sequence[Task]) -> int:
        """How many rows this rank is to write."""
        mine = (task for group in self.groups(tasks) for task in self.ranks.share(group))
        return sum(self.results(task).num_rows for task in mine)

    def predict(self, tasks: Sequence[Task]) -> Iterator[Progress]:
        """Predict and write images; says for each tile what was done. Collective."""
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as pool:
            for group in self.groups(tasks):
                for _ in self.predict_bands(self.missing_bands(group)):
                    yield Progress(1, self.newly_written())
                for bad in self.ranks.gather(self.bad):
                    self.bad |= bad
                if writing:
                    yield from self.wait_for(writing)
                self.ranks.first_does(self.check_ours)
                # while the next group is predicted
                writing = pool.submit(self.write, self.ranks.share(group))
            if writing:
                yield from self.wait_for(writing)
        for bad in self.ranks.gather(self.bad):
            self.bad |= bad

    def wait_for(self, writing: Future[None]) -> Iterator[Progress]:
        """Wait until files are written, saying now and then how far that is."""
        while not writing.done():
            wait([writing], POLL_S)
            yield Progress(0, self.newly_written())
        writing.result()
        yield Progress(0, self.newly_written())

    def newly_written(self) -> int:
        """Rows written since this was asked last."""
        before, self.num_told = self.num_told, self.num_written
        return self.num_told - before

    def count_rows(self, number: int) -> None:
        """For the thread that writes: so many more rows are."""
        self.num_written += number

    def predict_bands(self, bands: Sequence[NumberedBand]) -> Iterator[None]:
        """Predict and keep bands; gives a sign for each tile that is done."""
        for (task, number, band), pixels in self.read_ahead(bands):
            try:
                image_HWC, tissue = pixels.result()
            except BadInputError as error:
                self.bad[task.path] = str(error)
                continue
            yield from self.compute(task, number, band, image_HWC, tissue)

    def write(self, tasks: Sequence[Task]) -> None:
        """Write the results of images whose bands are all there."""
        for task in tasks:
            if task.path in self.bad:
                task.store.remove()
                self.count_rows(self.results(task).num_rows)
                continue
            try:
                self.results(task).write()
            except UserError as error:  # somebody has written there meanwhile
                self.bad[task.path] = str(error)

    def results(self, task: Task) -> Results:
        """The results of an image."""
        labelling, thresholds = self.run.data.labelling, (self.threshold, self.nuclei_threshold)
        return Results(task, labelling, *thresholds, count_rows=self.count_rows)

    def read_ahead(
        self, bands: Sequence[NumberedBand]
    ) -> Iterator[tuple[NumberedBand, Future[tuple[Image, list[Corner]]]]]:
        """Each band, its pixels and tiles with tissue, the next being read meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            reads = (pool.submit(self.reader.read, task, band) for task, _, band in bands)
            following = next(reads, None)
            for entry in bands:
                current, following = following, next(reads, None)
                assert current is not None
                yield entry, current

    def compute(
        self, task: Task, number: int, band: Band, image_HWC: Image, tissue: Sequence[Corner]
    ) -> Iterator[None]:
        """Compute and keep one band, of which some tiles hold tissue."""
        blend = Blend(band, len(self.run.label_values), self.ranks.device)
        for corner, probability_CHW in predict_tiles(
            self.model,
            image_HWC,
            tissue,
            band.size,
            self.tiles_at_once,
            self.precision,
            self.config.tta,
        ):
            blend.add(corner, probability_CHW)
            yield
        stored = blend.result().mul_(CERTAIN).round_().to(torch.uint16).cpu().numpy()
        task.store.save(number, stored, image_HWC)
        for _ in range(len(band.corners) - len(tissue)):
            yield


if __name__ == "__main__":
    command_line.run(main)
