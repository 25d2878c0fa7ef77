"""The record of the fastest file on a CPU: kept for each machine, checked, and shown."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from kdedge.errors import DataError, SetupError
from kdedge.records.speed import Measurement
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.cpu_choice import (
    CPU_CHOICE,
    CpuChoice,
    CpuMachine,
    TimedFile,
    choice_here,
    keep_choice,
    read_choices,
    readable_choices,
)

ELSEWHERE = CpuMachine("Another CPU", ("avx2", "amx_int8"), 64)


def timed(ratio: float) -> Measurement:
    return Measurement(
        batch=1,
        inputs="on device",
        n_calls=20,
        p50_ms=4 / ratio,
        p90_ms=4 / ratio,
        p99_ms=4 / ratio,
        mean_ms=4 / ratio,
        cv_percent=0.0,
        images_per_second=250 * ratio,
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio + 0.25,
        watts=None,
        samples_ms=(),
    )


def choice_of(artifact: Artifact, **changes: Any) -> CpuChoice:
    file = artifact.files[0]
    candidates = (
        TimedFile(file.name, "fp32", "some 1.0", 100.0, timed(1.0), 1.0, None),
        TimedFile(
            "model.int8.xml", "int8", "other 2.0", 97.0, timed(3.0), 3.5, "agreement 97.00 %"
        ),
        TimedFile("model.xml", "fp32", None, None, None, None, "cannot be loaded"),
    )
    values: dict[str, Any] = {
        "machine": CpuMachine.this(),
        "file": file.name,
        "sha256": file.sha256,
        "batch": 1,
        "candidates": candidates,
        "not_tried": {"Other int8": "pip install other"},
        "measured_at": "2026-01-02T03:04:05+00:00",
    }
    return CpuChoice(**{**values, **changes})


def test_each_machine_has_one_choice_and_a_new_one_replaces_it(artifact: Artifact) -> None:
    assert read_choices(artifact) == ()
    here, there = choice_of(artifact), choice_of(artifact, machine=ELSEWHERE)
    artifact = keep_choice(artifact, there)
    assert choice_here(read_choices(artifact)) is None
    artifact = keep_choice(artifact, here)
    again = dataclasses.replace(here, batch=2)
    artifact = keep_choice(artifact, again)
    found = load_artifact(artifact.path)
    assert found == artifact
    assert read_choices(found) == (there, again)
    assert choice_here(read_choices(found)) == again


def test_a_changed_record_is_not_used_and_measuring_again_replaces_it(artifact: Artifact) -> None:
    artifact = keep_choice(artifact, choice_of(artifact))
    path = artifact.path / CPU_CHOICE
    record = json.loads(path.read_text())
    record["choices"][0]["batch"] = 7
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"cpu_choice\.json has changed since the export"):
        read_choices(artifact)
    artifact = keep_choice(artifact, choice_of(artifact, batch=2))
    assert [one.batch for one in read_choices(artifact)] == [2]


def test_a_newer_record_is_kept_and_no_page_fails_by_it(artifact: Artifact) -> None:
    artifact = keep_choice(artifact, choice_of(artifact))
    path = artifact.path / CPU_CHOICE
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    before = path.read_bytes()
    listed = {**artifact.others, CPU_CHOICE: hashlib.sha256(before).hexdigest()}
    artifact = dataclasses.replace(artifact, others=listed)
    assert readable_choices(artifact) == ()
    with pytest.raises(SetupError, match="newer kdedge"):
        keep_choice(artifact, choice_of(artifact, batch=2))
    assert path.read_bytes() == before


def test_the_table_shows_the_chosen_file_and_why_others_are_not(artifact: Artifact) -> None:
    choice = choice_of(artifact)
    header, rows = choice.table.header, choice.table.rows
    assert header[0] == "file"
    assert [row[-1] for row in rows] == ["chosen", "agreement 97.00 %", "cannot be loaded"]
    assert rows[1][2:5] == ["97.00", "1.33", "3.50"]
    assert rows[2][2:5] == ["-"] * 3
    text = str(choice)
    assert "Not tried: Other int8: pip install other" in text
    assert str(choice.machine) in text
    assert "| model.int8.xml | other 2.0 | 97.00 |" in choice.as_markdown()


def test_a_time_in_doubt_is_told(artifact: Artifact) -> None:
    choice = choice_of(artifact)
    busy = dataclasses.replace(timed(1.0), others_percent=50.0)
    first = dataclasses.replace(choice.candidates[0], time=busy)
    choice = dataclasses.replace(choice, candidates=(first, *choice.candidates[1:]))
    assert "In doubt: other processes kept 50 % of the cores busy" in choice.notes[-1]
