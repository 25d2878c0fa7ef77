"""Fetching over a network that fails in every way, from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kdedge
from kdedge.data.benchmarks import Download, load_benchmark
from kdedge.data.fetch import Fetched, fetch
from kdedge.errors import DataError, InUseError, KdedgeError, ResourceError, SetupError

SUN397 = load_benchmark("sun397")

BODY = bytes(range(256)) * 4096  # 1 MiB
HASH = hashlib.sha256(BODY).hexdigest()
AT_ONCE = (0.0, 0.0)
FILE = "split.json"


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the set's files come."""
    return tmp_path / SUN397.folder


@pytest.fixture
def fetch_files(tmp_path: Path) -> Callable[..., Fetched]:
    """Fetches a set of these files."""

    def run(*files: Download, root: Path = tmp_path) -> Fetched:
        return fetch(replace(SUN397, downloads=files), root, waits_s=AT_ONCE)

    return run


def plain(*urls: str, **options: Any) -> Download:
    return Download(name=FILE, urls=urls, gives=FILE, **options)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".fetch.lock"}


def test_a_file_comes_whole_and_nothing_else_stays(server, file_server, fetch_files, folder):
    url = server.give("/a", file_server.Answer(BODY))
    assert fetch_files(plain(url, sha256=HASH, n_bytes=len(BODY))).new == (FILE,)
    assert (folder / FILE).read_bytes() == BODY
    assert left_in(folder) == {FILE}


def test_what_is_there_is_not_asked_for(server, file_server, fetch_files):
    url = server.give("/a", file_server.Answer(BODY))
    fetch_files(plain(url))
    found = fetch_files(plain(url))
    assert (found.new, len(server.requests)) == ((), 1)


@pytest.mark.parametrize("has_length", [True, False])
def test_a_body_that_breaks_off_is_gone_on_with(
    has_length, server, file_server, fetch_files, folder
):
    cut = file_server.Answer(BODY, cut=300_000)
    url = server.give("/a", cut, file_server.Answer(BODY, has_length=has_length))
    fetch_files(plain(url, sha256=HASH))
    assert (folder / FILE).read_bytes() == BODY
    assert server.requests == [("/a", ""), ("/a", "bytes=300000-")]


def test_attempts_begin_anew_whenever_more_has_come(server, file_server, fetch_files, folder):
    url = server.give("/a", *[file_server.Answer(BODY, cut=150_000)] * 7)
    fetch_files(plain(url, sha256=HASH))
    assert (folder / FILE).read_bytes() == BODY
    assert len(server.requests) == 7


def test_a_server_that_breaks_off_at_the_same_byte_is_given_up_and_the_part_is_kept(
    server, file_server, fetch_files, folder
):
    answer = file_server.Answer(BODY, cut=300_000, has_ranges=False)
    with pytest.raises(SetupError, match="ended after 300000 of 1048576 bytes"):
        fetch_files(plain(server.give("/a", answer)))
    assert len(server.requests) == 3
    assert (folder / f"{FILE}.part").stat().st_size == 300_000


def test_a_server_without_ranges_starts_over(server, file_server, fetch_files, folder):
    cut = file_server.Answer(BODY, cut=300_000)
    url = server.give("/a", cut, file_server.Answer(BODY, has_ranges=False))
    fetch_files(plain(url, sha256=HASH))
    assert (folder / FILE).read_bytes() == BODY
    assert server.requests[1] == ("/a", "bytes=300000-")


def test_without_a_hash_the_rest_is_not_asked_for(server, file_server, fetch_files, folder):
    cut = file_server.Answer(BODY, cut=300_000)
    fetch_files(plain(server.give("/a", cut, file_server.Answer(BODY))))
    assert (folder / FILE).read_bytes() == BODY
    assert server.requests == [("/a", ""), ("/a", "")]


def test_a_file_that_has_shrunk_is_fetched_anew(server, file_server, fetch_files, folder):
    cut = file_server.Answer(BODY, cut=300_000)
    url = server.give("/a", cut, file_server.Answer(BODY[:1000]))
    fetch_files(plain(url, sha256=hashlib.sha256(BODY[:1000]).hexdigest()))
    assert (folder / FILE).read_bytes() == BODY[:1000]


def test_a_network_that_goes_away_in_the_middle_of_a_file_is_waited_for(
    fetch_files, folder, caplog
):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def give_half_and_go_away() -> None:
        connection, _ = listener.accept()
        listener.close()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500))

    thread = threading.Thread(target=give_half_and_go_away)
    thread.start()
    with caplog.at_level(logging.INFO), pytest.raises(SetupError, match="cannot be reached"):
        fetch_files(plain(f"http://127.0.0.1:{port}/a"))
    thread.join()
    assert caplog.text.count("Trying again") == len(AT_ONCE)
    assert (folder / f"{FILE}.part").stat().st_size == 500


