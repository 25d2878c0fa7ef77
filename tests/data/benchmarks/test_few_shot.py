"""Few-shot lists: drawn as CoOp's code draws, kept as a split file, taken where they are there."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.recipe import DataSpec, SourceSpec
from kdedge.data.benchmarks import list_benchmarks
from kdedge.data.few_shot import Draws, keep_list, list_file
from kdedge.errors import DataError

Make = Callable[[str], Any]
VARIANTS = {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}
TRAINED = sorted(set(list_benchmarks()) - VARIANTS)


@pytest.fixture
def published(miniature: Make, published_split: Any) -> Make:
    """Writes a set's miniature, with CoOp's split file where CoOp has one."""

    def make(name: str) -> Any:
        mini = miniature(name)
        if mini.split_file is not None:
            split = json.dumps(published_split(mini))
            (mini.folder / mini.split_file).write_text(split)
        return mini

    return make


def rows_of(mini: Any, part: str) -> list[tuple[str, int, str]]:
    source = mini.benchmark.open_source(
        mini.folder.parent, part=part, class_names=mini.names, labeled=True
    )
    return [(item.key, item.label, mini.names[item.label]) for item in source.items]


def coop_lists(mini: Any, shots: int, seed: int) -> dict[str, list[list[Any]]]:
    """What CoOp's code draws: one global stream, the training images first, then validation's."""
    state = random.getstate()
    random.seed(seed)
    lists: dict[str, list[list[Any]]] = {"val": []}
    for part, n in (("train", shots), ("val", min(shots, 4))):
        if part not in mini.n_images:
            continue
        groups: dict[int, list[tuple[str, int, str]]] = {}
        for row in rows_of(mini, part):
            groups.setdefault(row[1], []).append(row)
        drawn: list[tuple[str, int, str]] = []
        for group in groups.values():
            drawn += random.sample(group, n) if len(group) >= n else group
        lists[part] = [list(row) for row in drawn]
    random.setstate(state)
    return {**lists, "test": [list(row) for row in rows_of(mini, "test")]}


def coop_read(file: Path, image_root: Path) -> dict[str, list[tuple[str, int, str]]]:
    """How CoOp's code reads a split file."""
    split = json.loads(file.read_text())
    return {
        part: [(str(image_root / path), int(label), name) for path, label, name in split[part]]
        for part in ("train", "val", "test")
    }


def keep(mini: Any, name: str, *, shots: int = 2, seed: int = 1) -> Path | None:
    spec = SourceSpec(benchmark=f"small_{name}")
    return keep_list(spec, shots=shots, seed=seed, data=DataSpec(root=mini.folder.parent))


def take(mini: Any, name: str, part: str, *, shots: int, draws: Draws, without: int = -1) -> Any:
    source = mini.benchmark.open_source(
        mini.folder.parent, part=part, class_names=mini.names, labeled=True
    )
    found = draws.take(
        SourceSpec(benchmark=f"small_{name}", part=part),
        source,
        [i for i in range(len(source.items)) if i != without],
        shots=shots,
        class_names=mini.names,
    )
    return [source.items[i].key for i in found]


def draws_of(mini: Any, name: str, *, shots: int = 2, seed: int = 1) -> Draws:
    data = DataSpec(root=mini.folder.parent)
    return Draws(SourceSpec(benchmark=f"small_{name}"), shots=shots, seed=seed, data=data)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(("shots", "seed"), [(1, 1), (2, 2), (5, 3)])
def test_a_kept_list_is_coops_draw_in_the_format_of_its_split_files(
    name: str, shots: int, seed: int, published: Make
) -> None:
    mini = published(name)
    file = keep(mini, name, shots=shots, seed=seed)
    assert file == mini.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"
    assert json.loads(file.read_text()) == coop_lists(mini, shots, seed)
    images = next(iter(coop_read(file, Path()).values()))[0][0]
    assert sum(path.is_file() for path in mini.folder.rglob(Path(images).name)) >= 1


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_drawn_is_the_same_with_and_without_a_list(name: str, published: Make) -> None:
    mini = published(name)
    parts = [part for part in ("train", "val") if part in mini.n_images]
    before = draws_of(mini, name)
    drawn = [take(mini, name, part, shots=2, draws=before) for part in parts]
    keep(mini, name)
    after = draws_of(mini, name)
    assert drawn == [take(mini, name, part, shots=2, draws=after) for part in parts]


def test_a_list_that_is_there_is_taken_in_its_order_and_stays(
    published: Make, caplog: pytest.LogCaptureFixture
) -> None:
    mini = published("dtd")
    file = keep(mini, "dtd")
    assert file is not None
    listed = json.loads(file.read_text())
    own = [row for row in map(list, rows_of(mini, "train")) if row not in listed["train"]]
    file.write_text(json.dumps({**listed, "train": own[::-1]}))
    with caplog.at_level(logging.INFO):
        found = take(mini, "dtd", "train", shots=2, draws=draws_of(mini, "dtd"))
    assert found == [path for path, _, _ in own[::-1]]
    assert str(file) in caplog.text
    content = file.read_bytes()
    assert keep(mini, "dtd") == file
    assert file.read_bytes() == content
    # Another number of shots, another seed or part is another draw
    for shots, seed in ((1, 1), (2, 2)):
        other = take(
            mini, "dtd", "train", shots=shots, draws=draws_of(mini, "dtd", shots=shots, seed=seed)
        )
        assert other == [row[0] for row in coop_lists(mini, shots, seed)["train"]]


