"""Mutate TIF files by their structure: tags, counts, types, offsets, the chain of pages."""

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tests.fuzz.tif_structure import FORMATS, SIZES, Entry, Page, Tif

EDGES = (0, 1, 2, 3, 4, 5, 8, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
RESOLUTION = (282, 283, 296)
MEANING = (254, 256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 320, 322, 323, 338, 339, 530)
PLACES = (273, 279, 324, 325, 330)


def mutate(content: bytes, rng: np.random.Generator, others: list[bytes]) -> tuple[bytes, str]:
    """Return a mutated TIF, and what was done to it. `others` are files to splice with."""
    done = []
    for _ in range(1 + int(rng.random() < 0.25)):
        mutation = MUTATIONS[int(rng.choice(len(MUTATIONS), p=WEIGHTS))]
        if mutation is splice:
            content, what = splice(content, rng, others)
        else:
            content, what = with_structure(content, rng, mutation)
        done.append(what)
    return content, ", ".join(done)


def with_structure(
    content: bytes, rng: np.random.Generator, mutation: Callable[..., tuple[bytes, str]]
) -> tuple[bytes, str]:
    """Mutate a page of a file; a byte of one that has no structure any more."""
    try:
        tif = Tif(content)
        pages = tif.pages()
    except (ValueError, struct.error):
        pages = []
    if not pages or not all(page.entries for page in pages):
        return flip(content, rng)
    number = 0 if rng.random() < 0.6 else int(rng.integers(len(pages)))
    changed, what = mutation(tif, pages[number], rng)
    return changed, f"page {number}: {what}"


def chosen(page: Page, rng: np.random.Generator) -> int:
    """Draw one of a page's tags, mostly one that says what the pixels mean or where they are."""
    told = [n for n, entry in enumerate(page.entries) if entry.tag in MEANING]
    placed = [n for n, entry in enumerate(page.entries) if entry.tag in PLACES]
    which = rng.random()
    pool = told if which < 0.6 else placed if which < 0.75 else list(range(len(page.entries)))
    return int(rng.choice(pool or range(len(page.entries))))


def replaced(tif: Tif, page: Page, number: int, entry: Entry | None, *more: Entry) -> bytes:
    """Return the file with one of a page's tags replaced or removed, and others added."""
    entries = list(page.entries)
    entries[number : number + 1] = [entry] if entry else []
    return tif.with_page(page, (*entries, *more), page.following)


def set_value(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Give a tag an edge value, or one of those that occur."""
    number = chosen(page, rng)
    entry = page.entries[number]
    value = int(rng.choice(EDGES)) if rng.random() < 0.8 else int(rng.integers(2**16))
    code = FORMATS.get(entry.kind, "I")
    size = SIZES.get(entry.kind, 4)
    if entry.count * size <= tif.width:  # the value itself, else where it stands
        packed = struct.pack(tif.order + code.upper(), value % 2 ** (8 * struct.calcsize(code)))
        raw = (packed + entry.raw[len(packed) :])[: tif.width]
    else:
        raw = struct.pack(tif.order + tif.word, value)
    what = f"tag {entry.tag} becomes {value}"
    return replaced(tif, page, number, replace(entry, raw=raw)), what


def set_element(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Change one of a tag's several values, where they stand outside of it."""
    far = [
        entry
        for entry in page.entries
        if entry.kind in FORMATS and entry.count * SIZES[entry.kind] > tif.width
    ]
    if not far:
        return set_value(tif, page, rng)
    entry = far[int(rng.integers(len(far)))]
    code = FORMATS[entry.kind].upper()
    size, which = SIZES[entry.kind], int(rng.integers(entry.count))
    where = int(struct.unpack(tif.order + tif.word, entry.raw)[0]) + which * size
    value = int(rng.choice(EDGES)) % 2 ** (8 * size)
    content = bytearray(tif.content)
    if where + size > len(content):
        return set_value(tif, page, rng)
    if rng.random() < 0.3 and which:  # two of them change places
        before = content[where - size : where]
        content[where - size : where] = content[where : where + size]
        content[where : where + size] = before
        return bytes(content), f"tag {entry.tag}: values {which - 1} and {which} change places"
    struct.pack_into(tif.order + code, content, where, value)
    return bytes(content), f"tag {entry.tag}[{which}] becomes {value}"


def set_count(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Give a tag another number of values."""
    number = chosen(page, rng)
    entry = page.entries[number]
    counts = (
        0,
        1,
        2,
        3,
        entry.count + 1,
        max(entry.count - 1, 0),
        2 * entry.count,
        2**31,
        2**32 - 1,
    )
    count = int(rng.choice(counts))
    what = f"tag {entry.tag} has {count} values"
    return replaced(tif, page, number, replace(entry, count=count)), what


def set_type(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Give a tag another type."""
    number = chosen(page, rng)
    kind = int(rng.choice((0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 16, 99)))
    what = f"tag {page.entries[number].tag} is of type {kind}"
    return replaced(tif, page, number, replace(page.entries[number], kind=kind)), what


def remove(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Take a tag out."""
    number = chosen(page, rng)
    return replaced(tif, page, number, None), f"without tag {page.entries[number].tag}"


def repeat(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Let a tag occur twice, with another value."""
    entry = page.entries[chosen(page, rng)]
    value = struct.pack(tif.order + tif.word, int(rng.choice(EDGES)))
    again = replace(entry, raw=value)
    return tif.with_page(page, (*page.entries, again), page.following), f"tag {entry.tag} twice"


def add(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Add a tag that the page has not, with a small value."""
    having = {entry.tag for entry in page.entries}
    tag = int(rng.choice([*sorted({*MEANING, 274, 297, 330, 532} - having)]))
    value = int(rng.choice((0, 1, 2, 3, 4, 6, 8, 16)))
    raw = struct.pack(tif.order + "H", value).ljust(tif.width, b"\0")
    entries = sorted((*page.entries, Entry(tag, 3, 1, raw)), key=lambda entry: entry.tag)
    return tif.with_page(page, tuple(entries), page.following), f"with tag {tag} = {value}"


def relink(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Let another page follow, or none, or what is no page."""
    offsets = [found.offset for found in tif.pages()]
    following = int(rng.choice([*offsets, 0, 8, len(tif.content) - 2, 2**31, 2**32 - 1]))
    return tif.with_page(page, page.entries, following), f"followed by the page at {following}"


def exchange(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Let two tags change their values."""
    first, second = (chosen(page, rng) for _ in range(2))
    entries = list(page.entries)
    a, b = entries[first], entries[second]
    entries[first], entries[second] = replace(b, tag=a.tag), replace(a, tag=b.tag)
    what = f"tags {a.tag} and {b.tag} change values"
    return tif.with_page(page, tuple(entries), page.following), what


def set_resolution(tif: Tif, page: Page, rng: np.random.Generator) -> tuple[bytes, str]:
    """Change or add a tag of the resolution, which says nothing about pixels."""
    tag = int(rng.choice(RESOLUTION))
    kind = 3 if tag == 296 else 5
    value = int(rng.choice(EDGES)) % 2**16 if tag == 296 else int(rng.integers(len(tif.content)))
    raw = struct.pack(tif.order + ("H" if kind == 3 else tif.word), value).ljust(tif.width, b"\0")
    others = [entry for entry in page.entries if entry.tag != tag]
    entries = sorted([*others, Entry(tag, kind, 1, raw)], key=lambda entry: entry.tag)
    return tif.with_page(page, tuple(entries), page.following), f"tag {tag} becomes {value}"


def of_bytes(change: Callable[..., tuple[bytes, str]]) -> Callable[..., tuple[bytes, str]]:
    """Make a mutation of a page's file from one of bytes."""
    return lambda tif, page, rng: change(tif.content, rng)


def flip(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Change some bytes."""
    changed = bytearray(content)
    places = [int(place) for place in rng.integers(len(content), size=int(rng.integers(1, 4)))]
    for place in places:
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed), f"a bit of the bytes {', '.join(map(str, places))} turned"


def cut(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Leave the end out."""
    size = int(rng.integers(len(content)))
    return content[:size], f"cut at byte {size}"


def append(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Add bytes at the end."""
    return content + rng.bytes(int(rng.integers(1, 200))), "with bytes at its end"


def splice(content: bytes, rng: np.random.Generator, others: list[bytes]) -> tuple[bytes, str]:
    """Go on with another file from some byte on."""
    other = others[int(rng.integers(len(others)))]
    place = int(rng.integers(1, max(2, min(len(content), len(other)))))
    return content[:place] + other[place:], f"another file from byte {place} on"


MUTATIONS: list[Callable[..., tuple[bytes, str]]] = [
    set_value, set_element, set_count, set_type, remove, repeat, add, relink, exchange,
    set_resolution, of_bytes(flip), of_bytes(cut), of_bytes(append), splice,
]  # fmt: skip
WEIGHTS = np.array([10, 4, 3, 2, 4, 2, 5, 1, 2, 1, 4, 2, 1, 1]) / 42
