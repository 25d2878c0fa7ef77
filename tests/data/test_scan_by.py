"""A scan by workers in other processes: the same as in this one, and cached as there."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdedge.data.images import scan
from kdedge.data.scan_cache import ScanCache
from kdedge.data.sources.folder import open_source
from kdedge.workers import WorkerResources


class Sent:
    """Workers that get all they know as bytes, as another process would."""

    def __init__(self) -> None:
        self.n_pieces = 0

    def run(self, pieces: Sequence[Any], opens: Any) -> Iterator[Any]:
        do = pickle.loads(pickle.dumps(opens))(WorkerResources("cpu", 1))
        for piece in pieces:
            self.n_pieces += 1
            yield from pickle.loads(pickle.dumps(list(do([pickle.loads(pickle.dumps(piece))]))))


def pictures(folder: Path) -> Any:
    for number in range(10):
        pixels = np.full((8, 9 + number % 2, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no image")
    return open_source(folder, class_names=(), labeled=False)


def test_workers_find_what_one_process_finds_and_tell_how_far_they_are(tmp_path: Path) -> None:
    source, told = pictures(tmp_path), []
    workers: Any = Sent()
    found = scan(source, progress=told.append, workers=workers, n_a_piece=4)
    assert found == scan(source)
    assert [bad.key for bad in found.bad] == ["3.png"]
    assert (workers.n_pieces, told) == (3, [4, 8, 10])


def test_what_workers_found_is_cached_and_few_new_images_are_read_here(
    tmp_path: Path, monkeypatch: Any
) -> None:
    source, cached = pictures(tmp_path), tmp_path / "cache"
    # A file of the last two seconds is not cached
    monkeypatch.setattr("time.time_ns", lambda: 2**62)
    whole = scan(source, cache=ScanCache(cached), workers=Sent(), n_a_piece=4)
    assert len(list(cached.glob("*.json"))) == 1
    workers = Sent()
    again = scan(source, cache=ScanCache(cached), workers=workers, n_a_piece=4)
    assert again == whole
    assert workers.n_pieces == 0  # only 3.png, which is not cached, is read again
