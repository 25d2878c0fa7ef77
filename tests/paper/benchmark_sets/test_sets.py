"""Every benchmark set, on a miniature of its layout."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.fields import check_template
from kdedge.data.benchmark_sets import list_benchmark_sets
from kdedge.errors import DataError
from kdedge.paper.benchmark_sets import CoopSet, benchmark_set

SPLIT_BY_COOP = [
    one.name
    for one in map(benchmark_set, list_benchmark_sets())
    if isinstance(one, CoopSet) and one.name != "fgvc_aircraft"
]
BASE_TO_NOVEL = {
    # arXiv:2403.02781, table 8: classes, train, test
    "imagenet": (1000, 1_281_167, 50_000),
    "caltech101": (100, 4_128, 2_465),
    "oxford_pets": (37, 2_944, 3_669),
    "stanford_cars": (196, 6_509, 8_041),
    "oxford_flowers": (102, 4_093, 2_463),
    "food101": (101, 50_500, 30_300),
    "fgvc_aircraft": (100, 3_334, 3_333),
    "sun397": (397, 15_880, 19_850),
    "dtd": (47, 2_820, 1_692),
    "eurosat": (10, 13_500, 8_100),
    "ucf101": (101, 7_639, 3_783),
}
VARIANTS = {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}
TOTALS = {
    # Images that the sets' own pages count, less the folders that CoOp leaves out
    "caltech101": 9_144 - 467 - 435,
    "oxford_pets": 7_349,
    "stanford_cars": 16_185,
    "oxford_flowers": 8_189,
    "food101": 101_000,
    "fgvc_aircraft": 10_000,
    "sun397": 39_700,
    "dtd": 5_640,
    "eurosat": 27_000,
    "ucf101": 13_320,
}

Make = Callable[[str], Any]


@pytest.mark.parametrize("name", list_benchmark_sets())
def test_a_set_says_what_it_is(name: str) -> None:
    benchmark = benchmark_set(name)
    assert benchmark.name == name
    assert check_template(benchmark.template) == benchmark.template
    assert benchmark.license
    assert not Path(benchmark.folder).is_absolute()
    if name in BASE_TO_NOVEL:
        n_images = benchmark.n_images
        found = (benchmark.n_classes, n_images["train"], n_images["test"])
        assert found == BASE_TO_NOVEL[name]
    if name in TOTALS:
        assert sum(benchmark.n_images.values()) == TOTALS[name]


@pytest.mark.parametrize("name", list_benchmark_sets())
def test_a_download_has_an_origin_and_what_is_known_of_it_is_well_formed(name: str) -> None:
    benchmark = benchmark_set(name)
    for download in benchmark.downloads:
        assert re.search(r"https?://", download.by_hand)
        assert download.sha256 is None or re.fullmatch("[0-9a-f]{64}", download.sha256)
    assert any(download.has_images for download in benchmark.downloads)
    assert not benchmark.downloads[-1].has_images
    assert len({download.path for download in benchmark.downloads}) == len(benchmark.downloads)
    mirror = benchmark.mirror
    assert (mirror is None) == (name == "imagenet")
    if mirror is not None:
        assert re.fullmatch("[0-9a-f]{40}", mirror.commit)
        assert mirror.sha256 is None or re.fullmatch("[0-9a-f]{64}", mirror.sha256)


@pytest.mark.parametrize("name", list_benchmark_sets())
def test_a_set_is_read_from_its_own_layout(
    name: str, miniature: Make, caplog: pytest.LogCaptureFixture
) -> None:
    mini = miniature(name)
    assert mini.benchmark.class_names(mini.root) == mini.names
    seen: Counter[str] = Counter()
    for part, n_images in mini.n_images.items():
        source = pickle.loads(pickle.dumps(mini.open(part)))
        per_class = Counter(item.label for item in source.items)
        if name.startswith("imagenet"):  # in order, whatever the file system lists
            by_label = sorted(source.items, key=lambda item: item.label)
            assert by_label == sorted(by_label, key=lambda item: (item.label, item.key))
        assert set(per_class) == set(range(len(mini.names)))
        assert sum(per_class.values()) == n_images
        assert all(source.read(i) for i in range(n_images))
        seen.update(item.key for item in source.items)
        assert all(
            Path(source.location(i).path).is_relative_to(mini.folder) for i in range(n_images)
        )
    assert set(seen.values()) == {1}
    assert caplog.records == []


@pytest.mark.parametrize("name", list_benchmark_sets())
def test_labels_are_positions_in_the_class_list_that_is_used(name: str, miniature: Make) -> None:
    mini = miniature(name)
    names = ("another", *reversed(mini.names))
    one, other = mini.open("train"), mini.open("train", names)
    assert [mini.names[item.label] for item in one.items] == [
        names[item.label] for item in other.items
    ]
    bare = mini.open("train", (), labeled=False)
    assert [(item.key, item.label) for item in bare.items] == [
        (item.key, None) for item in one.items
    ]
    with pytest.raises(DataError, match="class list lacks 1 of"):
        mini.open("train", mini.names[1:])


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_variant_of_imagenet_has_its_test_images_for_training_too(
    name: str, miniature: Make
) -> None:
    mini = miniature(name)
    assert mini.open("train").items == mini.open("test").items


@pytest.mark.parametrize("name", SPLIT_BY_COOP)
def test_the_split_file_alone_tells_the_names(name: str, miniature: Make, tmp_path: Path) -> None:
    mini = miniature(name)
    split = (mini.folder / mini.benchmark.lists[0]).read_text()
    other = tmp_path / "elsewhere"
    (other / mini.benchmark.folder).mkdir(parents=True)
    (other / mini.benchmark.folder / mini.benchmark.lists[0]).write_text(split)
    assert mini.benchmark.class_names(other) == mini.names
    with pytest.raises(DataError, match=r"To get them:\n"):
        mini.benchmark.open_source(other, part="train", class_names=mini.names, labeled=True)


@pytest.mark.parametrize("name", list_benchmark_sets())
def test_other_counts_than_the_published_ones_are_refused(name: str, miniature: Make) -> None:
    mini = miniature(name)
    more = {**mini.n_images, "test": mini.n_images["test"] + 1}
    other = replace(mini, benchmark=replace(mini.benchmark, n_images=more))
    with pytest.raises(DataError, match=r"published (set|split) [\s\S]*\n  Get the "):
        other.open("test")
    with pytest.raises(DataError, match="the published"):
        replace(mini.benchmark, n_classes=len(mini.names) + 1).class_names(mini.root)


@pytest.mark.parametrize("name", list_benchmark_sets())
def test_every_set_explains_itself_where_it_is_missing(name: str, tmp_path: Path) -> None:
    benchmark = benchmark_set(name)
    for ask in (
        lambda: benchmark.class_names(tmp_path),
        lambda: benchmark.open_source(tmp_path, part="train", class_names=(), labeled=False),
    ):
        with pytest.raises(DataError) as caught:
            ask()
        message = str(caught.value)
        assert f"{tmp_path}/{benchmark.folder} lacks " in message
        assert f"\n  kdedge data fetch {name} --data {tmp_path}\n  Or by hand:\n" in message
        assert "KDEDGE_DATA" in message


@pytest.mark.parametrize("name", ["eurosat", "imagenet_r"])
def test_a_part_that_a_set_does_not_have_is_refused(name: str, miniature: Make) -> None:
    mini = miniature(name)
    for part in {"val"} - mini.n_images.keys() | {"dev"}:
        with pytest.raises(DataError, match=f"{part} is not a part"):
            mini.open(part)


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        ("fgvc_aircraft", "images_variant_val.txt", "1000001 747", "{path} has .*1000001 747"),
        ("fgvc_aircraft", "images_variant_train.txt", "../x 707-320", "is outside of"),
        ("imagenet", "classnames.txt", "n01440764", "{path} has .*n01440764"),
    ],
)
def test_a_line_that_the_published_files_do_not_have_is_named(
    name: str, file: str, line: str, message: str, miniature: Make
) -> None:
    mini = miniature(name)
    path = mini.folder / file
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message.format(path=path)):
        mini.benchmark.class_names(mini.root)


@pytest.mark.parametrize("in_its_place", [None, b"a file"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("imagenet_r", "imagenet-r/n01440764"),
        ("imagenet_r", "imagenet-r"),
        ("imagenetv2", "imagenetv2-matched-frequency-format-val/3"),
    ],
)
def test_a_folder_of_images_that_is_missing_or_a_file_is_named(
    name: str, folder: str, in_its_place: bytes | None, miniature: Make
) -> None:
    mini = miniature(name)
    path = mini.folder / folder
    shutil.rmtree(path)
    if in_its_place is not None:
        path.write_bytes(in_its_place)
    with pytest.raises(DataError, match=str(mini.folder)) as caught:
        mini.benchmark.class_names(mini.folder.parent)
    assert "\n  " in str(caught.value)


def test_imagenet_names_come_from_open_clip_where_coops_file_is_missing(
    miniature: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("open_clip")
    mini = miniature("imagenet")
    (mini.folder / "classnames.txt").unlink()
    with caplog.at_level(logging.WARNING):
        assert mini.benchmark.class_names(mini.folder.parent) == mini.names
    (record,) = caplog.records
    assert "class names are open_clip's" in record.getMessage()


def test_a_name_of_ones_own_that_no_other_class_has_is_left_as_it_is(miniature: Make) -> None:
    mini = miniature("imagenet_r")
    file = mini.folder / "classnames.txt"
    names = file.read_text().replace("n04008634 missile", "n04008634 shell")
    file.write_text(names)
    assert mini.benchmark.class_names(mini.folder.parent) == ("tench", "shell")


def test_a_class_folder_that_is_not_imagenets_is_named(miniature: Make) -> None:
    mini = miniature("imagenet_r")
    (mini.folder / "imagenet-r" / "n04008634").rename(mini.folder / "imagenet-r" / "missile")
    with pytest.raises(DataError, match=r"imagenet-r has 'a folder missile', expected a WordNet"):
        mini.benchmark.class_names(mini.folder.parent)
