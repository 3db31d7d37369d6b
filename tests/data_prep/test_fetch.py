"""`python -m data_prep.fetch`, of a server on this machine that answers as figshare does."""

import hashlib
import io
import json
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pooch
import pytest

from common import lease
from common.command_line import UserError
from data_prep import __main__ as data_prep_main
from data_prep import download, synthetic
from data_prep.download import RemoteFile
from data_prep.fetch import main, remote_file
from tests.data_prep.figshare import Figshare, Stored

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
CONTENT = random.Random(0).randbytes(3_000_001)  # a dozen chunks, and no multiple of one
POINTS = json.dumps({"tumor": [{"x": 0.5, "y": 0.5}]}).encode()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def figshare() -> Iterator[Callable[..., Figshare]]:
    """figshare(Stored(...), ..., faults=[...]) starts a server."""
    started = []

    def start(*files: Stored, **settings: object) -> Figshare:
        started.append(Figshare(list(files), **settings))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def fetch(cli: Callable, out: Path) -> Callable[..., object]:
    """fetch(server) loads its article into `out`."""
    return lambda server: cli(partial(main, api=server.api), f"out={out}")


def zipped(files: dict[str, bytes], **settings: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **settings) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


# In BreCaHAD's layout one field, whose image nobody looks into
ZIP = zipped(
    {
        "BreCaHAD/images/Case_1-01.tif": CONTENT,
        "BreCaHAD/groundTruth/Case_1-01.json": POINTS,
        "BreCaHAD/images/.DS_Store": b"x",
        "__MACOSX/BreCaHAD/images/._Case_1-01.tif": b"x",
    }
)


class TestWhole:
    def test_the_data_set_is_fetched_and_then_prepared(
        self, cli: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        """From the server's zip to the prepared set, by the two commands of the README."""
        drawn = ["cases=3", "fields=1", "width_px=192", "height_px=192"]
        assert cli(synthetic.main, f"out={tmp_path / 'BreCaHAD'}", *drawn).code == 0
        made = shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path, "BreCaHAD")
        server = figshare(Stored("BreCaHAD.zip", Path(made).read_bytes()))
        out = tmp_path / "with space"
        code, said, errors = cli(partial(main, api=server.api), f"out={out}")
        assert (code, errors) == (0, "")
        assert said.splitlines() == [
            "licence: CC BY 4.0; cite: Aksac, Alper; et al. (2019). BreCaHAD. figshare. Dataset.",
            f"{out}/BreCaHAD holds 3 fields; next:",
            f"python -m data_prep raw='{out}/BreCaHAD'",
        ]
        arguments = [f"raw={out}/BreCaHAD", f"out={tmp_path / 'prepared'}", "copies=1"]
        assert cli(data_prep_main.main, *arguments).code == 0
        assert (tmp_path / "prepared" / "dataset.json").is_file()

    def test_what_is_there_and_whole_is_not_loaded_again(
        self, fetch: Callable, figshare: Callable, out: Path
    ) -> None:
        """Neither what this loaded nor what was brought by hand."""
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        out.mkdir()
        (out / "BreCaHAD.zip").write_bytes(ZIP)
        assert " holds 1 field; next:" in fetch(server).out
        assert " holds 1 field; next:" in fetch(server).out
        assert server.num_loaded() == 0
        assert (out / "BreCaHAD/images/Case_1-01.tif").read_bytes() == CONTENT
        files = {path.name for path in out.rglob("*") if path.is_file()}
        assert files == {"BreCaHAD.zip", "Case_1-01.tif", "Case_1-01.json"}

    def test_a_folder_in_the_way_is_named_before_the_download(
        self, fetch: Callable, figshare: Callable, out: Path
    ) -> None:
        """It may be the synthetic set, which data_prep advises to make there."""
        (out / "BreCaHAD").mkdir(parents=True)
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        outcome = fetch(server)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == (
            f"error: {out}/BreCaHAD: is in the way: BreCaHAD.zip, which is still to be downloaded,"
            " would be unpacked there; move it away and run again, or name another out=. If it was"
            " unpacked from BreCaHAD.zip before, go on: python -m data_prep"
            f" raw={out}/BreCaHAD\n"
        )
        assert server.num_loaded() == 0
        assert [*out.rglob("*")] == [out / "BreCaHAD"]

    @pytest.mark.parametrize("mine", [b"mine", bytes(len(ZIP))])
    def test_another_file_of_that_name_is_left_alone(
        self, mine: bytes, fetch: Callable, figshare: Callable, out: Path
    ) -> None:
        """Of another size, and of the same."""
        out.mkdir()
        (out / "BreCaHAD.zip").write_bytes(mine)
        code, _, errors = fetch(figshare(Stored("BreCaHAD.zip", ZIP)))
        assert code == 1
        assert errors.startswith(f"error: {out}/BreCaHAD.zip: ")
        assert errors.endswith("; move it away and run again\n")
        assert (out / "BreCaHAD.zip").read_bytes() == mine

    def test_loose_files_go_where_the_article_has_them(
        self, fetch: Callable, figshare: Callable, out: Path
    ) -> None:
        """More than the ten files, and more than the hundred, that one answer of the API holds."""
        files = [
            Stored(f"Case_1-{number:03d}{suffix}", content, folder=folder)
            for number in range(60)
            for suffix, content, folder in (
                (".tif", b"II", "images"),
                (".json", POINTS, "groundTruth"),
            )
        ]
        outcome = fetch(figshare(*files, Stored("elsewhere", b"", is_link_only=True)))
        assert outcome.code == 0
        assert f"{out} holds 60 fields;" in outcome.out
        assert len([*(out / "groundTruth").glob("*.json")]) == 60
        assert not (out / "elsewhere").exists()

    def test_files_without_fields_are_said_to_be_that(
        self, fetch: Callable, figshare: Callable, out: Path
    ) -> None:
        code, said, errors = fetch(figshare(Stored("readme.txt", b"see the paper")))
        assert (code, said) == (1, "")
        assert f"{out}: everything was downloaded, but it holds no images" in errors


