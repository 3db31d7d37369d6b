"""A rank's part in predicting images: bands through the network, then files."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from common import ownership
from common.command_line import UserError
from data_prep.images import image_files
from data_prep.images.arrays import Image
from data_prep.raw import BadInputError
from model.precision import choose_precision
from train.checkpoints import checkpoint
from train.prediction.band_reader import BandReader
from train.prediction.config import PredictConfig
from train.prediction.predicted_bands import CERTAIN
from train.prediction.results import BANDS, KIND, Results, Task
from train.prediction.tiles import Band, Blend, Corner, cut_into_bands, predict_tiles, stride_of
from train.ranks.distributed import Ranks
from train.runs.run_folder import NUCLEI_THRESHOLD, Run, choose_threshold, load_model

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
class Plan:
    """What there is to do."""

    tasks: list[Task]
    num_done: int
    changed: list[str]
    """Results of images that are done which somebody has changed since."""
    bad: dict[Path, str]
    """Images that cannot be used -> why."""


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
        self.reader = BandReader(run.data.labelling.uint16_white, config.min_tissue)
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
