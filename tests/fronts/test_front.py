"""Which files are ranked, which are on the front, and which one is named for deployment."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kdedge.errors import GateError
from kdedge.fronts.front import Front, Source, make_front
from kdedge.fronts.limits import Limits
from kdedge.fronts.students import Student, model_name
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.preprocess import Preprocess
from kdedge.speed_results import Accuracy, Measurement, SpeedResult, SpeedRow

pytest.importorskip("matplotlib")

FILE = "model.onnx"
NO_LIMITS = Limits()


def student(name: str, *files: ModelFile) -> Student:
    """A student with these files; with one float32 file if none are given."""
    artifact = Artifact(
        path=Path("runs") / name / "artifacts/01",
        name="tiny",
        class_names=("cat", "dog"),
        preprocess=Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        pixels="uint8",
        head="scores",
        max_batch=8,
        batch="dynamic",
        files=files
        or (ModelFile(FILE, "onnx", "fp32", "any", "0" * 64, 2_000_000, gate="passed"),),
    )
    return Student(name, Path("runs") / name, artifact=artifact)


def speed_row(
    name: str, ms: float, accuracy: Accuracy | float | None, *, busy_percent: float = 0.0
) -> SpeedRow:
    """The measurement of a file; an accuracy is on the same 40 images as the others'."""
    found = Measurement(
        batch=1,
        inputs="on device",
        n_calls=20,
        p50_ms=ms,
        p90_ms=ms,
        p99_ms=ms,
        mean_ms=ms,
        cv_percent=0.0,
        images_per_second=1000 / ms,
        ratio=None,
        ratio_low=None,
        ratio_high=None,
        watts=None,
        samples_ms=(ms,),
        others_percent=busy_percent,
    )
    if isinstance(accuracy, float):
        accuracy = on_images("a" * 64, all_names=accuracy)
    return SpeedRow(
        source="tiny",
        model=name,
        protocol="cached",
        precision="fp32",
        n_parameters=500_000,
        n_bytes=2_000_000,
        gmacs_image=0.25,
        gmacs_call=0.0,
        accuracy=accuracy,
        gate="passed",
        runtime="onnxruntime 1.24.4",
        device="CPU",
        memory_bytes=None,
        compute_percent=None,
        copy_percent=None,
        problem=None,
        measurements=(found,),
    )


def on_images(images_hash: str, *, all_names: float, mean: float | None = None) -> Accuracy:
    return Accuracy(mean, mean, mean, all_names, None, "images", 40, images_hash)


def front_of(
    students: Sequence[Student],
    rows: Sequence[SpeedRow],
    limits: Limits = NO_LIMITS,
    left_out: dict[str, str] | None = None,
) -> Front:
    speed = SpeedResult(
        command="kdedge front s.yaml",
        measured_at="2026-01-01T00:00:00+00:00",
        settings={"batches": [1], "threads": 2, "n_calls": 20, "n_rounds": 5},
        device={"cpu": "some CPU", "cpu_cores": 2},
        peaks={},
        baseline=None,
        rows=tuple(rows),
        left_out=left_out or {},
    )
    source = Source("small", Path("s.yaml"), Path("bench/01.json"))
    return make_front(students, speed, limits=limits, source=source)


def simple(points: Sequence[tuple[float, float]], limits: Limits = NO_LIMITS) -> Front:
    """The front of students s0, s1, ... with one file each, by latency and accuracy."""
    students = [student(f"s{i}") for i in range(len(points))]
    rows = [
        speed_row(model_name(one, FILE), ms, accuracy)
        for one, (ms, accuracy) in zip(students, points, strict=True)
    ]
    return front_of(students, rows, limits)


