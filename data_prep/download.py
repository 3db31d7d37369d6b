"""Load files of a web server, whole and checked, and unpack zip files.

pooch tries again, compares the md5 and names a file only when it is whole. Proxies are those of
the environment (HTTPS_PROXY, NO_PROXY).
"""

import json
import os
import re
import shutil
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

KIND = "fetch"  # private folder of what is not whole yet
POOCHS_TEMPORARY = re.compile(r"tmp\w{8}")
JUNK = {"__MACOSX", ".DS_Store"}  # what macOS puts into its zip files
CHUNK_BYTES = 1 << 18
TIMEOUT_S = (10.0, 60.0)  # to connect; between two packets
RETRIES = 4  # pooch waits 1, 2, 3, 4 s
# Of a busy server, or of a link to figshare's storage, which honours it for ten seconds only
PASSING_STATUSES = {403, 408, 429, 500, 502, 503, 504}
MAX_JSON_BYTES = 10**7

pooch.get_logger().setLevel("WARNING")


class RefusedError(UserError):
    """A server does not give what it was asked for."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that a server has."""

    name: str
    """Path relative to the folder that it is loaded into."""
    num_bytes: int
    md5: str
    urls: tuple[str, ...]
    """Its addresses; the next is asked where one refuses."""


def download(file: RemoteFile, out: Path) -> None:
    """Load a file to OUT/NAME, where nothing is.

    Raises RefusedError where no address gives it, UserError where what came is another file.
    """
    path = out / file.name
    make_private(out, KIND)
    try:
        remove_temporaries(out)
        receive_it = partial(receive, max_bytes=file.num_bytes, label=path.name)
        loaded = load(file.urls, out / PRIVATE / KIND, path.name, f"md5:{file.md5}", receive_it)
        if os.path.lexists(path):
            raise UserError(f"{path}: has appeared meanwhile; move it away, and run again")
        path.parent.mkdir(parents=True, exist_ok=True)
        loaded.rename(path)
    finally:
        remove_private(out, KIND)


def remove_temporaries(out: Path) -> None:
    """Remove what a killed download has left."""
    clear(out / PRIVATE / KIND, lambda name: bool(POOCHS_TEMPORARY.fullmatch(name)))


def read_json(url: str) -> Any:
    """Load what a URL answers, as JSON. Raises RefusedError."""
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
    """Load a file to FOLDER/NAME from the first URL that gives it, as pooch does. Raises
    RefusedError where none does, UserError where its hash differs."""
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
        except ValueError as error:  # pooch's: the hash differs
            raise UserError(f"{url}: {error}") from None
    raise RefusedError("; ".join(refusals))


def receive(url: str, path: str, source: Any, *, max_bytes: int, label: str = "") -> None:
    """Write what a URL answers to a file: a downloader of pooch's.

    Raises RefusedError for an answer that will be no other a moment later, or is too long;
    RequestException where another try may do better.
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
    """Raises HTTPError or RefusedError for an answer without content, see `receive`."""
    if response.status_code == 200:
        return
    answered = f"answered {response.status_code} {response.reason}"
    if response.status_code in PASSING_STATUSES:
        raise HTTPError(answered)
    if "x-amzn-waf-action" in response.headers:
        answered += ", a test that only browsers pass"
    raise RefusedError(f"{response.url}: {answered}")


def reason(error: BaseException) -> str:
    """What is behind an error of requests: 'Name or service not known'."""
    while error.__context__:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)


def difference(path: Path, file: RemoteFile) -> str:
    """How what is at `path` differs from the file; '' where it does not."""
    if path.stat().st_size != file.num_bytes:
        return f"is {path.stat().st_size} bytes long, and not {file.num_bytes}"
    md5 = pooch.file_hash(str(path), alg="md5")
    return "" if md5 == file.md5 else f"has the md5 {md5}, and not {file.md5}"


def unpack(archive: Path) -> None:
    """Unpack BreCaHAD.zip into BreCaHAD/ beside it, which gets its name only when whole.

    A single folder of that name at the top of the archive is that folder. A zip from the web is
    not trusted: nothing is written outside. Raises UserError for an archive that cannot be
    unpacked or would not fit, and for a folder that holds something else.
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
    except (zipfile.BadZipFile, ValueError, RuntimeError, zlib.error) as error:
        raise UserError(f"{archive}: {error}; look at it, and unpack it by hand") from None
    (making / top_of(infos, archive)).rename(folder)
    with suppress(OSError):  # not there, where it was renamed itself
        making.rmdir()
    remove_private(archive.parent, KIND)


def folder_of(archive: Path) -> Path:
    """The folder that an archive is unpacked to."""
    return archive.with_suffix("")


def files_in(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of an archive. Raises ValueError where one would lie outside of its folder."""
    infos = [
        info
        for info in opened.infolist()
        if not info.is_dir() and not JUNK & set(info.filename.split("/"))
    ]
    for info in infos:
        if not is_inside(info.filename):
            raise ValueError(f"holds a file outside of its folder, {info.filename!r}")
    return infos


def top_of(infos: Iterable[zipfile.ZipInfo], archive: Path) -> str:
    """The folder of the archive's name, where every file of it is in that; else ''."""
    is_in_one = all(info.filename.startswith(f"{archive.stem}/") for info in infos)
    return archive.stem if is_in_one else ""


def remove_unfinished(making: Path, infos: Iterable[zipfile.ZipInfo]) -> None:
    """Remove what an unpacking that was killed has left, and nothing else. Raises UserError where
    there is something else."""
    clear(making, {info.filename for info in infos}.__contains__)
    with suppress(FileNotFoundError):
        if os.listdir(making):
            raise UserError(
                f"{making}: holds what is not in the archive; move it away, and run again"
            )


def check_unpacked(folder: Path, infos: Iterable[zipfile.ZipInfo], archive: Path) -> None:
    """Raises UserError where a folder does not hold what the archive does."""
    top = top_of(infos, archive)
    for info in infos:
        file = folder / Path(info.filename).relative_to(top)
        if not file.is_file() or file.stat().st_size != info.file_size:
            raise UserError(
                f"{folder}: {file.relative_to(folder)} is not as in {archive.name}; move the folder"
                " away, and run again"
            )


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raises UserError where a disk has no room for so many bytes more."""
    free_bytes = shutil.disk_usage(folder).free
    if num_bytes > free_bytes:
        raise UserError(
            f"{folder}: {what} takes {num_bytes / 1e9:.2f} GB, and the disk has"
            f" {free_bytes / 1e9:.2f} GB left; make room, or name another out="
        )
