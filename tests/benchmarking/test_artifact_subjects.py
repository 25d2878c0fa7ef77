"""The rows of an artifact's files: what is known of them before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdedge.benchmarking.artifact_subjects import LoadedModelFile, artifact_subjects
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.preprocess import Preprocess


def make_artifact(*files: ModelFile) -> Artifact:
    return Artifact(
        path=Path("artifact"),
        name="line3",
        class_names=("a", "b"),
        preprocess=Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        pixels="float",
        head="scores",
        max_batch=8,
        batch="dynamic",
        files=files,
    )


def file(name: str, target: str, sha256: str, **other: Any) -> ModelFile:
    return ModelFile(name, target, "fp16", "gpu", sha256, 1000, **other)


def test_every_file_has_the_work_that_the_export_counted_of_the_model(
    parity: Callable[..., Any],
) -> None:
    measured = parity(n_labeled=40, agreement_percent=97.5, accuracy_percent=71.0)
    rows = artifact_subjects(
        make_artifact(
            file("other.onnx", "onnx", "0" * 64),
            file(
                *("model.onnx", "onnx", "1" * 64),
                built_with={"gmacs": 2.0, "parameters": 5},
                parity=measured,
                gate="missed",
            ),
            file("model.engine", "tensorrt", "2" * 64, made_from="1" * 64),
            file("model.pt2", "torch-tensorrt", "3" * 64),  # no backend of kdedge's runs it
        ),
        n_threads=None,
    )
    found = {row.model: (row.gmacs_image, row.n_parameters, row.gate) for row in rows}
    assert found == {
        "other.onnx": (2.0, 5, "not measured"),
        "model.onnx": (2.0, 5, "missed"),
        "model.engine": (2.0, 5, "not measured"),
    }
    accuracies = [row.accuracy for row in rows]
    assert (accuracies[0], accuracies[2]) == (None, None)
    assert accuracies[1] is not None
    assert (accuracies[1].all, accuracies[1].agreement) == (71.0, 97.5)


@pytest.mark.parametrize(
    ("backend", "expected"), [((1, None), (1, 8)), ((1, 4), (1, 4)), ((2, 16), (2, 8))]
)
def test_a_batch_has_to_suit_the_artifact_and_what_runs_it(
    backend: tuple[int, int | None], expected: tuple[int, int]
) -> None:
    runs: Any = SimpleNamespace(batches=backend, describe=lambda: "onnxruntime 1.24 CPU")
    loaded = LoadedModelFile(make_artifact(), runs)
    assert loaded.batches == expected
    assert (loaded.runtime, loaded.gpu) == ("onnxruntime 1.24", None)
