"""Predict every image of input= into out=, and say what came of it."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.command_line import EXIT_FAILED, UsageError, make_output_folder, named
from common.progress import track
from train.prediction.config import PredictConfig
from train.prediction.input_images import find_images
from train.prediction.predictor import Advance, PredictionPlan, Predictor
from train.prediction.result_files import KIND, Task
from train.ranks.distributed import start_ranks
from train.ranks.lock import lock_suffix, output_locked
from train.runs.ensemble import named_run


def predict_images(config: PredictConfig) -> int:
    """Predict every image; a bad one is named and the rest goes on. Returns the exit code."""
    paths = find_images(Path(config.input))
    out = Path(config.out)
    if out.resolve() == Path(config.input).resolve():
        raise UsageError(f"out={out}: is the input; name a folder for what is predicted")
    with start_ranks(config.device) as ranks:
        run = ranks.first_does(lambda: named_run(config.run, config.runs))
        make_output_folder(out)
        # an array's tasks may predict other images into the same folder
        suffix = lock_suffix(Path(config.input))
        with output_locked(out, KIND, "writing results into it", ranks, suffix) as check_ours:
            predictor = Predictor(config, run, ranks, check_ours)
            plan = ranks.first_does(lambda: predictor.plan(paths))
            predictor.bad |= plan.bad
            if ranks.is_first:  # before the work, which may take hours
                print("".join(f"{note}\n" for note in plan.notes), end="", flush=True)
            for _ in tracked(predictor, plan.tasks):
                pass
            doubts = predictor.doubts(plan)
    if ranks.is_first:
        for doubt in doubts:
            print(f"warning: {doubt}", file=sys.stderr)
        report(predictor, plan, len(paths))
    return EXIT_FAILED if predictor.bad else 0


def report(predictor: Predictor, plan: PredictionPlan, num_images: int) -> None:
    """Print what was predicted, what was left out, and what was done before."""
    for path, reason in sorted(predictor.bad.items()):
        print(f"left out {path}: {reason}", file=sys.stderr)
    if plan.changed:
        they_were = "it was" if len(plan.changed) == 1 else "they were"
        print(f"kept as {they_were} changed: {named(plan.changed)}", file=sys.stderr)
    thresholds = predictor.thresholds.in_words(predictor.run.class_names)
    done_before = f" ({len(plan.not_normalised)} done before)" if plan.not_normalised else ""
    print(
        f"predicted {num_images - len(predictor.bad)} of {num_images} images into"
        f" {predictor.config.out}{done_before}, {thresholds}"
    )


def tracked(predictor: Predictor, tasks: Sequence[Task]) -> Iterator[Advance]:
    """Predict and write images. Shows both: files are still written when all is predicted."""
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
