"""Runs made of records alone, as small as a report needs them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kdedge.records.evaluation import (
    CalibrationBin,
    EvalDetails,
    EvalResult,
    Gates,
    ParityResult,
    SampleImage,
    WorstImage,
)
from kdedge.records.speed import Accuracy, Measurement, SpeedResult, SpeedRow
from kdedge.reporting.page import write_report
from kdedge.reporting.run_records import run_records
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import Evaluation, write_evaluations
from kdedge.runtime.artifact import Artifact, ModelFile, load_artifact
from kdedge.runtime.cpu_choice import CpuChoice, CpuMachine, TimedFile, keep_choice
from kdedge.runtime.preprocess import Preprocess

NAMES = ("<script>alert(1)</script>", "costs $5 or $6_x^2$", "狐 & Füchse", "school bus")
N_EACH = 10


def result_of(details: EvalDetails) -> EvalResult:
    n_classes = len(details.class_names)
    right = dict.fromkeys(range(n_classes), 0)
    for label, predicted, n in details.confusion:
        right[label] += n * (label == predicted)
    per_class = {name: 100 * right[c] / N_EACH for c, name in enumerate(details.class_names)}
    return EvalResult(
        split="all",
        selection="last",
        n_images=details.n_images,
        all=details.accuracy_percent,
        base=None,
        novel=None,
        harmonic_mean=None,
        ece_percent=details.ece_percent,
        per_class=per_class,
        largest_class_percent=100 / n_classes,
    )


def draw_details(names: Sequence[str], seed: int) -> EvalDetails:
    rng = random.Random(seed)
    counts: dict[tuple[int, int], int] = {}
    for label in range(len(names)):
        for _ in range(N_EACH):
            predicted = label if rng.random() < 0.6 else rng.randrange(len(names))
            counts[label, predicted] = counts.get((label, predicted), 0) + 1
    n_images = N_EACH * len(names)
    bins = (CalibrationBin(n_images - 1, 40.0, 50.0), CalibrationBin(1, 91.5, 100.0))
    confusion = tuple((*pair, n) for pair, n in sorted(counts.items()))
    return EvalDetails(tuple(names), n_images, confusion, bins)


def draw_artifact(folder: Path, names: Sequence[str]) -> Artifact:
    folder.mkdir(parents=True)
    worst = (
        WorstImage("0.png", names[0], names[-1], 0.4),
        WorstImage("gone.png", names[-1], None, 1.0),
        WorstImage("1.png", names[0], names[0], 0.1),
    )
    parity = ParityResult(
        n_images=40,
        n_labeled=0,
        n_nonfinite=1,
        agreement_percent=95.0,
        mean_softmax_distance=0.05,
        max_softmax_distance=1.0,
        accuracy_percent=None,
        reference_accuracy_percent=None,
        accuracy_drop=None,
        worst=worst,
        images="40 of 40 images of data.unlabeled",
        runtime="onnxruntime 1.24.4 CPU",
        images_hash="0" * 64,
    )
    files = [
        ModelFile(name, "onnx", precision, "any", "0" * 64, n_bytes, parity=found)
        for name, precision, n_bytes, found in (
            ("model.onnx", "fp32", 2_000_000, None),
            ("i8.onnx", "int8", 1_000_000, parity),
        )
    ]
    artifact = Artifact(
        path=folder,
        name="tiny",
        class_names=tuple(names),
        preprocess=Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        pixels="uint8",
        head="scores",
        max_batch=8,
        batch="dynamic",
        gates=Gates({"int8": 98.0}, max_drop=1.0),
        files=tuple(files),
    )
    artifact.save()
    return artifact


def speed_row(model: str, ms: float, accuracy: float | None, n_bytes: int | None) -> SpeedRow:
    known = None
    if accuracy is not None:
        known = Accuracy(None, None, None, accuracy, None, "40 images of data.test", 40)
    times = Measurement(1, "on device", 9, ms, ms, ms, ms, 7.0, 1000 / ms, 2.0, 1.0, 3.0, None, ())
    return SpeedRow(
        source="tiny", model=model, protocol="cached", precision="fp32", n_parameters=1000,
        n_bytes=n_bytes, gmacs_image=0.5, gmacs_call=0.0, accuracy=known, gate=None,
        runtime="onnxruntime 1", device="CPU", memory_bytes=2**20, problem=None,
        measurements=(times,),
    )  # fmt: skip


def draw_speed(cpu: str = "A processor") -> SpeedResult:
    return SpeedResult(
        command="kdedge bench tiny",
        measured_at="2026-01-02T03:04:05+00:00",
        settings={"batches": [1], "threads": None, "n_rounds": 5, "n_calls": 9},
        device={"cpu": cpu, "cpu_cores": 2, "throttled": None},
        baseline="CLIP",
        rows=(
            speed_row("CLIP", 4.0, 50.0, None),
            speed_row("i8.onnx", 1.0, 60.0, 2_000_000),
            speed_row("slow.engine", 8.0, 55.0, 3_000_000),
            speed_row("unknown.onnx", 2.0, None, 3_000_000),
        ),
        left_out={"other.engine": "there is no <GPU> here"},
    )


def write_metrics(run: RunFolder) -> None:
    lines: list[dict[str, Any]] = []
    for step in range(20, 101, 20):
        loss = None if step == 60 else 100 / step
        lines.append({"epoch": 1, "step": step, "lr": 0.1, "loss": loss})
        lines[-1]["teacher_agreement_percent"] = step / 2
        if step in (40, 100):
            lines.append({"kind": "epoch", "epoch": 1, "step": step, "loss": 2.0})
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def build_run(
    folder: Path, names: Sequence[str], *, only: str | None = None, cpu: str = "A processor"
) -> RunFolder:
    """A finished student run; `only` names the records it has, all where that is None."""
    pool, classes = folder / "pool", folder / "classes.txt"
    pool.mkdir(exist_ok=True)
    for number in range(2):
        Image.new("RGB", (300, 200), (90 * number, 40, 200)).save(pool / f"{number}.png")
    classes.write_text("\n".join(names) + "\n", encoding="utf-8")
    run = RunFolder.create(
        folder / "runs",
        "tiny",
        role="student",
        recipe_text=f"name: tiny\nclasses: {{file: {classes}}}\n"
        f"data: {{unlabeled: {{folder: {pool}}}, test: {{folder: {pool}}}}}\n"
        "student: {backbone: ViT-B-16, method: promptkd}\n",
        provenance={"method": "promptkd", "device": "cpu", "seed": 1, "settings": {"a": 1}},
    )
    parts = "eval metrics artifact bench" if only is None else only
    if "eval" in parts:
        details = {"student": draw_details(names, 1), "zeroshot": draw_details(names, 2)}
        sample = SampleImage("0.png", ((names[0], 60.0),), None, names[0])
        details["student"] = replace(details["student"], samples={"right": (sample,)})
        write_evaluations(run, {key: Evaluation(result_of(d), d) for key, d in details.items()})
    if "metrics" in parts:
        write_metrics(run)
    if "artifact" in parts:
        draw_artifact(run.path / "artifacts" / "01", names)
    if "bench" in parts:
        (run.path / "bench").mkdir()
        (run.path / "bench" / "01.json").write_text(json.dumps(draw_speed(cpu).to_dict()))
    run.finish()
    return run


@pytest.fixture(scope="session", name="build_run")
def build_run_fixture() -> Callable[..., RunFolder]:
    """Makes a run in a folder, for fixtures that several tests share."""

    def build(folder: Path, names: Sequence[str] = NAMES, **how: Any) -> RunFolder:
        return build_run(folder, names, **how)

    return build


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes runs in the test's own folder."""

    def make(names: Sequence[str] = NAMES, **how: Any) -> RunFolder:
        return build_run(tmp_path, names, **how)

    return make


@pytest.fixture(scope="session")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with all records; not to be changed."""
    run = build_run(tmp_path_factory.mktemp("whole"), NAMES)
    artifact = load_artifact(run.artifacts[0])
    (time,) = draw_speed().rows[1].measurements
    timed = TimedFile("i8.onnx", "int8", "onnxruntime 1", 100.0, time, 1.0, None)
    here = CpuMachine.this()
    keep_choice(artifact, CpuChoice(here, "i8.onnx", "0" * 64, 1, (timed,), {}, "2026-01-02"))
    return write_report([run_records(run)], output=None)
