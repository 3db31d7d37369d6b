"""A server on this machine that answers as the Hugging Face hub does."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OFF = {
    "HF_HUB_OFFLINE": "",
    "HF_TOKEN": "",
    **dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), ""),
}
"""Variables of a shell that would lead elsewhere."""


@dataclass
class Repository:
    """The files of a repository at its only commit."""

    files: dict[str, bytes]
    licence: str = "apache-2.0"
    """As its model card states it; '' for none."""
    commit: str = COMMIT
    status: int = 200
    """What every request is answered; 200 for what was asked for."""
    error: str = ""
    """X-Error-Code of such an answer."""
    card_status: int = 200
    """What a request for its model card is answered."""
    etag: str = ""
    """The hash that the hub says its files have; the real one where empty."""


@dataclass
class Hub:
    """Repositories by name, and what was asked for."""

    repositories: dict[str, Repository]
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""

    def __enter__(self) -> "Hub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a process asks this server."""
        return {**OFF, "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}"}


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0: a connection an answer."""

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub: Hub = self.server.hub
        hub.asked.append(f"{self.command} {self.path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.path):
            self.describe(hub, found[1], found[2] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self.give(hub, *found.groups())
        else:
            self.say(404)

    def repository(self, hub: Hub, name: str, revision: str) -> Repository | None:
        """The repository of this name, if it is to be shown at this revision; None is answered."""
        found = hub.repositories.get(name)
        if found is None:
            self.say(401, X_Error_Message="Invalid username or password.")
        elif found.status != 200:
            self.say(found.status, X_Error_Code=found.error)
        elif revision not in ("main", found.commit):
            self.say(404, X_Error_Code="RevisionNotFound")
        else:
            return found
        return None

    def describe(self, hub: Hub, name: str, revision: str) -> None:
        if found := self.repository(hub, name, revision):
            if found.card_status != 200:
                self.say(found.card_status)
                return
            card = {"cardData": {"license": found.licence}} if found.licence else {}
            siblings = [{"rfilename": file} for file in found.files]
            about = {"id": name, "sha": found.commit, "siblings": siblings, **card}
            self.say(200, json.dumps(about).encode(), Content_Type="application/json")

    def give(self, hub: Hub, name: str, revision: str, file: str) -> None:
        if not (found := self.repository(hub, name, revision)):
            return
        commit = {"X_Repo_Commit": found.commit}
        if file not in found.files:
            self.say(404, X_Error_Code="EntryNotFound", **commit)
            return
        content = found.files[file]
        sha256 = found.etag or hashlib.sha256(content).hexdigest()
        self.say(200, content, ETag=f'"{sha256}"', **commit)

    def say(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            if value:
                self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
