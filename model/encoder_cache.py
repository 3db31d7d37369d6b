"""The folder in which ImageNet weights of encoders are kept, for machines without a network.

    CACHE/encoders/NAME/weights.safetensors     the file, as the hub has it
    CACHE/encoders/NAME/source.json             where it is from; written last

`python -m model.fetch` fills it, and training with model.weights=imagenet reads it. CACHE is
$EOSIN_CACHE, else $XDG_CACHE_HOME/eosin, else ~/.cache/eosin.
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UsageError, printable
from common.files import file_sha256, is_plain
from common.schema import read_checked, require_printable

CACHE = "EOSIN_CACHE"
WEIGHTS, SOURCE = "weights.safetensors", "source.json"
NONE, IMAGENET = "none", "imagenet"
"""Values of model.weights= that name no file."""
NOT_STATED = "not stated"
"""The licence of weights whose source states none."""


@dataclass(frozen=True)
class EncoderSource:
    """Where the weights are from that an encoder began with, as runs and models record it."""

    encoder: str
    """Its name, as in model.encoder=."""
    source: str
    """Repository on the hub, or name of the file."""
    revision: str
    """Commit of the repository; '' of a file."""
    sha256: str
    """Hash of the file."""
    licence: str
    """As the source states it."""

    def __post_init__(self) -> None:
        require_printable([*vars(self).values()], "encoder")

    @property
    def is_a_file(self) -> bool:
        """Whether it is a file of the user's: what that was trained on is not known."""
        return not self.revision

    def __str__(self) -> str:
        revision = f" at {self.revision[:12]}" if self.revision else ""
        return (
            f"{self.encoder}: {self.source}{revision}, sha256 {self.sha256[:12]}, licence:"
            f" {self.licence}"
        )


@dataclass(frozen=True)
class Fetched:
    """The content of source.json."""

    encoder: str
    repository: str
    revision: str
    url: str
    sha256: str
    bytes: int
    licence: str
    mean: list[float]
    """Of R, G and B, from 0 to 1, of the images that the encoder was trained on."""
    std: list[float]
    fetched: str
    """Time in UTC."""

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == 3 or not min(self.std) > 0:
            raise ValueError("mean, std: expected three numbers each, those of std above 0")
        self.as_source()

    def as_source(self) -> EncoderSource:
        """Return what runs and models record of it."""
        return EncoderSource(
            self.encoder, self.repository, self.revision, self.sha256, self.licence
        )


def names_file(weights: str) -> bool:
    """Whether model.weights= names a file."""
    return weights not in (NONE, IMAGENET)


def without_folder(weights: str) -> str:
    """Return a value of model.weights= without where its file is: ./NAME, which names a file
    whatever its name is."""
    return f"./{Path(weights).name}" if names_file(weights) else weights


def cache_folder(named: str = "") -> Path:
    """Return the cache of this user on this machine. `named`: in place of $EOSIN_CACHE."""
    if named := named or os.environ.get(CACHE, ""):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "eosin"


def folder_of(encoder: str, cache: Path | None = None) -> Path:
    """Return the folder of an encoder's weights. Raises UsageError for what cannot be a name."""
    if not is_plain(encoder):
        raise UsageError(f"model.encoder={printable(encoder)}: not the name of an encoder")
    return (cache or cache_folder()) / "encoders" / encoder


def read_fetched(encoder: str, cache: Path | None = None) -> Fetched:
    """Read where an encoder's weights in the cache are from; they are there, and of their size.

    Raises UsageError, with the command that fetches them, if they are missing or damaged.
    """
    folder = folder_of(encoder, cache)
    if not (folder / SOURCE).exists():
        raise UsageError(
            f"model.weights={IMAGENET}: the weights of {encoder} are not in {folder}; fetch them"
            f" where there is a network: {fetching(encoder)}; or begin with those of a file:"
            " model.weights=FILE, or with random ones: model.weights=none encoder_lr_factor=1"
            " (docs/presets.md)"
        )
    try:
        found = read_checked(folder / SOURCE, Fetched)
        if found.encoder != encoder:
            raise ValueError(f"encoder: {printable(found.encoder)}, not {encoder}")
        if (num_bytes := (folder / WEIGHTS).stat().st_size) != found.bytes:
            raise ValueError(f"{WEIGHTS} has {num_bytes} bytes, not {found.bytes}")
    except (OSError, ValueError) as error:
        raise damaged(encoder, folder, getattr(error, "strerror", None) or str(error)) from None
    return found


def is_there(encoder: str, cache: Path) -> bool:
    """Whether an encoder's weights are in a cache, and whole."""
    try:
        found = read_fetched(encoder, cache)
    except UsageError:
        return False
    return file_sha256(folder_of(encoder, cache) / WEIGHTS) == found.sha256


def damaged(encoder: str, folder: Path, problem: str) -> UsageError:
    """Return the error for weights in the cache that are not those that were fetched."""
    return UsageError(f"{folder}: damaged ({problem}); fetch them again: {fetching(encoder)}")


def fetching(encoder: str) -> str:
    """Return the command that fetches the weights of an encoder, into the cache that is named here
    too."""
    cache = os.environ.get(CACHE, "")
    into = f"{CACHE}={shlex.quote(str(cache_folder()))} " if cache else ""
    return f"{into}python -m model.fetch encoder={encoder}"
