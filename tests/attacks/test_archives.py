"""Archives of strangers: what cannot be trusted is refused, and leaves nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kdedge.data.unpack import ArchiveLimits, unpack
from kdedge.errors import DataError, ResourceError

Member = tuple[str, bytes]
SMALL = ArchiveLimits(free_bytes=1 << 20)  # small bombs are enough
GOOD: list[Member] = [("images/a.jpg", b"a"), ("images/b/c.jpg", b"cc")]


def tar_bytes(*members: tarfile.TarInfo | Member, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for member in members:
            info, data = member, b""
            if isinstance(member, tuple):
                info, data = tarfile.TarInfo(member[0]), member[1]
            assert isinstance(info, tarfile.TarInfo)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(kind: bytes, name: str = "images/x", link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_bytes(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
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

    def unpack_bytes(
        data: bytes,
        *,
        kind: str = "tar",
        into: str = "",
        top: str | None = "",
        gives: str = "images",
        limits: ArchiveLimits = SMALL,
    ):
        archive = folder.parent / f"a.{kind}"
        archive.write_bytes(data)
        unpack(archive, folder, gives=gives, into=into, top=top, limits=limits)

    return unpack_bytes


def check_untouched(folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["own.txt"]
    assert {path.name for path in folder.parent.iterdir()} <= {"set", "a.tar", "a.zip"}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_file_is_unpacked_whatever_its_compression(compress, run, folder):
    run(compress(tar_bytes(*GOOD)))
    assert (folder / "images/b/c.jpg").read_bytes() == b"cc"
    assert sorted(path.name for path in folder.iterdir()) == ["images", "own.txt"]


def test_a_zip_file_is_unpacked(run, folder):
    run(zip_bytes(("images/", b""), *GOOD), kind="zip")
    assert (folder / "images/b/c.jpg").read_bytes() == b"cc"


def test_members_come_below_the_folder_that_is_named(run, folder):
    run(tar_bytes(*GOOD), into="deep/er", gives="deep/er/images")
    assert (folder / "deep/er/images/a.jpg").exists()


@pytest.mark.parametrize("where", ["", "sets/", "a/sets/"])
def test_what_is_wanted_alone_is_taken_from_wherever_it_is(where, run, folder):
    members = [(f"{where}{name}", data) for name, data in GOOD]
    run(zip_bytes(*members, (f"{where}notes.txt", b"n")), kind="zip", top=None)
    assert (folder / "images/b/c.jpg").read_bytes() == b"cc"
    assert not list(folder.rglob("notes.txt"))


def test_two_archives_may_share_a_folder(run, folder):
    run(tar_bytes(*GOOD))
    run(tar_bytes(("images/d.jpg", b"d")), gives="images/d.jpg")
    assert {path.name for path in (folder / "images").iterdir()} == {"a.jpg", "b", "d.jpg"}


def test_what_a_killed_process_has_moved_already_stays(run, folder):
    (folder / "images").mkdir()
    (folder / "images/a.jpg").write_bytes(b"a")
    (folder / ".unpacking-a.tar").mkdir()
    (folder / ".unpacking-a.tar/half").touch()
    run(tar_bytes(*GOOD), gives="images/b/c.jpg")
    assert (folder / "images/b/c.jpg").exists()
    assert not (folder / ".unpacking-a.tar").exists()


def test_a_file_of_the_users_is_not_overwritten(run, folder):
    with pytest.raises(DataError, match=r"own\.txt exists and differs from the file in a\.tar"):
        run(tar_bytes(*GOOD, ("own.txt", b"other")))
    assert (folder / "own.txt").read_text() == "mine"


def test_what_tells_that_all_is_there_comes_last(run, folder):
    with pytest.raises(DataError, match="exists and differs"):
        run(tar_bytes(("images/a.jpg", b"a"), ("own.txt", b"other")))
    assert not (folder / "images").exists()


def test_modes_of_an_archive_are_not_taken_over(run, folder):
    member = tarfile.TarInfo("images/a")
    member.mode = 0o6777
    run(tar_bytes(member))
    assert stat.S_IMODE((folder / "images/a").stat().st_mode) & ~0o022 == 0o644 & ~0o022


BAD_NAMES = [
    "../escaped", "images/../../escaped", "/tmp/escaped", "//escaped", "..", "a\\..\\escaped",
    "C:/escaped",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_tar_member_that_leads_out_is_refused(name, run, folder):
    with pytest.raises(DataError, match="leads out of the target folder"):
        run(tar_bytes(*GOOD, (name, b"x")))
    check_untouched(folder)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_zip_member_that_leads_out_is_refused(name, run, folder):
    with pytest.raises(DataError, match="leads out of the target folder"):
        run(zip_bytes(*GOOD, (name, b"x")), kind="zip")
    check_untouched(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "is a link to /etc/passwd"),
        (tarfile.LNKTYPE, "is a link to /etc/passwd"),
        (tarfile.CHRTYPE, "is a device"),
        (tarfile.BLKTYPE, "is a device"),
        (tarfile.FIFOTYPE, "is a device"),
        (tarfile.GNUTYPE_SPARSE, "is a special file"),
        (b"Z", "is a special file"),
    ],
)
def test_a_tar_member_that_is_neither_file_nor_folder_is_refused(kind, message, run, folder):
    with pytest.raises(DataError, match=message):
        run(tar_bytes(*GOOD, special(kind)))
    check_untouched(folder)


def test_nothing_is_written_through_a_link(run, folder):
    link = special(tarfile.SYMTYPE, "images", link=str(folder))
    with pytest.raises(DataError, match="is a link"):
        run(tar_bytes(link, ("images/own.txt", b"other")))
    check_untouched(folder)
    assert (folder / "own.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (stat.S_IFLNK | 0o777, "is a link"),
        (stat.S_IFIFO | 0o644, "special"),
        (stat.S_IFCHR | 0o644, "special"),
    ],
)
def test_a_zip_member_that_is_neither_file_nor_folder_is_refused(mode, message, run, folder):
    with pytest.raises(DataError, match=message):
        run(zip_bytes(*GOOD, (zip_info("images/x", mode), b"/etc/passwd")), kind="zip")
    check_untouched(folder)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("images/a.jpg", b"b")], "appears twice"),
        ([("./images//a.jpg", b"b")], "appears twice"),
        ([("images/a.jpg/x", b"b")], "is both a file and a folder"),
        ([("images/b", b"b")], "appears twice"),
        ([("images/" + "n" * 300, b"b")], "is too long for a file name"),
        ([(".", b"b")], "is a file without a name"),
    ],
)
def test_names_that_cannot_all_be_are_refused(members, message, run, folder):
    with pytest.raises(DataError, match=message):
        run(tar_bytes(*GOOD, *members))
    check_untouched(folder)


def test_a_compressed_bomb_is_refused_before_it_fills_the_disk(run, folder):
    bomb = gzip.compress(tar_bytes(*GOOD, ("images/zeros", bytes(2 << 20))))
    with pytest.raises(DataError, match=r"unpacks to more than .* over 100 times its size"):
        run(bomb)
    check_untouched(folder)


def test_a_bomb_of_headers_is_refused(run, folder):
    """A name of a gigabyte would be read into memory."""
    info = tarfile.TarInfo("images/a")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match="a header claims 1073741824 bytes"):
        run(gzip.compress(tar_bytes(*GOOD)[:2048] + header + bytes(1 << 20)))
    check_untouched(folder)


def test_a_bomb_after_the_end_mark_is_refused(run, folder):
    with pytest.raises(DataError, match="unpacks to more than"):
        run(gzip.compress(tar_bytes(*GOOD) + bytes(2 << 20)))
    check_untouched(folder)


def test_a_zip_bomb_is_refused_by_what_it_says(run, folder):
    with pytest.raises(DataError, match="unpacks to more than"):
        run(zip_bytes(*GOOD, ("images/zeros", bytes(2 << 20))), kind="zip")
    check_untouched(folder)


def test_a_zip_file_that_says_less_than_it_holds_is_refused(run, folder):
    data = zip_bytes(*GOOD, ("images/zeros", bytes(2 << 20)))
    size, lie = (2 << 20).to_bytes(4, "little"), (9).to_bytes(4, "little")
    assert data.count(size) >= 1
    with pytest.raises(DataError, match="cannot be unpacked"):
        run(data.replace(size, lie), kind="zip")
    check_untouched(folder)


def test_too_many_members_are_refused(run, folder):
    with pytest.raises(DataError, match="more than 1 members"):
        run(tar_bytes(*GOOD), limits=ArchiveLimits(members=1))
    check_untouched(folder)


GZIPPED = gzip.compress(tar_bytes(("images/a", os.urandom(5000))))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an archive",
        GZIPPED[:3000],
        GZIPPED[:-6],
        GZIPPED[:3000] + bytes(4) + GZIPPED[3004:],
        tar_bytes(*GOOD)[:1024],
        tar_bytes(*GOOD)[:1300],
        tar_bytes(*GOOD)[:1024] + b"x" * 512 + tar_bytes(*GOOD)[1536:],
        b"\x28\xb5\x2f\xfd" + bytes(100),
    ],
)
def test_a_tar_file_that_is_cut_short_or_damaged_leaves_nothing(data, run, folder):
    with pytest.raises(DataError, match=r"a\.tar cannot be unpacked: .*\n *Remove it"):
        run(data)
    check_untouched(folder)


ZIPPED = zip_bytes(("images/a", os.urandom(5000)))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"not an archive", ZIPPED[:3000], ZIPPED[:100] + bytes(50) + ZIPPED[150:]),
        ZIPPED.replace(b"images/a", bytes(8)),  # a member without a name
    ],
)
def test_a_zip_file_that_is_cut_short_or_damaged_leaves_nothing(data, run, folder):
    with pytest.raises(DataError, match=r"a\.zip(:| cannot be unpacked:) .*\n.*[Rr]emove it"):
        run(data, kind="zip")
    check_untouched(folder)


def test_an_encrypted_zip_file_is_refused(run, folder):
    data = bytearray(zip_bytes(("images/a", b"x")))
    data[6] |= 1  # the flag in the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="encrypted"):
        run(bytes(data), kind="zip")
    check_untouched(folder)


def test_an_archive_without_what_it_should_give_leaves_nothing(run, folder):
    with pytest.raises(DataError, match="does not contain pictures"):
        run(tar_bytes(*GOOD), gives="pictures")
    check_untouched(folder)


def test_a_full_disk_leaves_nothing(small_disk, tmp_path):
    disk = small_disk(256)
    archive = tmp_path / "a.tar"
    archive.write_bytes(gzip.compress(tar_bytes(("images/zeros", bytes(1 << 20)))))
    with pytest.raises(ResourceError, match="the disk is full"):
        unpack(archive, disk, gives="images")
    assert list(disk.iterdir()) == []


def test_a_disk_that_is_too_small_is_seen_before(small_disk, tmp_path):
    disk = small_disk(256)
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_bytes(("images/zeros", bytes(1 << 20))))
    with pytest.raises(ResourceError, match=r"unpacking a\.zip needs 1\.0 MB"):
        unpack(archive, disk, gives="images")