def test_a_wrong_hash_sends_to_the_next_address(server, file_server, fetch_files, folder):
    wrong = server.give("/wrong", file_server.Answer(bytes(len(BODY))))
    right = server.give("/right", file_server.Answer(BODY))
    fetch_files(plain(wrong, right, sha256=HASH))
    assert (folder / FILE).read_bytes() == BODY


def test_a_wrong_hash_everywhere_is_an_error_and_leaves_nothing(
    server, file_server, fetch_files, folder
):
    url = server.give("/a", file_server.Answer(b"other"))
    with pytest.raises(DataError, match=f"expected {HASH}"):
        fetch_files(plain(url, sha256=HASH))
    assert left_in(folder) == set()


def test_a_wrong_size_is_seen_before_the_file_is_fetched(server, file_server, fetch_files, folder):
    url = server.give("/a", file_server.Answer(BODY, cut=0))
    with pytest.raises(DataError, match="has a file of 1048576 bytes, expected 7"):
        fetch_files(plain(url, n_bytes=7))
    assert left_in(folder) == set()


def test_a_body_without_end_is_given_up_at_the_size_of_the_file(
    server, file_server, fetch_files, folder
):
    url = server.give("/a", file_server.Answer(BODY, has_length=False))
    with pytest.raises(DataError, match=r"127\.0\.0\.1 sends more than 1000 bytes"):
        fetch_files(plain(url, n_bytes=1000))
    assert left_in(folder) == set()


@pytest.mark.parametrize("status", [403, 404, 410, 500, 503])
def test_the_next_address_is_tried_where_one_fails(
    status, server, file_server, fetch_files, folder
):
    bad = server.give("/bad", file_server.Answer(status=status))
    good = server.give("/good", file_server.Answer(BODY))
    fetch_files(plain(bad, good))
    assert (folder / FILE).read_bytes() == BODY
    assert len(server.requests) == (2 if status < 500 else 4)


def test_another_address_goes_on_where_a_hash_can_tell(server, file_server, fetch_files, folder):
    first = server.give("/a", file_server.Answer(BODY, cut=300_000), file_server.Answer(status=404))
    second = server.give("/b", file_server.Answer(BODY))
    fetch_files(plain(first, second, sha256=HASH))
    assert (folder / FILE).read_bytes() == BODY
    assert server.requests[-1] == ("/b", "bytes=300000-")


def test_another_address_starts_over_where_no_hash_can_tell(
    server, file_server, fetch_files, folder
):
    first = server.give(
        "/a", file_server.Answer(bytes(len(BODY)), cut=300_000), file_server.Answer(status=404)
    )
    fetch_files(plain(first, server.give("/b", file_server.Answer(BODY))))
    assert (folder / FILE).read_bytes() == BODY


def test_a_file_begun_with_wrong_bytes_is_fetched_anew(server, file_server, fetch_files, folder):
    first = server.give(
        "/a", file_server.Answer(bytes(len(BODY)), cut=300_000), file_server.Answer(status=404)
    )
    second = server.give("/b", file_server.Answer(BODY))
    fetch_files(plain(first, second, sha256=HASH))
    assert (folder / FILE).read_bytes() == BODY
    assert [asked for path, asked in server.requests if path == "/b"] == ["bytes=300000-", ""]


def test_redirects_are_followed(server, file_server, fetch_files, folder):
    target = server.give("/b", file_server.Answer(BODY))
    moved = file_server.Answer(status=302, headers={"Location": target})
    fetch_files(plain(server.give("/a", moved)))
    assert (folder / FILE).read_bytes() == BODY


def test_a_redirect_loop_ends(server, file_server, fetch_files):
    there = file_server.Answer(status=302, headers={"Location": server.url("/b")})
    back = file_server.Answer(status=302, headers={"Location": server.url("/a")})
    server.give("/b", back)
    with pytest.raises(SetupError, match=r"127\.0\.0\.1 answers 302"):
        fetch_files(plain(server.give("/a", there)))


def test_a_redirect_to_a_file_is_not_followed(server, file_server, fetch_files):
    moved = file_server.Answer(status=302, headers={"Location": "file:///etc/passwd"})
    with pytest.raises(SetupError, match=r"answers 302[\s\S]*To fetch it by hand"):
        fetch_files(plain(server.give("/a", moved)))


