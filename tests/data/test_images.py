import csv
import hashlib
import os

import pytest

from kdedge.data.images import (
    Images,
    check_limit,
    read_facts,
    scan,
    scanned,
    spread,
    write_skipped_csv,
)
from kdedge.errors import DataError
from kdedge.runtime.preprocess import UnreadableImage


@pytest.mark.parametrize("n_cores", [1, 3])
def test_a_scan_finds_the_bad_images_in_order(source, n_cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(n_cores)), raising=False)
    source.files[4] = None
    source.files[20] = source.files[20][:100]
    seen = []
    result = scan(source, progress=seen.append)
    assert [i for i in range(23) if i not in (4, 20)] == list(result.indices)
    assert [bad.key for bad in result.skipped] == ["image-4", "image-20"]
    assert result.skipped[0].reason == "cannot be read: no such file"
    hashes = [hashlib.sha256(source.files[i]).hexdigest() for i in result.indices]
    assert list(result.digests.values()) == hashes
    assert seen == [16, 23]


def test_a_scan_of_nothing_finds_nothing(source):
    source.files, source.labels = [], []
    result = scan(source)
    assert (result.indices, result.skipped) == ((), ())
    with pytest.raises(DataError, match="none of 0 images"):
        check_limit(result, 5, "data.test")


def test_the_limit_is_the_last_count_that_is_accepted(source):
    source.files[0] = source.files[1] = b""
    result = scan(source)
    check_limit(result, 2, "data.unlabeled (/cams)")
    with pytest.raises(DataError) as caught:
        check_limit(result, 1, "data.unlabeled (/cams)")
    message = str(caught.value)
    assert "data.unlabeled (/cams): 2 of 23 images are unreadable, and the limit is 1" in message
    assert "image-0: the file is empty." in message
    assert "data.max_bad_images" in message
    with pytest.raises(DataError, match="and the limit is 1: 1% of 23, rounded up"):
        check_limit(result, 1, "data.unlabeled", share="1%")


def test_no_readable_image_is_an_error_whatever_the_limit(source):
    source.files = [b""] * 23
    with pytest.raises(DataError, match=r"none of \d+ images can be read"):
        check_limit(scan(source), 100, "data.unlabeled")


def test_the_skip_list_is_csv_that_reads_back(tmp_path):
    path = tmp_path / "skipped.csv"
    odd = [UnreadableImage('a, "b".jpg', "too large"), UnreadableImage("ü\n.jpg", "x")]
    write_skipped_csv(path, {"unlabeled": odd, "test": []})
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["source", "key", "reason"],
        ["unlabeled", 'a, "b".jpg', "too large"],
        ["unlabeled", "ü\n.jpg", "x"],
    ]


def test_the_image_list_hash_depends_on_keys_labels_and_order(source):
    def list_hash(order, digests):
        return Images(source, order, (), digests).list_hash

    digests = {0: "a", 1: "b", 2: "c"}
    hashes = {list_hash(order, digests) for order in ((0, 1), (1, 0), (0, 2))}
    assert len(hashes) == 3
    before = list_hash((0, 1), digests)
    assert list_hash((0, 1), {**digests, 1: "other bytes"}) != before
    source.labels[0] = None
    assert list_hash((0, 1), digests) != before
    assert len(before) == 64


def test_a_scan_in_parts_is_the_scan_of_all(source):
    source.files[7] = None
    parts = [read_facts(source, rows=slice(*ends)) for ends in ((0, 5), (5, 16), (16, 23))]
    found = {position: facts for part in parts for position, facts in part.items()}
    assert scanned(source, found) == scan(source)


@pytest.mark.parametrize(
    ("n_items", "n_wanted", "expected"),
    [(10, 4, [0, 2, 5, 7]), (6, 3, [0, 2, 4]), (3, 3, [0, 1, 2]), (2, 9, [0, 1]), (0, 5, [])],
)
def test_positions_are_spread_over_all_items(n_items, n_wanted, expected):
    assert spread(n_items, n_wanted) == expected