def test_the_front_and_the_choice_are_those_of_a_slow_search() -> None:
    rng = random.Random(0)
    for _ in range(200):
        points = [
            (float(rng.randint(1, 9)), 10.0 * rng.randint(1, 9)) for _ in range(rng.randint(1, 8))
        ]
        limits = Limits(
            rng.choice([None, float(rng.randint(1, 9))]),
            rng.choice([None, 10.0 * rng.randint(1, 9)]),
        )
        made = simple(points, limits)
        for row in made.rows:
            ms, accuracy = points[int(row.student[1:])]
            is_beaten = any(
                m <= ms and a >= accuracy and (m, a) != (ms, accuracy) for m, a in points
            )
            assert row.is_on_front == (not is_beaten)
        within = [
            (ms, accuracy)
            for ms, accuracy in points
            if ms <= (limits.max_ms or 99) and accuracy >= (limits.min_accuracy or 0)
        ]
        has_limits = limits != NO_LIMITS
        assert (made.chosen is not None) == (has_limits and bool(within))
        if made.chosen is not None:
            expected = (
                min(within, key=lambda point: (-point[1], point[0]))
                if limits.max_ms is not None
                else min(within, key=lambda point: (point[0], -point[1]))
            )
            assert (made.chosen.p50_ms, made.chosen.accuracy) == expected


@pytest.mark.parametrize(
    ("limits", "answer"),
    [
        (NO_LIMITS, "On the front, the fastest first: s1 (30.00 %, 1 ms); s0 (50.00 %, 4 ms)."),
        (
            Limits(max_ms=3),
            "Deploy s1: 30.00 %, 1 ms, the most accurate within 3 ms:"
            " runs/s1/artifacts/01/model.onnx",
        ),
        (
            Limits(min_accuracy=40),
            "Deploy s0: 50.00 %, 4 ms, the fastest with at least 40 %:"
            " runs/s0/artifacts/01/model.onnx",
        ),
        (Limits(max_ms=0.5), "There is no file within 0.5 ms. The nearest is s1: 30.00 %, 1 ms."),
        (
            Limits(min_accuracy=60),
            "There is no file with at least 60 %. The nearest is s0: 50.00 %, 4 ms.",
        ),
        (
            Limits(max_ms=3.5, min_accuracy=40),
            "There is no file within 3.5 ms with at least 40 %. The nearest is s0: 50.00 %, 4 ms.",
        ),
    ],
)
def test_one_line_says_what_to_deploy(limits: Limits, answer: str) -> None:
    made = simple([(4.0, 50.0), (1.0, 30.0), (5.0, 45.0)], limits)
    assert made.answer == answer
    if answer.startswith("There is no file"):
        with pytest.raises(GateError) as caught:
            made.check()
        assert str(caught.value).startswith(answer)
    else:
        made.check()


def test_a_time_in_doubt_is_marked_and_not_ranked() -> None:
    calm, busy = student("calm"), student("busy")
    rows = [
        speed_row(model_name(calm, FILE), 4.0, 50.0),
        speed_row(model_name(busy, FILE), 1.0, 90.0, busy_percent=80),
    ]
    made = front_of([calm, busy], rows, Limits(max_ms=2))
    ranked, doubted = made.rows
    assert (ranked.student, doubted.student) == ("calm", "busy")
    assert (ranked.is_on_front, doubted.is_on_front) == (True, False)
    assert doubted.doubt == "other processes kept 80 % of the cores busy"
    assert "1!" in str(made)
    assert "run the same command with --wait-quiet 60" in str(made)
    with pytest.raises(GateError, match="The nearest is calm"):
        made.check()
    nothing = front_of([busy], rows[1:], Limits(max_ms=2))
    with pytest.raises(GateError, match=r"No file is ranked.*\n.* --wait-quiet 60"):
        nothing.check()


def test_a_file_that_missed_its_gates_is_marked_and_neither_ranked_nor_named() -> None:
    file = ModelFile(FILE, "onnx", "fp32", "any", "0" * 64, 2_000_000, gate="missed")
    good, bad = student("good"), student("bad", file)
    rows = [
        speed_row(model_name(good, FILE), 4.0, 50.0),
        speed_row(model_name(bad, FILE), 1.0, 90.0),
    ]
    made = front_of([bad, good], rows, Limits(max_ms=5))
    assert made.deploy == "good"
    assert [row.is_on_front for row in made.rows] == [True, False]
    assert made.rows[1].why_unranked == "it missed the recipe's gates"
    assert made.table()[1][1][1] == "missed gate"


