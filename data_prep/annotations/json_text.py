"""Parse the JSON of annotations: linear in time, and without losing a part that is there twice."""

import json
from collections.abc import Collection
from typing import Any

from data_prep.raw import BadInputError


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
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"invalid JSON: {error}") from None
