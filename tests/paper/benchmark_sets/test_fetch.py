"""Fetching from a Hub on this machine, and by hand."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import kdedge
from kdedge.errors import DataError, InUseError, ResourceError, SetupError
from kdedge.paper.benchmark_sets import Download, HubArchive, benchmark_set
from kdedge.paper.benchmark_sets.fetch import Fetched, fetch

SUN397 = benchmark_set("sun397")
ADDRESS = "https://official.test"
IMAGES = {"images/a.jpg": b"a", "images/b/c.jpg": b"c"}
SPLIT = {"split.json": b"{}"}
FOLDER = Download("images", f"Unpack {ADDRESS}/a.tgz")
LIST = Download("split.json", f"{ADDRESS}/split")
HUB = HubArchive("m.zip", repository="owner/sets", commit="abc123")
PATH = "/owner/sets/resolve/abc123/m.zip"


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            file.writestr(f"set/{name}", data)
    return buffer.getvalue()


WHOLE = zip_of(IMAGES | SPLIT | {"cache.pkl": b"x"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the set's files come."""
    return tmp_path / SUN397.folder


@pytest.fixture
def fetch_files(tmp_path: Path) -> Callable[..., Fetched]:
    """Fetches a set of these files."""

    def run(*files: Download, mirror: HubArchive | None = HUB, root: Path = tmp_path) -> Fetched:
        return fetch(replace(SUN397, downloads=files or (FOLDER, LIST), mirror=mirror), root)

    return run


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".fetch.lock"}


def test_the_files_of_a_set_come_from_one_archive_and_nothing_else_stays(
    hub, file_server, fetch_files, folder
):
    hub.give(PATH, file_server.Answer(WHOLE))
    digest = hashlib.sha256(WHOLE).hexdigest()
    assert fetch_files(mirror=replace(HUB, sha256=digest)) == Fetched(
        folder, ("images", "split.json"), ()
    )
    assert (folder / "images/b/c.jpg").read_bytes() == b"c"
    assert (folder / "split.json").read_bytes() == b"{}"
    assert left_in(folder) == {"images", "split.json"}
    assert fetch_files().new == ()
    assert hub.requests == [(PATH, "")]


def test_a_connection_that_breaks_is_gone_on_with(hub, file_server, fetch_files, folder):
    body = zip_of({"images/a.jpg": os.urandom(12 << 20)})
    hub.give(PATH, file_server.Answer(body, cut=11 << 20), file_server.Answer(body))
    fetch_files(FOLDER)
    # The Hub's client keeps whole blocks of 10 MiB
    assert hub.requests == [(PATH, ""), (PATH, f"bytes={10 << 20}-")]
    assert left_in(folder) == {"images"}


FETCH = """
import sys
from dataclasses import replace
from pathlib import Path
from kdedge.paper.benchmark_sets import Download, HubArchive, benchmark_set
from kdedge.paper.benchmark_sets.fetch import fetch
images = Download("images", "")
hub = HubArchive("m.zip", repository="owner/sets", commit="abc123")
fetch(replace(benchmark_set("sun397"), downloads=(images,), mirror=hub), Path(sys.argv[1]))
"""


def test_a_killed_fetch_goes_on_where_it_stopped(
    hub: Any, file_server: ModuleType, fetch_files: Callable[..., Fetched], folder: Path
) -> None:
    body = zip_of({"images/a.jpg": os.urandom(12 << 20)})
    hub.give(PATH, file_server.Answer(body, cut=11 << 20, waits=True), file_server.Answer(body))
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, str(folder.parent)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(kdedge.__file__).parents[1]),
            "HF_ENDPOINT": hub.url,
        },
    )
    part = folder / "m.zip.part"
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    n_had = part.stat().st_size
    fetch_files(FOLDER)
    downloads = [request for request in hub.requests if request[0] == PATH]
    assert downloads == [(PATH, ""), (PATH, f"bytes={n_had}-")]
    assert left_in(folder) == {"images"}


def test_an_archive_with_another_hash_is_refused_and_removed(hub, file_server, fetch_files, folder):
    hub.give(PATH, file_server.Answer(WHOLE))
    with pytest.raises(DataError, match=f"has the SHA-256 [0-9a-f]+, expected {'0' * 64}"):
        fetch_files(mirror=replace(HUB, sha256="0" * 64))
    assert left_in(folder) == set()


