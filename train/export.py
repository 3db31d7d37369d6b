"""Write a run's model to hand on: as safetensors, or as ONNX for use without this project.

    python -m train.export out=model.safetensors [run=DIR checkpoint=best]
    python -m train.export out=model.onnx [run=DIR check=IMAGE]
    python -m train.export out=... run=CV|runs=[A,B]    several runs as an ensemble, in one file

Without run= or runs= it is the newest run in runs/.

train.predict and train.evaluate take run=model.safetensors in place of a run. Beside the weights,
both files hold the configuration, preprocessing, tiles, classes, threshold, hash of the data set,
digest of the checkpoint and versions. Neither holds a pickle. Before an ONNX file is written, its
output is compared with the model's through onnxruntime.
"""

from pathlib import Path

from common import command_line
from common.help_text import help_text
from common.ownership import Item
from train.exchange.config import KIND, ExportConfig
from train.runs.newest import check_runs


def main(argv: list[str]) -> int:
    """Write the file, and print its name and digest."""
    if command_line.wants_help(argv):
        print(help_text(ExportConfig, __doc__ or ""))
        return 0
    config = command_line.load(ExportConfig, argv)
    check_runs(config.run, config.runs, config.checkpoint)
    out = Path(config.out)
    Item(out.parent, KIND, out.name).check([out.name])
    from train.runs.export_run import export_run  # here: it takes seconds

    export_run(config)
    return 0


if __name__ == "__main__":
    command_line.run(main)
