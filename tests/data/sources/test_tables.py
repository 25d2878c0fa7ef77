"""Parquet files and Hugging Face datasets on disk: two formats, one behavior."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from kdedge.data.sources import huggingface, parquet
from kdedge.errors import DataError, MissingPackage
from kdedge.runtime.preprocess import ImageError

NAMES = ("cat", "hot dog")
IMAGES = [f"image {i}".encode() * (i + 1) for i in range(7)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["hot_dog", "cat"], "_type": "ClassLabel"},
}

Save = Callable[..., Any]


def structs(images: Sequence[bytes | None]) -> Any:
    rows = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)]
    return pa.array(rows, STRUCT)


def table_of(features: dict[str, Any] | None = None, **columns: Any) -> Any:
    table = pa.table(columns)
    if features is None:
        return table
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return table.replace_schema_metadata(metadata)


def save_parquet(folder: Path, *tables: Any, rows: int = 3) -> str:
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=rows)
    return str(folder)


def save_dataset(folder: Path, *tables: Any, rows: int = 3) -> str:
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table, max_chunksize=rows)
    state = STATE | {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return str(folder)


STATE = {
    **{"_fingerprint": "0", "_split": "train", "_format_type": None, "_format_kwargs": {}},
    **{"_format_columns": None, "_output_all_columns": False},
}
FORMATS = {"parquet": (parquet, save_parquet), "huggingface": (huggingface, save_dataset)}


@pytest.fixture(params=FORMATS)
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    """Saves tables in one of the formats and opens them."""
    module, save = FORMATS[request.param]

    def call(*tables: Any, labeled: bool = True, rows: int = 3, **columns: str) -> Any:
        place: Any = save(tmp_path, *tables, rows=rows)
        place = Path(place) if module is huggingface else place
        return module.open_source(place, **columns, class_names=NAMES, labeled=labeled)

    return call


def test_rows_keep_their_order_over_files_and_chunks(read: Save) -> None:
    whole = table_of(FEATURES, image=structs(IMAGES), label=[0, 1, 0, 0, 1, 1, 0])
    source = read(whole.slice(0, 5), whole.slice(5))
    assert [item.label for item in source.items] == [1, 0, 1, 1, 0, 0, 1]
    assert [source.read(i) for i in range(7)] == IMAGES
    assert [source.read(i) for i in (6, 0, 3, 5)] == [IMAGES[i] for i in (6, 0, 3, 5)]
    assert len({item.key for item in source.items}) == 7
    assert [item.key.partition("/")[2] for item in source.items] == [*"01234", *"01"]


def test_many_threads_and_copies_read_at_once(read: Save) -> None:
    source = read(table_of(image=structs(IMAGES)), labeled=False, rows=1)
    wanted = [i % 7 for i in range(300)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, wanted)) == [IMAGES[i] for i in wanted]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.items == source.items
    assert copy.read(6) == IMAGES[6]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["cat", "hot_dog", "cat", "hot dog", "cat", "cat", "0"], [0, 1, 0, 1, 0, 0, 0]),
        ([0, 1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 0, 0, 1]),
        (pa.array(["cat", "hot dog"] * 3 + ["cat"]).dictionary_encode(), [0, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_labels_without_features_are_names_or_positions(
    labels: Any, expected: list[int], read: Save
) -> None:
    source = read(table_of(image=structs(IMAGES), label=labels))
    assert [item.label for item in source.items] == expected


def test_columns_can_be_named(read: Save) -> None:
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"names": ["dog", "cat"], "_type": "ClassLabel"},
        "coarse_label": {"names": ["cat", "hot dog"], "_type": "ClassLabel"},
    }
    table = table_of(
        features,
        thumbnail=pa.array([b"t"] * 7),
        img=structs(IMAGES),
        fine_label=[0] * 7,
        coarse_label=[1] * 7,
    )
    source = read(table, label_column="coarse_label")
    assert (source.read(0), source.items[0].label) == (IMAGES[0], 1)
    assert read(table, labeled=False, image_column="thumbnail").read(0) == b"t"
    with pytest.raises(DataError, match="no column of labels"):
        read(table)


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"label": [0]}, {}, r"has no column of images\.\n  It has: label \(int64\)"),
        ({"a": [b"1"], "b": [b"2"]}, {}, r'2 columns that may hold images: "a", "b"'),
        ({"a": [b"1"]}, {"image_column": "b"}, "has no column b of images"),
        ({"a": [b"1"], "x": ["1"]}, {"image_column": "x"}, "has no column x of images"),
        ({"a": [b"1"]}, {}, r"has no column of labels[\s\S]*label_column"),
        ({"a": [b"1"]}, {"label_column": "y"}, "has no column y of names or numbers"),
        ({"a": [b"1"], "y": [0.5]}, {"label_column": "y"}, "has no column y of names or numbers"),
        ({"a": [b"1"], "label": ["dog"]}, {}, r'row 0: "dog" is not a class name \(nearest'),
        ({"a": [b"1"], "label": [2]}, {}, 'row 0: "2" is not a class name'),
        (
            {"a": [b"1"], "label": pa.array([None], pa.string())},
            {},
            "no row has a label in its column label",
        ),
        ({"a": [b"1"], "label": [-1]}, {}, "no row has a label in its column label"),
        ({"a": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, {}, "any rows"),
    ],
)
def test_what_a_table_lacks_is_named(
    columns: dict[str, Any], named: dict[str, str], message: str, read: Save
) -> None:
    with pytest.raises(DataError, match=message):
        read(table_of(**columns), **named)


def test_a_number_that_the_features_do_not_name_is_refused(read: Save) -> None:
    with pytest.raises(DataError, match="row 3: the label is 2, expected one of the 2 classes"):
        read(table_of(FEATURES, image=structs(IMAGES), label=[0, 1, 0, 2, 0, 0, 0]))


def test_class_names_of_the_features_must_be_in_the_class_list(read: Save) -> None:
    features = {**FEATURES, "label": {"names": ["cats", "dog"], "_type": "ClassLabel"}}
    with pytest.raises(DataError, match=r'row 0: "cats" is not a class name \(nearest: "cat"\)'):
        read(table_of(features, image=structs(IMAGES), label=[0] * 7))


def test_files_with_other_columns_are_no_one_set(read: Save) -> None:
    one = table_of(image=structs(IMAGES))
    other = table_of(photo=structs(IMAGES))
    with pytest.raises(DataError, match="has other columns or class names than"):
        read(one, other, labeled=False)


def test_an_image_without_bytes_cannot_be_used_and_its_path_is_named(read: Save) -> None:
    source = read(table_of(image=structs([b"1", None])), labeled=False)
    assert source.read(0) == b"1"
    with pytest.raises(ImageError, match=r"has no bytes, only the path 1\.jpg"):
        source.read(1)
    bare = read(table_of(image=pa.array([None, b"2"], pa.binary())), labeled=False)
    with pytest.raises(ImageError, match=r"has no bytes$"):
        bare.read(0)


@pytest.mark.parametrize("cut", [0, 4, 0.5, -8, -1])
def test_a_file_that_is_cut_short_is_named(cut: float, read: Save, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    read(table_of(image=structs([rng.bytes(5000) for _ in range(7)])), labeled=False)
    (file,) = [*tmp_path.glob("*.parquet"), *tmp_path.glob("*.arrow")]
    data = file.read_bytes()
    file.write_bytes(data[: int(cut * len(data)) if 0 < cut < 1 else int(cut)])
    module = parquet if file.suffix == ".parquet" else huggingface
    named = file if module is parquet else tmp_path
    with pytest.raises(DataError, match=re.escape(str(named))):
        module.open_source(str(tmp_path), class_names=(), labeled=False)


def test_a_parquet_file_may_change_under_a_source_and_is_read_anew_by_the_next(
    tmp_path: Path,
) -> None:
    place = save_parquet(tmp_path, table_of(image=structs(IMAGES)))
    source = parquet.open_source(place, class_names=(), labeled=False)
    save_parquet(tmp_path, table_of(image=structs(IMAGES[::-1])))
    assert [source.read(i) for i in range(7)] == IMAGES
    again = parquet.open_source(place, class_names=(), labeled=False)
    assert [again.read(i) for i in range(7)] == IMAGES[::-1]


@pytest.mark.parametrize("kinds", [(pa.binary_view(), pa.string_view()), (pa.large_binary(), None)])
def test_plain_bytes_and_views_are_columns_as_any_other(read: Save, kinds: Any) -> None:
    labels = pa.array(["cat", "hot dog"] * 3 + ["cat"], kinds[1])
    source = read(table_of(photo=pa.array(IMAGES, kinds[0]), label=labels))
    assert [source.read(i) for i in range(7)] == IMAGES
    assert [item.label for item in source.items] == [0, 1, 0, 1, 0, 1, 0]


def changed(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert data.count(old) >= 1
    assert len(old) == len(new)
    file.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("module", [parquet, huggingface])
def test_text_that_is_not_utf8_is_damage_that_is_named(module: Any, tmp_path: Path) -> None:
    _, save = FORMATS[module.__name__.rpartition(".")[2]]
    save(tmp_path, table_of(image=structs([b"1", b"2"]), label=["catcat", "hot dog"]))
    (file,) = [*tmp_path.glob("*.parquet"), *tmp_path.glob("*.arrow")]
    place: Any = str(tmp_path) if module is parquet else tmp_path
    changed(file, b"0.jpg", b"\xff.jpg")
    source = module.open_source(place, class_names=(), labeled=False)
    with pytest.raises(ImageError, match="damaged"):
        source.read(0)
    changed(file, b"catcat", b"cat\xffat")
    with pytest.raises(DataError, match=rf"{file} is damaged in its column label"):
        module.open_source(place, class_names=NAMES, labeled=True)
    changed(file, b"label", b"la\xffel")
    with pytest.raises(DataError, match=r"is not a (dataset|readable Parquet)"):
        module.open_source(place, class_names=NAMES, labeled=True)


def run_script(script: str, place: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, place],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


OPEN = """
import sys
from pathlib import Path
from kdedge.data.sources import huggingface
from kdedge.runtime.preprocess import ImageError
source = huggingface.open_source(Path(sys.argv[1]), class_names=(), labeled=False)
for i in range(len(source.items)):
    try:
        source.read(i)
    except ImageError as error:
        print(error)
