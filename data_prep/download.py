"""Download files, whole and checked, and unpack zip files.

pooch tries again, compares the md5 and names a file only when it is whole. Proxies come from the
environment (HTTPS_PROXY, NO_PROXY).
"""

import json
import lzma
import os
import re
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pooch
import requests
from requests.exceptions import HTTPError, RequestException

from common.command_line import UserError
from common.files import clear, is_inside
from common.ownership import PRIVATE, make_private, remove_private
from common.progress import track

KIND = "fetch"  # private folder of unfinished files
POOCHS_TEMPORARY = re.compile(r"tmp\w{8}")
JUNK = {"__MACOSX", ".DS_Store"}  # what macOS puts into its zip files
CHUNK_BYTES = 1 << 18
TIMEOUT_S = (10.0, 60.0)  # to connect; between two packets
RETRIES = 4  # pooch waits 1, 2, 3, 4 s
# Worth another try: a busy server, or a link to figshare's storage, valid for ten seconds only
PASSING_STATUSES = {403, 408, 429, 500, 502, 503, 504}
MAX_JSON_BYTES = 10**7
UNREADABLE = (
    zipfile.BadZipFile,
    ValueError,
    RuntimeError,  # a password, or an unknown method of compression
    zlib.error,
    lzma.LZMAError,
    EOFError,
    FileExistsError,  # these three: one name is both a file and a folder
    IsADirectoryError,
    NotADirectoryError,
)

pooch.get_logger().setLevel("WARNING")


class RefusedError(UserError):
    """A server does not send what it was asked for."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server."""

    name: str
    """Path relative to the folder that it is downloaded to."""
    num_bytes: int
    md5: str
    urls: tuple[str, ...]
    """Its addresses, to be tried in this order."""


def download(file: RemoteFile, out: Path) -> None:
    """Download a file to OUT/NAME, which must not exist.

    Raises RefusedError if no address sends it, UserError if another file arrives.
    """
    path = out / file.name
    make_private(out, KIND)
    try:
        # leftovers of a killed download
        clear(out / PRIVATE / KIND, lambda name: bool(POOCHS_TEMPORARY.fullmatch(name)))
        receive_it = partial(receive, max_bytes=file.num_bytes, label=path.name)
        loaded = load(file.urls, out / PRIVATE / KIND, path.name, f"md5:{file.md5}", receive_it)
        if os.path.lexists(path):
            raise UserError(f"{path}: has appeared meanwhile; move it away and run again")
        path.parent.mkdir(parents=True, exist_ok=True)
        loaded.rename(path)
    finally:
        remove_private(out, KIND)


