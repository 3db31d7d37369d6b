"""Write the model of a run, or those of an ensemble, into one file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.command_line import UsageError
from common.ownership import Item
from data_prep.image_files.normalised import open_normalised
from data_prep.images import tiles
from data_prep.raw import BadInputError
from model.ensemble import Ensemble
from model.precision import Precision
from train.checkpoints.digests import model_sha256
from train.exchange import exported_model, onnx_model
from train.exchange.config import KIND, ONNX, ExportConfig
from train.ranks.distributed import Ranks
from train.runs.ensemble import named_run
from train.runs.run_folder import LoadedModel, Run
from train.runs.thresholds import thresholds_of

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
    run = named_run(config.run, config.runs)
    loaded = run.load_model(config.checkpoint, Ranks(0, 1, CPU))
    model = loaded.model.eval()
    about = describe(run, loaded)
    if out.suffix == ONNX:
        examples = [*onnx_model.random_images(), *field_tiles(config.check, run)]
        content = onnx_model.convert(model, about)
        difference = onnx_model.check(content, model, examples)
        print(f"differs from the model by {difference:.1g} at most over {len(examples)} images")
    else:
        models = [*model.members] if isinstance(model, Ensemble) else [model]
        content = exported_model.encode(models, about)
    with item:
        item.write(out.name, content)
        item.publish()
    for note in loaded.state.get("notes", []):
        print(note)
    print(f"exported {run.name if len(run.members) > 1 else loaded.checkpoint} into {out}")
    print(f"model sha256  {model_sha256(model)}")


def describe(run: Run, loaded: LoadedModel) -> dict[str, Any]:
    """Return the metadata of the file of a model, or of an ensemble."""
    members = zip(run.members, loaded.state.get("members", [loaded]), strict=True)
    each = [
        exported_model.describe(
            member.config,
            member.data,
            state,
            thresholds_of(state, member.class_names).pixels.values,
            model,
            member.origins,
            member.encoder,
        )
        for member, (model, _, state) in members
    ]
    if "members" not in loaded.state:
        return each[0]
    chosen = thresholds_of(loaded.state, run.class_names)
    thresholds = {
        "thresholds": chosen.pixels.values,
        "chosen_on": chosen.pixels.chosen_on,
        "nuclei_thresholds": chosen.nuclei.values,
        "nuclei_chosen_on": chosen.nuclei.chosen_on,
    }
    return exported_model.describe_ensemble(each, run.config.tile, thresholds)


def field_tiles(check: str, run: Run) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, (1, 3, H, W) float32) for each tile of the image file `check`; none for ''."""
    if not check:
        return
    labelling = run.data.labelling
    try:
        with open_normalised(Path(check), labelling.uint16_white, labelling.stains) as image:
            image_HWC = image.read(image.whole)
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
