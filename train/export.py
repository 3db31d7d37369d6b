"""Write a run's model to hand on: as safetensors, or as ONNX for use without this project.

    python -m train.export out=model.safetensors [run=DIR checkpoint=best]
    python -m train.export out=model.onnx [run=DIR check=IMAGE]

Without run= it is the newest run in runs/.

train.predict and train.evaluate take run=model.safetensors in place of a run. Both files hold,
beside the weights, configuration, preprocessing, tiles, classes, threshold, hash of the data set,
digest of the checkpoint and versions; neither holds a pickle. An ONNX file is compared with the
model through onnxruntime before it is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING
from torch import Tensor

from common import command_line
from common.command_line import UsageError
from common.ownership import Item
from data_prep.images import image_files, tiles
from data_prep.raw import BadInputError
from model.precision import Precision
from train.exchange import exported_model, onnx_model
from train.ranks.distributed import Ranks
from train.runs.newest import named_or_newest
from train.runs.run_folder import Run, choose_threshold, load_model, read_run

CPU = torch.device("cpu")
ONNX = ".onnx"


@dataclass(frozen=True)
class ExportConfig:
    """Everything `python -m train.export` can be told."""

    run: str = ""
    """Folder of the run, or a model.safetensors of before; the newest in runs/ where empty."""
    out: str = MISSING
    """File to write, .safetensors or .onnx, in place of an earlier export, not of another file; its
    folder is made if it is not there."""
    checkpoint: str = "best"
    """best, latest, or the step of a checkpoint."""
    check: str = ""
    """With .onnx: an image on which it must agree with the model as well, to 1e-4 in probability;
    random ones always."""

    def __post_init__(self) -> None:
        kinds = (exported_model.SUFFIX, ONNX)
        if Path(self.out).suffix not in kinds:
            raise ValueError(f"out={self.out}: must end in {' or '.join(kinds)}")
        if self.check and Path(self.out).suffix != ONNX:
            raise ValueError(f"check={self.check}: only for out=*{ONNX}")


def main(argv: list[str]) -> int:
    """Export, and say what."""
    if command_line.wants_help(argv):
        print(command_line.help_text(ExportConfig, __doc__ or ""))
        return 0
    config = command_line.load(ExportConfig, argv)
    export(config)
    return 0


def export(config: ExportConfig) -> None:
    """Write the file that is asked for."""
    out = Path(config.out)
    if out.suffix == ONNX:
        onnx_model.check_packages()
    item = Item(out.parent, "export", out.name)
    item.check([out.name])
    run = read_run(named_or_newest(config.run))
    model, path, state = load_model(run, config.checkpoint, Ranks(0, 1, CPU))
    model.eval()
    threshold, _ = choose_threshold("auto", state)
    about = exported_model.describe(run.config, run.data, state, threshold, model)
    if out.suffix == ONNX:
        examples = [*onnx_model.random_images(), *field_tiles(config.check, run)]
        content = onnx_model.convert(model, about)
        difference = onnx_model.check(content, model, examples)
        print(f"differs from the model by {difference:.1g} at most over {len(examples)} images")
    else:
        content = exported_model.encode(model, about)
    with item:
        item.write(out.name, content)
        item.publish()
    print(f"exported {path} into {out}")
    print(f"model sha256  {about['checkpoint']['model_sha256']}")


def field_tiles(check: str, run: Run) -> Iterator[tuple[str, Tensor]]:
    """An image as the network gets it, in tiles; nothing for ''."""
    if not check:
        return
    try:
        image_HWC = image_files.read_image(Path(check), run.data.labelling.uint16_white)
    except BadInputError as error:
        raise UsageError(f"check={check}: {error}") from None
    precision = Precision(CPU, "off", "contiguous")
    tile = run.config.tile
    height_px, width_px = image_HWC.shape[:2]
    for part in tiles.cut(height_px, width_px, tile.size_px, tile.overlap_px):
        box = part.box
        image_BHWC = image_HWC[None, box.y : box.y + box.height, box.x : box.x + box.width]
        name = f"{check} at x={box.x}, y={box.y}"
        yield name, precision.image_to_input(torch.from_numpy(image_BHWC))


if __name__ == "__main__":
    command_line.run(main)
