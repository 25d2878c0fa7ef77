"""The fastest file on a CPU: which file is chosen, and that the gate here decides what can be."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, is_worse, read_smoke_set, write_smoke_set
from kdedge.benchmarking.cpu_files import TIE_SHARE, choose, cpu_files, fastest_on_cpu
from kdedge.benchmarking.timing import TimingPlan
from kdedge.errors import GateError
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import to_input
from kdedge.runtime.cpu_choice import CpuMachine, TimedFile
from kdedge.targets.onnx import run as onnx_run

SHORT = TimingPlan(seconds=0.0, n_calls=4, n_rounds=2)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], "model.int8.xml"),
        ([("fastest", 9.0, "agreement 97 %")], "model.int8.xml"),
        ([("broken", None, "cannot be loaded")], "model.int8.xml"),
        ([("exact", 3.0 * (1 - TIE_SHARE / 2), None)], "exact"),
        ([("exact", 3.0 * (1 - 2 * TIE_SHARE), None)], "model.int8.xml"),
    ],
)
def test_the_fastest_that_passes_is_chosen_and_of_equals_the_exact_one(
    speed: ModuleType, others: list[Any], expected: str
) -> None:
    rows = [("model.onnx", 1.0, None), ("model.int8.xml", 3.0, None), *others]
    files = []
    for name, ratio, out in rows:
        time = None if ratio is None else speed.measurement(p50_ms=1 / ratio, ratio=ratio)
        agreement = 98.5 if name == "model.int8.xml" else 100.0
        files.append(TimedFile(name, "fp32", "some 1.0", agreement, time, ratio, out))
    assert choose(files, where="art").file == expected


def test_where_none_passes_each_says_why() -> None:
    missed = {"model.onnx": "NaN", "model.int8.xml": "97 %"}
    found = [TimedFile(*(name, "fp32", *[None] * 4, why)) for name, why in missed.items()]
    with pytest.raises(GateError, match=r"art has no file .*\n  model\.onnx: NaN\n  .*: 97 %"):
        choose(found, where="art")


@pytest.fixture
def measurable(artifact: Artifact, write_model: Callable[..., Path]) -> Artifact:
    """An artifact with a smoke set, a second file that agrees, and one that predicts otherwise."""
    pytest.importorskip("onnxruntime")
    size = artifact.preprocess.size_px
    pixels = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), dtype=np.uint8)
    backend = onnx_run.load(artifact.path / "model.onnx", n_threads=1)
    logits = np.concatenate([backend.run(to_input(pixels[i : i + 1], "float")) for i in range(6)])
    backend.close()
    smoke = artifact.path / SMOKE_SET
    write_smoke_set(smoke, SmokeSet(pixels, logits))
    files = []
    for name, factor in (("model.int8-cpu.onnx", 1.0), ("model.wrong.onnx", -1.0)):
        path = write_model(artifact.path / name, factor=factor)
        entry = {"precision": "int8", "device": "cpu", "gate": "passed"}
        files.append(ModelFile(name, "onnx", sha256=digest(path), n_bytes=9, **entry))
    gpu = dataclasses.replace(files[0], name="model.int8.onnx", device="gpu")
    others = {**artifact.others, SMOKE_SET: digest(smoke)}
    found = dataclasses.replace(artifact.with_files(*files, gpu), others=others)
    found.save()
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_for_cpus_are_measured_and_one_that_misses_its_gate_here_is_out(
    measurable: Artifact,
) -> None:
    assert [file.name for file in cpu_files(measurable)] == [
        *("model.onnx", "model.int8-cpu.onnx", "model.wrong.onnx")
    ]
    choice = fastest_on_cpu(measurable, not_tried={"Other fp32": "why"}, plan=SHORT)
    found = {one.file: one for one in choice.candidates}
    assert found.keys() == {"model.onnx", "model.int8-cpu.onnx", "model.wrong.onnx"}
    wrong = found["model.wrong.onnx"]
    assert wrong.out is not None
    assert "on the sample images: agreement 0.00 %, but at least 98.00 % is required" in wrong.out
    assert all(one.time is not None and one.time.n_calls == 4 for one in found.values())
    assert all(one.speedup is not None for one in found.values())
    assert choice.file in ("model.onnx", "model.int8-cpu.onnx")
    assert choice.sha256 == measurable.file(choice.file).sha256
    assert choice.machine == CpuMachine.this()
    assert choice.not_tried == {"Other fp32": "why"}


def test_a_file_that_missed_its_gate_on_all_images_is_out_even_if_it_agrees_here(
    measurable: Artifact, parity: Callable[..., Any]
) -> None:
    file = measurable.file("model.int8-cpu.onnx")
    made = dataclasses.replace(
        file, gate="missed", parity=parity(n_images=1000, agreement_percent=90.0)
    )
    choice = fastest_on_cpu(measurable.with_files(made), not_tried={}, plan=SHORT)
    out = {one.file: one.out for one in choice.candidates}
    assert "agreement 90.00 %" in str(out["model.int8-cpu.onnx"])
    assert choice.file == "model.onnx"


def test_a_file_that_missed_its_gate_on_fewer_images_is_out_even_if_it_agrees_here(
    measurable: Artifact, parity: Callable[..., Any]
) -> None:
    missed = parity(n_images=5, agreement_percent=40.0)  # the sample images are 6
    file = measurable.file("model.int8-cpu.onnx")
    made = dataclasses.replace(file, gate="missed", parity=missed)
    choice = fastest_on_cpu(measurable.with_files(made), not_tried={}, plan=SHORT)
    found = {one.file: one for one in choice.candidates}["model.int8-cpu.onnx"]
    assert found.agreement_percent == 100
    assert str(found.out).startswith("agreement 40.00 %")
    assert choice.file == "model.onnx"


def test_a_file_that_passed_on_more_images_is_out_only_if_it_is_worse_here(
    measurable: Artifact, parity: Callable[..., Any]
) -> None:
    """Two of twelve images have another class: 83.33 %, where the gate is 98 %."""
    smoke = read_smoke_set(measurable.path / SMOKE_SET)
    (measurable.path / SMOKE_SET).unlink()
    pixels = np.concatenate([smoke.pixels, smoke.pixels])
    logits = np.concatenate([smoke.logits, smoke.logits[:4], -smoke.logits[4:]])
    write_smoke_set(measurable.path / SMOKE_SET, SmokeSet(pixels, logits))
    others = {**measurable.others, SMOKE_SET: digest(measurable.path / SMOKE_SET)}
    measurable = dataclasses.replace(measurable, others=others)
    before = parity(n_images=1000, agreement_percent=98.5)
    made = [
        dataclasses.replace(measurable.file(name), gate="passed", parity=before)
        for name in ("model.int8-cpu.onnx", "model.wrong.onnx")
    ]
    choice = fastest_on_cpu(measurable.with_files(*made), not_tried={}, plan=SHORT)
    found = {one.file: (one.agreement_percent, one.out) for one in choice.candidates}
    assert found["model.int8-cpu.onnx"] == (pytest.approx(100 * 10 / 12), None)
    assert "agreement 16.67 %" in str(found["model.wrong.onnx"])
    assert choice.file == "model.int8-cpu.onnx"
    assert "agreement 83.33 %" in str(found["model.onnx"])  # was compared on no other images


@pytest.mark.parametrize(("before", "n_differ"), [((100, 4900), 10), ((0, 500), 4)])
def test_worse_is_what_chance_does_not_explain(
    parity: Callable[..., Any], before: tuple[int, int], n_differ: int
) -> None:
    percent = 100 * before[1] / sum(before)
    made = parity(n_images=sum(before), agreement_percent=percent)
    assert is_worse(parity(agreement_percent=100.0, n_nonfinite=1), made)
    stats = pytest.importorskip("scipy.stats")
    for n in range(12):  # of 200 images
        chance = stats.fisher_exact([[n, 200 - n], before], alternative="greater").pvalue
        assert is_worse(parity(agreement_percent=100 - n / 2), made) is bool(chance < 0.01)
        assert (n >= n_differ) is bool(chance < 0.01)


def test_a_damaged_file_is_out_and_the_others_are_measured(measurable: Artifact) -> None:
    (measurable.path / "model.int8-cpu.onnx").write_bytes(b"damaged")
    choice = fastest_on_cpu(measurable, not_tried={}, plan=SHORT)
    found = {one.file: one for one in choice.candidates}
    assert "has changed since the export" in str(found["model.int8-cpu.onnx"].out)
    assert found["model.int8-cpu.onnx"].time is None
    assert choice.file == "model.onnx"


def test_without_its_smoke_set_nothing_is_chosen(measurable: Artifact) -> None:
    (measurable.path / SMOKE_SET).unlink()
    with pytest.raises(GateError, match=r"model\.onnx: .*smoke_set\.safetensors is missing"):
        fastest_on_cpu(measurable, not_tried={}, plan=SHORT)


def test_a_file_that_fails_while_it_is_timed_is_out_with_one_line(
    measurable: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    n_runs = collections.Counter[str]()

    class Failing(onnxruntime.InferenceSession):
        def __init__(self, path: str, *arguments: Any, **options: Any) -> None:
            super().__init__(path, *arguments, **options)
            self.path = path

        def run(self, *arguments: Any) -> Any:
            n_runs[self.path] += 1
            if self.path.endswith("int8-cpu.onnx") and n_runs[self.path] > 10:
                raise RuntimeError("no kernel\nUpdate it.")
            return super().run(*arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Failing)
    choice = fastest_on_cpu(measurable, not_tried={}, plan=SHORT)
    found = {one.file: one for one in choice.candidates}
    assert "no kernel" in str(found["model.int8-cpu.onnx"].out)
    assert "\n" not in str(found["model.int8-cpu.onnx"].out)
    assert choice.file == "model.onnx"