def read_json(url: str) -> Any:
    """Download JSON. Raises RefusedError."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(
            [url], Path(folder), "answer", None, partial(receive, max_bytes=MAX_JSON_BYTES)
        )
        try:
            return json.loads(loaded.read_bytes())
        except ValueError:
            raise RefusedError(f"{url}: does not answer with JSON") from None


def load(
    urls: Iterable[str],
    folder: Path,
    name: str,
    known_hash: str | None,
    downloader: Callable[[str, str, Any], None],
) -> Path:
    """Download to FOLDER/NAME with pooch, from the first URL that works.

    Raises RefusedError if none works, UserError if the hash differs.
    """
    refusals = []
    for url in urls:
        registry, addresses = {name: known_hash}, {name: url}
        source = pooch.create(
            folder, base_url="", registry=registry, urls=addresses, retry_if_failed=RETRIES
        )
        try:
            return Path(source.fetch(name, downloader=downloader))
        except RequestException as error:
            refusals.append(f"{url}: {reason(error)}, {1 + RETRIES} times in a row")
        except RefusedError as error:
            refusals.append(str(error))
        except ValueError as error:  # from pooch: the hash differs
            raise UserError(f"{url}: {error}") from None
    raise RefusedError("; ".join(refusals))


def receive(url: str, path: str, source: Any, *, max_bytes: int, label: str = "") -> None:
    """Download a URL to a file, for pooch.

    Raises RequestException if another try may succeed, RefusedError if not, or if too much comes.
    """
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT_S) as response, open(path, "wb") as out:
            check_status(response)
            chunks = response.iter_content(CHUNK_BYTES)
            for chunk in track(chunks, total=max_bytes, label=label, unit="byte", count=len):
                if out.tell() + len(chunk) > max_bytes:
                    raise RefusedError(f"{url}: sends more than {max_bytes} bytes")
                out.write(chunk)
    except RequestException as error:
        print(f"{url}: {reason(error)}", file=sys.stderr)
        raise


def check_status(response: requests.Response) -> None:
    """Raise HTTPError or RefusedError for an answer without content, see `receive`."""
    if response.status_code == 200:
        return
    answered = f"answered {response.status_code} {response.reason}"
    if response.status_code in PASSING_STATUSES:
        raise HTTPError(answered)
    if "x-amzn-waf-action" in response.headers:
        answered += ", a test that only browsers pass"
    raise RefusedError(f"{response.url}: {answered}")


def reason(error: BaseException) -> str:
    """Return the cause of an error of requests: 'Name or service not known'."""
    while error.__context__:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)


def difference(path: Path, file: RemoteFile) -> str:
    """Say how the file at `path` differs from a remote one; '' if it does not."""
    if path.stat().st_size != file.num_bytes:
        return f"is {path.stat().st_size} bytes long, not {file.num_bytes}"
    md5 = pooch.file_hash(str(path), alg="md5")
    return "" if md5 == file.md5 else f"has the md5 {md5}, not {file.md5}"


def unpack(archive: Path) -> None:
    """Unpack BreCaHAD.zip into BreCaHAD/ beside it, which gets its name only when whole.

    If the archive has one folder of that name at its top, that is the folder. A zip from the web is
    not trusted: nothing is written outside, and no links. Raises UserError for an archive that
    cannot be unpacked or would not fit, and for a folder that holds something else.
    """
    folder, making = folder_of(archive), archive.parent / PRIVATE / KIND / archive.stem
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = files_in(opened)
            if folder.exists():
                check_unpacked(folder, infos, archive)
                return
            make_private(archive.parent, KIND)
            remove_unfinished(making, infos)
            num_bytes = sum(info.file_size for info in infos)
            check_space(archive.parent, num_bytes, f"unpacking {archive.name}")
            label = f"unpack {archive.name}"
            for info in track(infos, total=len(infos), label=label, unit="file"):
                opened.extract(info, making)
    except UNREADABLE as error:
        cause = str(error) or "its data ends too early"  # EOFError has no text
        raise UserError(f"{archive}: {cause}; look at it, and unpack it by hand") from None
    (making / top_of(infos, archive)).rename(folder)
    with suppress(OSError):  # missing if it was itself renamed
        making.rmdir()
    remove_private(archive.parent, KIND)


def folder_of(archive: Path) -> Path:
    """Return the folder that an archive is unpacked to."""
    return archive.with_suffix("")


def files_in(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """List the files of an archive.

    Raises ValueError if it has none, or if one is a link or would lie outside of its folder.
    """
    infos = [
        info
        for info in opened.infolist()
        if not info.is_dir() and not JUNK & set(info.filename.split("/"))
    ]
    for info in infos:
        if not is_inside(info.filename):
            raise ValueError(f"holds a file outside of its folder, {info.filename!r}")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"holds a link, {info.filename!r}")
    if not infos:
        raise ValueError("holds no files")
    return infos


def top_of(infos: Iterable[zipfile.ZipInfo], archive: Path) -> str:
    """Return the folder of the archive's name if every file is in it; else ''."""
    is_in_one = all(info.filename.startswith(f"{archive.stem}/") for info in infos)
    return archive.stem if is_in_one else ""


def remove_unfinished(making: Path, infos: Iterable[zipfile.ZipInfo]) -> None:
    """Remove the leftovers of a killed unpacking. Raises UserError if the folder holds more."""
    clear(making, {info.filename for info in infos}.__contains__)
    with suppress(FileNotFoundError):
        if os.listdir(making):
            raise UserError(
                f"{making}: holds files that are not in the archive; move it away and run again"
            )


def check_unpacked(folder: Path, infos: Iterable[zipfile.ZipInfo], archive: Path) -> None:
    """Raise UserError if a folder does not hold the archive's files."""
    top = top_of(infos, archive)
    for info in infos:
        file = folder / Path(info.filename).relative_to(top)
        if not file.is_file() or file.stat().st_size != info.file_size:
            raise UserError(
                f"{folder}: {file.relative_to(folder)} is not as in {archive.name}; move the folder"
                " away and run again"
            )


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raise UserError if a disk has no room for so many more bytes."""
    free_bytes = shutil.disk_usage(folder).free
    if num_bytes > free_bytes:
        raise UserError(
            f"{folder}: {what} takes {num_bytes / 1e9:.2f} GB, and the disk has"
            f" {free_bytes / 1e9:.2f} GB left; make room, or name another out="
        )
