"""Copy standard input to the terminal (stderr) and to a log (stdout).

A process of its own between a stage on this machine and the terminal. It ends when everybody who
writes has ended, so that a log is whole also where launch/submit.py was killed. It imports nothing
large, since it starts with each stage.

On a terminal a progress bar is drawn again and again on the same line. The log gets what the line
held in the end, and the bar every EVERY_S.
"""

import contextlib
import os
import time

READ_BYTES = 2**16
EVERY_S = 30.0
BEGINNING, END = b"\r", b"\n"
TERMINAL, LOG = 2, 1


class Log:
    """Writes lines without what was drawn over."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.line = b""
        """The line that has not ended yet."""
        self.written_s = time.monotonic()

    def add(self, piece: bytes) -> None:
        """Write the lines that end in this piece."""
        *lines, self.line = (self.line + piece).split(END)
        for line in lines:
            self.write(line)
        if BEGINNING in self.line.rstrip(BEGINNING):
            if time.monotonic() >= self.written_s + EVERY_S:
                self.write(self.line)
            self.line = BEGINNING + self.line.rpartition(BEGINNING)[2]  # or it would grow

    def write(self, line: bytes) -> None:
        """Write a line as it looked in the end, unless it was only wiped."""
        shown = line.rstrip(BEGINNING).rpartition(BEGINNING)[2]
        if shown.strip() or BEGINNING not in line.rstrip(BEGINNING):
            write_all(self.descriptor, shown + END)
            self.written_s = time.monotonic()


def write_all(descriptor: int, content: bytes) -> None:
    """Write everything; a closed terminal and a full disk do not end the stage."""
    with contextlib.suppress(OSError):
        while content:
            content = content[os.write(descriptor, content) :]


def read(descriptor: int) -> bytes:
    """Return what comes next, b'' at the end."""
    try:
        return os.read(descriptor, READ_BYTES)
    except OSError:  # of a pseudo terminal that everybody has closed
        return b""


def main() -> None:
    """Copy to the end of the input."""
    log = Log(LOG)
    while piece := read(0):
        write_all(TERMINAL, piece)
        log.add(piece)
    if log.line.strip():
        log.write(log.line)


if __name__ == "__main__":
    main()
