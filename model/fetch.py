"""Fetch ImageNet weights of an encoder from the Hugging Face hub, for model.weights=imagenet.

    python -m model.fetch encoder=NAME

Run it where there is a network, as on a cluster's login node: training reads the weights from the
cache and asks no network. They are kept in $EOSIN_CACHE, else $XDG_CACHE_HOME/eosin, else
~/.cache/eosin, with where they are from, their hash and their licence. What is there and whole is
not fetched again. HF_ENDPOINT names a mirror of the hub, HTTPS_PROXY a proxy, HF_TOKEN an account.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import MISSING

from common import command_line
from common.command_line import UsageError, UserError, printable
from common.files import file_sha256, name_in, write_atomically
from common.help_text import help_text
from common.lease import Lease
from common.schema import read_checked
from model.encoder_cache import (
    CACHE,
    NOT_STATED,
    SOURCE,
    WEIGHTS,
    Fetched,
    cache_folder,
    fetching,
    folder_of,
    is_there,
    read_fetched,
)

PART = ".part"  # folder of a download under way
FILE, SETTINGS = "model.safetensors", "config.json"  # names in a repository


@dataclass(frozen=True)
class FetchConfig:
    """Every setting of `python -m model.fetch`."""

    encoder: str = MISSING
    """Encoder, as in model.encoder=: resnet34, mit_b0 and others of segmentation-models-pytorch, or
    tu-NAME for NAME of timm, as tu-tf_efficientnet_lite0."""


@dataclass(frozen=True)
class Place:
    """Where the libraries say that an encoder's weights are."""

    encoder: str
    repository: str
    revision: str
    """Commit, or main."""
    file: str
    licence: str
    """As the library states it; '' where it does not."""
    mean: tuple[float, ...] = ()
    """As Fetched; empty where the repository's config.json has them."""
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Normalisation:
    """The schema of config.json, as far as it is read."""

    mean: list[float]
    std: list[float]


def main(argv: list[str]) -> int:
    """Fetch, and say what is there now."""
    if command_line.wants_help(argv):
        print(help_text(FetchConfig, __doc__ or ""))
        return 0
    config = command_line.load(FetchConfig, argv)
    is_new, found = fetch(config.encoder)
    print(f"{'fetched' if is_new else 'is there already:'} {found.as_source()}")
    print(f"in {folder_of(config.encoder)}")
    if found.licence == NOT_STATED:
        print(f"{found.repository} states no licence: ask before you hand models on")
    print(f"next: python -m train model.name=smp model.encoder={config.encoder}", end=" ")
    print("model.weights=imagenet ...")
    return 0


def fetch(encoder: str, cache: Path | None = None) -> tuple[bool, Fetched]:
    """Put the weights of an encoder into the cache, unless they are there and whole.

    Returns whether they were fetched, and where they are from. Raises UserError if they cannot be.
    """
    cache, folder = cache or cache_folder(), folder_of(encoder, cache)
    if is_there(encoder, cache):
        return False, read_fetched(encoder, cache)
    if (folder / WEIGHTS).exists() and not any((folder / name).exists() for name in (SOURCE, PART)):
        raise UserError(
            f"{folder / WEIGHTS}: was not fetched by Eosin (there is no {SOURCE} beside it), and is"
            f" left as it is; move it away, and: {fetching(encoder)}"
        )
    place = place_of(encoder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made: {error.strerror}; name a folder where you may write:"
            f" {CACHE}=DIR python -m model.fetch encoder={encoder}"
        ) from None
    with Lease(cache, CACHE, name=f"encoders/{encoder}/.lock", doing="fetching into it"):
        part = folder / PART
        with hub_explained(place):
            found, file = download(place, part)
        (folder / SOURCE).unlink(missing_ok=True)  # never beside a file that it does not describe
        file.replace(folder / WEIGHTS)
        content = json.dumps(dataclasses.asdict(found), indent=2) + "\n"
        write_atomically(folder / SOURCE, content.encode(), is_synced=True)
        shutil.rmtree(part)
    return True, read_fetched(encoder, cache)


# Where weights are


def place_of(encoder: str) -> Place:
    """Return where the libraries say that an encoder's weights are. Raises UserError if they know
    no such encoder, or no weights of it."""
    from model.library import TIMM, check_encoder, library

    check_encoder(encoder, "encoder")
    if encoder.startswith(TIMM):
        return place_of_timm(encoder, encoder.removeprefix(TIMM))
    settings = library().encoders.encoders[encoder]["pretrained_settings"] or {}
    if "imagenet" not in settings:
        raise without_weights(encoder, "segmentation-models-pytorch names none")
    named = settings["imagenet"]
    return Place(encoder, named["repo_id"], named["revision"], FILE, "")


