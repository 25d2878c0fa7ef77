"""How many unlabeled images a student learns from, counted by class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def distill(kdedge: Run, *changes: str) -> Any:
    """Trains one more student of the stored teacher, or another one's."""
    overrides = [part for change in changes for part in ("--set", change)]
    return kdedge("distill", "r.yaml", "--json", *overrides)


def test_a_number_of_images_per_class_is_drawn_by_seed_from_a_source_with_labels(
    kdedge: Run, trained: Path
) -> None:
    pool = "data.unlabeled={folder: labeled, per_class: 3}"
    records = {}
    for number, changes in enumerate(
        [(pool,), (pool, "optim.lr=0.004"), (pool, "seed=2"), ("data.unlabeled={folder: labeled}",)]
    ):
        done = distill(kdedge, *changes)
        assert done.code == 0, done.err
        run = Path(json.loads(done.out)["student"]["path"])
        records[number] = json.loads((run / "provenance.json").read_text())
    images = [records[number]["hashes"]["image_list"] for number in range(4)]
    assert images[0] == images[1]
    assert len(set(images)) == 3
    steps = [records[number]["summary"]["training"]["steps"] for number in range(4)]
    assert steps == [2 * 3, 2 * 3, 2 * 3, 2 * 6]  # epochs times images / 4


def test_images_without_a_class_cannot_be_counted_by_class(kdedge: Run, trained: Path) -> None:
    done = distill(kdedge, "data.unlabeled={folder: pool, per_class: 3}")
    assert (done.code, done.out) == (3, "")
    assert (
        "data.unlabeled.per_class is 3, and drawing images per class needs their labels:"
        in done.err
    )
    assert "Remove per_class to use all images without labels." in done.err
