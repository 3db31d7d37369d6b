"""A zip file into a folder beside it, wholly or not at all.

A zip from the web is not trusted: nothing is written outside of the folder, and no links.
"""

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from common.command_line import UserError, track
from common.ownership import PRIVATE, begin, clear, is_plain, leave

KIND = "unpack"  # private folder
JUNK = ("__MACOSX", ".DS_Store")  # what macOS puts into its zip files
UNREADABLE = (
    zipfile.BadZipFile,
    ValueError,
    NotImplementedError,  # a method of compression that Python does not know
    RuntimeError,  # a password
    zlib.error,
    lzma.LZMAError,
    EOFError,
    FileExistsError,  # a file that another file takes for a folder
    NotADirectoryError,
)


def unpack(archive: Path) -> Path:
    """Unpack BreCaHAD.zip into BreCaHAD/ beside it, and return that folder.

    It gets its name only when whole: killed in between, it begins anew. A single folder of the
    archive's name at the top of the archive is that folder. Raises UserError for an archive that
    cannot be unpacked or would not fit, and for a folder that is there and holds something else.
    """
    folder = folder_of(archive)
    temporary = archive.parent / PRIVATE / KIND / f"{archive.stem}.tmp"
    try:
        with zipfile.ZipFile(archive) as opened:
            files = files_in(opened.infolist(), archive.stem)
            if folder.exists():
                check_unpacked(folder, files, archive)
                return folder
            begin(archive.parent, KIND)
            remove_unfinished(temporary, files)
            num_bytes = sum(info.file_size for info in files.values())
            check_space(archive.parent, num_bytes, f"unpacking {archive.name}")
            temporary.mkdir()
            infos = track(
                files.items(), total=len(files), label=f"unpack {archive.name}", unit="file"
            )
            for path, info in infos:
                write(opened, info, temporary / path)
    except UNREADABLE as error:
        raise UserError(f"{archive}: {error}; look at it, and unpack it by hand") from None
    temporary.rename(folder)
    leave(archive.parent, KIND)
    return folder


def folder_of(archive: Path) -> Path:
    """Where an archive is unpacked."""
    return archive.with_suffix("")


def remove_unfinished(folder: Path, files: Iterable[PurePosixPath]) -> None:
    """Remove what an unpacking that was killed has left, and nothing else. Raises UserError where
    there is something else."""
    known = {str(path) for path in files}
    clear(folder, known.__contains__)
    with suppress(OSError):  # not there, or not empty
        folder.rmdir()
    if os.path.lexists(folder):
        raise UserError(f"{folder}: holds what is not in the archive; move it away, and run again")


def files_in(infos: Iterable[zipfile.ZipInfo], stem: str) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files of an archive by their path in the folder. Raises ValueError for a hostile one."""
    found = {}
    for info in infos:
        if info.is_dir():
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"holds a link, {info.filename!r}")
        path = safe_path(info.filename)
        if not set(path.parts) & set(JUNK):
            found[path] = info
    if all(path.parts[0] == stem and len(path.parts) > 1 for path in found):
        return {path.relative_to(stem): info for path, info in found.items()}
    return found


def safe_path(name: str) -> PurePosixPath:
    """A path from outside, where it stays in the folder it is meant for; else ValueError."""
    path = PurePosixPath(name)
    if not path.parts or not all(map(is_plain, path.parts)) or "\\" in name:
        raise ValueError(f"holds a file that would lie outside of its folder, {name!r}")
    return path


def write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Write one file of an archive. Raises BadZipFile where its checksum is wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(info) as source, path.open("xb") as target:
        shutil.copyfileobj(source, target)


def check_unpacked(
    folder: Path, files: dict[PurePosixPath, zipfile.ZipInfo], archive: Path
) -> None:
    """Raises UserError where a folder does not hold what the archive does."""
    for path, info in files.items():
        file = folder / path
        if not file.is_file() or file.stat().st_size != info.file_size:
            raise UserError(
                f"{folder}: {path} is not as in {archive.name}; move the folder away, and run again"
            )


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raises UserError where a disk has no room for so many bytes more."""
    free_bytes = shutil.disk_usage(folder).free
    if num_bytes > free_bytes:
        raise UserError(
            f"{folder}: {what} takes {num_bytes / 1e9:.2f} GB, and the disk has"
            f" {free_bytes / 1e9:.2f} GB left; make room, or name another out="
        )
