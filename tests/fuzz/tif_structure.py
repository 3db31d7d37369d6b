"""The structure of a TIF file: its pages and their tags, to be read and written anew."""

import struct
from dataclasses import dataclass

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}
MOST_PAGES = 20
MOST_VALUES = 10_000
NDPI = 65420  # Hamamatsu's tag; behind the tags of a page stand the high halves of all offsets


@dataclass(frozen=True)
class Entry:
    """A tag of a page. `raw` are its value bytes, or those of the offset where they are."""

    tag: int
    kind: int
    count: int
    raw: bytes


@dataclass(frozen=True)
class Page:
    """A page's tags, where they stand, and where its pointer to the next page stands."""

    pointer: int
    """Where the offset of this page stands in the file."""
    offset: int
    entries: tuple[Entry, ...]
    following: int
    """The offset of the next page; 0 for the last."""


class Tif:
    """The structure of a TIF file, classic or big, of either byte order."""

    def __init__(self, content: bytes) -> None:
        """Raises struct.error or ValueError for what is not a TIF."""
        self.content = content
        self.order = {b"II": "<", b"MM": ">"}.get(content[:2], "")
        version = struct.unpack(self.order + "H", content[2:4])[0] if self.order else 0
        if version not in (42, 43):
            raise ValueError("no TIF")
        self.is_big = version == 43
        self.word, self.counter = ("Q", "Q") if self.is_big else ("I", "H")
        self.head = struct.Struct(self.order + "HH" + self.word)
        self.width = struct.calcsize(self.word)

    def unpack(self, code: str, offset: int) -> int:
        """Read a number. Raises struct.error past the end."""
        size = struct.calcsize(code)
        return int(struct.unpack(self.order + code, self.content[offset : offset + size])[0])

    def pages(self) -> list[Page]:
        """Read the pages until the chain ends, or leads out of the file or in a ring."""
        found: list[Page] = []
        pointer = 8 if self.is_big else 4
        while len(found) < MOST_PAGES:
            try:
                offset = self.unpack(self.word, pointer)
                if not offset or offset in [page.offset for page in found]:
                    break
                found.append(self.page(pointer, offset))
            except struct.error:
                break
            pointer = offset + struct.calcsize("=" + self.counter)
            pointer += len(found[-1].entries) * (self.head.size + self.width)
        return found

    def page(self, pointer: int, offset: int) -> Page:
        """Read a page. Raises struct.error where it leads out of the file."""
        count = self.unpack(self.counter, offset)
        start, step = offset + struct.calcsize("=" + self.counter), self.head.size + self.width
        entries = []
        for number in range(min(count, 200)):
            where = start + number * step
            head = self.content[where : where + self.head.size]
            raw = self.content[where + self.head.size : where + step]
            entries.append(Entry(*self.head.unpack(head), raw))
        return Page(pointer, offset, tuple(entries), self.unpack(self.word, start + count * step))

    def values(self, page: Page, tag: int) -> list[int]:
        """Return the numbers of a tag, as readers take them; none where there is no such tag."""
        for entry in page.entries:
            if entry.tag == tag and entry.kind in FORMATS and 0 < entry.count <= MOST_VALUES:
                code = f"{self.order}{entry.count}{FORMATS[entry.kind]}"
                inline = SIZES[entry.kind] * entry.count <= self.width
                place = int(struct.unpack(self.order + self.word, entry.raw)[0])
                source = entry.raw if inline else self.content[place:]
                try:
                    return [int(number) for number in struct.unpack_from(code, source)]
                except struct.error:
                    return []
        return []

    def value(self, page: Page, tag: int) -> int | None:
        """Return the first number of a tag; None where there is none."""
        return next(iter(self.values(page, tag)), None)

    def fraction(self, page: Page, tag: int) -> tuple[int, int] | None:
        """Return the fraction of a tag; None where there is none."""
        for entry in page.entries:
            if entry.tag == tag and (entry.kind, entry.count) == (5, 1):
                place = int(struct.unpack(self.order + self.word, entry.raw)[0])
                source = entry.raw if self.width == 8 else self.content[place : place + 8]
                return struct.unpack(self.order + "II", source) if len(source) == 8 else None
        return None

    def with_page(self, page: Page, entries: tuple[Entry, ...], following: int) -> bytes:
        """Return the file with other tags for a page, written at its end."""
        listed = [self.head.pack(e.tag, e.kind, e.count % 2**32) + e.raw for e in entries]
        start = len(self.content) + len(self.content) % 2
        content = bytearray(self.content.ljust(start, b"\0"))
        content += struct.pack(self.order + self.counter, len(listed)) + b"".join(listed)
        content += struct.pack(self.order + self.word, following % 2 ** (8 * self.width))
        if any(entry.tag == NDPI for entry in page.entries):
            content += bytes(4 + 4 * len(listed))
        struct.pack_into(self.order + self.word, content, page.pointer, start)
        return bytes(content)
