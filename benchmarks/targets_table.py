"""The table target x precision: an artifact's files for CPUs beside the student in eager PyTorch.

    python benchmarks/targets_table.py RUN ARTIFACT [--threads 1] [--rounds 10]

ARTIFACT is from `kdedge export RUN --openvino --executorch --litert --int8`; any target may be left
out. The first row is the model that `kdedge eval` runs. All rows run one image a call, in one
process, interleaved. A ratio is that of each round's two smallest times, which other processes
change least: of the rounds, the median and the quartiles. Agreement is the export's. Memory is the
largest of a process that loads one file and runs it, with Python and the runtime; ExecuTorch's has
torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdedge.loading.decoding import normalizer
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import load_run
from kdedge.runtime.artifact import Artifact, ModelFile, load_artifact
from kdedge.runtime.backend import to_input
from kdedge.runtime.machine import cpu_model
from kdedge.setup.workspace import Workspace
from kdedge.targets.registry import list_targets, load_file

sys.path.insert(0, str(Path(__file__).parent))
from interleaved import by_round, interleaved

EAGER = "student in eager PyTorch"

# Without this module's imports, of which torch is the largest
RUN_ONE = """
import re, sys
from pathlib import Path
import numpy as np
from kdedge.runtime.artifact import load_artifact
from kdedge.runtime.backend import to_input
from kdedge.targets.registry import load_file

artifact = load_artifact(Path(sys.argv[1]))
backend = load_file(artifact, artifact.file(sys.argv[2]), n_threads=int(sys.argv[3]))
size = artifact.preprocess.size_px
pixels = np.zeros((artifact.batches[0], size, size, 3), np.uint8)
for _ in range(3):
    backend.run(to_input(pixels, artifact.pixels))
status = Path("/proc/self/status").read_text()
print(float(re.findall(r"VmHWM:\\s+(\\d+) kB", status)[0]) / 1e3)
"""


def files_for_cpus(artifact: Artifact) -> list[ModelFile]:
    """The artifact's files that run on a CPU."""
    targets = {target.name for target in list_targets() if target.cpu_precisions}
    return [file for file in artifact.files if file.target in targets and file.device != "gpu"]


def peak_memory(artifact: Path, name: str, n_threads: int) -> float:
    """Largest resident memory, in MB, of a process that loads a file and runs it three times."""
    command = [sys.executable, "-c", RUN_ONE, str(artifact), name, str(n_threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def spread(before: list[float], after: list[float]) -> str:
    """Median and quartiles of the ratio."""
    low, middle, high = statistics.quantiles(by_round(before, after), n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    artifact = load_artifact(arguments.artifact)
    folder = RunFolder.open(arguments.run)
    trained = load_run(folder, Workspace(folder.root, torch.device("cpu")))
    size = artifact.preprocess.size_px
    shape = (artifact.batches[0], size, size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    normalize = normalizer(artifact.preprocess, torch.device("cpu"))
    batch = normalize(torch.from_numpy(pixels)).contiguous()
    images = to_input(pixels, artifact.pixels)

    def eager() -> Any:
        with torch.no_grad():
            return trained.logits(batch)

    files = files_for_cpus(artifact)
    memory = {file.name: peak_memory(artifact.path, file.name, arguments.threads) for file in files}
    loaded = {file.name: load_file(artifact, file, n_threads=arguments.threads) for file in files}
    calls: dict[str, Callable[[], Any]] = {EAGER: eager}
    calls |= {name: lambda one=one: one.run(images) for name, one in loaded.items()}
    times = interleaved(calls, arguments.rounds)
    gmacs = artifact.file("model.onnx").built_with["gmacs"]
    names = ["file", "runtime", "MB", "export s", "agreement %", "ms", "x eager PyTorch"]
    names += ["x model.onnx", "peak MB"]
    print(f"| {' | '.join(names)} |\n|---|---|{'---:|' * (len(names) - 2)}")
    for name in calls:
        milliseconds = times[name]
        file = None if name == EAGER else artifact.file(name)
        parity = None if file is None else file.parity
        cells = [
            name,
            f"torch {torch.__version__}" if file is None else loaded[name].name,
            "-" if file is None else f"{file.n_bytes / 1e6:.3g}",
            "-" if file is None else f"{file.built_with['seconds']:.1f}",
            "-" if parity is None else f"{parity.agreement_percent:.2f}",
            f"{statistics.median(milliseconds):.3g}",
            spread(times[EAGER], milliseconds),
            spread(times["model.onnx"], milliseconds),
            "-" if file is None else f"{memory[name]:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
    runtimes = sorted({backend.describe() for backend in loaded.values()})
    parity = artifact.file("model.onnx").parity
    print(
        f"\n{cpu_model()}, {arguments.threads} threads, {', '.join(runtimes)};"
        f" {gmacs:.3g} GMACs an image;"
        f" agreement on {0 if parity is None else parity.n_images} images"
    )


if __name__ == "__main__":
    main()
