"""A real browser for tests: Chromium without a window, told what to do over a pipe.

Its messages are JSON, each ended by a zero byte (the DevTools protocol), so nothing is needed to
speak with it, and no port is opened.
"""

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of a browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.writer, self.reader = to_browser, from_browser
        self.received = b""
        self.number = 0
        self.events: list[dict[str, Any]] = []
        """What the page told unasked, in order."""
        self.session = ""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what comes before it is kept as events."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def read(self) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.received:
            part = os.read(self.reader, 1 << 20)
            assert part, "the browser has ended"
            self.received += part
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path) -> None:
        """Load a file and wait until it is all there."""
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def look(self, width_px: int, scheme: str = "light", media: str = "") -> None:
        """Set the window's width, light or dark, and screen or print."""
        size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[feature])

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def box(self, selector: str) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the first such element, in px of the page."""
        element = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        sides = self.value(f"(box => [box.left, box.top, box.right, box.bottom])({element})")
        left, top, right, bottom = map(round, sides)
        return left, top, right, bottom

    def style(self, selector: str, name: str) -> str:
        """A computed property of the first such element."""
        element = f"document.querySelector({json.dumps(selector)})"
        return self.value(f"getComputedStyle({element}).{name}")

    def screenshot(self) -> npt.NDArray[np.uint8]:
        """The whole page, HWC uint8 RGB."""
        answer = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        picture = Image.open(io.BytesIO(base64.b64decode(answer["data"])))
        return np.asarray(picture.convert("RGB"))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=False)["data"])

    def requests(self) -> list[str]:
        """Addresses that the page asked for, but for those that hold their own content."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of the console."""
        told = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event["method"] in told]


@contextmanager
def start_browser(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; ended at the end."""
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()
    # the protocol's pipes are the files 3 and 4
    script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    flags = [*FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", script, "browser", str(CHROMIUM), *flags],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        browser = Browser(commands, answers)
        yield browser
        browser.session = ""
        browser.ask("Browser.close")
    finally:
        os.close(commands)
        os.close(answers)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
