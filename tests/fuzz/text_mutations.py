"""Mutate JSON, tables, YAML and other texts."""

import json
from typing import Any

import numpy as np

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, 1e308, -1e308, 2**31, 2**63, 10**40, float("nan"),
    float("inf"), "", "x", "0", "1.5", "tumor", "Tumor", "../../x", "/etc/passwd", "\u0000",
    "\u001b[31mred", "line\nline", "${oc.env:FUZZ_SECRET}", "${a}", "\ud800", [], {}, [[]], [{}],
    [1, 2], {"x": 1}, {"name": "tumor"}, [None], [[[[[]]]]], "a" * 5000, "e\u0301", "\u00e9",
    "\u202e",
)  # fmt: skip
SIGNS = ("\t", ";", ",", '"', "'", "\r", "\r\n", "\n\n", "\x00", "\u2028", " ", ",,,\n", "\ufeff",
         "NaN", "1e400", "1_000", "0x10", "-0", "\u0661", "=1+1")  # fmt: skip
YAML = (
    "&a [*a, *a]",
    "!!python/object/apply:os.system [id]",
    "${oc.env:FUZZ_SECRET}",
    "[" * 300,
    "{}",
    "!!binary aGk=",
    "*nowhere",
    "<<: {epochs: 1}",
    "? a",
    "|\n  x",
    "0o17",
    "1:30",
    "~",
    "'",
    "&a [x,x,x,x,x,x,x,x]",
    "2024-01-01",
    ".nan",
    "-.inf",
    "yes",
    "\ttab",
    "1e999999",
)


def mutate_json(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a mutated JSON file, and what was done to it."""
    if rng.random() < 0.2:
        return mutate_bytes(content, rng)
    parsed = json.loads(content)
    what = []
    for _ in range(int(rng.integers(1, 3))):
        parsed, done = with_change(parsed, rng)
        what.append(done)
    if rng.random() < 0.05:
        depth = int(rng.choice((50, 900, 5000, 100_000)))
        text = json.dumps(parsed)[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
        return text.encode(), f"nested {depth} deep"
    text = json.dumps(parsed, ensure_ascii=bool(rng.random() < 0.5))
    if rng.random() < 0.1:
        text, done = with_repeated_key(text, rng)
        what.append(done)
    encoding = str(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")))
    return text.encode(encoding, "surrogatepass"), ", ".join([*what, encoding])


def with_change(parsed: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """Change, remove, rename or repeat one of the values."""
    holders = [holder for holder in containers(parsed) if holder]
    if not holders:
        return VALUES[int(rng.integers(len(VALUES)))], "another value"
    holder = holders[min(int(rng.geometric(0.25)) - 1, len(holders) - 1)]
    if rng.random() < 0.5:
        holder = holders[int(rng.integers(len(holders)))]
    keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = keys[int(rng.integers(len(keys)))]
    value = VALUES[int(rng.integers(len(VALUES)))]
    way = rng.random()
    if way < 0.55:
        holder[key] = value
        return parsed, f"{key!r:.40} becomes {value!r:.40}"
    if way < 0.75:
        del holder[key]
        return parsed, f"without {key!r:.40}"
    if isinstance(holder, dict):
        name = str(key)
        names = (name.upper(), name.capitalize(), f"{name} ", f"\u200b{name}", "", "tubule")
        other = str(rng.choice((*names, *map(str, keys))))
        holder[other] = holder.pop(key)
        return parsed, f"{key!r:.40} is called {other!r:.40}"
    if way < 0.9:
        holder.append(holder[key])
        return parsed, f"entry {key} twice"
    holder.insert(key, value)
    return parsed, f"{value!r:.40} before entry {key}"


def containers(parsed: Any) -> list[Any]:
    """Return every list and object, the outermost first."""
    found, todo = [], [parsed]
    while todo:
        entry = todo.pop(0)
        if isinstance(entry, dict | list):
            found.append(entry)
            todo += entry.values() if isinstance(entry, dict) else entry
    return found


def with_repeated_key(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """Let the first key come again, with another value."""
    value = json.dumps(VALUES[int(rng.integers(len(VALUES)))])
    key = text[1 : text.find(":")] if text.startswith("{") and ":" in text else '"a"'
    if not text.startswith("{") or text == "{}":
        return text, "as it is"
    return f"{text[:-1]}, {key}: {value}}}", f"{key:.40} twice"


def mutate_bytes(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Flip bits, cut, append, repeat or swap parts."""
    way, place = int(rng.integers(6)), int(rng.integers(max(len(content), 1)))
    if way == 0 and content:
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed), f"a bit of byte {place} turned"
    if way == 1:
        return content[:place], f"cut at byte {place}"
    if way == 2:
        return content + rng.bytes(int(rng.integers(1, 30))), "with bytes at its end"
    if way == 3:
        size = int(rng.integers(1, 40))
        return content[:place] + content[place + size :], f"without {size} bytes from {place} on"
    if way == 4:
        size = int(rng.integers(1, 40))
        part = content[place : place + size]
        return content[:place] + part + content[place:], f"{len(part)} bytes from {place} on twice"
    sign = SIGNS[int(rng.integers(len(SIGNS)))]
    return content[:place] + sign.encode() + content[place:], f"{sign!r} at byte {place}"