def test_a_list_of_another_seed_is_taken_with_a_warning(
    published: Make, caplog: pytest.LogCaptureFixture
) -> None:
    mini = published("dtd")
    kept = [keep(mini, "dtd", seed=seed) for seed in (1, 2)]
    assert kept[0] is not None
    assert kept[1] is not None
    caplog.clear()
    take(mini, "dtd", "train", shots=2, draws=draws_of(mini, "dtd"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    kept[0].write_bytes(kept[1].read_bytes())
    found = take(mini, "dtd", "train", shots=2, draws=draws_of(mini, "dtd"))
    assert found == [row[0] for row in coop_lists(mini, 2, 2)["train"]]
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage() == (
        f"{kept[0]}: its images of part train are not those that seed 1 draws; those of the list"
        " are taken.\n  Remove it, so that they are drawn anew."
    )


def test_validation_images_are_a_lists_where_four_of_more_shots_are_asked_for(
    published: Make,
) -> None:
    mini = published("dtd")
    file = keep(mini, "dtd", shots=5)
    assert file is not None
    listed = json.loads(file.read_text())
    file.write_text(json.dumps({**listed, "val": listed["val"][::-1]}))
    found = take(mini, "dtd", "val", shots=4, draws=draws_of(mini, "dtd", shots=5))
    assert found == [path for path, _, _ in listed["val"][::-1]]


def test_where_training_images_are_of_another_part_no_list_is_taken(published: Make) -> None:
    mini = published("dtd")

    def drawn() -> Any:
        spec, data = (
            SourceSpec(benchmark="small_dtd", part="val"),
            DataSpec(root=mini.folder.parent),
        )
        return take(mini, "dtd", "val", shots=1, draws=Draws(spec, shots=1, seed=1, data=data))

    before = drawn()
    file = keep(mini, "dtd", shots=1)
    assert file is not None
    listed = json.loads(file.read_text())
    file.write_text(json.dumps({**listed, "val": listed["val"][::-1]}))
    assert drawn() == before


def test_an_image_that_cannot_be_read_changes_no_other(published: Make) -> None:
    mini = published("dtd")
    whole = take(mini, "dtd", "train", shots=3, draws=draws_of(mini, "dtd"))
    keys = [key for key, _, _ in rows_of(mini, "train")]
    gone = keys.index(whole[1])
    assert take(mini, "dtd", "train", shots=3, draws=draws_of(mini, "dtd"), without=gone) == [
        key for key in whole if key != keys[gone]
    ]


@pytest.mark.parametrize("row", [["banded/new.jpg", 0, "banded"], None])
def test_a_list_of_another_split_is_refused_with_its_file(row: Any, published: Make) -> None:
    mini = published("dtd")
    file = keep(mini, "dtd")
    assert file is not None
    listed = json.loads(file.read_text())
    taken = listed["test"].pop() if row is None else row
    file.write_text(json.dumps({**listed, "train": [*listed["train"], taken]}))
    with pytest.raises(DataError) as caught:
        take(mini, "dtd", "train", shots=2, draws=draws_of(mini, "dtd"))
    assert str(caught.value).startswith(f"{file}: {taken[0]}, of class {taken[2]}, is not among")
    assert "Remove it" in str(caught.value)


def test_a_list_whose_classes_have_other_names_is_refused(published: Make) -> None:
    mini = published("dtd")
    file = keep(mini, "dtd")
    assert file is not None
    file.write_text(file.read_text().replace('"banded"', '"bonded"'))
    with pytest.raises(DataError, match="of class bonded, is not among"):
        take(mini, "dtd", "train", shots=2, draws=draws_of(mini, "dtd"))


def test_a_list_that_is_no_split_file_is_named(published: Make) -> None:
    mini = published("dtd")
    file = list_file(mini.folder, shots=2, seed=1)
    file.parent.mkdir()
    file.write_text("[]")
    with pytest.raises(DataError, match=r"shot_2-seed_1\.json is not a split file"):
        draws_of(mini, "dtd")


def test_where_nothing_may_be_written_the_shots_are_drawn_all_the_same(
    published: Make, caplog: pytest.LogCaptureFixture
) -> None:
    mini = published("dtd")
    (mini.folder / "split_fewshot").write_text("a file, and not a folder")
    with caplog.at_level(logging.INFO):
        assert keep(mini, "dtd") is None
    (message,) = [text for text in caplog.messages if "split_fewshot" in text]
    assert message.endswith(
        "\n  The list of shots is not kept; every run draws the same ones again."
    )
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_set_that_has_test_images_alone_has_no_list(name: str, published: Make) -> None:
    mini = published(name)
    assert keep(mini, name) is None
    assert not (mini.folder / "split_fewshot").exists()


def test_a_draw_from_a_split_that_is_not_coops_is_not_kept(miniature: Make) -> None:
    mini = miniature("dtd")
    assert keep(mini, "dtd") is None
    assert not (mini.folder / "split_fewshot").exists()


def test_images_of_ones_own_have_no_list(tmp_path: Path) -> None:
    assert keep_list(SourceSpec(folder=tmp_path), shots=1, seed=1, data=DataSpec()) is None
