"""Draw the annotated nuclei that crops are placed around: rare classes as often as others."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from common.command_line import UserError
from data_prep.dataset.description import AGAIN
from data_prep.dataset.manifest import Dataset, Sample
from data_prep.dataset.samples import read_points
from data_prep.images.arrays import PointsPx
from train.crops.random_crop import Place

NUM_UNIFORMS = 2  # random numbers, 0 to below 1, for a draw
MOST_KEPT = 4096  # samples whose points a process keeps: some 10 MB


class TrainingNuclei:
    """The annotated nuclei of the training split: of its original fields and of their variants.

    The manifest has their numbers, so that nothing is read before the first draw.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.folder, self.samples = dataset.folder, dataset.split("train")
        self.names = [*dataset.description.labelling.labels]
        ends = {
            name: [*accumulate(number_of(each, name) for each in self.samples)]
            for name in self.names
        }
        self.ends = {name: found for name, found in ends.items() if found and found[-1]}
        """Class -> for each sample, the number of the class's nuclei up to its end."""
        self.kept: dict[int, PointsPx] = {}

    def draw(self, uniforms: Sequence[float]) -> tuple[int, Place]:
        """Draw a class, then one of its nuclei; return the number of its sample, and its pixel.

        Raises UserError if the sample's points are damaged.
        """
        of_classes, of_nuclei = uniforms
        name = [*self.ends][int(of_classes * len(self.ends))]
        ends = self.ends[name]
        drawn = int(of_nuclei * ends[-1])
        number = bisect_right(ends, drawn)
        x, y = self.points(number)[name][drawn - ends[number]].tolist()  # counted from its end
        return number, (x, y)

    def points(self, number: int) -> PointsPx:
        """Read a sample's points, or return those read before. Raises UserError."""
        if number not in self.kept:
            if len(self.kept) == MOST_KEPT:
                self.kept.clear()
            sample = self.samples[number]
            points = read_points(self.folder, sample, self.names)
            if any(len(found) != number_of(sample, name) for name, found in points.items()):
                path = self.folder / sample.points
                raise UserError(f"{path}: has other nuclei than its manifest says{AGAIN}")
            self.kept[number] = points
        return self.kept[number]


def number_of(sample: Sample, name: str) -> int:
    """Return the number of a class's nuclei in a sample."""
    return sample.nuclei.get(name, 0)
