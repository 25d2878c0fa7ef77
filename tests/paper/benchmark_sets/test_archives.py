"""Archives of strangers: nothing comes outside of the folder; what is refused leaves nothing."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kdedge.errors import DataError, ResourceError
from kdedge.paper.benchmark_sets.unpack import unpack

Member = tuple[str | zipfile.ZipInfo, bytes]
GOOD: list[Member] = [("images/a.jpg", b"a"), ("images/b/c.jpg", b"cc")]
LARGE = bytes(20 << 20)


def zip_bytes(*members: Member) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return buffer.getvalue()


def zip_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set's folder with a file of the user's in it."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "own.txt").write_text("mine")
    return folder


@pytest.fixture
def run(folder: Path) -> Callable[..., None]:
    """Unpacks these bytes."""

    def unpack_bytes(data: bytes, wanted: Sequence[str] = ("images",)) -> None:
        archive = folder.parent / "a.zip"
        archive.write_bytes(data)
        unpack(archive, folder, wanted)

    return unpack_bytes


def check_untouched(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["own.txt"]
    assert (folder / "own.txt").read_text() == "mine"
    assert {path.name for path in folder.parent.iterdir()} == {"set", "a.zip"}


@pytest.mark.parametrize("where", ["", "sets/", "a/sets/"])
def test_what_is_wanted_alone_is_taken_from_wherever_it_is(where, run, folder):
    members = [(f"{where}{name}", data) for name, data in [("images/", b""), *GOOD]]
    run(zip_bytes(*members, (f"{where}notes.txt", b"n"), (f"{where}split.json", b"{}")),
        ["images", "split.json", "other.txt"])  # fmt: skip
    assert (folder / "images/b/c.jpg").read_bytes() == b"cc"
    assert {path.name for path in folder.iterdir()} == {"images", "own.txt", "split.json"}


def test_what_a_killed_process_has_left_is_removed(run, folder):
    (folder / ".unpacking-a.zip/images").mkdir(parents=True)
    (folder / ".unpacking-a.zip/images/half").touch()
    run(zip_bytes(*GOOD))
    assert {path.name for path in folder.iterdir()} == {"images", "own.txt"}
    assert {path.name for path in (folder / "images").iterdir()} == {"a.jpg", "b"}


def test_modes_of_an_archive_are_not_taken_over(run, folder):
    run(zip_bytes((zip_info("images/a", stat.S_IFREG | 0o6777), b"x")))
    assert stat.S_IMODE((folder / "images/a").stat().st_mode) & ~0o022 == 0o644 & ~0o022


@pytest.mark.parametrize(
    "name",
    [
        *("../images/x", "images/../../x", "/tmp/images/x", "//images/x", "images/../../../x"),
        *("a\\..\\images/x", "C:/images/x"),
    ],
)
def test_a_member_whose_name_leads_out_stays_within(name, run, folder):
    run(zip_bytes(*GOOD, (name, b"x")))
    assert {path.name for path in folder.iterdir()} == {"images", "own.txt"}
    assert {path.name for path in folder.parent.iterdir()} == {"set", "a.zip"}
    assert not Path("/tmp/images/x").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_a_link_or_device_becomes_a_file(kind, run, folder):
    run(zip_bytes(*GOOD, (zip_info("images/x", kind), b"/etc/passwd")))
    assert not (folder / "images/x").is_symlink()
    assert (folder / "images/x").read_bytes() == b"/etc/passwd"


@pytest.mark.parametrize("name", ["images/a.jpg/x", "images/b", "images/" + "n" * 300])
def test_names_that_cannot_all_be_are_refused(name, run, folder):
    with pytest.raises(ResourceError, match="could not be written"):
        run(zip_bytes(*GOOD, (name, b"b")))
    check_untouched(folder)


def test_a_bomb_is_refused_by_what_it_says(run, folder):
    with pytest.raises(DataError, match=r"unpacks to more than .* over 100 times its size"):
        run(zip_bytes(*GOOD, ("images/zeros", LARGE)))
    check_untouched(folder)


def test_an_archive_that_says_less_than_it_holds_is_refused(run, folder):
    data = zip_bytes(*GOOD, ("images/zeros", LARGE))
    size, lie = len(LARGE).to_bytes(4, "little"), (9).to_bytes(4, "little")
    assert data.count(size) >= 1
    with pytest.raises(DataError, match="cannot be unpacked"):
        run(data.replace(size, lie))
    check_untouched(folder)


ZIPPED = zip_bytes(("images/a", os.urandom(5000)))


@pytest.mark.parametrize(
    "data",
    [b"", b"not an archive", ZIPPED[:3000], ZIPPED[:100] + bytes(50) + ZIPPED[150:]],
    ids=["empty", "text", "cut", "damaged"],
)
def test_an_archive_that_is_cut_short_or_damaged_leaves_nothing(data, run, folder):
    with pytest.raises(DataError, match=r"a\.zip cannot be unpacked: .*\n *Remove it"):
        run(data)
    check_untouched(folder)


def test_an_encrypted_archive_is_refused(run, folder):
    data = bytearray(zip_bytes(("images/a", b"x")))
    data[6] |= 1  # the flag in the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="encrypted"):
        run(bytes(data))
    check_untouched(folder)


@pytest.mark.parametrize(
    ("where", "message"),
    [(".", "the disk is full"), ("disk", r"unpacking a\.zip needs 1\.0 MB")],
)
def test_a_full_disk_is_seen_before_or_nothing_is_left(small_disk, tmp_path, where, message):
    disk = small_disk(256)
    archive = tmp_path / where / "a.zip"
    archive.write_bytes(zip_bytes(("images/zeros", bytes(1 << 20))))
    with pytest.raises(ResourceError, match=message):
        unpack(archive, disk, ["images"])
    assert [path for path in disk.iterdir() if path != archive] == []
