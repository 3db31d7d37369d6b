"""A file of a web server onto the disk: resumed where it broke off, tried again, and checked.

What has arrived of FILE is .eosin/fetch/FILE.part beside it, and goes on from there by an HTTP
Range, in this process or in a later one; FILE itself is whole and has its md5. Proxies are those of
the environment (HTTPS_PROXY, NO_PROXY).
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests
from requests.exceptions import RequestException
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from common.command_line import UserError, track
from common.ownership import PRIVATE, begin, leave

Result = TypeVar("Result")

KIND = "fetch"  # private folder
CHUNK_BYTES = 1 << 18
TIMEOUT_S = (10.0, 60.0)  # to connect; between two packets
TRIES = 6  # without a byte more than before
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 120.0
PASSING_STATUSES = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RemoteFile:
    """A file that a server has."""

    name: str
    """Path relative to the folder that it is loaded into."""
    num_bytes: int
    md5: str
    urls: tuple[str, ...]
    """Where it can be had; the next is asked where one refuses."""


class PassingError(Exception):
    """A try failed, and the next may not."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """How long the server asks to be left alone, in s."""


class RefusedError(UserError):
    """A server does not give what it was asked for, and will not a moment later."""


def new_session() -> requests.Session:
    """A session for `get`: bytes as they are stored, so that a Range counts the file's own."""
    session = requests.Session()
    session.headers.update({"User-Agent": "eosin", "Accept-Encoding": "identity"})
    return session


def get_json(session: requests.Session, url: str, **parameters: int) -> Any:
    """What a URL answers, as JSON. Raises RefusedError."""

    def attempt() -> Any:
        with get(session, url, params=parameters) as response:
            try:
                return response.json()
            except requests.exceptions.JSONDecodeError:
                raise RefusedError(f"{url}: does not answer with JSON") from None
            except RequestException as error:
                raise PassingError(f"{url}: {innermost(error)}") from None

    return keep_trying(attempt)


def download(session: requests.Session, file: RemoteFile, path: Path) -> None:
    """Load a file to `path`, where nothing is, going on from what is in its .part.

    Raises RefusedError where no URL gives it, UserError where what came is not the file.
    """
    begin(path.parent, KIND)
    part = part_of(path)
    if num_bytes(part) > file.num_bytes:
        part.unlink()
    refusals = []
    for url in file.urls:
        try:
            keep_trying(partial(receive, session, url, file, part), partial(num_bytes, part))
            break
        except RefusedError as error:
            refusals.append(str(error))
    else:
        raise RefusedError("; ".join(refusals))
    if problem := difference(part, file):
        part.unlink()
        leave(path.parent, KIND)
        raise UserError(f"{path}: {problem}; what came was removed, run again to load it anew")
    if os.path.lexists(path):
        raise UserError(f"{path}: something has come there meanwhile; move it away, and run again")
    part.rename(path)
    leave(path.parent, KIND)


def receive(session: requests.Session, url: str, file: RemoteFile, part: Path) -> None:
    """Load what `part` lacks of a file, in one try. Raises PassingError or RefusedError."""
    have = num_bytes(part)
    if have == file.num_bytes > 0:
        return
    with get(session, url, first_byte=have) as response:
        start, total = announced(response)
        if start not in (0, have):
            part.unlink(missing_ok=True)
            raise PassingError(f"{url}: answers with bytes that were not asked for")
        if total not in (None, file.num_bytes):
            raise RefusedError(f"{url}: is {total} bytes long, and not {file.num_bytes}")
        label = Path(file.name).name
        try:
            # unbuffered: what was received when this process is killed is in the file
            with part.open("ab" if start else "wb", buffering=0) as out:
                chunks = response.iter_content(CHUNK_BYTES)
                for chunk in track(
                    chunks, done=start, total=file.num_bytes, label=label, unit="byte", count=len
                ):
                    if out.tell() + len(chunk) > file.num_bytes:
                        raise RefusedError(f"{url}: sends more than {file.num_bytes} bytes")
                    out.write(chunk)
        except RequestException as error:
            raise PassingError(f"{url}: broke off ({innermost(error)})") from None
    if num_bytes(part) < file.num_bytes:
        raise PassingError(f"{url}: broke off")


def get(
    session: requests.Session,
    url: str,
    *,
    first_byte: int = 0,
    params: dict[str, int] | None = None,
) -> requests.Response:
    """Ask for a URL, from a byte on; the body is still to be read.

    Raises PassingError where another try may do better, RefusedError where it will not.
    """
    headers = {"Range": f"bytes={first_byte}-"} if first_byte else {}
    try:
        response = session.get(url, headers=headers, params=params, stream=True, timeout=TIMEOUT_S)
    except RequestException as error:
        raise PassingError(f"{url}: cannot be reached ({innermost(error)})") from None
    if response.status_code in (200, 206, 416):
        return response
    said = f"{url}: answered {response.status_code} {response.reason}"
    response.close()
    # figshare sends on to links that its storage honours for ten seconds
    has_expired = response.status_code == 403 and response.history
    if response.status_code in PASSING_STATUSES or has_expired:
        raise PassingError(said, asked_wait_s(response))
    if "x-amzn-waf-action" in response.headers:
        said += ", a test that only browsers pass"
    raise RefusedError(said)


def announced(response: requests.Response) -> tuple[int, int | None]:
    """The first byte of an answer, -1 where it cannot be told, and the size of the whole file."""
    if response.status_code == 416:
        return -1, None
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(found[1]), int(found[2])) if found else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def keep_trying(attempt: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
    """Call `attempt` until it passes. Raises RefusedError after TRIES without progress."""
    tries, most = 0, progress()
    while True:
        try:
            return attempt()
        except PassingError as error:
            tries = 1 if progress() > most else tries + 1
            most = max(most, progress())
            if tries == TRIES:
                raise RefusedError(f"{error}, {TRIES} times in a row") from None
            wait_s = max(error.wait_s, FIRST_WAIT_S * 2 ** (tries - 1))
            print(f"{error}; trying again in {wait_s:.0f} s", file=sys.stderr)
            time.sleep(wait_s)


def asked_wait_s(response: requests.Response) -> float:
    """How long an answer asks us to wait (Retry-After), in s; 0 where it does not."""
    try:
        return Retry(retry_after_max=int(LONGEST_WAIT_S)).get_retry_after(response.raw) or 0.0
    except InvalidHeader:
        return 0.0


def difference(path: Path, file: RemoteFile) -> str:
    """How what is at `path` differs from the file; '' where it does not."""
    if num_bytes(path) != file.num_bytes:
        return f"is {num_bytes(path)} bytes long, and not {file.num_bytes}"
    with path.open("rb") as content:
        md5 = hashlib.file_digest(content, "md5").hexdigest()
    return "" if md5 == file.md5 else f"has the md5 {md5}, and not {file.md5}"


def part_of(path: Path) -> Path:
    """Where a file is kept until it is whole."""
    return path.parent / PRIVATE / KIND / f"{path.name}.part"


def num_bytes(path: Path) -> int:
    """The size of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def innermost(error: BaseException) -> str:
    """What was behind an error of requests: 'Name or service not known'."""
    while error.__context__:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)
