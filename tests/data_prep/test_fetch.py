"""`python -m data_prep.fetch`, of a server on this machine that answers as figshare does."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import __main__ as data_prep_main
from data_prep import download, synthetic, unpack
from data_prep.fetch import main
from tests.data_prep.figshare import Figshare, Stored

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
CONTENT = random.Random(0).randbytes(3_000_001)  # a dozen chunks, and no multiple of one
POINTS = json.dumps({"tumor": [{"x": 0.5, "y": 0.5}]}).encode()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.01)
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
def fetch(cli: Callable, tmp_path: Path) -> Callable[..., object]:
    """fetch(server) loads its article into tmp_path / "out"."""

    def call(server: Figshare) -> object:
        return cli(main, f"out={tmp_path / 'out'}", f"api={server.api}")

    return call


def zipped(files: dict[str, bytes], **settings: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **settings) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def brecahad(**more: bytes) -> bytes:
    """A zip in BreCaHAD's layout with one field, whose image nobody looks into."""
    files = {"images/Case_1-01.tif": CONTENT, "groundTruth/Case_1-01.json": POINTS}
    return zipped({f"BreCaHAD/{name}": content for name, content in (files | more).items()})


ZIP = brecahad()


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
        code, said, errors = cli(main, f"out={out}", f"api={server.api}")
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
        self, fetch: Callable, figshare: Callable
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        assert fetch(server).code == 0
        first = fetch(server).out
        assert len(server.ranges()) == 1
        assert " holds 1 field; next:" in first

    def test_a_file_that_was_brought_by_hand_is_checked_and_used(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "BreCaHAD.zip").write_bytes(ZIP)
        assert fetch(server).code == 0
        assert server.ranges() == []

    def test_a_folder_in_the_way_is_told_before_the_download(
        self, fetch: Callable, figshare: Callable, tmp_path: Path, cli: Callable
    ) -> None:
        """As where the synthetic set was drawn there, which data_prep advises."""
        folder = tmp_path / "out" / "BreCaHAD"
        drawn = ["cases=1", "fields=1", "width_px=192", "height_px=192"]
        assert cli(synthetic.main, f"out={folder}", *drawn).code == 0
        before = sorted(folder.rglob("*"))
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        outcome = fetch(server)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == (
            f"error: {folder}: is in the way of what BreCaHAD.zip is unpacked to, which is not"
            " there yet; move it away and run again, or name another out=. Where it is what was"
            f" unpacked before, go on: python -m data_prep raw={folder}\n"
        )
        assert server.ranges() == []
        assert sorted(folder.rglob("*")) == before

    def test_another_file_of_that_name_is_left_alone(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        mine = tmp_path / "out" / "BreCaHAD.zip"
        mine.write_bytes(b"mine")
        code, _, errors = fetch(figshare(Stored("BreCaHAD.zip", ZIP)))
        expected = f"is 4 bytes long, and not {len(ZIP)}; move it away, and run again"
        assert (code, errors) == (1, f"error: {mine}: {expected}\n")
        assert mine.read_bytes() == b"mine"

    def test_loose_files_go_where_the_article_has_them(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
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
        away = Stored("elsewhere", b"", is_link_only=True)
        outcome = fetch(figshare(*files, away))
        assert outcome.code == 0
        assert f"{tmp_path / 'out'} holds 60 fields;" in outcome.out
        assert len([*(tmp_path / "out" / "groundTruth").glob("*.json")]) == 60
        assert not (tmp_path / "out" / "elsewhere").exists()

    def test_files_without_fields_are_said_to_be_that(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        code, out, errors = fetch(figshare(Stored("readme.txt", b"see the paper")))
        assert (code, out) == (1, "")
        assert f"{tmp_path / 'out'}: everything was loaded, but images with annotations" in errors


class TestFaults:
    @pytest.mark.parametrize(
        ("faults", "said"),
        [
            (["cut", "cut", "cut"], "broke off (IncompleteRead"),
            (["503", "502"], "answered 503 Service Unavailable; trying again in 0 s"),
            (["403"], "answered 403 Forbidden; trying again"),  # a link that ran out
            (["cut", "no range"], "broke off"),
            (["cut", "wrong range"], "bytes that were not asked for"),
            (["cut", "416"], "bytes that were not asked for"),
        ],
    )
    def test_it_is_whole_in_the_end(
        self, faults: list[str], said: str, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=faults)
        outcome = fetch(server)
        assert outcome.code == 0
        assert said in outcome.err
        assert server.faults == []
        assert (tmp_path / "out" / "BreCaHAD.zip").read_bytes() == ZIP
        assert not [*(tmp_path / "out").rglob("*.part")]

    def test_after_a_cut_only_what_is_missing_is_asked_for(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["cut"])
        fetch(server)
        # a server writes half; of that, whole chunks were written
        kept = len(ZIP) // 2 // download.CHUNK_BYTES * download.CHUNK_BYTES
        assert server.ranges() == ["", f"bytes={kept}-"]

    def test_more_cuts_than_tries_are_survived_while_bytes_arrive(
        self, fetch: Callable, figshare: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "TRIES", 2)
        monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["cut"] * 8)
        assert fetch(server).code == 0

    def test_a_server_that_never_sends_is_given_up_and_the_rest_kept(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        """Both addresses are asked in vain, then the next run goes on."""
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["cut", *["cut at once"] * 11])
        code, _, errors = fetch(server)
        last = errors.splitlines()[-1]
        assert code == 1
        assert last.startswith(f"error: {server.url}/files/0: broke off (")
        assert "6 times in a row" in last
        assert "run again to go on" in last
        part = tmp_path / "out" / ".eosin" / "fetch" / "BreCaHAD.zip.part"
        kept = part.stat().st_size
        assert kept > len(ZIP) // 3
        assert fetch(server).code == 0
        assert server.ranges()[-1] == f"bytes={kept}-"

    def test_retry_after_is_waited_for(
        self, fetch: Callable, figshare: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server asks for two seconds; ours alone would be a hundredth of one."""
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["429"])
        start = time.monotonic()
        outcome = fetch(server)
        assert outcome.code == 0
        assert "answered 429 Too Many Requests; trying again in 2 s" in outcome.err
        assert time.monotonic() - start > 2

    def test_a_server_that_falls_silent_is_left_and_asked_again(
        self, fetch: Callable, figshare: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "TIMEOUT_S", (10.0, 0.3))
        outcome = fetch(figshare(Stored("BreCaHAD.zip", ZIP), faults=["stall"]))
        assert outcome.code == 0
        assert "timed out" in outcome.err

    def test_where_the_link_wants_a_browser_the_api_is_asked(
        self, fetch: Callable, figshare: Callable
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), has_browser_test=True)
        assert fetch(server).code == 0
        assert "/v2/file/download/0" in [path for path, _ in server.asked]

    def test_a_wrong_md5_is_one_line_and_the_next_run_begins_anew(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP, md5="0" * 32))
        code, _, errors = fetch(server)
        real = hashlib.md5(ZIP).hexdigest()
        assert (code, len(errors.splitlines())) == (1, 1)
        assert f"BreCaHAD.zip: has the md5 {real}, and not {'0' * 32}; what came was" in errors
        assert [*(tmp_path / "out").iterdir()] == []
        server.files[0].md5 = ""
        assert fetch(server).code == 0
        assert server.ranges() == ["", ""]

    def test_a_damaged_part_of_an_earlier_run_is_found_out(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        part = tmp_path / "out" / ".eosin" / "fetch" / "BreCaHAD.zip.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * 1000)
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        assert fetch(server).code == 1
        assert not part.exists()
        assert fetch(server).code == 0
        assert server.ranges() == ["bytes=1000-", ""]

    def test_a_part_of_the_users_is_left_alone(
        self, figshare: Callable, tmp_path: Path, fetch: Callable[..., Any]
    ) -> None:
        """As a browser leaves one."""
        mine = tmp_path / "out" / "BreCaHAD.zip.part"
        mine.parent.mkdir()
        mine.write_bytes(b"x" * (len(ZIP) + 1))
        assert fetch(figshare(Stored("BreCaHAD.zip", ZIP))).code == 0
        assert mine.read_bytes() == b"x" * (len(ZIP) + 1)

    def test_a_part_that_is_longer_than_the_file_is_begun_anew(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        part = tmp_path / "out" / ".eosin" / "fetch" / "BreCaHAD.zip.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(ZIP + b"x")
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        assert fetch(server).code == 0
        assert server.ranges() == [""]

    def test_a_file_of_another_size_is_refused_before_it_is_loaded(
        self, fetch: Callable, figshare: Callable
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["other size"] * 2)
        code, _, errors = fetch(server)
        assert code == 1
        assert f"is {len(ZIP) + 7} bytes long, and not {len(ZIP)}" in errors
        assert len(server.ranges()) == 2

    def test_more_bytes_than_the_file_has_do_not_reach_the_disk(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        """An answer without a length, as of a proxy that sends its own page."""
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["without end"] * 2)
        code, _, errors = fetch(server)
        assert code == 1
        assert f"sends more than {len(ZIP)} bytes" in errors
        part = tmp_path / "out" / ".eosin" / "fetch" / "BreCaHAD.zip.part"
        assert part.stat().st_size <= len(ZIP)


class TestKilled:
    def start(self, server: Figshare, out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "data_prep.fetch", f"out={out}", f"api={server.api}"]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            # a shell starts what runs in its background with SIGINT ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    @pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
    def test_the_next_run_asks_for_the_missing_bytes_only(
        self, signum: int, figshare: Callable, tmp_path: Path
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["pause"])
        part = tmp_path / ".eosin" / "fetch" / "BreCaHAD.zip.part"
        process = self.start(server, tmp_path)
        half = len(ZIP) // 2 - download.CHUNK_BYTES
        while not (part.exists() and part.stat().st_size > half):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signum)
        errors = process.communicate()[1]
        assert process.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else 130)
        interrupted = "interrupted; to go on, run the same command again\n"
        assert errors == ("" if signum == signal.SIGKILL else interrupted)
        kept = part.stat().st_size
        again = self.start(server, tmp_path)
        assert (again.communicate()[1], again.returncode) == ("", 0)
        assert server.ranges() == ["", f"bytes={kept}-"]
        assert (tmp_path / "BreCaHAD.zip").read_bytes() == ZIP
        assert not [*tmp_path.glob(".*")]
        assert (tmp_path / "BreCaHAD" / "images" / "Case_1-01.tif").read_bytes() == CONTENT

    def test_a_second_process_on_the_folder_is_refused(
        self, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), faults=["pause"])
        first = self.start(server, tmp_path / "out")
        while not server.ranges():
            assert first.poll() is None
            time.sleep(0.02)
        code, _, errors = fetch(server)
        assert code == 1
        assert f"process {first.pid} on {socket.gethostname()} is downloading into it" in errors
        server.go_on.set()
        assert (first.communicate()[1], first.returncode) == ("", 0)


class TestApi:
    def test_offline_is_one_line_that_says_what_to_do(self, cli: Callable, tmp_path: Path) -> None:
        with socket.socket() as taken:  # bound and not listening: whoever calls is refused
            taken.bind(("127.0.0.1", 0))
            api = f"http://127.0.0.1:{taken.getsockname()[1]}"
            code, _, errors = cli(main, f"out={tmp_path / 'out'}", f"api={api}")
        last = errors.splitlines()[-1]
        assert code == 1
        assert last == (
            f"error: {api}/articles/7379186: cannot be reached (Connection refused), 6 times in a"
            " row; run again to go on, or load the files of"
            " https://doi.org/10.6084/m9.figshare.7379186 with a browser, unpack them in"
            f" {tmp_path / 'out'}, and give data_prep the folder with images/ and groundTruth/ as"
            " raw="
        )
        assert not (tmp_path / "out").exists()

    def test_a_busy_api_is_asked_again(self, fetch: Callable, figshare: Callable) -> None:
        server = figshare(Stored("BreCaHAD.zip", ZIP), api_faults=["429", "500"])
        assert fetch(server).code == 0

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

    @pytest.mark.parametrize("name", ["../away.txt", "/away.txt", "a/../../away.txt", "a\\b"])
    def test_a_file_that_would_lie_elsewhere_is_refused(
        self, name: str, fetch: Callable, figshare: Callable, tmp_path: Path
    ) -> None:
        code, _, errors = fetch(figshare(Stored(name, b"x")))
        assert code == 1
        assert "does not answer as figshare's API does" in errors
        assert [*tmp_path.iterdir()] == []

    def test_an_article_without_files_is_refused(self, fetch: Callable, figshare: Callable) -> None:
        code, _, errors = fetch(figshare())
        assert (code, errors) == (2, "error: article=7379186: holds no files\n")

    def test_an_address_without_a_protocol_is_refused(self, cli: Callable) -> None:
        code, _, errors = cli(main, "out=x", "api=api.figshare.com/v2")
        assert (code, errors) == (
            2,
            "error: api=api.figshare.com/v2: must begin with https:// or http://\n",
        )

    def test_a_disk_without_room_is_told_before_anything_is_loaded(
        self, fetch: Callable, figshare: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = shutil.disk_usage("/")._replace(free=len(ZIP) - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: left)
        server = figshare(Stored("BreCaHAD.zip", ZIP))
        code, _, errors = fetch(server)
        assert code == 1
        assert "the download takes 0.00 GB, and the disk has 0.00 GB left" in errors
        assert server.ranges() == []

    def test_the_environments_proxy_is_used(
        self, cli: Callable, figshare: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A host that is not there is asked through it."""
        proxy = figshare(Stored("BreCaHAD.zip", ZIP))
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert cli(main, f"out={tmp_path / 'out'}", "api=http://figshare.invalid/v2").code == 0


def hostile(name: str, mode: int = stat.S_IFREG | 0o644) -> bytes:
    """A zip with a good file, and one of a name and a kind that should not be."""
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("BreCaHAD/images/Case_1-01.tif", b"II")
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def deflated_badly() -> bytes:
    """A zip whose compressed bytes are none."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("BreCaHAD/a", bytes(1000))
    content = buffer.getvalue()
    start = content.index(b"BreCaHAD/a") + len("BreCaHAD/a")
    return content[:start] + b"\xff" * 4 + content[start + 4 :]


class TestUnpack:
    @pytest.fixture
    def archive(self, tmp_path: Path) -> Callable[[bytes], Path]:
        def write(content: bytes) -> Path:
            (tmp_path / "zips").mkdir(exist_ok=True)
            path = tmp_path / "zips" / "BreCaHAD.zip"
            path.write_bytes(content)
            return path

        return write

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (hostile("../evil"), "holds a file that would lie outside of its folder, '../evil'"),
            (hostile("BreCaHAD/../../evil"), "would lie outside of its folder"),
            (hostile("/tmp/evil"), "would lie outside of its folder"),
            (hostile("..\\evil"), "would lie outside of its folder"),
            (hostile("BreCaHAD/link", stat.S_IFLNK | 0o777), "holds a link, 'BreCaHAD/link'"),
            (b"not a zip", "File is not a zip file"),
            (ZIP[: len(ZIP) // 2], "File is not a zip file"),
            (ZIP.replace(CONTENT[1000:1010], b"0123456789"), "Bad CRC-32"),
            (deflated_badly(), "while decompressing data"),
            (zipped({"BreCaHAD/a": b"1", "BreCaHAD/a/b": b"2"}), "a"),
        ],
    )
    def test_what_cannot_be_trusted_is_refused(
        self, content: bytes, said: str, archive: Callable, tmp_path: Path
    ) -> None:
        path = archive(content)
        with pytest.raises(unpack.UserError, match="unpack it by hand") as caught:
            unpack.unpack(path)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (path.parent / "BreCaHAD").exists()
        assert [*tmp_path.iterdir()] == [path.parent]

    def test_what_macos_adds_is_passed_over(self, archive: Callable) -> None:
        files = {
            "BreCaHAD/images/a.tif": b"II",
            "BreCaHAD/images/.DS_Store": b"x",
            "__MACOSX/BreCaHAD/images/._a.tif": b"x",
        }
        folder = unpack.unpack(archive(zipped(files)))
        assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "images/a.tif"]

    def test_files_without_a_folder_of_that_name_get_one(self, archive: Callable) -> None:
        folder = unpack.unpack(archive(zipped({"images/a.tif": b"II", "groundTruth/a.json": b""})))
        assert folder.name == "BreCaHAD"
        assert (folder / "images/a.tif").read_bytes() == b"II"

    def test_what_was_left_half_unpacked_is_begun_anew(self, archive: Callable) -> None:
        path = archive(ZIP)
        half = path.parent / ".eosin" / "unpack" / "BreCaHAD.tmp" / "images"
        half.mkdir(parents=True)
        (half / "Case_1-01.tif").write_bytes(b"half of it")
        folder = unpack.unpack(path)
        assert (folder / "images" / "Case_1-01.tif").read_bytes() == CONTENT
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["BreCaHAD", path.name]

    def test_only_what_was_unpacked_is_removed(self, archive: Callable) -> None:
        path = archive(ZIP)
        half, mine = path.parent / ".eosin/unpack/BreCaHAD.tmp", path.parent / ".BreCaHAD.tmp"
        for folder in (half, mine):
            (folder / "images").mkdir(parents=True)
            (folder / "images" / "Case_1-01.tif").write_bytes(b"half of it")
            (folder / "images" / "notes.txt").write_text("mine")
        with pytest.raises(unpack.UserError, match="holds what is not in the archive; move it"):
            unpack.unpack(path)
        assert [file.name for file in (half / "images").iterdir()] == ["notes.txt"]
        assert len(list((mine / "images").iterdir())) == 2

    def test_killed_while_unpacking_there_is_no_folder(self, archive: Callable) -> None:
        """A child process that dies at the second file."""
        path = archive(ZIP)
        code = (
            "import os, sys; from pathlib import Path; from data_prep import unpack\n"
            "original, seen = unpack.write, []\n"
            "def write(opened, info, path):\n"
            "    seen.append(path)\n"
            "    os.kill(os.getpid(), 9) if len(seen) == 2 else original(opened, info, path)\n"
            "unpack.write = write\n"
            "unpack.unpack(Path(sys.argv[1]))\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env=os.environ)
        assert done.returncode == -signal.SIGKILL
        assert not (path.parent / "BreCaHAD").exists()
        assert (unpack.unpack(path) / "groundTruth" / "Case_1-01.json").read_bytes() == POINTS

    def test_a_folder_that_lost_a_file_is_not_taken_for_whole(self, archive: Callable) -> None:
        path = archive(ZIP)
        (unpack.unpack(path) / "images" / "Case_1-01.tif").unlink()
        with pytest.raises(unpack.UserError, match=r"images/Case_1-01.tif is not as in BreCaHAD"):
            unpack.unpack(path)

    def test_a_disk_without_room_is_told_before(
        self, archive: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = archive(zipped({"a": bytes(10**8)}, compression=zipfile.ZIP_DEFLATED))
        left = shutil.disk_usage("/")._replace(free=9 * 10**7)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: left)
        with pytest.raises(unpack.UserError, match=r"takes 0.10 GB, and the disk has 0.09 GB left"):
            unpack.unpack(path)
