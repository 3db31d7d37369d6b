"""A server on this machine that answers as figshare's API, its links and its storage do."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ARTICLE = 7379186


@dataclass
class Stored:
    """One file of the article."""

    name: str
    content: bytes
    md5: str = ""
    """What the API says; the real one where empty."""
    is_link_only: bool = False
    folder: str = ""


@dataclass
class Figshare:
    """The article, what goes wrong, and what was asked for."""

    files: list[Stored]
    faults: list[str] = field(default_factory=list)
    """What the next answers of the storage do wrong, in turn: a status, or a name of `Handler`."""
    api_faults: list[str] = field(default_factory=list)
    """The same for the next answers of the API: a status, or 'html'."""
    has_browser_test: bool = False
    """Whether download_url turns programs away, as figshare's did in 2026."""
    asked: list[str] = field(default_factory=list)
    """The path of every request."""
    go_on: threading.Event = field(default_factory=threading.Event)
    """Lets the fault 'pause' send the second half."""

    def __post_init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.figshare = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def api(self) -> str:
        return f"{self.url}/v2"

    def num_loaded(self) -> int:
        """How many requests reached the storage."""
        return sum(path.startswith("/storage/") for path in self.asked)

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """GET only, HTTP/1.0: a connection an answer."""

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.figshare: Figshare = self.server.figshare
        url = urlsplit(self.path)
        self.figshare.asked.append(url.path)
        if url.path == f"/v2/articles/{ARTICLE}":
            self.answer_api(self.article())
        elif url.path == f"/v2/articles/{ARTICLE}/files":
            asked = {key: int(values[0]) for key, values in parse_qs(url.query).items()}
            start = (asked["page"] - 1) * asked["page_size"]
            self.answer_api(self.entries()[start : start + asked["page_size"]])
        elif found := re.fullmatch(r"/(files|v2/file/download)/(\d+)", url.path):
            self.send_on(found[1] == "files", found[2])
        elif found := re.fullmatch(r"/storage/(\d+)", url.path):
            self.store(self.figshare.files[int(found[1])].content)
        else:
            self.say(404)

    def say(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer_api(self, content: Any) -> None:
        fault = self.figshare.api_faults.pop(0) if self.figshare.api_faults else ""
        if fault.isdecimal():
            self.say(int(fault))
        elif fault == "html":
            self.say(200, b"<html>Sign in to this network</html>")
        else:
            self.say(200, json.dumps(content).encode())

    def article(self) -> dict[str, Any]:
        files = self.figshare.files
        folders = {str(index): file.folder for index, file in enumerate(files) if file.folder}
        return {
            "id": ARTICLE,
            "title": "BreCaHAD",
            "citation": "Aksac, Alper; et al. (2019). BreCaHAD. figshare. Dataset.",
            "license": {"value": 1, "name": "CC BY 4.0", "url": "https://creativecommons.org/"},
            "files": self.entries()[:10],
            **({"folder_structure": folders} if folders else {}),
        }

    def entries(self) -> list[dict[str, Any]]:
        return [
            {
                "id": index,
                "name": file.name,
                "size": len(file.content),
                "is_link_only": file.is_link_only,
                "download_url": f"{self.figshare.url}/files/{index}",
                "supplied_md5": "",
                "computed_md5": file.md5 or hashlib.md5(file.content).hexdigest(),
                "mimetype": "application/zip",
            }
            for index, file in enumerate(self.figshare.files)
        ]

    def send_on(self, is_download_url: bool, number: str) -> None:
        if is_download_url and self.figshare.has_browser_test:
            self.say(202, x_amzn_waf_action="challenge")
        else:
            self.say(302, Location=f"{self.figshare.url}/storage/{number}?X-Amz-Expires=10")

    def store(self, content: bytes) -> None:
        fault = self.figshare.faults.pop(0) if self.figshare.faults else ""
        if fault.isdecimal():
            self.say(int(fault))
            return
        self.send_response(200)
        if fault == "without end":
            content += bytes(1_000_000)
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.wfile.flush()
        if fault in ("pause", "stall"):
            self.figshare.go_on.wait(30)
        if fault not in ("cut", "stall"):
            self.wfile.write(content[half:])
