"""The pack holds the same bytes as the files; it is used only where it is whole and its own."""

import errno
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import tifffile

from common.command_line import UserError
from common.workers import WorkerError
from data_prep.dataset import pack
from data_prep.dataset.manifest import Dataset
from data_prep.dataset.pack import TrainingPixels, packed_path
from data_prep.dataset.samples import read_sample

pytestmark = pytest.mark.usefixtures("warm_workers")


def packs(dataset: Dataset) -> list[Path]:
    return sorted(dataset.folder.glob("packed/*"))


def test_a_name_that_is_not_utf_8_is_read_and_packed(
    prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    """As on a disk that was written with Latin-1: OpenCV's own reading crashes at such a name."""
    name = os.fsdecode(b"Caf\xe9_1-03")
    raw = tmp_path / "raw"
    shutil.copy(raw / "groundTruth/Case_1-01.json", raw / f"groundTruth/{name}.json")
    drawn = np.random.default_rng(6).integers(0, 256, (120, 160, 3), np.uint8)
    tifffile.imwrite(raw / f"images/{name}.tif", drawn, photometric="rgb")
    dataset = prepared(pack=True)
    samples = dataset.split("train")
    (number,) = (n for n, sample in enumerate(samples) if sample.id == f"{name}_v00_original")
    assert np.array_equal(read_sample(dataset.folder, samples[number])[0], drawn)
    packed_HW4 = TrainingPixels(dataset)[number].window(slice(None), slice(None))
    assert np.array_equal(packed_HW4[..., :3], drawn)


@pytest.mark.parametrize("cached", [True, False])
def test_rows_that_are_not_in_the_page_cache_are_asked_for_at_once(
    cached: bool, prepared: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = TrainingPixels(prepared(pack=True))
    looked_at, asked = [], []

    def is_cached(file: int, offset: int) -> bool:
        looked_at.append(offset)
        return cached

    monkeypatch.setattr(pack, "is_cached", is_cached)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *given: asked.append(given))
    pixels[1].window(slice(5, 61), slice(7, 30))
    row_bytes = 160 * 4
    start = 120 * row_bytes + 5 * row_bytes  # the sample before it is as large
    assert looked_at == [start + 28 * row_bytes]
    assert asked == ([] if cached else [(start, 56 * row_bytes, os.POSIX_FADV_WILLNEED)])


def on_the_disk_only(file: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
    """What preadv says of what is not in the page cache."""
    if flags & os.RWF_NOWAIT:
        raise BlockingIOError(errno.EAGAIN, "not now")
    return len(buffers[0])


def test_whether_a_file_is_in_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not known (macOS, some file systems) counts as yes: nothing is asked for then."""
    (tmp_path / "a").write_bytes(bytes(10_000))
    with (tmp_path / "a").open("rb") as file:
        assert pack.is_cached(file.fileno(), 5000), "it was written just now"
        monkeypatch.setattr(os, "preadv", on_the_disk_only)
        assert not pack.is_cached(file.fileno(), 5000)
        monkeypatch.setattr(os, "preadv", failing(errno.EOPNOTSUPP))
        assert pack.is_cached(file.fileno(), 5000)
        monkeypatch.delattr(os, "RWF_NOWAIT")
        monkeypatch.setattr(os, "preadv", failing(errno.EAGAIN))
        assert pack.is_cached(file.fileno(), 5000)


def test_a_process_that_was_not_forked_maps_the_pack_itself(
    prepared: Callable[..., Dataset],
) -> None:
    pixels = TrainingPixels(prepared(pack=True))
    sent = pickle.dumps(pixels)
    assert len(sent) < 10_000 < pixels.packed.size
    received = pickle.loads(sent)
    assert isinstance(received.packed, np.memmap)
    part = slice(5, 60), slice(7, 30)
    assert np.array_equal(received[1].window(*part), pixels[1].window(*part))


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_a_pack_holds_what_the_files_decode_to(
    prepared: Callable[..., Dataset], format: str
) -> None:
    dataset = prepared(pack=True, format=format)
    pixels = TrainingPixels(dataset)
    assert isinstance(pixels.packed, np.memmap), "ranks and workers would not share its pages"
    assert pixels.packed.mode == "r"
    samples = dataset.split("train")
    assert len(pixels) == len(samples) == 4
    shutil.rmtree(dataset.folder / "images")  # it does not read them again
    files = prepared(format=format)
    for number, sample in enumerate(samples):
        expected = np.dstack(read_sample(files.folder, sample))
        for rows, columns in ((slice(None), slice(None)), (slice(5, 60), slice(7, 30))):
            for either in (pixels[number], TrainingPixels(files)[number]):
                assert either.shape_hw == expected.shape[:2]
                assert np.array_equal(either.window(rows, columns), expected[rows, columns])


def test_a_pack_is_written_once_and_added_to_a_prepared_set(
    prepared: Callable[..., Dataset],
) -> None:
    without = prepared()
    assert packs(without) == []
    assert TrainingPixels(without).packed is None
    assert prepared(pack=True).description.content_sha256 == without.description.content_sha256
    (path,) = packs(without)
    assert path.stat().st_size == 4 * 2 * (120 * 160 + 77 * 91)
    written = path.stat().st_mtime_ns
    prepared(pack=True)
    assert path.stat().st_mtime_ns == written
    prepared()
    assert packs(without) == [path], "not asking for a pack removes none"


def test_a_pack_of_what_the_set_was_before_is_neither_used_nor_kept(
    prepared: Callable[..., Dataset],
) -> None:
    old = packs(prepared(pack=True))
    changed = prepared(radius_px=5)
    assert packs(changed) == []
    assert TrainingPixels(changed).packed is None
    new = packs(prepared(pack=True, radius_px=5))
    assert len(new) == 1
    assert new != old


@pytest.mark.parametrize(
    ("name", "other"), [("version", lambda library: f"{library} of tomorrow"), ("LAYOUT", "BGRL")]
)
def test_a_pack_of_another_decoder_or_layout_is_neither_used_nor_kept(
    prepared: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch, name: str, other: Any
) -> None:
    """It is of the same size."""
    dataset = prepared(pack=True)
    old = packs(dataset)
    assert TrainingPixels(dataset).packed is not None
    monkeypatch.setattr(pack, name, other)
    assert TrainingPixels(dataset).packed is None
    (new,) = packs(prepared(pack=True))
    assert [new] != old
    assert TrainingPixels(dataset).packed is not None


@pytest.mark.parametrize(
    ("labels", "classes", "is_binary"),
    [
        ("binary", ["tumor", "non_tumor"], True),
        ("per_class", ["tumor"], False),
    ],
)
def test_labels_that_may_be_interpolated(
    prepared: Callable[..., Dataset], labels: str, classes: list[str], is_binary: bool
) -> None:
    assert TrainingPixels(prepared(labels=labels, classes=classes)).is_binary == is_binary


def test_a_pack_that_is_not_whole_is_not_used_and_not_replaced(
    prepared: Callable[..., Dataset],
) -> None:
    dataset = prepared(pack=True)
    path = packed_path(dataset.folder, dataset.description.content_sha256)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    pixels = TrainingPixels(dataset)
    assert pixels.packed is None
    assert pixels[3].shape_hw == (77, 91)
    with pytest.raises(UserError, match=f"in the way.*: packed/{path.name}; move away"):
        prepared(pack=True)
    assert path.read_bytes() == whole[:-1]
    path.unlink()
    prepared(pack=True)
    assert path.read_bytes() == whole


def test_a_pack_that_was_copied_goes_with_what_it_was_made_of(
    prepared: Callable[..., Dataset], tmp_path: Path
) -> None:
    """With another time of change, as `cp -r` gives it."""
    folder = prepared(pack=True).folder
    folder.rename(tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", folder, copy_function=shutil.copyfile)
    (old,) = folder.glob("packed/*")
    assert packs(prepared(radius_px=5)) == []
    assert not (folder / ".eosin/pack/pack.json").exists()
    (new,) = packs(prepared(pack=True, radius_px=5))
    assert new != old


def test_other_files_beside_a_pack_are_left(prepared: Callable[..., Dataset]) -> None:
    """What data_prep wrote goes with what it was made of."""
    dataset = prepared(pack=True)
    (old,) = packs(dataset)
    mine = dataset.folder / "packed" / "mine.u8"
    mine.write_bytes(b"mine")
    prepared(pack=True, radius_px=5)
    assert mine.read_bytes() == b"mine"
    assert not old.exists()
    assert len(packs(dataset)) == 2


def test_workers_change_no_byte_of_a_pack(prepared: Callable[..., Dataset]) -> None:
    (path,) = packs(prepared(pack=True, workers=1))
    whole = path.read_bytes()
    path.unlink()
    prepared(pack=True, workers=4)
    assert path.read_bytes() == whole


Write = Callable[..., None]


@pytest.fixture
def write_anew(prepared: Callable[..., Dataset]) -> tuple[Write, Path]:
    """What writes the pack of a data set that has none, and the folder that it lies in."""
    dataset = prepared()

    def write() -> None:
        content_sha256 = dataset.description.content_sha256
        pack.write_pack(dataset.folder, dataset.samples, content_sha256, workers=2)

    return write, dataset.folder / "packed"


def failing(number: int) -> Callable[..., None]:
    def fail(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room, or prepare with pack=false"),
        (errno.EDQUOT, "make room, or prepare with pack=false"),
        (errno.EIO, "prepare with pack=false"),
    ],
)
def test_a_full_disk_is_told_before_anything_is_decoded(
    number: int, advice: str, write_anew: tuple[Write, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, folder = write_anew
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    monkeypatch.setattr(pack, "map_tasks", None)
    with pytest.raises(UserError) as caught:
        write()
    reason = os.strerror(number)
    assert str(caught.value) == f"{folder}: {reason}; the pack takes 0.2 MB: {advice}"
    assert list(folder.iterdir()) == []


def test_a_limit_to_the_size_of_files_is_told(write_anew: tuple[Write, Path]) -> None:
    """A real one: there is room, and the system refuses all the same."""
    write, folder = write_anew
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"File too large; .*0\.2 MB: prepare with"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []


def test_a_pack_that_may_not_be_opened_is_told_why(
    write_anew: tuple[Write, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, folder = write_anew
    may_open = Path.open

    def opened(path: Path, mode: str = "r", **options: object) -> IO[Any]:
        if path.parent == folder.parent / ".eosin/pack" and mode == "wb":
            failing(errno.EACCES)()
        return may_open(path, mode, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(UserError, match="Permission denied; the pack takes"):
        write()
    assert list(folder.iterdir()) == []


def test_a_pack_that_fails_or_is_interrupted_leaves_nothing(
    write_anew: tuple[Write, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, folder = write_anew
    victim = min((folder.parent / "images").iterdir())
    whole = victim.read_bytes()
    victim.write_bytes(b"")
    with pytest.raises(WorkerError, match="damaged, cannot be decoded"):
        write()
    assert list(folder.iterdir()) == []
    victim.write_bytes(whole)

    def interrupted(*given: object, **options: object) -> None:
        (temporary,) = (folder.parent / ".eosin/pack").glob(".*.tmp")
        assert temporary.stat().st_size > 0
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack, "track", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write()
    assert list(folder.iterdir()) == []
    write()
    assert len(list(folder.iterdir())) == 1


def test_a_pack_where_space_cannot_be_reserved(
    prepared: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no posix_fallocate."""
    (path,) = packs(prepared(pack=True))
    whole = path.read_bytes()
    path.unlink()
    monkeypatch.delattr(os, "posix_fallocate")
    prepared(pack=True)
    assert path.read_bytes() == whole
