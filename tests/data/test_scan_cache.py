"""A scan with a cache finds what one without finds, whatever happened to images and cache."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdedge.config.recipe import Recipe
from kdedge.data.images import read_facts, scan
from kdedge.data.scan_cache import MAX_FILES, ScanCache
from kdedge.data.sources import ImageSource, csv_list, folder, webdataset
from kdedge.setup.classes import load_classes
from kdedge.setup.images import RecipeImages
from kdedge.setup.workspace import Workspace


def png(seed: int, size: tuple[int, int] = (8, 6)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is 10 s ahead, so that files which were just written count as settled."""
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 10_000_000_000)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 40 images, two of which are unreadable."""
    root = tmp_path / "images"
    for i in range(40):
        path = root / f"{i % 3}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i, (8 + i % 4, 6)))
    (root / "1" / "04.png").write_bytes(b"no image")
    (root / "2" / "05.png").write_bytes(png(5)[:60])
    return root


def opened(place: Path) -> ImageSource:
    return folder.open_source(place, class_names=(), labeled=False)


class Counted:
    """A source that counts what is read of it."""

    def __init__(self, source: Any) -> None:
        self.items = source.items
        self.location = source.location
        self._source = source
        self.n_read = 0
        self._lock = threading.Lock()

    def read(self, i: int) -> bytes:
        with self._lock:
            self.n_read += 1
        data: bytes = self._source.read(i)
        return data


def check(source: ImageSource, cache: ScanCache) -> int:
    """Compares with a scan without a cache; gives how many images were read."""
    counted = Counted(source)
    assert read_facts(counted, cache=cache) == read_facts(source)
    return counted.n_read


def test_a_second_scan_reads_only_what_could_not_be_read(images: Path, tmp_path: Path) -> None:
    cache = ScanCache(tmp_path / "cache")
    assert check(opened(images), cache) == 40
    assert check(opened(images), cache) == 2
    assert check(opened(images), ScanCache(tmp_path / "cache")) == 2


def test_without_a_folder_results_are_kept_in_memory(images: Path) -> None:
    cache = ScanCache()
    assert [check(opened(images), cache) for _ in range(2)] == [40, 2]


def changed_bytes(file: Path) -> None:
    file.write_bytes(png(99, (30, 20)))


def same_size_and_times(file: Path) -> None:
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # the checksum of the last chunk: the image is still readable
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def touched(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def replaced(file: Path) -> None:
    other = file.with_suffix(".tmp")
    other.write_bytes(png(98))
    other.replace(file)


def made_unreadable(file: Path) -> None:
    file.write_bytes(b"x")


def linked_elsewhere(file: Path) -> None:
    target = file.parent.parent / ".hidden.png"
    target.write_bytes(png(97))
    file.unlink()
    file.symlink_to(target)


CHANGES: list[Callable[[Path], None]] = [
    *(changed_bytes, same_size_and_times, touched, replaced, made_unreadable, linked_elsewhere),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_is_read_again(
    change: Callable[[Path], None], images: Path, tmp_path: Path
) -> None:
    cache = ScanCache(tmp_path / "cache")
    check(opened(images), cache)
    change(images / "0" / "03.png")
    assert check(opened(images), ScanCache(tmp_path / "cache")) == 3
    assert check(opened(images), cache) <= 3


def test_added_removed_and_renamed_images_are_noticed(images: Path, tmp_path: Path) -> None:
    check(opened(images), ScanCache(tmp_path / "cache"))
    (images / "0" / "new.png").write_bytes(png(77))
    (images / "0" / "03.png").unlink()
    (images / "0" / "06.png").rename(images / "0" / "07.png")
    assert check(opened(images), ScanCache(tmp_path / "cache")) == 4


def test_an_image_whose_place_another_takes_is_not_taken_for_it(
    images: Path, tmp_path: Path
) -> None:
    check(opened(images), ScanCache(tmp_path / "cache"))
    first, second = images / "0" / "00.png", images / "0" / "12.png"
    other = tmp_path / "other.png"
    first.rename(other)
    second.rename(first)
    other.rename(second)
    assert check(opened(images), ScanCache(tmp_path / "cache")) == 4


def test_what_has_just_been_written_is_not_kept(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = max(path.stat().st_mtime_ns for path in images.rglob("*.png"))
    monkeypatch.setattr(time, "time_ns", lambda: newest + 1_000_000_000)
    cache = ScanCache(tmp_path / "cache")
    assert [check(opened(images), cache) for _ in range(2)] == [40, 40]
    assert not (tmp_path / "cache").exists()


def damage(kind: str, file: Path) -> None:
    data = file.read_bytes()
    if kind == "folder":
        file.unlink()
        file.mkdir()
    else:
        contents = {"cut": data[: len(data) // 2], "empty": b"", "foreign": b'{"images": {}}\n'}
        file.write_bytes(contents[kind])


def test_a_cache_of_valid_json_with_other_values_is_ignored(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(png(1))
    source = folder.open_source(images, class_names=(), labeled=False)
    first = ScanCache(tmp_path / "cache")
    facts = first.facts(source, 0)
    first.save(source)
    (file,) = (tmp_path / "cache").glob("*.json")
    record = json.loads(file.read_text())
    record["images"] = {key: "1 2 x" for key in record["images"]}
    file.write_text(json.dumps(record))
    second = ScanCache(tmp_path / "cache")
    second.open(source)
    assert second.facts(source, 0) == facts


@pytest.mark.parametrize("kind", ["cut", "empty", "foreign", "folder"])
def test_a_damaged_cache_costs_a_scan_and_nothing_else(
    kind: str, images: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "cache"
    check(opened(images), ScanCache(kept))
    (file,) = kept.glob("*.json")
    damage(kind, file)
    assert check(opened(images), ScanCache(kept)) == 40
    assert check(opened(images), ScanCache(kept)) == (40 if kind == "folder" else 2)


def test_a_cache_that_cannot_be_written_is_no_error(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert check(opened(images), ScanCache(tmp_path / "file" / "cache")) == 40


def test_another_limit_of_the_decoder_is_another_scan(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(opened(images), ScanCache(tmp_path / "cache"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # twice as many are accepted
    assert check(opened(images), ScanCache(tmp_path / "cache")) == 40


def test_parts_that_several_ranks_scan_are_kept_together(images: Path, tmp_path: Path) -> None:
    for rows in (slice(0, 15), slice(15, 40)):
        scan(opened(images), rows=rows, cache=ScanCache(tmp_path / "cache"))
    assert check(opened(images), ScanCache(tmp_path / "cache")) == 2


def test_images_of_a_list_are_known_from_their_folder(images: Path, tmp_path: Path) -> None:
    cache = ScanCache(tmp_path / "cache")
    check(opened(images), cache)
    names = [path.relative_to(tmp_path) for path in sorted(images.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("\n".join(map(str, names)))
    listed = csv_list.open_source(tmp_path / "list.csv", class_names=(), labeled=False)
    assert check(listed, cache) == 2


def drawn(seeds: range) -> list[tuple[str, bytes]]:
    return [(f"{seed:03d}.png", png(seed)) for seed in seeds]


def test_images_of_a_shard_are_known_until_the_shard_changes(
    tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    shard = write_shard(tmp_path / "a.tar", *drawn(range(10)))

    def read() -> ImageSource:
        return webdataset.open_source(str(shard), class_names=(), labeled=False)

    cache = ScanCache(tmp_path / "cache")
    assert [check(read(), cache) for _ in range(2)] == [10, 0]
    write_shard(shard, *drawn(range(20, 30)))
    assert check(read(), ScanCache(tmp_path / "cache")) == 10


def test_the_number_of_files_is_bounded(images: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    kept.mkdir()
    for number in range(MAX_FILES + 5):
        file = kept / f"{number:032d}.json"
        file.write_bytes(b"")
        os.utime(file, ns=(number, number))
    check(opened(images), ScanCache(kept))
    assert len(list(kept.glob("*.json"))) == MAX_FILES
    assert check(opened(images), ScanCache(kept)) == 2


SCAN = """
import sys, time
from pathlib import Path
now_ns = time.time_ns
time.time_ns = lambda: now_ns() + 10_000_000_000
from kdedge.data.images import read_facts, scan
from kdedge.data.scan_cache import ScanCache
from kdedge.data.sources import folder
source = folder.open_source(Path(sys.argv[1]), class_names=(), labeled=False)
found = scan(source, cache=ScanCache(Path(sys.argv[2])))
print(*found.digests.values())
"""


def test_two_processes_at_once_lose_nothing(images: Path, tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCAN, str(images), str(kept)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    digests = [process.communicate()[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert digests == [[*scan(opened(images)).digests.values()]] * 2
    assert check(opened(images), ScanCache(kept)) == 2


@pytest.fixture
def opened_by_pillow(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes of each image that Pillow is asked to open, in order."""
    found: list[bytes] = []
    open_image = Image.open

    def counted(file: io.BytesIO, *arguments: Any, **options: Any) -> Image.Image:
        found.append(file.getvalue())
        return open_image(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", counted)
    return found


def test_roles_of_a_recipe_that_share_a_folder_decode_it_once(
    images: Path, tmp_path: Path, opened_by_pillow: list[bytes]
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "shared",
            "classes": {"names": ["0", "1", "2"]},
            "data": {
                "validation": {"folder": str(images)},
                "unlabeled": {"folder": str(images), "include_test": True},
                "test": {"folder": str(images)},
                "max_bad_images": 2,
            },
            "student": {"method": "zeroshot", "backbone": "ViT-B-16"},
        },
    )
    workspace = Workspace(tmp_path / "runs", torch.device("cpu"))
    recipe_images = RecipeImages(recipe, load_classes(recipe), workspace)
    found = [recipe_images.load(key) for key in ("validation", "unlabeled", "test")]
    assert [len(one.indices) for one in found if one is not None] == [38] * 3
    assert len(opened_by_pillow) == 40 + 2 + 2


def test_a_scan_that_is_interrupted_keeps_what_it_has(images: Path, tmp_path: Path) -> None:
    def stop(n_done: int) -> None:
        if n_done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(opened(images), progress=stop, cache=ScanCache(tmp_path / "cache"))
    assert check(opened(images), ScanCache(tmp_path / "cache")) <= 40 - 16 + 2
