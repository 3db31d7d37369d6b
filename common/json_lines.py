"""Files of JSON lines, to which others may be writing.

This module imports nothing of the project, so every package may use it.
"""

import json
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; none where there is no file."""
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue  # being written, or cut short by a kill
    return entries
