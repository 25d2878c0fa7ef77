import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("webdataset")

from kdedge.data.sources.webdataset import open_source
from kdedge.errors import DataError

NAMES = ("cat", "hot dog")


def read(pattern: object, *, labeled: bool = False):
    return open_source(str(pattern), class_names=NAMES, labeled=labeled)


def test_samples_come_in_the_order_of_shards_and_members(tmp_path, write_shard):
    write_shard(
        tmp_path / "s-0.tar", ("b.jpg", b"1"), ("b.cls", b"0"), ("a.png", b"2"), ("a.cls", b"1")
    )
    write_shard(tmp_path / "s-1.tar", ("x/a.JPG", b"3"), ("x/a.cls", b"hot_dog\n"))
    source = read(tmp_path / "s-{0..1}.tar", labeled=True)
    assert [(item.key, item.label) for item in source.items] == [
        ("s-0.tar/b", 0),
        ("s-0.tar/a", 1),
        ("s-1.tar/x/a", 1),
    ]
    assert [source.read(i) for i in range(3)] == [b"1", b"2", b"3"]


def test_a_label_is_as_long_as_a_class_name_may_be(tmp_path, write_shard):
    names = ("a" * 200, "b" * 200)
    write_shard(tmp_path / "s.tar", ("a.jpg", b"1"), ("a.cls", names[1].encode()))
    source = open_source(str(tmp_path / "s.tar"), class_names=names, labeled=True)
    assert source.items[0].label == 1


def test_a_sample_may_be_of_another_kind_and_without_a_label(tmp_path, write_shard):
    write_shard(
        tmp_path / "s.tar",
        *(("a.gif", b"1"), ("a.cls", b"1")),
        *(("b.jpg", b"2"), ("b.gif", b"3")),
    )
    source = read(tmp_path / "s.tar", labeled=True)
    assert [item.label for item in source.items] == [1, None]
    assert [source.read(i) for i in range(2)] == [b"1", b"2"]


def test_the_samples_are_those_of_the_webdataset_package(tmp_path, write_shard):
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    members = [
        (f"{i:03d}.{e}", f"{i}{e}".encode()) for i in range(9) for e in ("jpg", "cls", "json")
    ]
    members += [("__meta__/x.jpg", b"m"), ("noext", b"n"), ("d/e.f.jpg", b"f"), ("d/e.jpg", b"e")]
    members = [(n, b"1" if n.endswith("cls") else d) for n, d in members]
    path = write_shard(tmp_path / "s.tar", *members)
    with path.open("rb") as file:
        rows = (row | {"__url__": ""} for row in tar_file_iterator(file))
        samples = list(group_by_keys(rows))
    expected = [(sample["__key__"], sample["jpg"]) for sample in samples if "jpg" in sample]
    source = read(path)
    actual = [
        (item.key.removeprefix("s.tar/"), source.read(i)) for i, item in enumerate(source.items)
    ]
    assert expected == actual


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_every_tar_layout(tmp_path, write_shard, layout):
    name = "ordner/" + "x" * 90 + ("" if layout == tarfile.USTAR_FORMAT else "ü" * 60)
    path = write_shard(tmp_path / "s.tar", (name + ".jpg", b"data"), format=layout)
    source = read(path)
    assert source.items[0].key == f"s.tar/{name}"
    assert source.read(0) == b"data"


def test_copies_and_many_threads_read_the_right_bytes(tmp_path, write_shard):
    contents = [bytes([i]) * (1000 + i) for i in range(100)]
    members = [(f"{i}.jpg", data) for i, data in enumerate(contents)]
    source = read(write_shard(tmp_path / "s.tar", *members))
    with ThreadPoolExecutor(8) as pool:
        assert contents * 5 == list(pool.map(source.read, list(range(100)) * 5))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.items == source.items
    assert copy.read(3) == contents[3]


def test_shards_of_one_name_in_two_folders_keep_apart(tmp_path, write_shard):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "s.tar", ("x.jpg", folder.encode()))
    source = read(tmp_path / "{a,b}" / "s.tar")
    assert [item.key for item in source.items] == ["a/s.tar/x", "b/s.tar/x"]


def test_a_shard_that_was_rewritten_after_its_index_is_refused(tmp_path, write_shard):
    source = read(write_shard(tmp_path / "s.tar", ("a.jpg", b"1")))
    write_shard(tmp_path / "s.tar", ("b.jpg", b"1" * 20_000), ("a.jpg", b"2"))
    with pytest.raises(DataError, match="has changed since its index was made"):
        source.read(0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"1")], "no sample has a cls member"),
        ([("a.cls", b"0")], r"sample s\.tar/a has 0 images, .*\n.*a\.cls"),
        ([("a.jpg", b"1"), ("a.png", b"1"), ("a.cls", b"0")], r"sample s\.tar/a has 2 images"),
        (
            [("a.jpg", b"1"), ("a.cls", b"2")],
            r'a\.cls: "2" is not [\s\S]* a position from 0 to 1\.',
        ),
        ([("a.jpg", b"1"), ("a.cls", b"-1")], r'a\.cls: "-1"'),
        ([("a.jpg", b"1"), ("a.cls", b"hot dgo")], r'\(nearest: "hot dog"\)'),
        ([("a.jpg", b"1"), ("a.cls", b"\xff" * 5000)], r"a\.cls: "),
        ([("a.jpg", b"1"), ("a.cls", b"0"), ("a.jpg", b"1")], "duplicate"),
        (
            [(n, b"0") for n in ("a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls")],
            "a appears twice",
        ),
        ([], "no shard has an image"),
    ],
)
def test_a_sample_that_is_not_one_labeled_image_is_named(tmp_path, write_shard, members, message):
    path = write_shard(tmp_path / "s.tar", *members)
    with pytest.raises(DataError, match=message) as caught:
        read(path, labeled=True)
    assert "s.tar" in str(caught.value)


def test_missing_shards_are_counted(tmp_path, write_shard):
    write_shard(tmp_path / "s-0.tar", ("a.jpg", b"1"))
    with pytest.raises(DataError, match=r"s-1\.tar does not exist \(2 of 3 shards are missing\)"):
        read(tmp_path / "s-{0..2}.tar")


@pytest.mark.parametrize("url", ["https://a/s.tar", "s3://b/s.tar", "pipe:cat s.tar", "HTTP://a"])
def test_remote_shards_are_refused(url):
    with pytest.raises(DataError, match="local files only"):
        read(url)
