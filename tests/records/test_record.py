"""Every record on disk is read as it was written, and damaged ones never give a traceback."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge.data.pseudo_labels import read_pseudo_labels
from kdedge.errors import DataError, SetupError
from kdedge.records.speed import read_speed
from kdedge.reporting.run_records import run_records
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_details, read_evaluation
from kdedge.runtime.artifact import load_artifact

GOLDEN = Path(__file__).parents[1] / "golden" / "records"


def _run(file: Path) -> RunFolder:
    return RunFolder(file.parent, "student")


def _saved_again(file: Path) -> dict[str, Any]:
    """An artifact.json as it is written again."""
    load_artifact(file).save()
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {**values, "kdedge": "0.1.0"}  # the version that writes


def _dicts(records: dict[str, Any]) -> dict[str, Any]:
    return {name: record.to_dict() for name, record in records.items()}


# Name of a golden file -> name that kdedge gives it, and what is read, as plain values again
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "eval.json": ("eval.json", lambda file: _dicts(read_evaluation(_run(file)))),
    "eval_details.json": ("eval_details.json", lambda file: _dicts(read_details(_run(file)))),
    "artifact.json": ("artifact.json", _saved_again),
    "bench.json": ("bench.json", lambda file: read_speed(file).to_dict()),
    **{
        f"provenance_{what}.json": (
            "provenance.json",
            lambda file: _run(file).read_provenance().to_dict(),
        )
        for what in ("student", "rounds", "resumed", "import")
    },
}


def _read(name: str, data: bytes) -> Any:
    """What is read from a file with these bytes, as plain values that JSON holds."""
    own_name, read = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / own_name
        file.write_bytes(data)
        return json.loads(json.dumps(read(file)))


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_read_and_written_again_alike(name: str) -> None:
    text = (GOLDEN / name).read_text(encoding="utf-8")
    indent, separators = (None, (",", ":")) if name == "eval_details.json" else (2, None)
    again = json.dumps(
        _read(name, text.encode()), indent=indent, separators=separators, ensure_ascii=False
    )
    assert f"{again}\n" == text


def test_every_golden_record_has_a_test() -> None:
    names = {path.name for path in GOLDEN.iterdir()}
    assert names == {*READERS, "metrics.jsonl", "pseudo_labels.jsonl"}


def _pseudo_labels(data: bytes) -> dict[int, int]:
    text = (GOLDEN / "pseudo_labels.jsonl").read_text(encoding="utf-8")
    values = [json.loads(line) for line in text.splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pseudo_labels.jsonl"
        file.write_bytes(data)
        positions = {value["image"]: place for place, value in enumerate(values[1:])}
        pool: Any = SimpleNamespace(list_hash=values[0]["image_list"], positions=positions)
        return read_pseudo_labels(file, pool, class_names=("cat", "dog", "red fox", "school bus"))


def test_pseudo_labels_are_read() -> None:
    data = (GOLDEN / "pseudo_labels.jsonl").read_bytes()
    labels = _pseudo_labels(data)
    assert list(labels) == list(range(data.count(b"\n") - 1))
    assert set(labels.values()) == {0, 1, 2, 3}


def _training(data: bytes) -> tuple[Any, tuple[str, ...]]:
    """The log that a report reads, and what it leaves out."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder), "student")
        run.provenance.write_bytes((GOLDEN / "provenance_student.json").read_bytes())
        run.metrics.write_bytes(data)
        records = run_records(run)
    problems = tuple(problem for problem in records.problems if "metrics.jsonl" in problem)
    return records.training, problems


def test_metrics_are_read() -> None:
    data = (GOLDEN / "metrics.jsonl").read_bytes()
    log, problems = _training(data)
    lines = [json.loads(line) for line in data.splitlines()]
    assert problems == ()
    assert list(log.steps) == [line for line in lines if "kind" not in line]
    assert list(log.epochs) == [line for line in lines if "kind" in line]


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 5, 2.5, -0.5, 1e308, math.nan, math.inf, 10**400, -(10**30)]),
    st.sampled_from(["", "text", "nan", "\ud800", "\x00", "../x", "a" * 64]),
    st.sampled_from([[], {}, [1], [None], [[]], {"": None}, {"a": {"b": []}}]),
    st.builds(lambda depth: _nested(depth), st.sampled_from([3, 150, 900])),
)


ADDED = ("new", "", "a.b")
"""Keys that no version writes; some records refuse them, others leave them out."""


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    below = [(*path, key) for key in keys]
    return below + [
        deeper
        for place in below
        if isinstance(value[place[-1]], dict | list)
        for deeper in _places(value[place[-1]], place)
    ]


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """The value with one place replaced, removed or added to."""
    value = json.loads(json.dumps(value))
    *above, key = draw(st.sampled_from(_places(value)))
    place = value
    for step in above:
        place = place[step]
    kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if kind == "replace":
        place[key] = draw(JUNK)
    elif kind == "remove":
        del place[key]
    elif isinstance(place, dict):
        place[draw(st.sampled_from(ADDED))] = draw(JUNK)
    else:
        place.append(draw(JUNK))
    return value


def _is_same(read: Any, written: Any) -> bool:
    """Whether what was read says what was written; a key that is missing has an empty default."""
    if isinstance(read, dict) and isinstance(written, dict):
        added = [read[key] for key in read.keys() - written.keys()]
        return all(value in (None, {}, [], False, 1, "not measured") for value in added) and all(
            key in ADDED if key not in read else _is_same(read[key], value)
            for key, value in written.items()
        )
    if isinstance(read, list) and isinstance(written, list):
        return len(read) == len(written) and all(map(_is_same, read, written))
    if isinstance(read, float) and not isinstance(written, bool | str | list | dict | None):
        return read == float(written) or (math.isnan(read) and math.isnan(written))
    return read == written and isinstance(read, bool) is isinstance(written, bool)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_record_is_read_as_it_is_written_or_refused(name: str, data: Any) -> None:
    written = data.draw(damaged(json.loads((GOLDEN / name).read_text(encoding="utf-8"))))
    try:
        read = _read(name, json.dumps(written).encode())
    except (DataError, SetupError):
        return
    if name == "artifact.json":
        # The version that writes, and descriptions for people and other programs
        read |= {key: written[key] for key in ("kdedge", "preprocess", "input", "in_graph")}
        for record in (read, written):
            record["output"].pop("name", None)
    assert _is_same(read, written)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"null", b"5", b'"x"', b"\xff", b"\xef\xbb\xbf{}", b'{"format": NaN}'),
        *(b"[" * 10**5, b'{"a":' * 10**4, b"1" * 5000, b'{"n": 1' + b"0" * 5000 + b"}"),
        b'{"kind": "\\ud800"}',
    ],
)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_record_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=READERS[name][0]):
        _read(name, data)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_line_of_the_metrics_is_left_out_with_its_place(data: Any) -> None:
    lines = [json.loads(line) for line in (GOLDEN / "metrics.jsonl").read_text().splitlines()]
    lines = data.draw(damaged(lines))
    log, problems = _training("".join(f"{json.dumps(line)}\n" for line in lines).encode())
    assert len(problems) == 1 or _is_same([*log.steps, *log.epochs], sorted(lines, key=_is_epoch))


def _is_epoch(line: Any) -> bool:
    return "kind" in line and line["kind"] is not None