@pytest.mark.parametrize("status", [200, 204])
def test_an_empty_file_sends_to_the_next_address(status, server, file_server, fetch_files, folder):
    empty = server.give("/empty", file_server.Answer(status=status))
    fetch_files(plain(empty, server.give("/a", file_server.Answer(BODY))))
    assert (folder / FILE).read_bytes() == BODY
    (folder / FILE).unlink()
    with pytest.raises(DataError, match=rf"The file from {empty} is empty"):
        fetch_files(plain(empty))
    assert left_in(folder) == set()


def test_what_a_server_says_cannot_change_the_terminal(server, file_server, fetch_files):
    moved = file_server.Answer(status=302, headers={"Location": "file:///\x1b[31m\x07"})
    with pytest.raises(SetupError) as caught:
        fetch_files(plain(server.give("/a", moved)))
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_page_instead_of_the_file_is_said(server, file_server, fetch_files, folder):
    page = file_server.Answer(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(DataError, match=r"127\.0\.0\.1 sends a web page instead of the file"):
        fetch_files(plain(server.give("/a", page)))
    assert left_in(folder) == set()


def test_google_drives_page_of_warnings_is_named(server, file_server, fetch_files, monkeypatch):
    page = file_server.Answer(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    server.give("http://drive.google.com/uc?id=1", page)
    monkeypatch.setenv("http_proxy", server.url(""))
    with pytest.raises(DataError, match="Google Drive sends its warning page"):
        fetch_files(plain("http://drive.google.com/uc?id=1"))


def test_a_machine_without_a_network_is_told_at_once_what_to_fetch_by_hand(fetch_files, folder):
    # Port 9 of this machine: nobody listens
    urls = ("http://127.0.0.1:9/a", "http://127.0.0.1:9/b")
    with pytest.raises(SetupError) as caught:
        fetch_files(plain(*urls))
    message = str(caught.value)
    assert "127.0.0.1 cannot be reached: Connection refused" in message
    assert f"put it at {folder / FILE}. It is at:" in message
    assert all(url in message for url in urls)
    assert message.endswith(f"Then run again: kdedge data fetch sun397 --data {folder.parent}")


def test_a_manual_download_is_named_after_everything_else_was_fetched(
    server, file_server, fetch_files, folder
):
    by_hand = Download(name="images.tar", urls=(), gives="images", manual="Register at x.org.")
    with pytest.raises(SetupError, match=r"Register at x\.org\.") as caught:
        fetch_files(by_hand, plain(server.give("/a", file_server.Answer(BODY))))
    assert f"Put it at {folder}/images.tar." in str(caught.value)
    assert "1 of 2 files are missing" in str(caught.value)
    assert (folder / FILE).exists()


IMAGES = {"images/a.jpg": b"a", "images/b/c.jpg": b"c"}


def test_an_archive_is_unpacked_and_removed(server, file_server, fetch_files, folder):
    url = server.give("/a", file_server.Answer(tar_of(IMAGES)))
    found = fetch_files(Download(name="a.tgz", urls=(url,), gives="images"))
    assert (folder / "images/b/c.jpg").read_bytes() == b"c"
    assert left_in(folder) == {"images"}
    assert found.kept == ()


def test_an_archive_put_there_by_hand_is_used_and_stays(fetch_files, folder):
    folder.mkdir()
    (folder / "a.tgz").write_bytes(tar_of(IMAGES))
    found = fetch_files(Download(name="a.tgz", urls=(), gives="images"))
    assert (folder / "images/a.jpg").exists()
    assert found.kept == ("a.tgz",)
    assert (folder / "a.tgz").exists()


def test_a_wrong_file_put_there_by_hand_is_refused_and_stays(fetch_files, folder):
    folder.mkdir()
    (folder / "a.tgz").write_bytes(b"x")
    wanted = Download(name="a.tgz", urls=(), gives="images", sha256=HASH)
    with pytest.raises(DataError, match=r"a\.tgz: has the SHA-256 .*\n *Remove it"):
        fetch_files(wanted)
    assert (folder / "a.tgz").exists()


def test_an_archive_within_an_archive_is_unpacked_after_it(
    server, file_server, fetch_files, folder
):
    outer = tar_of({"set/inner.tgz": tar_of(IMAGES), "set/readme": b""})
    url = server.give("/a", file_server.Answer(outer))
    fetch_files(
        Download(name="outer.tgz", urls=(url,), gives="set/readme"),
        Download(name="set/inner.tgz", urls=(), gives="set/images", into="set"),
    )
    assert (folder / "set/images/a.jpg").exists()


def test_of_an_archive_with_a_folder_of_its_own_at_the_top_its_content_is_taken(
    server, file_server, fetch_files, folder
):
    files = {f"top/data/{name}": text for name, text in IMAGES.items()} | {"top/readme": b""}
    url = server.give("/a", file_server.Answer(tar_of(files)))
    wanted = {"name": "a.tgz", "urls": (url,), "into": "here"}
    with pytest.raises(DataError, match=r"a\.tgz(\.part)? does not contain the folder tip/data"):
        fetch_files(Download(**wanted, gives="here/images", top="tip/data"))
    assert not (folder / "here").exists()
    fetch_files(Download(**wanted, gives="here/images", top="top/data"))
    assert (folder / "here/images/b/c.jpg").read_bytes() == b"c"
    assert left_in(folder) == {"here", "a.tgz"}  # it was there before the second call


def test_an_archive_put_in_the_place_of_a_damaged_one_stays(
    server, file_server, fetch_files, folder
):
    url = server.give("/a", file_server.Answer(tar_of(IMAGES)[:-20]))
    archive = Download(name="a.tgz", urls=(url,), gives="images")
    with pytest.raises(DataError, match=r"a\.tgz cannot be unpacked"):
        fetch_files(archive)
    (folder / "a.tgz").write_bytes(tar_of(IMAGES))
    assert fetch_files(archive).kept == ("a.tgz",)
    assert left_in(folder) == {"images", "a.tgz"}


def test_what_a_kill_has_left_of_unpacking_is_removed_once_all_is_there(fetch_files, folder):
    (folder / "images").mkdir(parents=True)
    (folder / ".unpacking-a.tgz/all").mkdir(parents=True)
    (folder / ".unpacking-a.tgz/all/half.jpg").touch()
    fetch_files(Download(name="a.tgz", urls=(), gives="images"))
    assert {path.name for path in folder.iterdir()} == {"images"}


def test_what_is_begun_of_an_archive_that_gives_more_is_kept(
    server, file_server, fetch_files, folder
):
    cut = file_server.Answer(zip_of({"one/a": b"a", "two/b": BODY}), cut=300_000, has_ranges=False)
    zipped = Download(name="m.zip", urls=(server.give("/m", cut),), gives="", top=None)
    one, two = (
        Download(
            name=f"{name}.tgz",
            urls=(server.give(f"/{name}", answer),),
            gives=name,
            mirror=replace(zipped, gives=name),
        )
        for name, answer in (
            ("one", file_server.Answer(tar_of({"one/a": b"a"}))),
            ("two", file_server.Answer(status=404)),
        )
    )
    with pytest.raises(SetupError, match="ended after 300000 of"):
        fetch_files(one, two)
    assert left_in(folder) == {"one", "m.zip.part"}
    server.give("/m", replace(cut, cut=None))
    fetch_files(one, two)
    assert (folder / "two/b").read_bytes() == BODY
    assert left_in(folder) == {"one", "two"}


def test_two_fetches_at_once_are_refused(server, file_server, fetch_files, folder):
    url = server.give("/a", file_server.Answer(BODY))
    with ThreadPoolExecutor(1) as pool, file_server.Server() as slow:
        first = pool.submit(
            fetch_files, plain(slow.give("/a", file_server.Answer(BODY, cut=0, waits=True)))
        )
        while not slow.requests and not first.done():
            time.sleep(0.01)
        with pytest.raises(InUseError, match=r"in use by another process: pid \d+ on .*\n.*wait"):
            fetch_files(plain(url))
    assert isinstance(first.exception(), KdedgeError)


def test_a_disk_that_is_too_small_is_seen_before(server, file_server, fetch_files, small_disk):
    disk = small_disk(512)
    url = server.give("/a", file_server.Answer(BODY, cut=0))
    with pytest.raises(ResourceError, match=r"has .* kB free, split\.json needs 1\.0 MB more"):
        fetch_files(plain(url), root=disk)


def test_a_disk_that_fills_up_keeps_what_came(server, file_server, fetch_files, small_disk):
    disk = small_disk(512)
    url = server.give("/a", file_server.Answer(BODY, has_length=False))
    with pytest.raises(
        ResourceError, match=r"the disk is full.*\n.*\n.*run the same command again to continue"
    ):
        fetch_files(plain(url), root=disk)
    kept = disk / SUN397.folder / f"{FILE}.part"
    assert kept.stat().st_size > 300_000
    assert BODY.startswith(kept.read_bytes())


def mirrored(first: str, second: str, body: bytes) -> Download:
    mirror = Download(name="m.zip", urls=(second,), gives="images", top=None)
    return Download(
        name="a.tgz", urls=(first,), gives="images",
        mirror=replace(mirror, sha256=hashlib.sha256(body).hexdigest(), n_bytes=len(body)),
    )  # fmt: skip


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def test_a_mirror_of_another_kind_is_taken_where_no_address_gives_the_file(
    server, file_server, fetch_files, folder
):
    body = zip_of({"set/images/a.jpg": b"a", "set/split.json": b"{}"})
    gone = server.give("/gone", file_server.Answer(b"", status=404))
    other = server.give("/m", file_server.Answer(body))
    assert fetch_files(mirrored(gone, other, body)).new == ("images",)
    assert (folder / "images" / "a.jpg").read_bytes() == b"a"
    assert left_in(folder) == {"images"}


def test_a_mirror_that_was_begun_is_gone_on_with(server, file_server, fetch_files, folder):
    body = zip_of({"images/a.jpg": os.urandom(1 << 20)})
    gone = server.give("/gone", file_server.Answer(b"", status=404))
    cut = file_server.Answer(body, cut=300_000, has_ranges=False)
    other = server.give("/m", cut, cut, cut, file_server.Answer(body))
    with pytest.raises(SetupError, match="ended after 300000 of"):
        fetch_files(mirrored(gone, other, body))
    n_asked = sum(path == "/gone" for path, _ in server.requests)
    fetch_files(mirrored(gone, other, body))
    assert sum(path == "/gone" for path, _ in server.requests) == n_asked
    assert left_in(folder) == {"images"}


def test_where_a_mirror_that_was_begun_is_gone_the_file_itself_is_asked_for_again(
    server, file_server, fetch_files, folder
):
    body = zip_of({"images/a.jpg": os.urandom(1 << 20)})
    cut = file_server.Answer(body, cut=300_000, has_ranges=False)
    other = server.give("/m", cut, cut, cut, file_server.Answer(status=404))
    file = file_server.Answer(tar_of(IMAGES))
    down = file_server.Answer(status=404)
    wanted = mirrored(server.give("/a", down, file), other, body)
    with pytest.raises(SetupError, match="ended after 300000 of"):
        fetch_files(wanted)
    fetch_files(wanted)
    assert (folder / "images/b/c.jpg").read_bytes() == b"c"
    assert left_in(folder) == {"images"}


def test_where_neither_a_file_nor_its_mirror_comes_both_are_named(
    server, file_server, fetch_files, folder
):
    gone = server.give("/gone", file_server.Answer(status=404))
    with pytest.raises(SetupError) as caught:
        fetch_files(mirrored(gone, "http://127.0.0.1:9/m", b"x"))
    message = str(caught.value)
    assert f"put it at {folder / 'a.tgz'}. It is at:\n      {gone}\n" in message
    assert f"put it at {folder / 'm.zip'}. It is at:\n      http://127.0.0.1:9/m\n" in message


def test_a_mirror_is_not_asked_where_the_file_comes(server, file_server, fetch_files, folder):
    first = server.give("/a", file_server.Answer(tar_of({"images/a.jpg": b"a"})))
    fetch_files(mirrored(first, "http://127.0.0.1:9/m", b"x"))
    assert [path for path, _ in server.requests] == ["/a"]


FETCH = """
import sys
from dataclasses import replace
from pathlib import Path
from kdedge.data.benchmarks import load_benchmark
from kdedge.data.benchmarks import Download
from kdedge.data.fetch import fetch
archive = Download(name="a.tgz", urls=(sys.argv[2],), gives="images")
fetch(replace(load_benchmark("sun397"), downloads=(archive,)), Path(sys.argv[1]))
"""


def test_a_killed_fetch_goes_on_where_it_stopped(
    server: Any, file_server: ModuleType, fetch_files: Callable[..., Fetched], folder: Path
) -> None:
    body = tar_of({"images/a.jpg": os.urandom(1 << 20)})
    waiting = file_server.Answer(body, cut=300_000, waits=True)
    url = server.give("/a", waiting, file_server.Answer(body))
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, str(folder.parent), url],
        env={**os.environ, "PYTHONPATH": str(Path(kdedge.__file__).parents[1])},
    )
    part = folder / "a.tgz.part"
    while not (part.exists() and part.stat().st_size == 300_000):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    digest = hashlib.sha256(body).hexdigest()
    wanted = Download(name="a.tgz", urls=(url,), gives="images", sha256=digest)
    fetch_files(wanted)
    assert server.requests == [("/a", ""), ("/a", "bytes=300000-")]
    assert left_in(folder) == {"images"}