def mutate_table(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a mutated CSV, and what was done to it."""
    way = rng.random()
    text = content.decode()
    if way < 0.3:
        return mutate_bytes(content, rng)
    if way < 0.5:
        content, what = rewritten(text, rng)
        if rng.random() < 0.5:
            content, done = mutate_bytes(content, rng)
            what = f"{what}, {done}"
        return content, what
    lines = text.splitlines()
    row, cell = int(rng.integers(len(lines))), int(rng.integers(4))
    if way < 0.9:
        cells = (lines[row].split(",") + [""] * 4)[:4]
        values = [*SIGNS, "", "tumor", "Tumor", "tumor ", "-1", "1e9", "5,5", "Case_2-01.png",
                  *map(str, VALUES[:15]), cells[cell] + " "]  # fmt: skip
        value = str(rng.choice(values))
        cells[cell] = value
        lines[row] = ",".join(cells)
        return "\n".join([*lines, ""]).encode(), f"line {row + 1}, cell {cell}: {value!r:.40}"
    other = int(rng.integers(len(lines)))
    lines.insert(other, str(rng.choice((lines[row], ",,,", "", ";;;", "#", lines[row] + ","))))
    return "\n".join([*lines, ""]).encode(), f"line {other + 1}: {lines[other]!r:.40}"


def rewritten(text: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """Write a table as other programs would."""
    separator = str(rng.choice((",", ";", "\t", "|")))
    decimal = str(rng.choice((".", ","))) if separator != "," else "."
    lines = []
    for number, line in enumerate(text.splitlines()):
        cells = line.split(",")
        if number:
            cells[1:3] = [cell.replace(".", decimal) for cell in cells[1:3]]
        if rng.random() < 0.1:
            cells = [f'"{cell}"' for cell in cells]
        lines.append(separator.join(cells))
    if rng.random() < 0.3:
        lines[0] = str(rng.choice((lines[0].upper(), lines[0].title())))
    ending = str(rng.choice(("\n", "\r\n", "\r")))
    encoding = str(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be")))
    what = f"{separator!r}, decimal {decimal}, {ending!r}, {encoding}"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    return mark + ending.join([*lines, ""]).encode(encoding), what


def mutate_yaml(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return mutated settings, and what was done to them."""
    if rng.random() < 0.25:
        return mutate_bytes(content, rng)
    lines = content.decode().splitlines()
    number = int(rng.integers(len(lines)))
    key, colon, _ = lines[number].partition(":")
    way = rng.random()
    if way < 0.6 and colon:
        values = [*YAML, *(json.dumps(value) for value in VALUES)]
        lines[number] = f"{key}: {values[int(rng.integers(len(values)))]}"
    elif way < 0.75:
        del lines[number]
    elif way < 0.9:
        lines.insert(int(rng.integers(len(lines))), lines[number])
    else:
        lines.insert(
            number, str(rng.choice(("unknown: 1", "- a", "  b: 2", "---", "... ", "%YAML 9.9")))
        )
    what = f"line {number + 1}: {lines[min(number, len(lines) - 1)]!r:.60}"
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"), what


def mutate_lines(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Return a mutated file of JSON lines, and what was done to it."""
    lines = content.splitlines()
    if rng.random() < 0.2 or not lines:
        return mutate_bytes(content, rng)
    number = int(rng.integers(len(lines)))
    way = rng.random()
    if way < 0.7:
        try:
            parsed, what = with_change(json.loads(lines[number]), rng)
        except ValueError:  # a second mutation of a file that is none any more
            return mutate_bytes(content, rng)
        lines[number] = json.dumps(parsed).encode()
    elif way < 0.85:
        lines.insert(number, lines[int(rng.integers(len(lines)))])
        what = "a line twice"
    else:
        del lines[number]
        what = "a line missing"
    return b"\n".join([*lines, b""]), f"line {number + 1}: {what}"
