"""An hour with a GPU: what kdedge has not been measured on, in steps of at most ten minutes.

Weights are random and images drawn; sizes are real (ViT-L/14 teacher, ViT-B/16 student, 100
classes). Each step writes FOLDER/steps/NAME.json; the same command again goes on after the last one
that succeeded, and a training that took too long goes on where it stopped.

    python benchmarks/gpu/hour.py FOLDER [--device cuda]
    python benchmarks/gpu/hour.py FOLDER --rows

`--rows` prints the tables' rows of a GPU; what was not measured says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdedge.records.record import parse_record
from kdedge.records.speed import SpeedResult

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from speed_table import line, number  # noqa: E402 - the folder is not a package
from training_memory import prepare  # noqa: E402

STEP_S = 600
PRECISIONS = ("fp32", "bf16", "fp16")
ENGINES = {
    "trt-fp16": ("--trt",),
    "trt-int8": ("--trt", "--int8", "--int8-minutes", "3"),
    "torch-trt": ("--torch-trt",),
}
"""Artifact -> options of its export."""
Answer = tuple[int, str, str]
"""Exit code, stdout, stderr."""


def steps(recipe: str, device: str, *short: str) -> dict[str, list[str]]:
    """Name of a step -> the arguments of `kdedge`, which prints JSON; `short` are bench's."""

    def trained(name: str, *texts: str) -> list[str]:
        options = [part for text in (f"name={name}", *texts) for part in ("--set", text)]
        return ["distill", recipe, *options, "--resume", "--device", device, "--json"]

    on = ("--device", device)
    ridge = ("student.method=ridge", "student.settings={outputs: features}", "student.optim=null")
    own = "gpu-fp32/02"
    loose = [part for x in ("int8", "fp16") for part in ("--set", f"gates.agreement.{x}=0%")]
    stored = ("optim.precision=fp32", "student.views=1")
    bench = (*on, "--format", "json", *short)
    return {
        "environment": ["doctor", "--json"],
        "check": ["check", recipe, *on, "--json"],
        **{x: trained(f"gpu-{x}", f"optim.precision={x}") for x in PRECISIONS},
        "store": trained("gpu-store", *stored),
        "balance": trained("gpu-balance", *stored, "logit_adjustment={prior: auto}"),
        "ridge": trained("gpu-ridge", *ridge, "student.views=1"),
        "bench": ["bench", own, *bench],
        **{
            name: ["export", own, *options, *loose, *on, "--output", name, "--json"]
            for name, options in ENGINES.items()
        },
        **{f"bench-{name}": ["bench", name, *bench] for name in ENGINES},
    }


def by_process(arguments: list[str]) -> Answer:
    """Runs `kdedge`, or a script or the tests of this repository, for ten minutes at most."""
    run = {"tests": ["-m", "pytest"], "benchmarks": []}.get(arguments[0].split("/")[0])
    command = [sys.executable, *(["-m", "kdedge"] if run is None else run), *arguments]
    cwd = None if run is None else ROOT
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=STEP_S)
    except subprocess.TimeoutExpired:
        return 124, "", f"not done in {STEP_S} s"
    return done.returncode, done.stdout, done.stderr


def measure(planned: dict[str, list[str]], folder: Path, run: Callable[..., Answer]) -> None:
    """Takes the steps that have not succeeded yet; one that fails does not stop the others."""
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    for name, arguments in planned.items():
        file = folder / "steps" / f"{name}.json"
        if file.exists() and json.loads(file.read_text())["code"] == 0:
            continue
        began = time.monotonic()
        code, out, err = run(arguments)
        is_json = code == 0 and out.startswith(("{", "["))
        record = {
            "command": arguments,
            "code": code,
            "seconds": time.monotonic() - began,
            "result": json.loads(out) if is_json else out[-2000:],
            "error": err[-2000:],
        }
        file.write_text(json.dumps(record, indent=1))
        print(f"{name}: {'done' if code == 0 else f'failed ({code})'}", file=sys.stderr)


def rows(folder: Path) -> str:
    """The tables' rows of the GPU, in Markdown."""

    def result(name: str) -> Any:
        file = folder / "steps" / f"{name}.json"
        record = json.loads(file.read_text()) if file.exists() else {"code": None}
        return record["result"] if record["code"] == 0 else None

    lines = ["| training on the GPU | images/s |", "|---|---:|"]
    for name in (*PRECISIONS, "store", "balance"):
        speed, found = None, result(name)
        if found is not None:
            metrics = folder / found["student"]["path"] / "metrics.jsonl"
            steps_of = [json.loads(x) for x in metrics.read_text().splitlines()]
            speed = max(x.get("images_per_second", 0) for x in steps_of)
        shown = "not measured" if speed is None else number(speed, 1)
        lines.append(f"| PromptKD, {name} | {shown} |")
    lines += ["", result("loops") or "the paper's loop: not measured", ""]
    for name in ("bench", *(f"bench-{name}" for name in ENGINES)):
        if (found := result(name)) is None:
            lines.append(f"{name}: not measured")
            continue
        table = parse_record(SpeedResult, json.dumps(found), where=name, remedy="")
        lines += [line(table, row) for row in table.rows if row.device == "GPU"]
    return "\n".join(lines)


def main() -> None:
    """Measures, or prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", action="store_true", help="print the tables' rows")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(given.folder)
    if not given.rows:
        recipe = Path("memory.yaml")
        if not recipe.exists():
            prepare(Path(), n_unlabeled=20)
        options = ["--classes", "100", "--plain-steps", "2", "--steps", "10"]
        own = {
            "loops": ["benchmarks/distill_speed.py", "--device", given.device, *options],
            "tests-fp32": ["tests/cli/test_gpu.py", "-q", "-k", "fp32"],
            "tests": ["tests/cli/test_gpu.py", "-q", "-k", "not fp32"],
        }
        measure({**steps(recipe.name, given.device), **own}, Path(), by_process)
    print(rows(Path()))


if __name__ == "__main__":
    main()
