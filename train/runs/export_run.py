"""Write the model of a run into one file."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from common.command_line import UsageError
from common.ownership import Item
from data_prep.image_files.open_image import read_image
from data_prep.images import tiles
from data_prep.raw import BadInputError
from model.precision import Precision
from train.exchange import exported_model, onnx_model
from train.exchange.config import KIND, ONNX, ExportConfig
from train.ranks.distributed import Ranks
from train.runs.newest import named_or_newest
from train.runs.run_folder import Run, read_run
from train.runs.thresholds import choose_threshold

CPU = torch.device("cpu")


def export_run(config: ExportConfig) -> None:
    """Write the model of a run as safetensors or ONNX, and print its digest.

    Raises UserError if the run, `check=` or the output cannot be used.
    """
    out = Path(config.out)
    if out.suffix == ONNX:
        onnx_model.check_packages()
    item = Item(out.parent, KIND, out.name)
    item.check([out.name])
    run = read_run(named_or_newest(config.run))
    model, path, state = run.load_model(config.checkpoint, Ranks(0, 1, CPU))
    model.eval()
    threshold, _ = choose_threshold("auto", state)
    about = exported_model.describe(run.config, run.data, state, threshold, model, run.origins)
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
    """Yield (name, (1, 3, H, W) float32) for each tile of the image file `check`; none for ''."""
    if not check:
        return
    try:
        image_HWC = read_image(Path(check), run.data.labelling.uint16_white)
    except BadInputError as error:
        raise UsageError(f"check={check}: {error}") from None
    precision = Precision(CPU, "off", "contiguous")
    tile = run.config.tile
    height_px, width_px = image_HWC.shape[:2]
    for cut_tile in tiles.cut(height_px, width_px, tile.size_px, tile.overlap_px):
        box = cut_tile.box
        image_BHWC = image_HWC[None, box.y : box.y + box.height, box.x : box.x + box.width]
        name = f"{check} at x={box.x}, y={box.y}"
        yield name, precision.image_to_input(torch.from_numpy(image_BHWC))
