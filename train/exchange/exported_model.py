"""Write and read a model in one file without pickle: reading a file runs no code from it.

MODEL.safetensors    the network's tensors by their names in its state, float32; in the metadata,
                     under "eosin", everything that is needed to use them, as JSON (`describe`)
MODEL.onnx           the same JSON under "eosin" in metadata_props (train.exchange.onnx_model)

The file of an ensemble has the tensors of its members as 0.NAME, 1.NAME, ..., and the JSON of each
under "members" (`describe_ensemble`).
"""

import dataclasses
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from common import command_line
from common.command_line import UsageError, UserError
from common.schema import checked, json_sha256, require_printable, short, validated
from data_prep.dataset.description import Description, check_splits, labelling_of
from data_prep.images.masks import channel_values
from model.encoder_cache import EncoderSource, without_folder
from train.checkpoints.digests import model_sha256, tensors_sha256
from train.config import TileConfig, TrainConfig
from train.exchange.config import SAFETENSORS
from train.exchange.origin import Origin, beginning_in

FORMAT = 7
KEY = "eosin"
LIBRARIES = ("eosin", "torch", "safetensors", "segmentation-models-pytorch", "timm")
SHARED = ("format", "preprocessing", "uint16_white", "classes", "mask_values", "radius_px", "mpp")
"""What the members of an ensemble have in common, beside it."""


class ExportedModelError(UserError):
    """A file that cannot be used as an exported model."""


@dataclass(frozen=True)
class About:
    """The metadata of an exported model."""

    config: TrainConfig
    """Settings of its training, without paths."""
    data: Description
    """Data set that it was trained on."""
    state: dict[str, Any]
    """step, epochs and metrics of its checkpoint."""
    model_sha256: str
    """Digest of the weights, as `train.show` prints it."""
    origins: list[Origin]
    """The models that its weights come from, as Run.origins."""
    encoder: EncoderSource | None
    """Where the weights are from that its encoder began with, as Run.encoder."""


@dataclass(frozen=True)
class Source:
    """The schema of "data" in the metadata."""

    content_sha256: str
    cases: dict[str, list[str]]
    case_regex: str
    annotations: str
    object_types: list[str]
    empty: str
    ignore_value: int | str
    ignore_px: int
    stain_norm: str
    stain_reference: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class SavedState:
    """The schema of "checkpoint" in the metadata."""

    step: int
    epochs: int
    metrics: dict[str, float | None]
    model_sha256: str


@dataclass(frozen=True)
class Metadata:
    """The schema of the metadata, as far as they are read."""

    model: dict[str, Any]
    tile: dict[str, Any]
    training: dict[str, Any]
    classes: dict[str, int]
    radius_px: int
    uint16_white: int
    mpp: float | None
    data: Source
    checkpoint: SavedState
    origins: list[dict[str, Any]]
    encoder: dict[str, Any] | None


@dataclass(frozen=True)
class EnsembleMetadata:
    """The schema of the metadata of an ensemble, as far as they are read."""

    members: list[dict[str, Any]]
    thresholds: list[float]
    """Of pixels, for each plane."""
    chosen_on: str
    nuclei_thresholds: list[float]
    nuclei_chosen_on: str


@dataclass(frozen=True)
class Exported:
    """The metadata of a file."""

    members: list[About]
    """One, or those of an ensemble."""
    ensemble: EnsembleMetadata | None
    """None for one model."""


def describe(
    config: TrainConfig,
    data: Description,
    state: Mapping[str, Any],
    thresholds: Sequence[float],
    model: nn.Module,
    origins: Sequence[Origin],
    encoder: EncoderSource | None,
) -> dict[str, Any]:
    """Return everything that is needed to use a checkpoint's model, as JSON. `parse` reads it."""
    named = Path(config.init).name
    training = dataclasses.asdict(
        dataclasses.replace(config, data="", run="", config="", init=named)
    )
    # JSON has no infinity, which save_every_s and log_every_s may be
    training = {key: "inf" if value == math.inf else value for key, value in training.items()}
    network, tile = training.pop("model"), training.pop("tile")
    network["weights"] = without_folder(network["weights"])  # no path of this machine goes out
    labelling = data.labelling
    about = {
        "format": FORMAT,
        "model": network,
        "preprocessing": {
            **{"channels": "RGB", "dtype": "uint8", "divide_by": 255},
            "stains": labelling.stains and dataclasses.asdict(labelling.stains),
        },
        "uint16_white": labelling.uint16_white,
        "tile": tile,
        "thresholds": [*thresholds],
        "classes": labelling.labels,
        "mask_values": channel_values(labelling.labels.values()),
        "radius_px": labelling.radius_px,
        "mpp": labelling.mpp,
        "data": describe_data(data),
        "checkpoint": {
            "step": state["step"],
            "epochs": state["epochs"],
            "metrics": state["metrics"],
            "model_sha256": model_sha256(model),
        },
        "origins": [dataclasses.asdict(origin) for origin in origins],
        "encoder": dataclasses.asdict(encoder) if encoder else None,
        "training": training,
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in LIBRARIES},
        },
    }
    return {**about, "sha256": json_sha256(about)}


def describe_data(data: Description) -> dict[str, Any]:
    """Return what an exported model says of the data set that it was trained on (Source)."""
    labelling = data.labelling
    return {
        "content_sha256": data.content_sha256,
        "cases": data.cases,
        "case_regex": labelling.case_regex,
        "annotations": labelling.annotations,
        "object_types": list(labelling.object_types),
        "empty": labelling.empty,
        "ignore_value": labelling.ignore_value,
        "ignore_px": labelling.ignore_px,
        "stain_norm": labelling.stain_norm,
        "stain_reference": labelling.stain_reference,
        "settings": data.settings,
    }


