"""Read weights that an encoder begins with (model.weights=), under the names of our network.

    imagenet    from the cache that `python -m model.fetch` fills (model.encoder_cache)
    FILE        safetensors, or a state dict of torch's, read without running code from it

A file has the names of the library's encoder, of timm's whole network, or of a network that holds
the encoder, below a prefix. The libraries do the renaming. What they take is found by letting them
load NaN first: every tensor that is not NaN then is one that the file does not give.
"""

import hashlib
import io
import json
import logging
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from common.command_line import UsageError, named
from common.files import UNPRINTABLE
from common.schema import read_small
from model.build import ENCODER, build_model
from model.config import ModelConfig
from model.encoder_cache import (
    IMAGENET,
    NOT_STATED,
    WEIGHTS,
    EncoderSource,
    damaged,
    folder_of,
    read_fetched,
)
from model.library import LibraryNetwork, library

MOST_BYTES = 2**34  # of a file of weights
SAFETENSORS = ".safetensors"
PREFIXES = "module.", "model.", f"{ENCODER}.", "backbone."
"""What may stand before the names of an encoder in the state of a network that holds it."""
NESTED = "state_dict", "model", "model_state_dict"
"""Keys under which a checkpoint holds a state."""
NUMBER = re.compile(r"\d+")
EXPORTED = "eosin"  # in the metadata of a file of train.export

State = dict[str, Tensor]
"""Tensors by name."""
Load = Callable[[State], State]
"""Loads tensors into an encoder, as far as they have its names, and returns its state."""


class Weights(NamedTuple):
    """What an encoder begins with."""

    tensors: dict[str, Tensor]
    """By name in the state of a LibraryNetwork: encoder.*, mean and std."""
    source: EncoderSource


class Unfit(NamedTuple):
    """Names of what keeps tensors from fitting an encoder."""

    missing: list[str]
    other_shape: list[str]

    @property
    def number(self) -> int:
        """How many they are."""
        return len(self.missing) + len(self.other_shape)


def read_weights(config: ModelConfig) -> Weights:
    """Read the weights that model.weights= names. Raises UsageError if they are missing, damaged,
    or not of the encoder."""
    about: State = {}
    if config.weights == IMAGENET:
        given, source, about = read_cached(config.encoder)
    else:
        given, source = read_file(config)
    with torch.random.fork_rng([]), quiet():
        network = build_model(config)
        assert isinstance(network, LibraryNetwork)
        state = fitted(config, network.encoder, given)
    tensors = {f"{ENCODER}.{name}": state[name] for name in network.encoder.state_dict()}
    own = {"mean": network.mean, "std": network.std}
    return Weights(tensors | own | about, source)


# Files


def read_cached(encoder: str) -> tuple[State, EncoderSource, State]:
    """Read the tensors of an encoder from the cache, where they are from, and mean and std of the
    images, (1, 3, 1, 1) each. Raises UsageError, with the command that fetches them, if they are
    missing or damaged."""
    fetched, folder = read_fetched(encoder), folder_of(encoder)
    try:
        content = read_small(folder / WEIGHTS, fetched.bytes)
        if hashlib.sha256(content).hexdigest() != fetched.sha256:
            raise ValueError(f"sha256 of {WEIGHTS} differs")
        given = safetensors.torch.load(content)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise damaged(encoder, folder, getattr(error, "strerror", None) or str(error)) from None
    about = {"mean": fetched.mean, "std": fetched.std}
    as_BCHW = {name: torch.tensor(values).view(1, 3, 1, 1) for name, values in about.items()}
    return given, fetched.as_source(), as_BCHW