"""


def test_wrong_offsets_in_an_arrow_file_do_not_end_the_process(tmp_path: Path) -> None:
    save_dataset(tmp_path, table_of(image=pa.array([b"a" * 7, b"b" * 11, b"c" * 13])))
    (file,) = tmp_path.glob("*.arrow")
    offsets = np.array([0, 7, 18, 31], np.int32)
    changed(file, offsets.tobytes(), np.array([0, 2**31 - 1, -5, 31], np.int32).tobytes())
    done = run_script(OPEN, str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(f"{file} is damaged: ") == 3


def test_damage_inside_a_row_group_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.bytes(5000) for _ in range(4)]
    save_parquet(tmp_path, *[table_of(image=structs(images))] * 3, rows=2)
    file = tmp_path / "part-1.parquet"
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)  # the first page's header
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"{file} is not a readable Parquet file"):
        parquet.open_source(str(tmp_path), class_names=(), labeled=False)


def copies() -> set[tuple[Path, int]]:
    cache = Path(os.environ["HF_DATASETS_CACHE"])
    return {(path, path.stat().st_mtime_ns) for path in cache.rglob("*.arrow")}


def test_a_parquet_file_is_copied_once_with_and_without_labels(tmp_path: Path) -> None:
    table = table_of(FEATURES, image=structs(IMAGES), label=[0] * 7, other=[bytes(10_000)] * 7)
    # Of a type that `datasets` does not know
    table = table.append_column("map", pa.array([[("a", 1)]] * 7, pa.map_(pa.string(), pa.int8())))
    place = save_parquet(tmp_path, table)
    before = copies()
    parquet.open_source(place, image_column="image", class_names=NAMES, labeled=True)
    first = copies()
    (new,) = first - before
    assert new[0].stat().st_size < 10_000  # other columns are left out
    parquet.open_source(place, image_column="image", class_names=(), labeled=False)
    assert copies() == first


OPEN_PARQUET = """
import sys
from kdedge.data.sources import parquet
from kdedge.errors import ResourceError
try:
    print(len(parquet.open_source(sys.argv[1], class_names=(), labeled=False).items))
