"""Size, agreement, accuracy and CPU latency of what `kdedge export` writes, for a student's run.

The baseline is the unfused student in eager PyTorch: every block on every token, prompts as
ordinary tokens, projector and class vectors apart, as the methods' public code runs it. All rows of
a table are timed in one process, interleaved, the smallest batch a call; ratios are of medians.

    python benchmarks/export/run.py RUN [--threads 2] [--rounds 10] [--set KEY=VALUE]
    python benchmarks/export/run.py --make-vit-b16 FOLDER

The second form trains a ViT-B/16 student with a random backbone for a few steps on drawn images
(397 classes): its sizes and times are those of a real one, its accuracy means nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdedge.clip.backbone import unit_length
from kdedge.data.decoding import normalizer
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run
from kdedge.runtime.artifact import Artifact, ModelFile, load_artifact
from kdedge.runtime.backend import to_input
from kdedge.setup.workspace import Workspace
from kdedge.targets.onnx import run as onnxruntime_backend

sys.path.insert(0, str(Path(__file__).parents[1]))
from interleaved import interleaved
from plain_loop import plain_image_features

RECIPE = """\
name: vit-b16
classes: [{names}]
data:
  unlabeled: {{folder: {pictures}}}
teacher: {{method: zeroshot, backbone: ViT-B-16, weights: {weights}}}
student: {{method: promptkd, backbone: ViT-B-16, weights: {weights}}}
optim: {{epochs: 1, batch_size: 8, warmup_epochs: 0}}
export: {{calibration_images: 64, parity_images: 64}}
gates: {{agreement: {{fp16: 0%, int8: 0%}}, max_drop: 100}}
"""


def make_vit_b16(folder: Path) -> None:
    """Writes random ViT-B/16 weights in OpenAI's layout, pictures and a recipe, and distills."""
    import open_clip
    from PIL import Image

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"), quick_gelu=True)
    state: dict[str, Any] = dict(model.state_dict())
    state["logit_scale"] = torch.tensor(100.0).log()
    state |= {
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(state, folder / "vit-b16.pt")
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(128):
        small = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC).save(
            folder / "pictures" / f"{number}.png"
        )
    names = ", ".join(f"place {number}" for number in range(397))
    recipe = folder / "vit-b16.yaml"
    recipe.write_text(
        RECIPE.format(names=names, pictures=folder / "pictures", weights=folder / "vit-b16.pt")
    )
    command = [
        sys.executable,
        "-m",
        "kdedge",
        "distill",
        str(recipe),
        "--runs",
        str(folder / "runs"),
    ]
    subprocess.run(command, check=True)


def export(run: Path, overrides: list[str]) -> tuple[Artifact, float]:
    """Runs `kdedge export RUN --trt-rtx --int8`; gives the artifact and the seconds it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "kdedge", "export", str(run), "--trt-rtx", "--int8", "--json"]
    command += [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 6):
        raise SystemExit(done.returncode)
    return load_artifact(Path(json.loads(done.stdout)["artifact"])), seconds


def unfused(trained: RunModel, images: Tensor) -> Tensor:
    """Logits by the plain computation."""
    module = trained.method.module
    raw = plain_image_features(trained.backbone.model, images, module.visual_prompts)
    features = unit_length(module.projector(raw))
    return trained.scale * features @ trained.vectors.vectors.T


def measure(run: Path, overrides: list[str], *, n_threads: int, n_rounds: int) -> dict[str, Any]:
    """Exports a run and gives the table's rows."""
    torch.set_num_threads(n_threads)
    folder = RunFolder.open(run)
    trained = load_run(folder, Workspace(folder.root, torch.device("cpu")))
    artifact, seconds = export(run, overrides)
    size = artifact.preprocess.size_px
    shape = (artifact.batches[0], size, size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = to_input(pixels, artifact.pixels)
    normalize = normalizer(artifact.preprocess, torch.device("cpu"))
    batch = normalize(torch.from_numpy(pixels)).contiguous()
    calls: dict[str, Callable[[], Any]] = {}

    def eager() -> Tensor:
        with torch.no_grad():
            return unfused(trained, batch)

    calls["unfused, eager PyTorch"] = eager
    onnx_files = [file for file in artifact.files if file.target == "onnx"]
    for file in onnx_files:
        backend = onnxruntime_backend.load(artifact.checked(file.name), n_threads=n_threads)
        calls[file.name] = lambda backend=backend: backend.run(images)  # type: ignore[misc]
    difference = np.abs(eager().numpy() - calls["model.onnx"]()).max()
    if artifact.head == "scores" and difference > 1e-3 * np.abs(eager().numpy()).max():
        raise SystemExit(f"The baseline is another model: logits differ by {difference}.")
    taken = interleaved(calls, n_rounds)
    baseline = statistics.median(taken["unfused, eager PyTorch"])
    rows = [_row("unfused, eager PyTorch", None, taken, baseline)]
    rows += [_row(file.name, file, taken, baseline) for file in artifact.files]
    return {
        "run": trained.run.name,
        "export_seconds": round(seconds, 1),
        "threads": n_threads,
        "cpu": _cpu(),
        "torch": torch.__version__,
        "rows": rows,
    }


def _row(
    name: str, file: ModelFile | None, taken: dict[str, list[float]], baseline: float
) -> dict[str, Any]:
    parity = None if file is None else file.parity
    times = sorted(taken.get(name, []))
    median = statistics.median(times) if times else None
    return {
        "file": name,
        "megabytes": None if file is None else file.n_bytes / 1e6,
        "agreement_percent": None if parity is None else parity.agreement_percent,
        "accuracy_percent": None if parity is None else parity.accuracy_percent,
        "accuracy_drop": None if parity is None else parity.accuracy_drop,
        "seconds_to_make": None if file is None else file.built_with.get("seconds"),
        "latency_ms": median,
        "latency_ms_p10_p90": None
        if not times
        else [times[len(times) // 10], times[-1 - len(times) // 10]],
        "ratio": None if median is None else baseline / median,
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    extra = [flag for flag in ("avx512f", "avx512_vnni", "amx_int8") if f" {flag}" in flags]
    return f"{models[0] if models else platform.machine()} ({', '.join(extra)}), {os.cpu_count()}"


def show(result: dict[str, Any]) -> None:
    """Prints the table as Markdown."""
    print(
        f"{result['run']}: {result['threads']} threads, {result['cpu']} cores, torch"
        f" {result['torch']}, export in {result['export_seconds']} s\n"
    )
    print("| file | MB | agreement % | accuracy % | latency ms (p10-p90) | ratio | made in s |")
    print("|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        spread = row["latency_ms_p10_p90"]
        latency = (
            "-" if spread is None else f"{row['latency_ms']:.1f} ({spread[0]:.1f}-{spread[1]:.1f})"
        )
        cells = [
            _number(row["megabytes"], 1),
            _number(row["agreement_percent"], 2),
            _number(row["accuracy_percent"], 2),
            latency,
            _number(row["ratio"], 2),
            _number(row["seconds_to_make"], 1),
        ]
        print(f"| {row['file']} | {' | '.join(cells)} |")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """Measures a run, or makes one to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--make-vit-b16", type=Path, metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], help="as kdedge export has it")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.make_vit_b16:
        make_vit_b16(arguments.make_vit_b16)
        return
    if arguments.run is None:
        parser.error("name a student's run, or --make-vit-b16 FOLDER")
    result = measure(
        arguments.run,
        arguments.set,
        n_threads=arguments.threads,
        n_rounds=arguments.rounds,
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
