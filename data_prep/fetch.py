"""Download BreCaHAD from figshare, check it and unpack it.

    python -m data_prep.fetch [out=data]

If it was interrupted, run it again: it skips the files that are whole. At the end it prints the
command that prepares the data. BreCaHAD is Aksac, Demetrick, Ozyer, Alhajj, "BreCaHAD: a dataset
for breast cancer histopathological annotation and diagnosis", BMC Research Notes 12:82 (2019), doi
10.1186/s13104-019-4121-7, under CC BY 4.0: cite it where you use it.
"""

import os
import re
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
MOST_PAGES = 100
PAGE_SIZE = 100  # figshare allows at most 1000 files per page


@dataclass(frozen=True)
class FetchConfig:
    """Every setting of `python -m data_prep.fetch`."""

    out: str = "data"
    """Folder to download the files to, and to unpack them in; made if missing."""
    article: int = 7379186
    """Number of the article at figshare, as at the end of its address; BreCaHAD by default."""


@dataclass(frozen=True)
class Article:
    """An article as figshare describes it."""

    citation: str
    licence: str
    files: list[RemoteFile]


def main(argv: list[str], api: str = API) -> int:
    """Download, unpack, and print what comes next. `api`: a server like figshare's API."""
    if command_line.wants_help(argv):
        print(help_text(FetchConfig, __doc__ or ""))
        return 0
    config = command_line.load(FetchConfig, argv)
    out = Path(config.out)
    article = fetch(config, api)
    raw, num_fields = find_raw(out)
    print(f"licence: {article.licence}; cite: {article.citation}")
    print(f"{raw} holds {command_line.counted(num_fields, 'field')}; next:")
    setting = "" if raw == Path(BRECAHAD) else f" raw={shlex.quote(str(raw))}"
    print(f"python -m data_prep{setting}")
    return 0


def fetch(config: FetchConfig, api: str) -> Article:
    """Download every file of an article, and unpack zip files.

    Raises UserError if a file cannot be downloaded, or is another than expected, and if another
    process is doing the same.
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
    """Download the missing files of an article. Raises UserError."""
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
        folders = found.get("folder_structure") or {}  # file id -> folder
        files = [
            remote_file(api, entry, folders.get(str(entry["id"]), ""))
            for entry in list_files(url)
            if not entry["is_link_only"]  # figshare does not hold it
        ]
        if not files:
            raise UsageError(f"article={config.article}: holds no files")
        return Article(found["citation"], found["license"]["name"], files)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RefusedError(f"{url}: does not answer as figshare's API does ({error!r})") from None


def list_files(url: str) -> Iterator[dict[str, Any]]:
    """Yield the API's description of each file; the article itself names only the first ten."""
    page = 1
    while entries := read_json(f"{url}/files?page={page}&page_size={PAGE_SIZE}"):
        if page > MOST_PAGES:
            raise RefusedError(f"{url}: lists more than {MOST_PAGES * PAGE_SIZE} files")
        yield from entries
        if len(entries) < PAGE_SIZE:
            return
        page += 1


def remote_file(api: str, entry: dict[str, Any], folder: str) -> RemoteFile:
    """Read the API's description of a file. Raises KeyError, TypeError or ValueError."""
    name = f"{folder}/{entry['name']}" if folder else entry["name"]
    if not is_inside(name):
        raise ValueError(f"{name!r} would lie outside of the folder")
    md5 = entry["computed_md5"] or entry["supplied_md5"]
    if not md5:
        raise ValueError(f"{name} has no md5")
    # figshare's download servers have refused programs at times when its API did not
    urls = (entry["download_url"], f"{api}/file/download/{entry['id']}")
    if not all(re.match("https?://", address) for address in urls):
        raise ValueError(f"{name}: {urls[0]!a} is no address of the web")
    return RemoteFile(name, int(entry["size"]), md5, urls)


def is_there(path: Path, file: RemoteFile) -> bool:
    """Return whether a file was downloaded. Raises UserError if another file has its name."""
    if not path.exists():
        return False
    if problem := difference(path, file):
        raise UserError(f"{path}: {problem}; move it away and run again")
    return True


def is_zip(path: Path) -> bool:
    """Return whether a file of the article is to be unpacked."""
    return path.suffix.lower() == ".zip"


def check_target(path: Path) -> None:
    """Raise UserError if a folder is in the way of unpacking a zip file.

    Call it before the download: without the zip file, nobody can check what the folder holds.
    """
    folder = folder_of(path)
    if is_zip(path) and os.path.lexists(folder):
        raise UserError(
            f"{folder}: is in the way: {path.name}, which is still to be downloaded, would be"
            " unpacked there; move it away and run again, or name another out=. If it was unpacked"
            f" from {path.name} before, go on: python -m data_prep raw={shlex.quote(str(folder))}"
        )


def find_raw(out: Path) -> tuple[Path, int]:
    """Return the folder to prepare and its number of fields. Raises UserError if there is none."""
    from data_prep.annotations.formats import READERS  # here: it loads numpy and OpenCV

    likely = out / Path(BRECAHAD).name
    folders = [likely, out, *sorted(path for path in out.rglob("*") if path.is_dir())]
    for folder in folders:
        with suppress(UsageError):
            fields, _ = READERS["brecahad"].find_fields(folder, PrepConfig.case_regex)
            if fields:
                return folder, len(fields)
    raise UserError(
        f"{out}: everything was downloaded, but it holds no images with annotations that data_prep"
        " can read; unpack or arrange the files by hand"
    )


def by_hand(config: FetchConfig) -> str:
    """Say how to download with a browser."""
    return (
        f"download the files of https://doi.org/10.6084/m9.figshare.{config.article} with a"
        f" browser, unpack them in {config.out}, and give data_prep the folder with images/ and"
        " groundTruth/ as raw="
    )


if __name__ == "__main__":
    command_line.run(main)
