"""Looking through a folder, a list and shards: images, sizes, classes, and what is unreadable."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from kdedge.data.survey import survey
from kdedge.errors import DataError


def jpeg(width: int, height: int, gray: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), gray).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, a loose image, a duplicate, and a file that is no image."""
    files = {
        "cat/1.jpg": jpeg(8, 6),
        "cat/deep/2.jpg": jpeg(8, 6),
        "red fox/1.jpg": jpeg(4, 9),
        "red fox/2.jpg": b"x",
        "loose.jpg": jpeg(8, 6, gray=9),
    }
    for name, data in files.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "images"


def test_a_folder_has_the_classes_of_its_first_level(folder):
    found = survey(str(folder))
    assert (found.kind, found.n_images, found.n_duplicates) == ("folder", 5, 1)
    assert found.classes == (("cat", 2), ("red fox", 2))
    assert found.n_unlabeled == 1
    assert found.sizes_px == (((8, 6), 3), ((4, 9), 1))
    assert [(bad.key, "not a readable image" in bad.reason) for bad in found.unreadable] == [
        ("red fox/2.jpg", True)
    ]


def test_a_list_has_the_classes_of_its_second_field(folder):
    path = folder / "list.csv"
    path.write_text('path,label\ncat/1.jpg,cat\n"red fox/1.jpg",red fox\nloose.jpg\n')
    found = survey(str(path))
    assert (found.kind, found.n_images, found.n_unlabeled) == ("list", 3, 1)
    assert found.classes == (("cat", 1), ("red fox", 1))


def test_shards_have_the_classes_of_their_labels(tmp_path, write_shard):
    pytest.importorskip("webdataset")
    labeled = [
        (f"{n}.{kind}", data) for n in "12" for kind, data in (("jpg", jpeg(5, 5)), ("cls", b"7\n"))
    ]
    write_shard(tmp_path / "s-0.tar", *labeled)
    write_shard(tmp_path / "s-1.tar", ("3.jpg", jpeg(5, 5)))
    found = survey(f"{tmp_path}/s-{{0..1}}.tar")
    assert (found.kind, found.n_images, found.n_unlabeled) == ("webdataset", 3, 1)
    assert found.classes == (("7", 2),)


def test_tables_have_the_classes_of_their_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [jpeg(5, 5), jpeg(5, 5, gray=3), b"x"]
    table = pa.table({"image": images, "label": [1, 0, -1]})
    features = {"label": {"names": ["cat", "red fox"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.replace_schema_metadata(metadata)
    dataset = tmp_path / "dataset"
    datasets.Dataset(table).save_to_disk(dataset)
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    for place, kind in (
        (dataset, "huggingface"),
        (tmp_path / "parquet", "parquet"),
        (tmp_path / "parquet" / "*.parquet", "parquet"),
    ):
        found = survey(str(place))
        n_unreadable = len(found.unreadable)
        assert (found.kind, found.n_images, found.n_unlabeled, n_unreadable) == (kind, 3, 1, 1)
        assert found.classes == (("cat", 1), ("red fox", 1))


@pytest.mark.parametrize("place", ["nowhere", "nowhere.csv", "nowhere.parquet"])
def test_what_is_not_there_is_said(place, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        survey(str(tmp_path / place))