def read_file(config: ModelConfig) -> tuple[State, EncoderSource]:
    """Read the tensors of a file, and where they are from. Raises UsageError if it holds none."""
    path, licence = Path(config.weights), ""
    try:
        content = read_small(path, MOST_BYTES)
        if path.suffix == SAFETENSORS:
            given = safetensors.torch.load(content)
            metadata = metadata_of(content)
            if EXPORTED in metadata:
                raise UsageError(
                    f"model.weights={path}: a model of train.export, whose cases are known; begin"
                    f" with it as init={path} model.weights=none"
                )
            licence = UNPRINTABLE.sub("", metadata.get("license", ""))
        else:
            given = tensors_in(read_torch(content))
    except UsageError:
        raise
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None
    except Exception as error:  # the libraries raise what they like for files of strangers
        raise unreadable(path, str(error).partition("\n")[0] or type(error).__name__) from None
    sha256 = hashlib.sha256(content).hexdigest()
    about = (config.encoder, path.name, "", sha256, licence or NOT_STATED)
    return given, EncoderSource(*about)


def read_torch(content: bytes) -> Any:
    """Read a file of torch.save. Raises ValueError if it is none, or holds more than tensors."""
    try:
        with quiet():
            return torch.load(io.BytesIO(content), "cpu", weights_only=True)
    except Exception:  # of any type; their texts advise to run the code that is in the file
        raise ValueError(
            "not a file of torch.save, damaged, or it holds more than tensors"
        ) from None


def unreadable(path: str | Path, reason: str) -> UsageError:
    """Return the error for a file that is no state dict."""
    return UsageError(
        f"model.weights={path}: cannot be read ({reason}); give none, {IMAGENET}, a {SAFETENSORS}"
        " file, or what torch.save(encoder.state_dict(), FILE) writes"
    )


