"""Tar shards that are broken or hostile."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("webdataset")

from kdedge.data.sources.webdataset import open_source
from kdedge.errors import DataError


def shard(*infos: tuple[tarfile.TarInfo, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for info, data in infos:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, data: bytes = b"data") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def read(folder: Path, data: bytes, *, labeled: bool = False):
    path = folder / "s.tar"
    path.write_bytes(data)
    return open_source(str(path), class_names=("a", "b"), labeled=labeled)


def test_names_that_lead_out_of_the_folder_are_only_names(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    source = read(inner, shard(member("../../evil.jpg"), member("/etc/evil2.jpg")))
    assert [source.read(0), source.read(1)] == [b"data", b"data"]
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "s.tar"]


def test_links_and_devices_in_a_shard_are_not_followed(tmp_path):
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("b.jpg")
    hard.type, hard.linkname = tarfile.LNKTYPE, "c.jpg"
    device = tarfile.TarInfo("d.jpg")
    device.type = tarfile.CHRTYPE
    source = read(tmp_path, shard((link, b""), (hard, b""), (device, b""), member("c.jpg")))
    assert [item.key for item in source.items] == ["s.tar/c"]


@pytest.mark.parametrize("claimed", [10_000, 2**33, 2**62, 2**70])
def test_a_member_that_claims_more_than_the_shard_holds_is_refused(tmp_path, claimed):
    info = tarfile.TarInfo("a.jpg")
    info.size = claimed
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match=r"s\.tar"):
        read(tmp_path, header + b"data" + bytes(508) + bytes(1024))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_claims_terabytes_is_refused_without_reading_them(tmp_path, kind):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 2**42
    with pytest.raises(DataError, match=r"header claims|not a readable tar"):
        read(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


@pytest.mark.parametrize("where", [0.3, 0.5, 0.85])
def test_a_shard_that_was_cut_short_is_refused(tmp_path, where):
    whole = shard(*(member(f"{i}.jpg", b"x" * 3000) for i in range(20)))
    with pytest.raises(DataError, match=r"s\.tar"):
        read(tmp_path, whole[: int(len(whole) * where)])


def test_a_shard_cut_exactly_between_two_members_is_refused(tmp_path):
    whole = shard(*(member(f"{i}.jpg", b"x" * 512) for i in range(4)))
    with pytest.raises(DataError, match="cut short at byte 2048"):
        read(tmp_path, whole[:2048])


def test_a_damaged_header_in_the_middle_does_not_hide_the_rest(tmp_path):
    data = bytearray(shard(*(member(f"{i}.jpg", b"x" * 512) for i in range(4))))
    data[2048:2052] = b"\xff\xff\xff\xff"
    with pytest.raises(DataError, match="damaged or cut short at byte 2048"):
        read(tmp_path, bytes(data))


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff" * 4096, bytes(100)])
def test_what_is_no_tar_is_refused(tmp_path, data):
    with pytest.raises(DataError, match=r"s\.tar"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("kind", "compress"),
    [
        ("gzip", gzip.compress),
        ("bzip2", lambda data: __import__("bz2").compress(data)),
        ("xz", lambda data: __import__("lzma").compress(data)),
        ("zstd", lambda data: b"\x28\xb5\x2f\xfd" + data),
    ],
)
def test_a_compressed_shard_is_refused_by_name(tmp_path, kind, compress):
    with pytest.raises(DataError, match=rf"compressed \({kind}\)"):
        read(tmp_path, compress(shard(member("a.jpg"))))


def sparse(version: str) -> bytes:
    if version == "gnu":
        info = tarfile.TarInfo("a.jpg")
        info.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"%011o\0" % 0 + b"%011o\0" % 0
        header[483:495] = b"%011o\0" % 10**6
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header) + bytes(1024)
    info, data = member("a.jpg")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,4",
        "GNU.sparse.size": str(10**12),
        "GNU.sparse.name": "a.jpg",
    }
    return shard((info, data), format=tarfile.PAX_FORMAT)


@pytest.mark.parametrize("version", ["gnu", "pax"])
def test_sparse_members_are_refused(tmp_path, version):
    with pytest.raises(DataError, match=r"sparse|not a readable tar"):
        read(tmp_path, sparse(version))


def test_a_pax_size_beyond_the_file_is_refused(tmp_path):
    info, data = member("a.jpg")
    info.pax_headers = {"size": str(2**50)}
    with pytest.raises(DataError, match=r"s\.tar"):
        read(tmp_path, shard((info, data), format=tarfile.PAX_FORMAT))


def test_a_huge_label_is_not_read_whole(tmp_path):
    data = shard(member("a.jpg"), member("a.cls", b"0" * 5_000_000))
    with pytest.raises(DataError, match=r"a\.cls: "):
        read(tmp_path, data, labeled=True)
