"""The files of a raw folder: fields, bad files, and what a file's name says.

Two names are one if they are the same in Unicode's composed form (NFC) without blanks at their
ends: macOS writes "é" as two characters, and nobody sees a blank before an ending. A file is always
opened by the name that it has. annotations/pairing.py finds the fields.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UserError, printable
from common.files import is_plain

IMAGE_SUFFIXES = (
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg"),
    *(".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".tf2", ".tf8", ".btf"),  # kinds of TIF
    *(".mrxs", ".dcm"),
)
"""Endings of images, in lower case. The content decides how an image is read."""
OME = ".ome"  # stands before the ending, as in NAME.ome.tif
MOST_NAME_BYTES = 200  # a file name may have 255, and the names of results are longer

CHANGED = "was changed meanwhile; run again"  # the reason for a file that changed between two reads


class BadInputError(ValueError):
    """A file cannot be used; the message gives the reason, without the file's name."""


@dataclass(frozen=True)
class Field:
    """One field of view: its name, its case (patient) and its two files."""

    name: str
    case: str
    image: Path
    annotation: Path
    annotation_sha256: str = ""
    """Hash of this field's annotation, where one file annotates several fields; else ''."""


@dataclass(frozen=True)
class BadFile:
    """A raw file that cannot be used, and why."""

    file: str
    reason: str

    def __str__(self) -> str:
        """Return both for a line of a message; names may hold anything but '/'."""
        return f"{printable(self.file)}: {printable(self.reason)}"


class BadInputFilesError(UserError):
    """Raw files that cannot be used, listed with their reasons."""

    can_heal = False

    def __init__(self, bad: Sequence[BadFile], missed: str = "") -> None:
        """`missed`: what the set lacks without these files; '' if they may be left out."""
        listed = "\n".join(f"  {entry}" for entry in bad)
        advice = ", or leave them out with on_error=skip"
        if missed:
            advice = f" (others may be bad, too): without them there are {missed}"
        super().__init__(f"{len(bad)} bad file(s):\n{listed}\nCorrect them{advice}")


def composed(text: str) -> str:
    """Return a text in the form in which names are compared."""
    return unicodedata.normalize("NFC", text).strip()


def field_name(file: str) -> str:
    """Return the name of an image's field: the file's name without its endings.

    NAME.ome.tif and NAME.tif.tif are images called NAME.
    """
    name = composed(file)
    while True:
        stem, _, ending = name.rpartition(".")
        if not stem or f".{ending}".lower() not in (*IMAGE_SUFFIXES, OME):
            return name
        name = stem.rstrip()


def files_of_image(path: Path) -> list[Path]:
    """List the files that an image is read from: a .mrxs is the index of the folder beside it."""
    folder = path.with_suffix("")
    if path.suffix.lower() != ".mrxs" or not folder.is_dir():
        return [path]
    return [path, *sorted(file for file in folder.iterdir() if file.is_file())]


def name_problem(name: str) -> str:
    """Say why no file can have a field's name, or its case's, in its own; '' if one can."""
    if not is_plain(name):
        return "its name, or its case's, has control characters or is '..'; rename it"
    if (num_bytes := len(os.fsencode(name))) > MOST_NAME_BYTES:
        return f"its name has {num_bytes} bytes, at most {MOST_NAME_BYTES}; rename it"
    return ""


def list_files(folder: Path, suffixes: Sequence[str] = ()) -> list[Path]:
    """List the files of a folder with one of the endings, or all; Case_2 comes before Case_10.

    Hidden files and folders are passed over. A link to nothing counts as a file, so that reading it
    says what is wrong.
    """
    found = (
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (not suffixes or path.suffix.lower() in suffixes)
        and (path.is_file() or (path.is_symlink() and not path.exists()))
    )
    return sorted(found, key=lambda path: (natural_key(composed(path.name)), path.name))


def by_name(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Sort files by the names of the images that they are, or annotate: NAME or NAME.tif."""
    found = defaultdict(list)
    for path in files:
        annotated = path.name if path.suffix.lower() in IMAGE_SUFFIXES else path.stem
        found[field_name(annotated)].append(path)
    return dict(found)


def several_of_one_name(files: Sequence[Path], what: str = "two fields") -> str:
    """Name files that would be one field."""
    names = ", ".join(path.name for path in files)
    if len({unicodedata.normalize("NFC", path.name) for path in files}) < len(files):
        return f"{what} of one name: {names}, which Unicode writes in two ways; keep one"
    return f"{what} of one name: {names}; keep one"


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Return a key that sorts Case_2 before Case_10."""
    pieces = re.split(r"(\d+)", text)
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces if piece]