def place_of_timm(encoder: str, name: str) -> Place:
    """Return where timm says that the weights of one of its networks are. Raises UsageError."""
    import timm

    about = timm.get_pretrained_cfg(name)
    if not about or not about.hf_hub_id:
        raise without_weights(encoder, "timm names none on the hub")
    file = about.hf_hub_filename or FILE
    if not file.endswith(".safetensors"):
        raise without_weights(
            encoder, f"{about.hf_hub_id} has {file}, which is no safetensors file"
        )
    licence = about.license or ""
    return Place(encoder, about.hf_hub_id, "main", file, licence, about.mean, about.std)


def without_weights(encoder: str, reason: str) -> UsageError:
    """Return the error for an encoder that there are no ImageNet weights of."""
    return UsageError(
        f"encoder={encoder}: no ImageNet weights ({reason}); choose another encoder, or give its"
        " weights as model.weights=FILE"
    )


# The hub


def download(place: Place, folder: Path) -> tuple[Fetched, Path]:
    """Download weights into a folder; return where they are from, and the file.

    Raises what huggingface_hub raises, ValueError for a file that is not what the hub says.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    at_revision = get_hf_file_metadata(
        hf_hub_url(place.repository, place.file, revision=place.revision)
    )
    if not (commit := at_revision.commit_hash):
        raise ValueError("it does not answer as the hub does: no X-Repo-Commit")
    url = hf_hub_url(place.repository, place.file, revision=commit)
    file = Path(hf_hub_download(place.repository, place.file, revision=commit, local_dir=folder))
    sha256 = file_sha256(file)
    if re.fullmatch("[0-9a-f]{64}", at_revision.etag or "") and at_revision.etag != sha256:
        file.unlink()
        raise ValueError(f"{place.file} arrived with another sha256 than the hub says")
    mean, std = list(place.mean), list(place.std)
    if not mean:
        settings = hf_hub_download(place.repository, SETTINGS, revision=commit, local_dir=folder)
        about = read_checked(Path(settings), Normalisation)
        mean, std = about.mean, about.std
    licence = licence_of(place.repository, commit) or place.licence or NOT_STATED
    now = datetime.now(UTC).isoformat(timespec="seconds")
    num_bytes = file.stat().st_size
    named = place.encoder, place.repository, commit, url
    return Fetched(*named, sha256, num_bytes, licence, mean, std, now), file


def licence_of(repository: str, commit: str) -> str:
    """Return the licence that a repository's model card states; '' where it states none, or there
    is no card."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        card = HfApi().model_info(repository, revision=commit).card_data
    except HfHubHTTPError as error:
        if error.response.status_code != 404:  # a mirror may have files and no descriptions
            raise
        return ""
    return str(card.get("license") or "") if card else ""


@contextmanager
def hub_explained(place: Place) -> Iterator[None]:
    """Raise UserError, in one line, for what goes wrong with the hub."""
    from huggingface_hub import constants, errors

    hub, where = constants.ENDPOINT, f"encoder={place.encoder}: {place.repository}"
    again = fetching(place.encoder)
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"{where}: HF_HUB_OFFLINE is set, so the hub is not asked: HF_HUB_OFFLINE=0 {again}"
        ) from None
    except errors.GatedRepoError:
        raise UserError(
            f"{where}: {hub} gives it only to accounts that have accepted its terms; accept them"
            f" there, and: HF_TOKEN=... {again}"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise unreachable(place, hub, error.__cause__ or error) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 404):  # 401 of a repository that is not there, or is private
            raise UserError(f"{where}: {hub} answers {status}; later: {again}") from None
        is_file = isinstance(error, errors.EntryNotFoundError)
        missing = f"no {place.file} in it" if is_file else f"no such repository at {place.revision}"
        raise UserError(
            f"{where}: {hub} has {missing}; choose another encoder, or another HF_ENDPOINT, or give"
            " its weights as model.weights=FILE"
        ) from None
    except ValueError as error:
        raise UserError(f"{where}: {hub}: {error}; again: {again}") from None
    except OSError as error:
        name_in(error, cache_folder())
        if error.filename:
            raise  # of the disk
        raise unreachable(place, hub, error) from None
    except Exception as error:  # those of its HTTP client, which is another one in each release
        raise unreachable(place, hub, error) from None


def unreachable(place: Place, hub: str, error: BaseException) -> UserError:
    """Return the error for a hub that does not answer."""
    reason = printable(str(error).strip().partition("\n")[0]) or type(error).__name__
    return UserError(
        f"encoder={place.encoder}: no answer from {hub} ({reason}); run it where there is a"
        f" network, with HTTPS_PROXY where that needs a proxy: {fetching(place.encoder)}; or train"
        " with those of a file: model.weights=FILE, or with random ones: model.weights=none"
        " encoder_lr_factor=1 (docs/presets.md)"
    )


if __name__ == "__main__":
    command_line.run(main)
