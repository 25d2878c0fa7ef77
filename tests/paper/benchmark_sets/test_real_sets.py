"""The real sets, where KDEDGE_DATA names a folder that benchmarks/real/lay_out.py has made.

`public_few_shot_lists.json` has the SHA-256 of each few-shot list in the folder `indices` of
github.com/linzhiqiu/cross_modal_adaptation, as drawn by CoOp's code: `sha256_json` of its parts
train and val, each a list of [path below the image folder, label, class name].
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from kdedge.data.split import few_shot
from kdedge.files import sha256_json
from kdedge.paper.benchmark_sets import CoopSet, benchmark_set
from kdedge.paper.benchmark_sets.verify import verify

PUBLIC = json.loads((Path(__file__).parent / "public_few_shot_lists.json").read_text())
ROOT = Path(os.environ.get("KDEDGE_DATA") or "KDEDGE_DATA is not set")


def coop_set(name: str, *, with_images: bool) -> CoopSet:
    """The set, which KDEDGE_DATA has, or the test is skipped."""
    found = benchmark_set(name)
    assert isinstance(found, CoopSet)
    folder = ROOT / found.folder
    for file in found.downloads:
        if not (folder / file.path).exists() and (with_images or not file.has_images):
            pytest.skip(f"{folder / file.path} is not there: no real {name} on this machine")
    return found


def draw(found: CoopSet, *, shots: int, seed: int) -> dict[str, list[list[object]]]:
    """What kdedge draws from the split file alone."""
    split, stream = found.read_split(ROOT / found.folder), random.Random(seed)
    rows: dict[str, list[list[object]]] = {}
    for part, n in (("train", shots), ("val", min(shots, 4))):
        images = split.parts[part]
        labels = [label for _, label in images]
        drawn = few_shot(labels, range(len(labels)), shots=n, stream=stream)
        rows[part] = [[*images[i], split.class_names[labels[i]]] for i in drawn]
    return rows


@pytest.mark.parametrize("key", sorted(PUBLIC["eurosat"]))
@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_few_shot_draw_is_the_public_list_in_its_order(name: str, key: str) -> None:
    found = coop_set(name, with_images=False)
    shots, seed = (int(part.partition("_")[2]) for part in key.split("-"))
    assert sha256_json(draw(found, shots=shots, seed=seed)) == PUBLIC[name][key]


@pytest.mark.parametrize("name", ["caltech101", "eurosat"])
def test_every_image_of_a_set_is_as_published_and_can_be_read(name: str) -> None:
    found = verify(coop_set(name, with_images=True), ROOT, read_images=True)
    assert found.problems == ()
    assert [len(part.unreadable or ()) for part in found.parts] == [0, 0, 0]