def metadata_of(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file, which the library has read by now."""
    (num_bytes,) = struct.unpack("<Q", content[:8])
    metadata: dict[str, str] = json.loads(content[8 : 8 + num_bytes]).get("__metadata__") or {}
    return metadata


def tensors_in(loaded: Any) -> State:
    """Return the tensors of what torch has read. Raises ValueError if there are none."""
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in NESTED if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {type(loaded).__name__}, not tensors by name")
    found = {
        name: value
        for name, value in loaded.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not found:
        raise ValueError("it holds no tensors")
    return found


# Names


def fitted(config: ModelConfig, encoder: nn.Module, given: Mapping[str, Tensor]) -> State:
    """Return the state of an encoder with these tensors in it. Raises UsageError, for the names
    that fit best, unless every tensor of the encoder is there and of its shape."""
    known = [*encoder.state_dict()]
    ways: list[tuple[Load, Callable[[State], list[str]]]] = [
        (into(encoder), partial(deeper_than, known))
    ]
    if isinstance(encoder, library().encoders.TimmUniversalEncoder):
        ways.append((partial(by_timm, encoder), partial(deeper_than_timms, encoder.name)))
    best = Unfit(known, [])
    for tensors in without_prefixes(given):
        for load, deeper in ways:
            unfit = what_lacks(load, tensors, known)
            if unfit == ([], []):
                check_depth(config, deeper(tensors))
                return loaded(config, load, tensors)
            best = min(best, unfit, key=lambda one: one.number)
    parts = [
        f"{verb} {len(listed)} ({named(listed)})"
        for verb, listed in zip(("lacks", "has in another shape"), best, strict=True)
        if listed
    ]
    raise UsageError(
        f"model.weights={config.weights}: of the {len(known)} tensors of model.encoder="
        f"{config.encoder} it {' and '.join(parts)}; give weights of this encoder, or name the"
        " encoder that these are of"
    )


def check_depth(config: ModelConfig, deeper: Sequence[str]) -> None:
    """Raise UsageError for tensors of a deeper network, of which an encoder would take a part."""
    if deeper:
        raise UsageError(
            f"model.weights={config.weights}: has tensors of a deeper network than model.encoder="
            f"{config.encoder}: {named(deeper)}; name the encoder that these are of"
        )


def deeper_than(known: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names that differ from those of a network in their numbers alone: of blocks that
    it does not have. Others that it lacks may be of a classifier or of a decoder."""
    known = {*known}
    kinds = {NUMBER.sub("0", name) for name in known}
    return sorted(name for name in {*names} - known if NUMBER.sub("0", name) in kinds)


def deeper_than_timms(network: str, tensors: State) -> list[str]:
    """Return the names, as timm renames them, of tensors of a deeper network than one of timm's."""
    import timm

    with torch.device("meta"):
        known = {*timm.create_model(network).state_dict()}
        given = {"state_dict": {name: as_nan(value) for name, value in tensors.items()}}
        try:
            timm.create_model(network, pretrained=True, pretrained_cfg_overlay=given)
        except Exception as error:  # also for tensors that are missing, as those of a classifier
            listed = re.search(r'Unexpected key\(s\) in state_dict: (("[^"]*"(, )?)+)', str(error))
            return deeper_than(known, re.findall('"([^"]*)"', listed[1])) if listed else []
    return []


def what_lacks(load: Load, tensors: State, names: Sequence[str]) -> Unfit:
    """Return which of an encoder's tensors are not given: those that are not NaN after NaN of these
    shapes was loaded."""
    try:
        state = load({name: as_nan(value) for name, value in tensors.items()})
    except Exception as error:  # code of the libraries, over names and shapes of strangers
        other_shape = re.findall(r"size mismatch for ([^\s:]+):", str(error))
        return Unfit([], other_shape) if other_shape else Unfit([*names], [])
    return Unfit([name for name in names if not is_nan(state.get(name))], [])


def as_nan(value: Tensor) -> Tensor:
    """Return NaN of a tensor's shape, which takes no memory whatever the shape is."""
    return torch.tensor(math.nan).expand(value.shape) if value.is_floating_point() else value


def is_nan(value: Tensor | None) -> bool:
    """Whether a tensor of an encoder was loaded; one of whole numbers is no weight."""
    return value is not None and (not value.is_floating_point() or bool(value.isnan().all()))


def into(encoder: nn.Module) -> Load:
    """Return what loads tensors that have the names of the library's encoder, classifier or not."""

    def load(tensors: State) -> State:
        with torch.no_grad():
            for value in encoder.state_dict().values():
                value.zero_()  # what was loaded before
        encoder.load_state_dict(dict(tensors))
        return encoder.state_dict()

    def accept(module: nn.Module, keys: Any) -> None:
        keys.missing_keys.clear()
        keys.unexpected_keys.clear()

    encoder.register_load_state_dict_post_hook(accept)  # type: ignore[no-untyped-call]
    return load


def by_timm(encoder: Any, tensors: State) -> State:
    """Let timm load tensors that have the names of its whole network, or older ones, into an
    encoder like this one; return its state."""
    given = {"pretrained_cfg_overlay": {"state_dict": dict(tensors)}}
    size = {"depth": encoder._depth, "output_stride": encoder._output_stride}
    return type(encoder)(encoder.name, pretrained=True, **size, **given).state_dict()


def without_prefixes(tensors: Mapping[str, Tensor], most: int = 4) -> Iterator[State]:
    """Yield tensors as they are named, then those that have a prefix, without it; and so on."""
    yield dict(tensors)
    for prefix in PREFIXES if most else ():
        below = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        if below:
            yield from without_prefixes(below, most - 1)


def loaded(config: ModelConfig, load: Load, tensors: State) -> State:
    """Return the state of an encoder with these tensors, which have its names and shapes. Raises
    UsageError if they hold no values, or such as are not finite."""
    try:
        state = load(tensors)
    except Exception:  # code of the libraries, over tensors of strangers
        raise unreadable(
            config.weights, "some of its tensors are sparse, or without values"
        ) from None
    for name, value in state.items():
        if not value.isfinite().all():
            raise UsageError(f"model.weights={config.weights}: {name} is not finite; damaged?")
    return state


@contextmanager
def quiet() -> Iterator[None]:
    """While this context lasts, the libraries do not tell what they think of tensors."""
    log = logging.getLogger("timm")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
