"""Mutate inputs of every kind, run the real commands on them, and say what came of it.

python -m tests.fuzz --runs 2000 --seed 1 [--kinds "TIF,CSV"]
python -m tests.fuzz --seed 1 --only 37 --keep failures     one of them again

Each run draws an input and a mutation by its number. It is right if independent readers see the
same, or if the command refuses it with a reason. Exit code 1 where something was read wrongly
without a word, or where a command ended with a traceback, or met a limit of memory or time.
"""

import argparse
import gc
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from common import seeds
from tests.fuzz import trials
from tests.fuzz.trials import BAD, READ_BY_OTHERS, REFUSED, RIGHT, Trial

COLUMNS = (RIGHT, REFUSED, READ_BY_OTHERS, *BAD)
# Modules that the runs need, and what they import late
PRELOAD = (
    "data_prep.__main__",
    "data_prep.prepare",
    "data_prep.field",
    "data_prep.augment.pipeline",
    "train.__main__",
    "train.loop.start",
    "train.evaluate",
    "train.evaluation.run_evaluation",
    "train.predict",
    "train.prediction.predict_images",
    "train.export",
    "train.runs.export_run",
    "train.show",
    "train.runs.show_checkpoint",
    "launch.jobs",
    "zarr",
)


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    number: int
    kind: str
    verdict: str
    story: str
    seconds: float


def kinds() -> dict[str, Callable[..., Trial]]:
    """Return what makes the trials of each kind of input; imported after the environment is set."""
    from tests.fuzz import (
        annotation_trials,
        file_trials,
        mask_trials,
        picture_trials,
        pictures,
        setting_trials,
    )

    return {
        "TIF": picture_trials.PictureTrials(pictures.TIFS),
        "slides, pages": picture_trials.PictureTrials(pictures.SLIDES),
        "PNG": picture_trials.PictureTrials(pictures.PNGS),
        "JPG": picture_trials.PictureTrials(pictures.JPGS),
        "masks": mask_trials.mask_trial,
        "BreCaHAD JSON": annotation_trials.brecahad_trial,
        "GeoJSON": annotation_trials.geojson_trial,
        "CSV": annotation_trials.table_trial,
        "resolution": setting_trials.resolution_trial,
        "config=": setting_trials.config_trial,
        "pipeline": setting_trials.pipeline_trial,
        "prepared sets": file_trials.set_trial,
        "runs": file_trials.run_trial,
        "jobs": file_trials.jobs_trial,
        "exported models": file_trials.model_trial,
    }


# How many of each kind in a row of runs
SHARES = {"TIF": 8, "slides, pages": 3, "GeoJSON": 2, "BreCaHAD JSON": 2, "CSV": 2, "masks": 2}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; exit code 1 where a run was neither right nor refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=200, help="inputs, one a run (200)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (0)")
    parser.add_argument("--kinds", default="", help="only kinds with one of these in their name")
    parser.add_argument("--only", type=int, help="the run of this number alone")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of runs that failed")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument(
        "--limit-s", type=float, default=20.0, help="seconds of work for a command (20)"
    )
    options = parser.parse_args(argv)
    get_ready()
    numbers = [options.only] if options.only is not None else list(range(options.runs))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        results = run_all(numbers, options, Path(temporary))
    print(table(results))
    return 1 if any(result.verdict in BAD for result in results) else 0


def get_ready() -> None:
    """Import all that the runs need, and let them work without worker processes: both take long."""
    trials.environment()
    for module in PRELOAD:
        importlib.import_module(module)
    gc.disable()
    import cv2
    import torch

    from data_prep import __main__ as preparing
    from data_prep import prepare
    from data_prep.dataset import pack
    from tests.processes import map_here

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for module in (prepare, pack):
        module.map_tasks = map_here
    preparing.get_ready = lambda module: None


def run_all(numbers: Sequence[int], options: argparse.Namespace, folder: Path) -> list[Result]:
    """Make what is sound, then run every number, several at a time."""
    from tests.fuzz.reference import make_reference

    reference = make_reference(folder / "reference")
    gc.freeze()  # a collection in a child would copy all the memory that it shares with this one
    run = partial(run_one, options=options, folder=folder, reference=reference)
    results = []
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(options.workers, len(numbers)), context) as pool:
        submitted = {pool.submit(run, number): number for number in numbers}
        done = as_completed(submitted)
        try:
            for future in tqdm(done, total=len(numbers), disable=not sys.stderr.isatty()):
                results.append(future.result())
                report(results[-1], options)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            print(f"interrupted: {len(results)} of {len(numbers)} runs are done")
        except Exception as error:
            error.add_note(f"a fault of the fuzzer itself, in run {submitted[future]}")
            raise
    return sorted(results, key=lambda result: result.number)


def report(result: Result, options: argparse.Namespace) -> None:
    """Tell of a run that failed."""
    if result.verdict in BAD:
        tqdm.write(f"run {result.number}, {result.kind}: {result.verdict.upper()}")
        tqdm.write(result.story)
        command = f"python -m tests.fuzz --seed {options.seed} --only {result.number}"
        tqdm.write(f"  again: {command}{again(options)}")


def again(options: argparse.Namespace) -> str:
    """Return the options that decide what a run's number means."""
    return f' --kinds "{options.kinds}"' if options.kinds else ""


def kind_of(number: int, wanted: str) -> str:
    """Return the kind of a run: all in turn, some more often."""
    names = [name for name in kinds() if any(part in name for part in wanted.split(","))]
    in_turn = [name for name in names for _ in range(SHARES.get(name, 1))]
    return in_turn[number % len(in_turn)]


def run_one(number: int, options: argparse.Namespace, folder: Path, reference: object) -> Result:
    """Make and run one trial; keep its input where it failed."""
    kind = kind_of(number, options.kinds)
    place = folder / str(number)
    place.mkdir()
    begun = time.monotonic()
    trial = kinds()[kind](seeds.generator(options.seed, "fuzz", number), place, reference)
    verdict, outcome = trials.tried(trial, place, options.limit_s)
    lines = [trial.about, verdict.about, trial.command.typed, outcome.told.strip()[-1500:]]
    story = "\n".join(f"  {line}" for line in lines)
    if options.keep and (verdict.name in (READ_BY_OTHERS, *BAD) or options.only is not None):
        shutil.copytree(place, options.keep / str(number), dirs_exist_ok=True)
        (options.keep / str(number) / "story.txt").write_text(f"{kind}: {verdict.name}\n{story}\n")
    shutil.rmtree(place)
    return Result(number, kind, verdict.name, story, time.monotonic() - begun)


def table(results: Sequence[Result]) -> str:
    """A line a kind: how often each verdict, and the longest run in seconds."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    longest: dict[str, float] = defaultdict(float)
    for result in results:
        for kind in (result.kind, "all"):
            counts[kind][result.verdict] += 1
            longest[kind] = max(longest[kind], result.seconds)
    heads = ("kind", "tried", "right", "refused with reason", READ_BY_OTHERS, *BAD, "longest, s")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for kind in [*(name for name in kinds() if name in counts), "all"]:
        cells = [counts[kind].total(), *(counts[kind][name] for name in COLUMNS)]
        lines.append(f"| {kind} | {' | '.join(map(str, cells))} | {longest[kind]:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
