"""The images of a gallery are the ones that it names."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from kdedge.deploy.parity import SMOKE_SET, write_smoke_set
from kdedge.reporting.disagreements import galleries
from kdedge.reporting.records import gather
from kdedge.results import WorstImage
from kdedge.runs.folder import RunFolder


def first_pixel(uri: str | None) -> list[int]:
    assert uri is not None
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))[0, 0].round(-1).tolist()


def test_a_picture_stands_beside_its_own_two_answers(make_run: Callable[..., RunFolder]) -> None:
    records = gather(make_run(["cat", "dog"], only="artifact"))
    assert records.artifact is not None
    (gallery,) = galleries(records.artifact, records.recipe)
    found = [(one.image, one.reference, one.predicted) for one in gallery.images]
    assert found == [
        ("0.png", "cat", "dog"),
        ("gone.png", "dog", "no finite scores"),
        ("1.png", "cat", "cat"),
    ]
    assert first_pixel(gallery.images[0].picture) == [0, 40, 200]
    assert gallery.images[1].picture is None
    assert first_pixel(gallery.images[2].picture) == [90, 40, 200]


def test_an_image_of_a_smoke_set_is_found_by_its_number(
    make_run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    artifact = gather(make_run(["cat", "dog"], only="artifact")).artifact
    assert artifact is not None
    smoke = artifact.path / SMOKE_SET
    pixels = (
        np.zeros((3, 32, 32, 3), np.uint8) + np.array([0, 50, 100], np.uint8)[:, None, None, None]
    )
    write_smoke_set(smoke, pixels, np.zeros((3, 2), np.float32))
    int8 = artifact.files[1]
    assert int8.parity is not None
    parity = replace(
        int8.parity,
        images=f"3 images of {SMOKE_SET}",
        worst=tuple(WorstImage(f"{SMOKE_SET}[{i}]", "cat", "dog", 0.5) for i in (1, 2, 7)),
    )
    artifact = replace(
        artifact,
        files=(replace(int8, parity=parity),),
        others={SMOKE_SET: hashlib.sha256(smoke.read_bytes()).hexdigest()},
    )
    (gallery,) = galleries(artifact, None)
    assert [first_pixel(one.picture) for one in gallery.images[:2]] == [[50] * 3, [100] * 3]
    assert gallery.images[2].picture is None
