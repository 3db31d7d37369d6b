"""Download BreCaHAD from figshare, check it and unpack it.

    python -m data_prep.fetch [out=data]

Broken off, run it again: it does not load again what is there and
whole. Afterwards it prints the command that prepares the data. BreCaHAD is Aksac, Demetrick, Ozyer,
Alhajj, "BreCaHAD: a dataset for breast cancer histopathological annotation and diagnosis", BMC
Research Notes 12:82 (2019), doi 10.1186/s13104-019-4121-7, under CC BY 4.0: cite it where you use
it.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import command_line
from common.command_line import UsageError, UserError
from common.files import is_inside
from common.help_text import help_text
from common.lease import Lease
from data_prep.config import BRECAHAD, PrepConfig
from data_prep.download import (
    RefusedError,
    RemoteFile,
    check_space,
    difference,
    download,
    folder_of,
    read_json,
    unpack,
)

API = "https://api.figshare.com/v2"
PAGE_SIZE = 100  # figshare gives at most 1000 files at a time


@dataclass(frozen=True)
class FetchConfig:
    """Everything `python -m data_prep.fetch` can be told."""

    out: str = "data"
    """Folder to load the files into, and to unpack them in; made if it is not there."""
    article: int = 7379186
    """Number of the article at figshare, as at the end of its address; BreCaHAD by default."""


@dataclass(frozen=True)
class Article:
    """What figshare says of an article."""

    citation: str
    licence: str
    files: list[RemoteFile]


def main(argv: list[str], api: str = API) -> int:
    """Command line entry. `api`: the address of a server that answers as figshare's API does."""
    if command_line.wants_help(argv):
        print(help_text(FetchConfig, __doc__ or ""))
        return 0
    config = command_line.load(FetchConfig, argv)
    out = Path(config.out)
    article = fetch(config, api)
    raw, num_fields = find_raw(out)
    print(f"licence: {article.licence}; cite: {article.citation}")
    print(f"{raw} holds {command_line.counted(num_fields, 'field')}; next:")
    print(f"python -m data_prep{where_it_is(raw)}")
    return 0


def where_it_is(raw: Path) -> str:
    """The setting by which data_prep finds a raw folder; '' where it looks by itself."""
    return "" if raw == Path(BRECAHAD) else f" raw={shlex.quote(str(raw))}"


def fetch(config: FetchConfig, api: str) -> Article:
    """Load every file of an article, and unpack zip files.

    Raises UserError for what cannot be had, or is not what it should be, and where another process
    is at it.
    """
    out = Path(config.out)
    try:
        article = describe(config, api)
        with Lease(out, "out", name=".lock", doing="downloading into it"):
            load_missing(article.files, out)
            for file in article.files:
                if is_zip(out / file.name):
                    unpack(out / file.name)
    except RefusedError as error:
        raise UserError(f"{error}; run again, or {by_hand(config)}") from None
    return article


def load_missing(files: list[RemoteFile], out: Path) -> None:
    """Load those files of an article that are not there. Raises UserError."""
    missing = [file for file in files if not is_there(out / file.name, file)]
    for file in missing:
        check_target(out / file.name)
    check_space(out, sum(file.num_bytes for file in missing), "the download")
    for file in missing:
        download(file, out)


def describe(config: FetchConfig, api: str) -> Article:
    """Ask the API for an article and its files. Raises RefusedError."""
    url = f"{api}/articles/{config.article}"
    try:
        found = read_json(url)
        folders = found.get("folder_structure") or {}  # file id -> folder, where there are any
        files = [
            remote_file(api, entry, folders.get(str(entry["id"]), ""))
            for entry in list_files(url)
            if not entry["is_link_only"]  # figshare does not have those
        ]
        if not files:
            raise UsageError(f"article={config.article}: holds no files")
        return Article(found["citation"], found["license"]["name"], files)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RefusedError(f"{url}: does not answer as figshare's API does ({error!r})") from None


def list_files(url: str) -> Iterator[dict[str, Any]]:
    """What the API says of each file; the article itself names only the first ten."""
    page = 1
    while entries := read_json(f"{url}/files?page={page}&page_size={PAGE_SIZE}"):
        yield from entries
        if len(entries) < PAGE_SIZE:
            return
        page += 1


def remote_file(api: str, entry: dict[str, Any], folder: str) -> RemoteFile:
    """A file as the API describes it. Raises KeyError, TypeError or ValueError."""
    name = f"{folder}/{entry['name']}" if folder else entry["name"]
    if not is_inside(name):
        raise ValueError(f"{name!r} would lie outside of the folder")
    md5 = entry["computed_md5"] or entry["supplied_md5"]
    if not md5:
        raise ValueError(f"{name} has no md5")
    # figshare's download servers have turned programs away at times, when its API did not
    urls = (entry["download_url"], f"{api}/file/download/{entry['id']}")
    return RemoteFile(name, int(entry["size"]), md5, urls)


def is_there(path: Path, file: RemoteFile) -> bool:
    """Whether a file has been loaded. Raises UserError where something else has its name."""
    if not path.exists():
        return False
    if problem := difference(path, file):
        raise UserError(f"{path}: {problem}; move it away, and run again")
    return True


def is_zip(path: Path) -> bool:
    """Whether a file of the article is one to unpack."""
    return path.suffix.lower() == ".zip"


def check_target(path: Path) -> None:
    """Look, before a zip file is loaded, for what stands where it is to be unpacked.

    Raises UserError: without the zip file it cannot be told from what was unpacked.
    """
    folder = folder_of(path)
    if is_zip(path) and os.path.lexists(folder):
        raise UserError(
            f"{folder}: is in the way of what {path.name} is unpacked to, which is not there yet;"
            " move it away and run again, or name another out=. Where it is what was unpacked"
            f" before, go on: python -m data_prep raw={shlex.quote(str(folder))}"
        )


def find_raw(out: Path) -> tuple[Path, int]:
    """The folder to prepare, and how many fields it has. Raises UserError where there is none."""
    from data_prep.annotations.formats import READERS  # here: it loads numpy and OpenCV

    likely = out / Path(BRECAHAD).name
    folders = [likely, out, *sorted(path for path in out.rglob("*") if path.is_dir())]
    for folder in folders:
        with suppress(UsageError):
            fields, _ = READERS["brecahad"].find_fields(folder, PrepConfig.case_regex)
            if fields:
                return folder, len(fields)
    raise UserError(
        f"{out}: everything was loaded, but images with annotations, as data_prep reads them, are"
        " not in it; unpack or arrange by hand what is there"
    )


def by_hand(config: FetchConfig) -> str:
    """What to do where figshare cannot be reached from here."""
    return (
        f"load the files of https://doi.org/10.6084/m9.figshare.{config.article} with a browser,"
        f" unpack them in {config.out}, and give data_prep the folder with images/ and groundTruth/"
        " as raw="
    )


if __name__ == "__main__":
    command_line.run(main)
