"""An artifact's files for CPUs in ONNX Runtime, OpenVINO and ExecuTorch, and what NNCF would make.

Every row runs one image a call, and all are timed in one process, interleaved. Agreement with the
float32 student is measured on every second image of the artifact's smoke set. NNCF, OpenVINO's own
quantizer, is calibrated on the others, where it is installed: with its own choice of layers, and
with the blocks' linear layers alone, in eight and in seven bits.

    python benchmarks/openvino_files.py ARTIFACT [--threads 1] [--rounds 20]

ARTIFACT is from `kdedge export RUN --openvino --executorch --int8`; either target may be left out,
and NNCF's rows with OpenVINO's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdedge.deploy.parity import SMOKE_SET, read_smoke_set
from kdedge.runtime.artifact import Artifact, load_artifact
from kdedge.runtime.backend import to_input
from kdedge.runtime.machine import cpu_model
from kdedge.targets.openvino import run as openvino_run
from kdedge.targets.registry import list_targets, load_run

sys.path.insert(0, str(Path(__file__).parent))
from interleaved import interleaved


def kept_in_float(model: Any) -> list[str]:
    """Names of the convolution, of attention's products and of the head, which NNCF leaves out."""
    operators = model.get_ordered_ops()
    norms = [i for i, one in enumerate(operators) if one.get_type_name() == "MVN"]
    names = []
    for i, one in enumerate(operators):
        sources = [port.get_source_output().get_node().get_type_name() for port in one.inputs()]
        is_plain = one.get_type_name() == "MatMul" and "Constant" not in sources
        is_head = one.get_type_name() == "MatMul" and i > norms[-1]
        if one.get_type_name() == "Convolution" or is_plain or is_head:
            names.append(one.get_friendly_name())
    return names


def quantized(artifact: Artifact, images: np.ndarray, folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of NNCF's two models."""
    if importlib.util.find_spec("nncf") is None or not (artifact.path / "model.xml").is_file():
        return
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # or NNCF reports its use
    import nncf
    import openvino

    nncf.set_log_level(logging.WARNING)
    model = openvino.Core().read_model(artifact.path / "model.xml")
    linear = nncf.IgnoredScope(names=kept_in_float(model))
    for name, scope, overflow in (
        ("NNCF, its own choice of layers", nncf.IgnoredScope(), "first_layer_only"),
        ("NNCF, linear layers alone", linear, "first_layer_only"),
        ("NNCF, linear layers alone, seven bits", linear, "enable"),
    ):
        path = folder / f"nncf{len(list(folder.iterdir()))}.xml"
        with contextlib.redirect_stdout(io.StringIO()):
            found = nncf.quantize(
                model,
                nncf.Dataset([image[None] for image in images]),
                subset_size=len(images),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=scope,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=nncf.OverflowFix(overflow)
                ),
            )
        openvino.save_model(found, path, compress_to_fp16=False)
        yield name, path


def megabytes(path: Path) -> float:
    """Size of a file and of the weights beside it."""
    data = path.with_suffix(".bin") if path.suffix == ".xml" else path
    return (path.stat().st_size + (data.stat().st_size if data != path else 0)) / 1e6


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    artifact = load_artifact(arguments.artifact)
    smoke_set = read_smoke_set(artifact.checked(SMOKE_SET))
    images = to_input(smoke_set.pixels, artifact.pixels)
    folder = Path(tempfile.mkdtemp())
    targets = {target.name: target for target in list_targets()}
    rows: dict[str, tuple[Any, float, float]] = {}
    for file in artifact.files:
        if file.target not in ("onnx", "openvino", "executorch") or file.name == "model.int8.onnx":
            continue
        backend = load_run(targets[file.target]).load(
            artifact.checked(file.name), n_threads=arguments.threads
        )
        rows[file.name] = (backend, file.n_bytes / 1e6, file.built_with["seconds"])
    began = time.monotonic()
    for name, path in quantized(artifact, images[1::2], folder):
        backend = openvino_run.load(path, n_threads=arguments.threads)
        rows[name] = (backend, megabytes(path), time.monotonic() - began)
        began = time.monotonic()

    expected = smoke_set.logits[::2].argmax(axis=1)
    agreement = {}
    for name, (backend, _, _) in rows.items():
        found = [int(backend.run(image[None]).argmax()) for image in images[::2]]
        agreement[name] = 100 * float(np.mean(found == expected))
    calls = {name: lambda b=backend: b.run(images[:1]) for name, (backend, _, _) in rows.items()}
    times = interleaved(calls, arguments.rounds)
    first = times["model.onnx"]
    print("| file | runtime | agreement % | MB | export s | ms | ratio | ratio of minima |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name, (backend, size, seconds) in rows.items():
        ms = statistics.median(times[name])
        cells = [
            name,
            backend.name,
            f"{agreement[name]:.1f}",
            f"{size:.3g}",
            f"{seconds:.1f}",
            f"{ms:.3g}",
            f"{statistics.median(first) / ms:.2f}",
            f"{min(first) / min(times[name]):.2f}",
        ]
        print(f"| {' | '.join(cells)} |")
    runtimes = sorted({backend.describe() for backend, _, _ in rows.values()})
    print(f"\n{cpu_model()}, {arguments.threads} threads, {', '.join(runtimes)},"
          f" {len(expected)} images")  # fmt: skip


if __name__ == "__main__":
    main()
