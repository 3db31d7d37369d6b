"""Predict images of any size: masks, probability maps, overlays and nuclei.

    python -m train.predict input=FILE|DIR out=DIR [run=DIR checkpoint=best threshold=0.4 tta=true]
    python -m train.predict input=FILE|DIR out=DIR run=CV|runs=[A,B]   the mean of several runs

Without run= or runs= it is the newest run in runs/.

Writes for each image

  NAME_mask.tif          the data set's mask values; the same as NAME_mask.png up to 4000 px a side
  NAME_probability.tif   0 to 255 for probabilities of 0 to 1, one plane per class
  NAME_overlay.png       outlines on the image, shrunk to 4000 px a side
  NAME_nuclei.geojson    one point per nucleus with class and probability, for QuPath
  NAME.json              the same points in BreCaHAD's form; either, corrected, goes to data_prep
  NAME_settings.json     what they were made with

The TIFs are tiled pyramids. An input TIF may be larger than memory. Several ranks (torchrun) share
the work on each image. After an interruption, the same command goes on where it stopped.

The command replaces only files that it wrote itself. Where a result would replace another file, or
one that was changed since, its image is left out and named. Where an image is done with the same
settings and a result was changed, the result is named and kept.
"""

from pathlib import Path

from common import command_line
from common.command_line import UsageError
from common.help_text import help_text
from train.prediction.config import PredictConfig
from train.runs.newest import check_runs


def main(argv: list[str]) -> int:
    """Predict every image; a bad one is named and the rest goes on."""
    if command_line.wants_help(argv):
        print(help_text(PredictConfig, __doc__ or ""))
        return 0
    config = command_line.load(PredictConfig, argv)
    if not Path(config.input).exists():
        raise UsageError(f"input={config.input}: no such file or folder")
    if config.out and Path(config.out).is_file():
        raise UsageError(f"out={config.out}: is a file; name a folder")
    check_runs(config.run, config.runs, config.checkpoint)
    from train.prediction.predict_images import predict_images  # here: it takes seconds

    return predict_images(config)


if __name__ == "__main__":
    command_line.run(main)