def test_what_the_hub_does_not_have_is_named_with_its_official_address(
    hub, file_server, fetch_files, folder
):
    with pytest.raises(SetupError) as caught:
        fetch_files()
    message = str(caught.value)
    assert message.startswith("sun397: 2 of 2 files are missing; the others are complete.\n")
    assert f"{hub.url}{PATH} cannot be downloaded: " in message
    assert f"  By hand:\n  {folder}/images: Unpack {ADDRESS}/a.tgz\n" in message
    assert f"\n  {folder}/split.json: {ADDRESS}/split\n" in message
    assert message.endswith(f"Then run again: kdedge data fetch sun397 --data {folder.parent}")
    assert left_in(folder) == set()


@pytest.mark.parametrize("why", ["offline", "unreachable"])
def test_a_machine_without_a_network_is_told_what_to_fetch_by_hand(
    why, hub, fetch_files, folder, monkeypatch
):
    if why == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:  # port 9 of this machine: nobody listens
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    started = time.monotonic()
    with pytest.raises(
        SetupError, match=f"cannot be downloaded[\\s\\S]*By hand:\\n.*images: Unpack {ADDRESS}"
    ):
        fetch_files(FOLDER)
    assert time.monotonic() - started < 5


def test_without_the_hubs_client_the_extra_is_named(fetch_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SetupError, match=r"pip install 'kdedge\[train\]'[\s\S]*By hand"):
        fetch_files(FOLDER)


@pytest.mark.parametrize(
    "error", [ValueError("\x1b[31m\x07"), FileNotFoundError(2, "No such file", "certificates.pem")]
)
def test_no_error_of_the_client_changes_the_terminal_or_blames_the_disk(
    error, hub, fetch_files, monkeypatch
):
    def refuse(url: str) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    with pytest.raises(SetupError) as caught:
        fetch_files(FOLDER)
    assert str(caught.value).replace("\n", "").isprintable()


def test_for_a_list_alone_no_archive_is_downloaded(hub, file_server, fetch_files, folder):
    hub.give(PATH, file_server.Answer(WHOLE))
    (folder / "images").mkdir(parents=True)
    with pytest.raises(SetupError, match=f"1 of 2 files[\\s\\S]*By hand:\\n.*: {ADDRESS}/split"):
        fetch_files()
    assert hub.requests == []
    (folder / "m.zip").write_bytes(WHOLE)
    assert fetch_files() == Fetched(folder, ("split.json",), ("m.zip",))
    assert left_in(folder) == {"images", "split.json", "m.zip"}


def test_a_manual_download_is_named_after_everything_else_was_fetched(
    hub, file_server, fetch_files, folder
):
    hub.give(PATH, file_server.Answer(WHOLE))
    by_hand = Download("names.txt", "Register at x.org")
    with pytest.raises(SetupError) as caught:
        fetch_files(by_hand, FOLDER, LIST)
    assert f"\n  {folder}/names.txt: Register at x.org\n" in str(caught.value)
    assert "1 of 3 files are missing" in str(caught.value)
    assert left_in(folder) == {"images", "split.json"}


def test_an_archive_that_comes_damaged_is_refused_and_stays_until_it_is_removed(
    hub, file_server, fetch_files, folder
):
    hub.give(PATH, file_server.Answer(WHOLE[:-20]))
    with pytest.raises(DataError, match=r"m\.zip cannot be unpacked: [\s\S]*Remove it"):
        fetch_files()
    assert left_in(folder) == {"m.zip"}


def test_two_fetches_at_once_are_refused(hub, file_server, fetch_files):
    # Without a lock, the second download would end, and the first wait for ever
    slow = file_server.Answer(WHOLE, cut=0, waits=True)
    hub.give(PATH, slow, file_server.Answer(WHOLE))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch_files)
        while not hub.requests and not first.done():
            time.sleep(0.01)
        with pytest.raises(InUseError, match=r"in use by another process: pid \d+ on .*\n.*wait"):
            fetch_files()
        hub.is_closing.set()
        first.result()


def test_a_disk_that_is_too_small_is_seen_before(hub, file_server, fetch_files, small_disk):
    disk = small_disk(512)
    hub.give(PATH, file_server.Answer(bytes(1 << 20)))
    with pytest.raises(
        ResourceError, match=r"has .* kB free, and m\.zip with its images needs 2\.1 MB"
    ):
        fetch_files(root=disk)
    assert hub.requests == []


def test_a_disk_that_fills_up_keeps_what_came(
    hub, file_server, fetch_files, small_disk, monkeypatch
):
    disk = small_disk(512)
    hub.give(PATH, file_server.Answer(bytes(1 << 20)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    with pytest.raises(
        ResourceError, match=r"the disk is full.*\n.*\n.*Make the same call again to continue"
    ):
        fetch_files(root=disk)
    assert (disk / SUN397.folder / "m.zip.part").exists()
