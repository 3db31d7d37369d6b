"""What a command replaces and removes: its own files that nobody has changed, and nothing else."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common import files, ownership
from common.command_line import UserError
from common.file_records import Record, is_whole
from common.ownership import Item


@pytest.fixture
def item(tmp_path: Path) -> Callable[..., Item]:
    """item() is the item of a command that begins to work."""

    def begin(name: str = "one") -> Item:
        ownership.make_private(tmp_path, "things")
        return Item(tmp_path, "things", name)

    return begin


@pytest.fixture
def publish(item: Callable[..., Item]) -> Callable[..., Item]:
    """publish(**{"a.txt": "content"}) writes the item's files."""

    def do(name: str = "one", **files: str) -> Item:
        with item(name) as own:
            for path, content in files.items():
                own.write(path, content.encode())
            own.publish({"done": True})
        return own

    return do


def visible(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_own_files_are_replaced_and_what_the_item_has_no_more_is_removed(
    publish: Callable[..., Item], tmp_path: Path
) -> None:
    publish(a="old", b="old")
    assert visible(tmp_path) == {"a": "old", "b": "old"}
    own = publish(a="new", c="new")
    assert visible(tmp_path) == {"a": "new", "c": "new"}
    assert (own.read().about, sorted(own.read().files)) == ({"done": True}, ["a", "c"])
    own.remove()
    assert visible(tmp_path) == {}
    assert own.read() == Record()


@pytest.mark.parametrize("stranger", ["file", "link", "folder", "changed", "another item's"])
def test_what_is_not_ours_stays_and_is_named(
    stranger: str, publish: Callable[..., Item], item: Callable[..., Item], tmp_path: Path
) -> None:
    publish(b="ours")
    path = tmp_path / "a"
    if stranger == "file":
        path.write_text("mine")
    elif stranger == "link":
        (tmp_path / "elsewhere").write_text("mine")
        path.symlink_to(tmp_path / "elsewhere")
    elif stranger == "folder":
        path.mkdir()
    elif stranger == "changed":
        publish(a="ours", b="ours")
        path.write_text("mine")
    else:
        publish("other", a="mine")
    before = visible(tmp_path)
    with item() as own:
        own.write("b", b"new")
        own.write("a", b"new")
        with pytest.raises(UserError, match=r"1 file in the way.*: a; move away"):
            own.publish()
    assert visible(tmp_path) == before
    assert not list((tmp_path / ".eosin/things").glob("*.tmp"))
    with pytest.raises(UserError, match="a; move away what is yours and run again, or name"):
        item().check(["b", "a"])
    item().remove()
    assert "a" in os.listdir(tmp_path), "removed with the item"


def test_a_file_of_the_same_size_and_another_time_is_told_by_its_content(
    publish: Callable[..., Item], tmp_path: Path
) -> None:
    own = publish(a="1", b="1")
    os.utime(tmp_path / "a", ns=(5, 5))
    assert own.conflicts(["a", "b"]) == []
    (tmp_path / "b").write_text("2")
    assert own.conflicts(["a", "b"]) == ["b"]


@pytest.mark.parametrize("look", [1, 2])
def test_a_file_that_another_process_takes_away_meanwhile_is_no_conflict(
    look: int, publish: Callable[..., Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two workers take dataset.json away: right after either look at it."""
    own = publish(a="ours")
    lexists, looks = os.path.lexists, []

    def taken_after_a_look(path: Path) -> bool:
        found = lexists(path)
        looks.append(path)
        if found and len(looks) == look:
            path.unlink()
        return found

    monkeypatch.setattr(os.path, "lexists", taken_after_a_look)
    own.remove_file("a")
    assert visible(tmp_path) == {}


def test_a_huge_file_that_was_copied_is_known_by_its_size_and_its_ends(
    item: Callable[..., Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "END_BYTES", 3)
    with item() as own:
        own.make("huge", is_by_ends=True).write_text("abc much def")
        own.make("small", is_by_ends=True).write_text("ab")
        own.publish()
    for name in ("huge", "small"):
        os.utime(tmp_path / name, ns=(5, 5))
    assert own.conflicts(["huge", "small"]) == []
    for changed in ("abX much def", "abc much Xef", "abc much  def"):
        (tmp_path / "huge").write_text(changed)
        assert own.conflicts(["huge"]) == ["huge"], changed
    (tmp_path / "small").write_text("aX")
    assert own.conflicts(["small"]) == ["small"]


def test_a_file_that_a_power_loss_emptied_is_ours_and_is_not_whole(
    publish: Callable[..., Item], tmp_path: Path
) -> None:
    own = publish(a="ours", b="ours", c="ours")
    for name in ("a", "b", "mine"):
        (tmp_path / name).write_text("")
    (tmp_path / "c").unlink()
    (tmp_path / "c").symlink_to(tmp_path / "mine")
    assert own.conflicts(["a", "b", "c", "mine"]) == ["c", "mine"]
    assert not is_whole(own.read(), tmp_path, "a")
    (tmp_path / "c").unlink()
    publish(a="new")
    assert visible(tmp_path) == {"a": "new", "mine": ""}


def test_the_record_stays_while_a_file_of_it_does(
    publish: Callable[..., Item], tmp_path: Path
) -> None:
    own = publish(a="ours", b="ours")
    (tmp_path / "a").write_text("mine")
    assert not own.remove()
    assert visible(tmp_path) == {"a": "mine"}
    assert sorted(own.read().files) == ["a", "b"]
    (tmp_path / "a").unlink()
    assert own.remove()
    assert own.read() == Record()


def test_nothing_is_written_or_removed_behind_a_link(
    item: Callable[..., Item], tmp_path: Path
) -> None:
    for folder in ("sub", "elsewhere"):
        (tmp_path / folder).mkdir()
    with item() as own:
        own.write("sub/a", b"ours")
        own.publish()
    (tmp_path / "sub").rename(tmp_path / "elsewhere/moved")
    (tmp_path / "sub").symlink_to(tmp_path / "elsewhere/moved")
    with item() as own:
        own.write("sub/a", b"new")
        with pytest.raises(UserError, match=": sub; move away"):
            own.publish()
    own.remove()
    assert (tmp_path / "elsewhere/moved/a").read_bytes() == b"ours"


@pytest.mark.parametrize("path", [".eosin", ".eosin/things"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_private_folder_that_is_none_is_refused(path: str, kind: str, tmp_path: Path) -> None:
    place = tmp_path / "out" / path
    place.parent.mkdir(parents=True)
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.write_text("mine")
    with pytest.raises(UserError, match=f"{path}: must be this program's own folder"):
        ownership.make_private(tmp_path / "out", "things")


def test_no_folder_of_a_private_path_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs/a.bands").mkdir(parents=True)
    (tmp_path / "out/.eosin").mkdir(parents=True)
    (tmp_path / "out/.eosin/bands").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"\.eosin/bands: must be this program's own folder"):
        ownership.make_private(tmp_path / "out", "bands/a.bands")


def test_a_record_from_elsewhere_claims_nothing_outside(
    publish: Callable[..., Item], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    own = publish(a="ours")
    version = [4, files.file_sha256(victim)]
    for name in ("../victim", str(victim), "a/../../victim", ""):
        own.file.write_text(json.dumps({"files": {name: [version]}, "about": {}}))
        assert own.read().files == {}


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"files": 1, "about": {}}', '{"files": {"a": [1]}}', "[" * 10**4 + "]" * 10**4],
    ids=["empty", "list", "number", "half", "deep"],
)
def test_a_damaged_record_claims_nothing(
    content: str, publish: Callable[..., Item], tmp_path: Path
) -> None:
    own = publish(a="ours")
    own.file.write_text(content)
    assert own.read() == Record()
    assert own.conflicts(["a"]) == ["a"]


def test_what_a_killed_process_was_making_is_cleared_and_nothing_else(
    item: Callable[..., Item], tmp_path: Path
) -> None:
    own = item()
    own.write("a", b"half")
    for name in ("notes.tmp", ".mine.tmp"):
        (own.making / name).write_text("mine")
    (tmp_path / "elsewhere").write_text("mine")
    (own.making / f".{'a' * 16}.tmp").symlink_to(tmp_path / "elsewhere")
    ownership.clear_temporaries(tmp_path, "things")
    assert sorted(os.listdir(own.making)) == [".aaaaaaaaaaaaaaaa.tmp", ".mine.tmp", "notes.tmp"]


def test_a_refusal_names_ten_files_and_counts_them_all(tmp_path: Path) -> None:
    told = str(ownership.refusal(tmp_path, [f"{number}.png" for number in range(12)]))
    assert "12 files in the way" in told
    assert "8.png, 9.png and 2 more; move away" in told


def publish_new(own: Item, durably: bool, is_by_ends: bool) -> None:
    with own:
        for name in ("a", "b"):
            own.make(name, is_by_ends=is_by_ends).write_text("new")
        own.publish({"done": True}, durably=durably)


@pytest.mark.parametrize("is_by_ends", [False, True])
@pytest.mark.parametrize(("durably", "num_changes"), [(False, 7), (True, 5)])
@pytest.mark.parametrize("instant", range(9))
def test_killed_at_any_change_no_file_of_ours_passes_for_the_users(
    instant: int,
    durably: bool,
    num_changes: int,
    is_by_ends: bool,
    publish: Callable[..., Item],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each change of a name is an instant; the user's own file is never ours.

    There are two records, a file that goes for good and two that come; and, unless durably, the two
    in whose place they come go first.
    """
    own = publish(a="old", b="old", c="old")
    left = instant

    def dying(change: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return change(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            publish_new(own, durably, is_by_ends)
            was_killed = False
        except KeyboardInterrupt:
            was_killed = True
    assert was_killed == (instant < num_changes)
    own, there = Item(tmp_path, "things", "one"), visible(tmp_path)
    assert own.conflicts(["a", "b", "c"]) == []
    assert (own.read().about == {"done": True}) == (not was_killed or instant == 0)
    if durably:
        assert {"a", "b"} <= there.keys(), "a name stood for nothing"
    elif "b" in there:  # the last says that all are there
        wholes = ({"a": "old", "b": "old", "c": "old"}, {"a": "new", "b": "new"})
        assert there in wholes
    (tmp_path / "a").write_text("mine")
    assert own.conflicts(["a", "b", "c"]) == ["a"]


@pytest.mark.parametrize("is_by_ends", [False, True])
@pytest.mark.parametrize("durably", [False, True])
def test_what_a_power_loss_must_not_empty_is_on_the_disk_before_it_has_its_name(
    durably: bool,
    is_by_ends: bool,
    publish: Callable[..., Item],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record always; the files and their names where they are published durably."""
    own = publish(a="old", b="old")
    synced: list[int] = []  # numbers of files and folders
    named: list[tuple[str, bool]] = []  # name, whether the content was on the disk
    fsync = os.fsync

    def noting_sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def noting_name(change: Callable[..., None]) -> Callable[..., None]:
        def call(source: Path, target: Path) -> None:
            if target == own.file and len(named) > 1:
                named.append(("names", tmp_path.stat().st_ino in synced))
            named.append((Path(target).name, os.stat(source).st_ino in synced))
            change(source, target)

        return call

    monkeypatch.setattr(os, "fsync", noting_sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, noting_name(getattr(os, name)))
    publish_new(own, durably, is_by_ends)
    assert named == [
        ("one.json", True),
        ("a", durably),
        ("b", durably),
        ("names", durably),
        ("one.json", True),
    ]


def test_a_full_disk_is_told_with_the_folder_and_nothing_of_it_stays(small_disk: Path) -> None:
    def fill() -> None:
        with Item(small_disk, "things", "a") as item:
            item.write("a", b"x")
            item.make("b").write_bytes(b"x" * 2**17)

    with pytest.raises(OSError, match=r"No space left on device: '.*/disk'"):
        fill()
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
