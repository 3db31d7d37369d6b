"""Predict images on one rank: bands go through the network, then the files are written."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from common import ownership
from common.command_line import UserError
from data_prep.dataset.white import doubts_about_white
from data_prep.image_files.open_image import open_image
from data_prep.images.arrays import Image
from data_prep.images.rescaling import at_resolution
from data_prep.images.stains import notes_on_stains
from data_prep.raw import BadInputError, field_name, name_problem
from model.precision import choose_precision
from train.prediction.band_reader import BandReader
from train.prediction.config import PredictConfig
from train.prediction.model_resolution import notes_on_resolution
from train.prediction.predicted_bands import CERTAIN
from train.prediction.result_files import BANDS, KIND, ResultFiles, Task
from train.prediction.tiles import Band, Blend, Corner, cut_into_bands, predict_tiles, stride_of
from train.ranks.distributed import Ranks
from train.runs.ensemble import about_model
from train.runs.run_folder import Run
from train.runs.thresholds import in_file, thresholds_of

FORMAT = 3  # of the results; those of another format are made anew
POLL_S = 0.2  # between two looks at the progress of writing
BAND_PX = 2**24  # of one band: bounds the memory for an image; a field of view is one band

NumberedBand = tuple[Task, int, Band]


class Advance(NamedTuple):
    """The work done since the last report."""

    tiles: int
    """Number of tiles predicted."""
    rows: int
    """Number of rows written, see ResultFiles.num_rows."""


@dataclass(frozen=True)
class PredictionPlan:
    """The images to predict, and those that are not."""

    tasks: list[Task]
    """Images to predict."""
    changed: list[str]
    """Results of these that were changed since."""
    bad: dict[Path, str]
    """Images that cannot be predicted -> the reason."""
    not_normalised: dict[str, str]
    """Images that were predicted before, with the same settings -> why in their own colours, '' if
    they were not."""
    notes: list[str]
    """What the user should know of the model and of resolutions, a line each."""


class Predictor:
    """Predicts images on one rank.

    With N ranks, N images are predicted at a time: each rank predicts every N-th band of them, and
    then writes the results of one image.
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
        loaded = run.load_model(config.checkpoint, ranks)
        self.model, state = loaded.model, loaded.state
        self.notes: list[str] = state.get("notes", [])
        given = config.threshold
        self.thresholds = thresholds_of(state, run.class_names, pixels=given, nuclei=given)
        self.model.eval()
        self.precision = choose_precision(ranks.device, config.amp, run.config.memory_format)
        self.tiles_at_once = config.tiles_at_once or run.config.tile.batch
        labelling = run.data.labelling
        self.reader = BandReader(labelling.uint16_white, config.min_tissue, labelling.stains)
        self.bad: dict[Path, str] = {}
        self.not_normalised: dict[str, str] = {}  # of images whose results are written
        self.num_written = 0  # rows; the thread that writes counts here
        self.num_reported = 0  # of these
        self.settings = {
            "format": FORMAT,
            **about_model(run, loaded),
            "tile_px": run.config.tile.size_px,
            "tile_overlap_px": run.config.tile.overlap_px,
            "amp": self.precision.amp,
            "tta": config.tta,
            "min_tissue": config.min_tissue,
            "stain_norm": labelling.stain_norm,
            "stain_reference": labelling.stain_reference,
            "threshold": in_file(self.thresholds.pixels.values, run.class_names),
            "nuclei_threshold": in_file(self.thresholds.nuclei.values, run.class_names),
        }

    def plan(self, paths: Sequence[Path]) -> PredictionPlan:
        """Sort images into those to predict and the others, and make folders for the bands. One
        rank calls this for all."""
        tasks, changed, bad, told, not_normalised = [], list[str](), {}, {}, {}
        out = Path(self.config.out)
        for kind in (KIND, BANDS):
            ownership.make_private(out, kind)
        for path in paths:
            try:
                task = self.task(path)
            except BadInputError as error:
                bad[path] = str(error)
                continue
            told[path.name] = task.mpp
            standing = task.look()
            if standing.is_done:
                not_normalised[path.name] = standing.not_normalised
                changed += standing.in_the_way
                continue
            if standing.in_the_way:
                bad[path] = str(ownership.refusal(out, standing.in_the_way))
                continue
            ownership.make_private(out, task.bands_kind)
            task.store.begin(task.settings)
            tasks.append(task)
        notes = notes_on_resolution(told, self.run.data.labelling.mpp, self.config.mpp)
        return PredictionPlan(tasks, changed, bad, not_normalised, [*self.notes, *notes])

    def task(self, path: Path) -> Task:
        """Cut an image into bands. Raises BadInputError."""
        if problem := name_problem(field_name(path.name)):
            raise BadInputError(problem)
        model_mpp = self.run.data.labelling.mpp
        with open_image(path) as file:
            mpp = file.mpp or self.config.mpp or None
            image = at_resolution(file, model_mpp, self.config.mpp)
            is_rescaled = image is not file
            height, width = file.height_px, file.width_px
            predicted_px = image.height_px, image.width_px
        about = path.stat()
        settings = {
            "image": {"name": path.name, "bytes": about.st_size, "mtime_ns": about.st_mtime_ns},
            "mpp": mpp,
            "model_mpp": model_mpp,
            "rescaled_by": mpp / model_mpp if mpp and model_mpp and is_rescaled else 1.0,
            **self.settings,
        }
        stride_px = stride_of(self.model)
        bands = cut_into_bands(*predicted_px, self.run.config.tile, stride_px, BAND_PX)
        return Task(path, Path(self.config.out), height, width, bands, settings)

    def missing_bands(self, tasks: Sequence[Task]) -> list[NumberedBand]:
        """Return the bands that this rank is to predict, without those that are on disk."""
        missing: list[NumberedBand] = []
        for group in self.groups(tasks):
            bands = [(task, *numbered) for task in group for numbered in enumerate(task.bands)]
            # dealt out before the look at the disk, where other ranks save bands meanwhile
            own = self.ranks.items_of_rank(bands)
            missing += [entry for entry in own if not entry[0].store.has(entry[1])]
        return missing

    def groups(self, tasks: Sequence[Task]) -> list[Sequence[Task]]:
        """Split tasks into groups of as many as there are ranks."""
        size = self.ranks.world_size
        return [tasks[start : start + size] for start in range(0, len(tasks), size)]

    def num_rows(self, tasks: Sequence[Task]) -> int:
        """Return how many rows this rank is to write."""
        mine = (task for group in self.groups(tasks) for task in self.ranks.items_of_rank(group))
        return sum(self.results(task).num_rows for task in mine)

    def predict(self, tasks: Sequence[Task]) -> Iterator[Advance]:
        """Predict and write images; yields the progress after each tile. Collective."""
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as pool:
            for group in self.groups(tasks):
                for _ in self.predict_bands(self.missing_bands(group)):
                    yield Advance(1, self.newly_written())
                for bad in self.ranks.gather(self.bad):
                    self.bad |= bad
                if writing:
                    yield from self.wait_for(writing)
                self.ranks.first_does(self.check_ours)
                # while the next group is predicted
                writing = pool.submit(self.write, self.ranks.items_of_rank(group))
            if writing:
                yield from self.wait_for(writing)
        for bad in self.ranks.gather(self.bad):
            self.bad |= bad

    def wait_for(self, writing: Future[None]) -> Iterator[Advance]:
        """Wait until files are written; yields the progress every POLL_S."""
        while not writing.done():
            wait([writing], POLL_S)
            yield Advance(0, self.newly_written())
        writing.result()
        yield Advance(0, self.newly_written())

    def newly_written(self) -> int:
        """Return the number of rows written since the last call."""
        before, self.num_reported = self.num_reported, self.num_written
        return self.num_reported - before

    def count_rows(self, number: int) -> None:
        """Add to the rows written; the thread that writes calls this."""
        self.num_written += number

    def doubts(self, plan: PredictionPlan) -> list[str]:
        """Return a line about 16-bit images that are read as darker or lighter than they are
        meant, and one about those that keep their colours, predicted before or now. Collective."""
        largest: dict[str, int] = {}
        problems = dict(plan.not_normalised)
        for of_rank in self.ranks.gather(self.reader.largest_uint16):
            for path, value in of_rank.items():
                largest[path.name] = max(largest.get(path.name, 0), value)
        for found in self.ranks.gather(self.not_normalised):
            problems |= found
        white = self.run.data.labelling.uint16_white
        return doubts_about_white(largest, white, may_set=False) + notes_on_stains(problems)

    def predict_bands(self, bands: Sequence[NumberedBand]) -> Iterator[None]:
        """Predict bands and save them; yields once per tile."""
        for (task, number, band), pixels in self.read_ahead(bands):
            try:
                image_HWC, tissue = pixels.result()
            except BadInputError as error:
                self.bad[task.path] = str(error)
                continue
            yield from self.compute(task, number, band, image_HWC, tissue)

    def write(self, tasks: Sequence[Task]) -> None:
        """Write the results of images of which all bands are saved."""
        for task in tasks:
            if task.path in self.bad:
                task.store.remove()
                self.count_rows(self.results(task).num_rows)
                continue
            try:
                self.not_normalised[task.path.name] = self.results(task).write()
            except (UserError, BadInputError) as error:  # somebody has written or changed it
                self.bad[task.path] = str(error)

    def results(self, task: Task) -> ResultFiles:
        """Return what writes the results of an image."""
        return ResultFiles(task, self.run.data.labelling, self.thresholds, self.count_rows)

    def read_ahead(
        self, bands: Sequence[NumberedBand]
    ) -> Iterator[tuple[NumberedBand, Future[tuple[Image, list[Corner]]]]]:
        """Yield each band with its pixels and its tiles with tissue; a thread reads one band
        ahead."""
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
        """Predict one band and save it; yields once per tile, also for those without tissue."""
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
