"""The real sets, where KDEDGE_DATA names a folder that benchmarks/real/lay_out.py has made.

`public_few_shot_lists.json` has the SHA-256 of each few-shot list in the folder `indices` of
github.com/linzhiqiu/cross_modal_adaptation, as drawn by CoOp's code: `sha256_json` of its parts
train and val, each a list of [path below the image folder, label, class name].
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kdedge.config.recipe import DataSpec, SourceSpec
from kdedge.data.benchmarks import CoopSet, load_benchmark, open_part
from kdedge.data.few_shot import MOST_VALIDATION_SHOTS, Draws, keep_list, list_file
from kdedge.data.verify import verify
from kdedge.files import sha256_json

PUBLIC = json.loads((Path(__file__).parent / "public_few_shot_lists.json").read_text())
ROOT = Path(os.environ.get("KDEDGE_DATA") or "KDEDGE_DATA is not set")


def coop_set(name: str, *, with_images: bool) -> CoopSet:
    """The set, which KDEDGE_DATA has, or the test is skipped."""
    found = load_benchmark(name)
    assert isinstance(found, CoopSet)
    folder = ROOT / found.folder
    needed = [str(found.split_file), *(found.images if with_images else ())]
    for path in needed:
        if not (folder / path).exists():
            pytest.skip(f"{folder / path} is not there: no real {name} on this machine")
    return found


def draw(found: CoopSet, name: str, *, shots: int, seed: int) -> dict[str, list[list[object]]]:
    """What kdedge draws from the split file alone."""
    split = found.read_split(ROOT / found.folder)
    names = split.class_names
    draws = Draws(None, shots=None, seed=seed, data=DataSpec(root=ROOT))
    rows: dict[str, list[list[object]]] = {}
    for part, n in (("train", shots), ("val", min(shots, MOST_VALIDATION_SHOTS))):
        source = open_part(ROOT, split, part=part, class_names=names, labeled=True)
        labels = [item.label for item in source.items]
        spec = SourceSpec(benchmark=name, part=part)  # type: ignore[arg-type]
        drawn = draws.take(spec, source, range(len(labels)), shots=n, class_names=names)
        rows[part] = [[source.items[i].key, labels[i], names[labels[i] or 0]] for i in drawn]
    return rows


@pytest.mark.parametrize("key", sorted(PUBLIC["eurosat"]))
@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_few_shot_draw_is_the_public_list_in_its_order(name: str, key: str) -> None:
    found = coop_set(name, with_images=False)
    shots, seed = (int(part.partition("_")[2]) for part in key.split("-"))
    assert sha256_json(draw(found, name, shots=shots, seed=seed)) == PUBLIC[name][key]


@pytest.mark.parametrize("name", ["caltech101", "eurosat"])
def test_every_image_of_a_set_is_as_published_and_can_be_read(name: str) -> None:
    found = verify(coop_set(name, with_images=True), ROOT, read_images=True)
    assert found.problems == ()
    assert [len(part.bad or ()) for part in found.parts] == [0, 0, 0]


@pytest.mark.parametrize("name", ["caltech101", "eurosat"])
def test_the_list_that_kdedge_keeps_is_the_one_that_is_laid_out(name: str, tmp_path: Path) -> None:
    found = coop_set(name, with_images=True)
    laid_out = list_file(ROOT / found.folder, shots=16, seed=1)
    if not laid_out.is_file():
        pytest.skip(f"{laid_out} is not there")
    folder = tmp_path / found.folder
    folder.mkdir()
    for path in (*found.images, str(found.split_file)):
        (folder / path).symlink_to(ROOT / found.folder / path)
    spec = SourceSpec(benchmark=name)
    kept = keep_list(spec, shots=16, seed=1, data=DataSpec(root=tmp_path))
    assert kept is not None
    assert kept.read_bytes() == laid_out.read_bytes()


def test_another_seeds_draw_is_another_list() -> None:
    """The hashes tell lists apart: no two of one set are the same."""
    for lists in PUBLIC.values():
        assert len(set(lists.values())) == len(lists) == 15
