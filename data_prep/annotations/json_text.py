"""Parse the JSON of annotations: linear in time, and without losing a part that is there twice."""

import gc
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.raw import BadInputError

MOST_BYTES = 2**29  # of a file of annotations: half a million nuclei, 10 times that in memory


def read_content(path: Path) -> bytes:
    """Read a file of annotations. Raises BadInputError if it is too large, or OSError."""
    if (num_bytes := path.stat().st_size) > MOST_BYTES:
        raise BadInputError(f"has {num_bytes:,} bytes, at most {MOST_BYTES:,}; split it")
    return path.read_bytes()


@contextmanager
def without_collecting() -> Iterator[None]:
    """Keep Python from looking for garbage, which takes longer than parsing a large file."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_json(content: bytes, keys: Collection[str] = ()) -> Any:
    """Parse JSON. Raises BadInputError with the reason, also if an object has one of the `keys`
    twice (any key, if none are named): json itself would keep the last in silence."""

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen and (key in keys or not keys):
                    raise BadInputError(f"{key!r:.60} occurs twice")
                seen.add(key)
        return found

    try:
        # json accepts NaN and Infinity; whoever reads the numbers refuses them
        return json.loads(content, object_pairs_hook=as_object)
    except BadInputError:
        raise
    except UnicodeDecodeError:
        is_packed = content.startswith((b"\x1f\x8b", b"PK"))
        found = "is compressed; unpack it" if is_packed else "is not UTF-8; save it as UTF-8"
        raise BadInputError(f"invalid JSON: {found}") from None
    except MemoryError:
        raise BadInputError(f"takes more memory than there is ({len(content):,} bytes)") from None
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"invalid JSON: {error}") from None