def describe_ensemble(
    members: Sequence[Mapping[str, Any]], tile: TileConfig, thresholds: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that is needed to use an ensemble, as JSON; `members` as `describe` has
    them, `thresholds` as EnsembleMetadata."""
    about = {
        **{key: members[0][key] for key in (*SHARED, "versions")},
        "tile": dataclasses.asdict(tile),
        **thresholds,
        "members": [*members],
    }
    return {**about, "sha256": json_sha256(about)}


def parse(path: Path, metadata: Mapping[str, str] | None) -> Exported:
    """Read the JSON under KEY. Raises ExportedModelError if it cannot be used."""
    if not metadata or KEY not in metadata:
        raise ExportedModelError(
            f"run={path}: not written by train.export (no '{KEY}' in its metadata)"
        )
    try:
        about = validated(dict[str, Any], metadata[KEY])
        check_intact(path, about)
        if "members" not in about:
            return Exported([about_in(checked(Metadata, about))], None)
        ensemble = checked(EnsembleMetadata, about)
        if len(ensemble.members) < 2:
            raise ValueError(f"members: expected 2 or more, found {len(ensemble.members)}")
        for member in ensemble.members:
            check_intact(path, member)
        found = [about_in(checked(Metadata, member)) for member in ensemble.members]
        return Exported(found, ensemble)
    except (UsageError, ValueError) as error:
        raise unusable(path, str(error)) from None


def check_intact(path: Path, about: dict[str, Any]) -> None:
    """Check format and hash of metadata, and remove the hash. Raises ExportedModelError."""
    if about.get("format") != FORMAT:
        raise unusable(
            path, f"is of format {short(about.get('format'))}; this version reads {FORMAT}"
        )
    if about.pop("sha256", "") != json_sha256(about):
        raise damaged(path, "sha256 of its metadata differs")


def about_in(found: Metadata) -> About:
    """Return what metadata say. Raises UsageError or ValueError for what cannot work."""
    source, saved = found.data, found.checkpoint
    read: dict[str, Any] = {"radius_px": found.radius_px, "uint16_white": found.uint16_white}
    read |= {"case_regex": source.case_regex, "annotations": source.annotations}
    read |= {"object_types": source.object_types, "empty": source.empty}
    read |= {"ignore_value": source.ignore_value, "ignore_px": source.ignore_px}
    read |= {"stain_norm": source.stain_norm, "stain_reference": source.stain_reference}
    require_printable([source.cases, source.settings], "data")
    check_splits(source.cases)
    settings = {**found.training, "model": found.model, "tile": found.tile}
    config = command_line.from_values(TrainConfig, settings)
    labelling = labelling_of(found.classes, read, found.mpp)
    data = Description(labelling, source.cases, source.content_sha256, source.settings)
    state = {"step": saved.step, "epochs": saved.epochs, "metrics": saved.metrics}
    origins, encoder = beginning_in(config, found.origins, found.encoder)
    return About(config, data, state, saved.model_sha256, origins, encoder)


def damaged(path: Path, problem: str) -> ExportedModelError:
    """Return the error for a file whose content has changed since it was written."""
    return ExportedModelError(f"run={path}: damaged ({problem}); export or copy it again")


def unusable(path: Path, reason: str) -> ExportedModelError:
    """Return the error for a file with metadata of another release, or of another program."""
    return ExportedModelError(
        f"run={path}: its metadata cannot be used ({reason}); export it again, or use the release"
        " that wrote it"
    )


def encode(models: Sequence[nn.Module], about: Mapping[str, Any]) -> bytes:
    """Return the bytes of a safetensors file with a network, or those of an ensemble, and the JSON
    of `describe` or `describe_ensemble`."""
    tensors = {
        f"{number}.{name}" if "members" in about else name: tensor.cpu().contiguous()
        for number, model in enumerate(models)
        for name, tensor in model.state_dict().items()
    }
    # one key only: the library writes several keys in an order that changes from run to run
    return bytes(safetensors.torch.save(tensors, {KEY: json.dumps(about)}))


def read(path: Path) -> About:
    """Read the metadata of a file with one model. Raises UserError if it is none, or damaged."""
    found = read_members(path)
    if found.ensemble:
        raise UsageError(
            f"run={path}: an ensemble of {len(found.members)} models; train.predict, train.evaluate"
            " and train.export take it, and nothing else"
        )
    return found.members[0]


def read_members(path: Path) -> Exported:
    """Read the metadata of a file. Raises UserError if it is no exported model, or damaged."""
    with open_file(path) as file:
        found = parse(path, file.metadata())
        numbers = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
    if found.ensemble and numbers != {str(number) for number in range(len(found.members))}:
        raise damaged(path, f"it should hold the weights of {len(found.members)} models")
    return found


def load_weights(path: Path, model: nn.Module, number: int | None = None) -> dict[str, Any]:
    """Load the weights into a network, and return the state of the checkpoint.

    `number`: that of the network in an ensemble. Raises ExportedModelError if the weights are not
    those that were written.
    """
    with open_file(path) as file:
        about = parse(path, file.metadata()).members[number or 0]
        prefix = "" if number is None else f"{number}."
        tensors = {
            name.removeprefix(prefix): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.startswith(prefix)
        }
    if tensors_sha256({"model": tensors}) != about.model_sha256:
        raise damaged(path, "sha256 of its weights differs")
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise damaged(path, "its weights do not fit its model.* settings") from None
    return about.state


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open a safetensors file. Raises UserError if it is none, or damaged."""
    if path.suffix != SAFETENSORS or not path.is_file():
        raise UsageError(f"run={path}: neither a run nor a {SAFETENSORS} file of train.export")
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise damaged(path, str(error)) from None