def test_rows_are_ranked_by_an_accuracy_that_all_have_on_the_same_images() -> None:
    students = [student(name) for name in ("a", "b", "c")]
    names = [model_name(one, FILE) for one in students]
    first, second = "a" * 64, "b" * 64
    means = [
        on_images(first, all_names=50.0, mean=60.0),
        on_images(first, all_names=40.0, mean=70.0),
    ]
    rows = [speed_row(name, 1.0, one) for name, one in zip(names, means, strict=False)]
    made = front_of(students[:2], rows)
    assert made.accuracy_name == "harmonic mean of base and novel"
    assert {row.student: row.accuracy for row in made.rows} == {"a": 60.0, "b": 70.0}

    rows.append(speed_row(names[2], 1.0, on_images(first, all_names=45.0)))
    made = front_of(students, rows)
    assert made.accuracy_name == "accuracy over all names"
    assert {row.student: row.accuracy for row in made.rows} == {"a": 50.0, "b": 40.0, "c": 45.0}

    rows[2] = speed_row(names[2], 1.0, on_images(second, all_names=99.0))
    made = front_of(students, rows)
    assert made.rows[-1].why_unranked == "its accuracy on the images of the others is unknown"
    assert made.rows[-1].accuracy is None


def test_what_was_not_measured_is_a_row_with_the_reason() -> None:
    good, fixed, gone = student("good"), student("fixed"), student("gone")
    broken = Student("broken", problem="its training failed: kdedge: no images")
    rows = [
        speed_row(model_name(good, FILE), 4.0, 50.0),
        replace(speed_row(model_name(fixed, FILE), 4.0, 50.0), measurements=()),
    ]
    left_out = {
        f"{model_name(fixed, FILE)}, batch 1": "it takes 4 per call",
        model_name(gone, FILE): "onnxruntime is not installed",
    }
    made = front_of([broken, fixed, gone, good], rows, left_out=left_out)
    assert {row.student: row.why_unranked for row in made.rows} == {
        "good": None,
        "broken": "its training failed: kdedge: no images",
        "fixed": "it takes 4 per call",
        "gone": "onnxruntime is not installed",
    }
    assert made.rows[0].student == "good"


def test_files_of_one_student_have_labels_of_their_own() -> None:
    files = [
        ModelFile(name, "onnx", precision, "any", "0" * 64, 2_000_000, gate="passed")
        for name, precision in (("a.onnx", "fp32"), ("b.onnx", "int8"), ("c.onnx", "int8"))
    ]
    one, other = student("one", *files), student("other")
    rows = [speed_row(model_name(one, file.name), 4.0, 50.0) for file in files]
    made = front_of([one, other], [*rows, speed_row(model_name(other, FILE), 5.0, 50.0)])
    assert [row.label for row in made.rows] == ["one, fp32", "one, b.onnx", "one, c.onnx", "other"]


def test_the_files_of_an_earlier_front_are_replaced(tmp_path: Path) -> None:
    from kdedge.fronts.write import write_front

    made = simple([(4.0, 50.0), (1.0, 30.0)])
    assert set(write_front(tmp_path, made)) == {path.name for path in tmp_path.iterdir()}
    texts = {element.text for element in ET.parse(tmp_path / "front-gflops.svg").iter()}
    assert {"s0", "s1", "GFLOPs per image (log scale)"} <= texts
    uncounted = replace(made, rows=tuple(replace(row, gflops=None) for row in made.rows))
    write_front(tmp_path, uncounted)
    assert not (tmp_path / "front-gflops.svg").exists()
    assert "| s1 | yes | 30.00 | 1 | 2 | - | 0.5 |" in (tmp_path / "front.md").read_text()
