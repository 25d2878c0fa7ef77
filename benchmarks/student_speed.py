"""Speed of students of several sizes, as ONNX files in ONNX Runtime or OpenVINO.

ViT-B/16 with 9 x 4 visual prompts, alone, with merged tokens and with fewer blocks; and the smaller
students of `--size`. All have a projector and 397 classes and random weights: accuracy does not
matter here, but the merging sees random images and is as much work as on real ones. All files are
measured in one process, in turns, so that drift of the machine hits all alike; a ratio is the
median of those of the rounds, to the first student.

    python benchmarks/student_speed.py [--merge 0 8 16] [--depth 9 6] [--sizes small nano]
        [--threads 1 2] [--rounds 5] [--openvino]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from interleaved import N_CALLS, interleaved
from plain_loop import random_backbone

from kdedge.builders.onnx.trace import write_onnx
from kdedge.clip.backbone import ImageBackbone, make_backbone, unit_length
from kdedge.config.student_sizes import student_size
from kdedge.evaluation.flops import count_gmacs
from kdedge.fold import FoldRequest, fold
from kdedge.methods import promptkd
from kdedge.methods.base import MethodInputs
from kdedge.runtime.preprocess import Preprocess
from kdedge.targets.onnx.run import load

N_CLASSES, TEACHER_DIM = 397, 768


class Vectors:
    """A teacher of which only the class vectors are known."""

    scale = 100.0

    def class_vectors(self) -> torch.Tensor:
        """[C, D], unit length."""
        generator = torch.Generator().manual_seed(0)
        return unit_length(torch.randn(N_CLASSES, TEACHER_DIM, generator=generator))


def random_tower(name: str) -> ImageBackbone:
    """The image encoder of an open_clip model, with random weights."""
    model = open_clip.create_model(name).eval()
    preprocess = Preprocess(size_px=model.visual.image_size[0], mean=(0.0,) * 3, std=(1.0,) * 3)
    return make_backbone(model.visual, name=name, preprocess=preprocess, is_trained_with_texts=True)


def export(backbone: ImageBackbone, path: Path, **settings: Any) -> float:
    """Writes a student's ONNX file and gives its GFLOPs an image."""
    student = promptkd.Method(
        backbone,
        promptkd.Settings(**settings),
        MethodInputs(
            [f"class {index}" for index in range(N_CLASSES)],
            "{}",
            range(N_CLASSES),
            torch.Generator().manual_seed(0),
            teacher=Vectors(),
        ),
    )
    vectors, preprocess = student.class_vectors(), backbone.preprocess
    request = FoldRequest(vectors, scale=student.scale, preprocess=preprocess)
    model = fold(student.image_modules(), request)
    write_onnx(model, path, size_px=backbone.preprocess.size_px)
    size = backbone.preprocess.size_px
    return 2 * count_gmacs(model, torch.zeros(1, 3, size, size))


def onnxruntime_call(path: Path, images: np.ndarray, n_threads: int) -> Callable[[], object]:
    """A call of a file on images."""
    session = load(path, n_threads=n_threads)
    return lambda: session.run(images)


def openvino_call(path: Path, images: np.ndarray, n_threads: int) -> Callable[[], object]:
    """The same in OpenVINO, in float32."""
    import openvino

    model = openvino.Core().read_model(path)
    model.reshape(list(images.shape))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    hints["INFERENCE_NUM_THREADS"] = n_threads
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    return lambda: request.infer([images])


def by_round(samples: list[float]) -> list[float]:
    """The median of each round's calls."""
    starts = range(0, len(samples), N_CALLS)
    return [statistics.median(samples[start : start + N_CALLS]) for start in starts]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--merge", type=int, nargs="*", default=[0, 8, 16], help="values of r")
    parser.add_argument("--depth", type=int, nargs="*", default=[9, 6], help="blocks, without r")
    parser.add_argument("--sizes", nargs="*", default=["small", "nano"], help="as of --size")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--openvino", action="store_true", help="in place of ONNX Runtime")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    vit = random_backbone("ViT-B-16")
    students: dict[str, tuple[ImageBackbone, dict[str, Any]]] = {}
    for r in arguments.merge:
        students[f"merge_tokens: {r}"] = vit, {"merge_tokens": r}
    for depth in arguments.depth:
        students[f"depth: {depth}"] = vit, {"depth": depth, "prompt_depth": min(9, depth)}
    for name in arguments.sizes:
        size = student_size(name)
        tower = random_tower(size.backbone)
        students[f"--size {name} ({size.backbone})"] = tower, dict(size.settings)
    random = np.random.default_rng(0)
    gflops, calls = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, (backbone, settings)) in enumerate(students.items()):
            path = Path(folder) / f"{index}.onnx"
            gflops[name] = export(backbone, path, **settings)
            size_px = backbone.preprocess.size_px
            images = random.random((arguments.batch, 3, size_px, size_px), dtype=np.float32)
            for n_threads in arguments.threads:
                call = openvino_call if arguments.openvino else onnxruntime_call
                calls[name, n_threads] = call(path, images, n_threads)
    keys = {f"{name}, {n} threads": (name, n) for name, n in calls}
    timed = interleaved({key: calls[pair] for key, pair in keys.items()}, arguments.rounds)
    rounds = {keys[key]: by_round(samples) for key, samples in timed.items()}
    print(f"batch {arguments.batch}, {arguments.rounds} rounds of {N_CALLS} calls\n")
    threads = [f"{n} threads, ms | times as fast" for n in arguments.threads]
    print(f"| student | GFLOPs | {' | '.join(threads)} |")
    print(f"|---|---:|{'---:|---:|' * len(threads)}")
    first = next(iter(students))
    for name in students:
        cells = [name, f"{gflops[name]:.1f}"]
        for n_threads in arguments.threads:
            own, plain = rounds[name, n_threads], rounds[first, n_threads]
            ratios = [before / now for before, now in zip(plain, own, strict=True)]
            cells.append(f"{statistics.median(own):.1f}")
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            cells.append(f"{statistics.median(ratios):.2f} ({spread})")
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