except ResourceError as error:
    print(error)
"""


def test_no_network_is_asked_for_local_files(hub: Any, tmp_path: Path) -> None:
    place = save_parquet(tmp_path, table_of(FEATURES, image=structs(IMAGES), label=[0] * 7))
    done = run_script(OPEN_PARQUET, place, HF_ENDPOINT=hub.url)
    assert (done.stdout, hub.requests) == ("7\n", [])


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    place = save_parquet(tmp_path, table_of(image=structs(IMAGES)))
    cache = tmp_path / "file" / "cache"
    cache.parent.write_bytes(b"")
    done = run_script(OPEN_PARQUET, place, HF_DATASETS_CACHE=str(cache))
    assert f"{cache} could not be written: not a directory" in done.stdout


HUB = """
import sys
from kdedge.data.sources import huggingface
from kdedge.errors import KdedgeError
names = ("cat", "hot dog")
try:
    source = huggingface.open_source(sys.argv[1], part="train", class_names=names, labeled=True)
    print([item.label for item in source.items], [source.read(i) for i in range(3)])
except KdedgeError as error:
    print(type(error).__name__, error)
"""


def read_offline(place: str, cache: Path) -> str:
    done = run_script(HUB, place, HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(cache))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_a_dataset_of_the_hub_is_read_from_the_cache_where_there_is_no_network(
    tmp_path: Path,
) -> None:
    table = table_of(FEATURES, image=structs(IMAGES[:3]), label=[0, 1, 0])
    save_parquet(tmp_path, table)
    cache = tmp_path / "cache"
    files = str(tmp_path / "part-0.parquet")
    datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache))
    # The cache of a dataset on the Hub differs from that of local files in its names
    (copied,) = (cache / "parquet").iterdir()
    target = cache / "owner___animals" / "default"
    target.parent.mkdir()
    copied.rename(target)
    (arrow,) = target.rglob("*.arrow")
    arrow.rename(arrow.with_name("animals-train.arrow"))
    assert read_offline("hf://datasets/owner/animals", cache) == f"[1, 0, 1] {IMAGES[:3]}"


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    text = read_offline("hf://datasets/owner/animals", tmp_path)
    assert text.startswith("SetupError hf://datasets/owner/animals cannot be downloaded: Couldn't")
    assert "with a connection to the Hub" in text


@pytest.mark.parametrize("name", ["animals", "a/b/c/d", "../x/y", ""])
def test_what_cannot_be_the_name_of_a_dataset_is_refused(name: str) -> None:
    with pytest.raises(
        DataError, match=r"does not name a dataset\.\n  Write hf://datasets/OWNER/NAME"
    ):
        huggingface.open_source(f"hf://datasets/{name}", class_names=(), labeled=False)


def test_a_pattern_a_folder_and_a_file_name_the_same_files(tmp_path: Path) -> None:
    tables = [table_of(image=structs([data])) for data in IMAGES]
    save_parquet(tmp_path, *tables)
    (tmp_path / "notes.txt").write_text("x")
    for place in (tmp_path, tmp_path / "*.parquet", tmp_path / "part-[0-6].parquet"):
        source = parquet.open_source(str(place), class_names=(), labeled=False)
        assert [source.read(i) for i in range(7)] == IMAGES
    one = parquet.open_source(str(tmp_path / "part-3.parquet"), class_names=(), labeled=False)
    assert [one.read(i) for i in range(len(one.items))] == [IMAGES[3]]
    for place in (tmp_path / "gone.parquet", tmp_path / "x-*.parquet"):
        with pytest.raises(DataError, match="does not match any Parquet file"):
            parquet.open_source(str(place), class_names=(), labeled=False)


def test_files_of_one_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_parquet(tmp_path / name, table_of(image=structs([name.encode()])))
    pattern = str(tmp_path / "*" / "part-0.parquet")
    source = parquet.open_source(pattern, class_names=(), labeled=False)
    assert [item.key for item in source.items] == ["a/part-0.parquet/0", "b/part-0.parquet/0"]


@pytest.mark.parametrize(
    "state", [None, {}, [], {"_data_files": [{"filename": "gone.arrow"}]}, {"_data_files": []}]
)
def test_what_is_no_saved_dataset_is_refused(state: Any, tmp_path: Path) -> None:
    if state is not None:
        save_dataset(tmp_path)
        (tmp_path / "state.json").write_text(json.dumps(state and STATE | state))
    with pytest.raises(DataError, match=r"is not a dataset that save_to_disk wrote: .*\n  Write"):
        huggingface.open_source(tmp_path, class_names=(), labeled=False)


def test_a_dataset_of_several_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"several splits\.\n  Name the folder of one"):
        huggingface.open_source(tmp_path, class_names=(), labeled=False)


def test_images_are_mapped_and_not_held_in_memory(read: Save) -> None:
    images = [bytes(1 << 20) for _ in range(8)]
    table = table_of(image=structs(images))
    before = pa.total_allocated_bytes()
    source = read(table, labeled=False, rows=2)
    assert all(source.read(i) == images[i] for i in range(8))
    assert pa.total_allocated_bytes() - before < 1 << 20


@pytest.mark.parametrize("module", [parquet, huggingface])
def test_without_datasets_the_missing_package_is_named(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackage, match=r"needs datasets, which[\s\S]*kdedge\[data\]"):
        module.open_source(str(tmp_path), class_names=(), labeled=False)