class TestFaults:
    def test_a_server_that_fails_at_times_is_asked_again(
        self, fetch: Callable, figshare: Callable, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """403: a link to the storage that ran out."""
        monkeypatch.setattr(download, "TIMEOUT_S", (10.0, 0.3))
        faults = ["cut", "503", "403", "stall"]
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=faults, api_faults=["429", "500"])
        outcome = fetch(server)
        assert outcome.code == 0
        for said in ("IncompleteRead", "answered 503 Service Unavailable", "403", "timed out"):
            assert said in outcome.err
        assert (out / "BreCaHAD.zip").read_bytes() == ZIP
        assert not (out / ".eosin").exists()

    def test_where_the_link_wants_a_browser_the_api_is_asked(
        self, fetch: Callable, figshare: Callable
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), has_browser_test=True)
        assert fetch(server).code == 0
        assert server.asked.count("/v2/file/download/0") == 1

    def test_a_wrong_md5_is_an_error_and_leaves_nothing(
        self, fetch: Callable, figshare: Callable, out: Path
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP, md5="0" * 32))
        code, _, errors = fetch(server)
        assert (code, len(errors.splitlines())) == (1, 1)
        assert hashlib.md5(ZIP).hexdigest() in errors
        assert [*out.iterdir()] == []

    def test_a_file_that_appears_during_the_download_is_left_alone(
        self, figshare: Callable, out: Path
    ) -> None:
        server = figshare(Stored("a", b"theirs"), faults=["pause"])
        file = RemoteFile("a", 6, hashlib.md5(b"theirs").hexdigest(), (f"{server.url}/files/0",))
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(download.download, file, out)
            while not server.num_loaded():
                time.sleep(0.01)
            (out / "a").write_bytes(b"mine")
            server.go_on.set()
            with pytest.raises(UserError, match="out/a: has appeared meanwhile; move it away"):
                loading.result()
        assert (out / "a").read_bytes() == b"mine"

    def test_more_bytes_than_the_file_has_are_refused(
        self, fetch: Callable, figshare: Callable, out: Path
    ) -> None:
        """An answer without a length, as of a proxy that sends its own page."""
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["without end"] * 2)
        code, _, errors = fetch(server)
        assert code == 1
        assert f"/files/0: sends more than {len(ZIP)} bytes" in errors
        assert [*out.iterdir()] == []

    def test_after_a_kill_the_next_run_begins_anew(
        self, fetch: Callable, figshare: Callable, out: Path
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["pause"])
        code = "import sys; from data_prep.fetch import main; main(sys.argv[1:2], sys.argv[2])"
        command = [sys.executable, "-c", code, f"out={out}", server.api]
        process = subprocess.Popen(command, cwd=ROOT)
        while not any(path.stat().st_size for path in (out / ".eosin/fetch").glob("*")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert fetch(server).code == 0
        assert sorted(path.name for path in out.iterdir()) == ["BreCaHAD", "BreCaHAD.zip"]
        assert (out / "BreCaHAD.zip").read_bytes() == ZIP

    def test_a_second_process_on_the_folder_is_refused(
        self, fetch: Callable, figshare: Callable, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease, "BEAT_S", 0.1)
        with lease.Lease(out, "out", name=".lock", doing="downloading into it"):
            code, _, errors = fetch(figshare(Stored("BreCaHAD.zip", ZIP)))
        assert code == 1
        assert f"process {os.getpid()} on {socket.gethostname()} is downloading into" in errors


class TestApi:
    def test_offline_the_last_line_says_what_to_do(self, cli: Callable, out: Path) -> None:
        with socket.socket() as taken:  # bound and not listening: whoever calls is refused
            taken.bind(("127.0.0.1", 0))
            api = f"http://127.0.0.1:{taken.getsockname()[1]}"
            code, _, errors = cli(partial(main, api=api), f"out={out}")
        assert code == 1
        assert errors.splitlines()[-1] == (
            f"error: {api}/articles/7379186: Connection refused, 5 times in a row; run again, or"
            " download the files of https://doi.org/10.6084/m9.figshare.7379186 with a browser,"
            f" unpack them in {out}, and give data_prep the folder with images/ and groundTruth/ as"
            " raw="
        )
        assert not out.exists()

    @pytest.mark.parametrize(
        ("fault", "said"), [("404", "answered 404"), ("html", "does not answer with JSON")]
    )
    def test_what_is_no_article_is_named(
        self, fault: str, said: str, fetch: Callable, figshare: Callable
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), api_faults=[fault])
        code, _, errors = fetch(server)
        assert (code, len(errors.splitlines())) == (1, 1)
        assert f"{server.api}/articles/7379186: {said}" in errors

    @pytest.mark.parametrize("name", ["../away.txt", "/away.txt", "a/../../away.txt"])
    def test_a_file_that_would_lie_elsewhere_is_refused(
        self, name: str, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        code, _, errors = fetch(figshare(Stored(name, b"x")))
        assert code == 1
        assert "would lie outside of the folder" in errors
        assert [*tmp_path.iterdir()] == []

    def test_a_list_that_does_not_end_is_not_read_for_ever(
        self, fetch: Callable, figshare: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("data_prep.fetch.PAGE_SIZE", 1)
        monkeypatch.setattr("data_prep.fetch.MOST_PAGES", 2)
        code, _, errors = fetch(figshare(*(Stored(f"{n}.txt", b"x") for n in range(3))))
        assert code == 1
        assert "lists more than 2 files" in errors

    def test_an_address_that_is_none_of_the_web_is_refused_at_once(self) -> None:
        entry = {"id": 1, "name": "a", "size": 1, "computed_md5": "0" * 32}
        with pytest.raises(ValueError, match="'file:///etc/passwd' is no address of the web"):
            remote_file("http://a", entry | {"download_url": "file:///etc/passwd"}, "")

    def test_an_article_without_files_is_refused(self, fetch: Callable, figshare: Callable) -> None:
        code, _, errors = fetch(figshare())
        assert (code, errors) == (2, "error: article=7379186: holds no files\n")

    def test_a_disk_without_room_is_told_before_anything_is_loaded(
        self, fetch: Callable, figshare: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = shutil.disk_usage("/")._replace(free=len(ZIP) - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: left)
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        code, _, errors = fetch(server)
        assert code == 1
        assert "the download takes 0.00 GB, and the disk has 0.00 GB left" in errors
        assert server.num_loaded() == 0


def damaged(compression: int, after: int) -> bytes:
    """A zip with compressed bytes overwritten, some bytes after their beginning."""
    content = zipped({"BreCaHAD/a": CONTENT[:1000]}, compression=compression)
    start = content.index(b"BreCaHAD/a") + len("BreCaHAD/a") + after
    return content[:start] + b"\xff" * 60 + content[start + 60 :]


def cut_off() -> bytes:
    """A zip whose file is said to be longer than the whole zip."""
    content = zipped({"BreCaHAD/a": b"1234"})
    sizes = struct.pack("<LL", 4, 4)
    at = content.rindex(sizes)
    return content[:at] + struct.pack("<LL", 5000, 5000) + content[at + len(sizes) :]


def with_link() -> bytes:
    """A zip with a good file, and a symbolic link."""
    link = zipfile.ZipInfo("BreCaHAD/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("BreCaHAD/images/Case_1-01.tif", b"II")
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def archive(folder: Path, content: bytes) -> Path:
    (folder / "zips").mkdir()
    (folder / "zips/BreCaHAD.zip").write_bytes(content)
    return folder / "zips/BreCaHAD.zip"


class TestUnpack:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (zipped({"a": b"", "../evil": b"x"}), "a file outside of its folder, '../evil'"),
            (zipped({"BreCaHAD/../../evil": b"x"}), "outside of its folder"),
            (zipped({"/tmp/evil": b"x"}), "outside of its folder"),
            (with_link(), "holds a link, 'BreCaHAD/link'"),
            (zipped({}), "holds no files"),
            (zipped({"BreCaHAD/": b"", "__MACOSX/BreCaHAD/._a": b"x"}), "holds no files"),
            (zipped({"BreCaHAD/a": b"1", "BreCaHAD/a/b": b"2"}), "BreCaHAD/a"),
            (zipped({"BreCaHAD/a/b/c": b"1", "BreCaHAD/a/b": b"2"}), "BreCaHAD/a/b"),
            (zipped({"BreCaHAD/a": b"1", "BreCaHAD/a/b/c": b"2"}), "BreCaHAD/a"),
            (ZIP[: len(ZIP) // 2], "File is not a zip file"),
            (ZIP.replace(CONTENT[1000:1010], b"0123456789"), "Bad CRC-32"),
            (damaged(zipfile.ZIP_DEFLATED, after=0), "while decompressing data"),
            (damaged(zipfile.ZIP_LZMA, after=9), "Corrupt input data"),
            (cut_off(), ""),  # later releases of Python 3.11 say more
        ],
    )
    def test_what_cannot_be_trusted_is_refused(
        self, content: bytes, said: str, tmp_path: Path
    ) -> None:
        path = archive(tmp_path, content)
        with pytest.raises(UserError, match="unpack it by hand") as caught:
            download.unpack(path)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (path.parent / "BreCaHAD").exists()
        assert [*tmp_path.iterdir()] == [path.parent]

    def test_files_without_a_folder_of_that_name_get_one(self, tmp_path: Path) -> None:
        path = archive(tmp_path, zipped({"images/a.tif": b"II", "groundTruth/a.json": b""}))
        download.unpack(path)
        assert (path.parent / "BreCaHAD/images/a.tif").read_bytes() == b"II"
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["BreCaHAD", path.name]

    def test_what_was_left_half_unpacked_is_begun_anew(self, tmp_path: Path) -> None:
        """And only what the archive holds is removed."""
        path = archive(tmp_path, ZIP)
        half = path.parent / ".eosin/fetch/BreCaHAD/BreCaHAD/images"
        half.mkdir(parents=True)
        (half / "Case_1-01.tif").write_bytes(b"half of it")
        (half / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="holds files that are not in the archive; move it"):
            download.unpack(path)
        assert [file.name for file in half.iterdir()] == ["notes.txt"]
        assert not (path.parent / "BreCaHAD").exists()
        (half / "notes.txt").unlink()
        download.unpack(path)
        assert (path.parent / "BreCaHAD/images/Case_1-01.tif").read_bytes() == CONTENT
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["BreCaHAD", path.name]

    def test_a_folder_that_lost_a_file_is_not_taken_for_whole(self, tmp_path: Path) -> None:
        path = archive(tmp_path, ZIP)
        download.unpack(path)
        (path.parent / "BreCaHAD/images/Case_1-01.tif").unlink()
        with pytest.raises(UserError, match=r"images/Case_1-01.tif is not as in BreCaHAD"):
            download.unpack(path)

    def test_a_disk_without_room_is_told_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = archive(tmp_path, zipped({"a": bytes(10**8)}, compression=zipfile.ZIP_DEFLATED))
        left = shutil.disk_usage("/")._replace(free=9 * 10**7)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: left)
        with pytest.raises(UserError, match=r"takes 0.10 GB, and the disk has 0.09 GB"):
            download.unpack(path)
