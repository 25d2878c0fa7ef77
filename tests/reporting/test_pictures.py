"""The images of a gallery are the ones that it names."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdedge.deploy.parity import SMOKE_SET, write_smoke_set
from kdedge.reporting.page import make_chapters
from kdedge.reporting.pictures import changed_cards
from kdedge.reporting.records import gather
from kdedge.results import SampleImage, WorstImage
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_details, read_evaluation, write_evaluations


def first_pixel(uri: str | None) -> list[int]:
    assert uri is not None
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))[0, 0].round(-1).tolist()


def test_a_picture_stands_beside_its_own_two_answers(make_run: Callable[..., RunFolder]) -> None:
    records = gather(make_run(["cat", "dog"], only="artifact"))
    assert records.artifact is not None
    changed = changed_cards(records.artifact, records.artifact.files[1], records.recipe)
    assert changed is not None
    assert [(card.image, card.lines) for card in changed.cards] == [
        ("0.png", ["cat → dog", "distance 0.4000"]),
        ("gone.png", ["dog → no finite scores", "distance 1.0000"]),
        ("1.png", ["cat in both", "distance 0.1000"]),
    ]
    assert first_pixel(changed.cards[0].picture) == [0, 40, 200]
    assert changed.cards[1].picture is None
    assert first_pixel(changed.cards[2].picture) == [90, 40, 200]
    assert "1 of these images no longer exist" in changed.caption
    assert changed_cards(records.artifact, records.artifact.files[0], records.recipe) is None


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
    changed = changed_cards(artifact, artifact.files[0], None)
    assert changed is not None
    assert [first_pixel(one.picture) for one in changed.cards[:2]] == [[50] * 3, [100] * 3]
    assert changed.cards[2].picture is None


def test_a_sample_has_its_picture_its_answers_and_its_class(
    make_run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    run = make_run(["cat", "dog"], only="eval")
    for number, name in enumerate(["cat", "dog"]):
        (tmp_path / "test" / name).mkdir(parents=True)
        color = (90 * number, 40, 200)
        Image.new("RGB", (300, 200), color).save(tmp_path / "test" / name / "0.png")
    text = run.recipe.read_text(encoding="utf-8")
    pool = str(tmp_path / "pool")
    before, _, after = text.rpartition(pool)
    run.recipe.write_text(f"{before}{tmp_path / 'test'}{after}", encoding="utf-8")
    details, results = read_details(run)["student"], read_evaluation(run)["student"]
    samples = {
        "right": (SampleImage("cat/0.png", (("cat", 75.0), ("dog", 25.0)), "cat", "cat"),),
        "wrong": (SampleImage("dog/0.png", (("cat", 60.0),), "dog", "dog"),),
        "most unsure": (SampleImage("dog/gone.png", (("dog", 50.5),), None, "dog"),),
    }
    write_evaluations(run, {"student": (results, replace(details, samples=samples))})
    (chapter,) = make_chapters([gather(run)])
    (section,) = [section for section in chapter.sections if section.title == "Images"]
    blocks: Any = section.blocks
    wrong, unsure, right = blocks
    assert [block.title.partition(",")[0] for block in blocks] == [
        *("Wrong", "Lowest confidence", "Right")
    ]
    assert right.cards[0].lines == ["cat, 75\u00a0%", "right", "teacher: cat"]
    assert first_pixel(right.cards[0].picture) == [0, 40, 200]
    assert wrong.cards[0].lines == ["cat, 60\u00a0%", "is dog", "teacher: dog"]
    assert first_pixel(wrong.cards[0].picture) == [90, 40, 200]
    assert unsure.cards[0].picture is None
