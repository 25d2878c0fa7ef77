"""How much slower training is beside one busy process, and whether it is slower alone.

Whole processes, one after the other: plain PyTorch as it comes (a small transformer, no kdedge),
and `kdedge teach demo` with each way for OpenMP's threads to wait. A row is measured alone, then
beside one process that computes all the time. Seconds are those of the training steps.

    python benchmarks/busy_machine.py [--before CHECKOUT] [--rounds 2]

With --before, an older checkout of kdedge has a row of its own: it leaves the environment as it is.
Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EPOCHS = 4
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

PLAIN = """
import time, torch
from torch import nn
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True, dropout=0.0)
model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
images = torch.randn(16, 17, 256)
optimizer = torch.optim.SGD(model.parameters(), 1e-3)
def step():
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()
for _ in range(3):
    step()
began, n = time.perf_counter(), 0
while time.perf_counter() - began < 2.5:
    step()
    n += 1
print(n / (time.perf_counter() - began))
"""

WAITS: dict[str, dict[str, str]] = {
    "kdedge": {},
    "kdedge, OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "kdedge, GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "kdedge --threads 1": {"OMP_NUM_THREADS": "1"},
}


def run(arguments: list[str], variables: Mapping[str, str], package: Path) -> str:
    """Runs a Python process; gives what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"PYTHONPATH": str(package), **variables}
    with tempfile.TemporaryDirectory() as folder:  # a kdedge in the current one would be taken
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout


def steps_a_second(variables: Mapping[str, str], package: Path) -> float:
    """Of the demo's teacher, whose training is written into its record."""
    with tempfile.TemporaryDirectory() as folder:
        run(
            [
                *("-m", "kdedge", "teach", "demo", "--runs", folder),
                *("--set", f"teacher.optim.epochs={EPOCHS}", "--set", "data.test=null"),
                *("--set", "teacher.settings.averaging_mean_epoch=2"),
            ],
            variables,
            package,
        )
        record: Any = json.loads((Path(folder) / "demo/01/provenance.json").read_text())
    training = record["summary"]["training"]
    return float(training["steps"] / training["seconds"])


@contextmanager
def beside(is_busy: bool) -> Iterator[None]:
    """Context in which one process computes all the time, if it is asked for."""
    if not is_busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="an older checkout")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    rows: dict[str, Any] = {"plain PyTorch": lambda: float(run(["-c", PLAIN], {}, ROOT))}
    if arguments.before is not None:
        rows["kdedge before"] = lambda: steps_a_second({}, arguments.before)
    for name, variables in WAITS.items():
        rows[name] = lambda variables=variables: steps_a_second(variables, ROOT)
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(arguments.rounds):
        for is_busy in (False, True):
            with beside(is_busy):
                for name, measure in rows.items():
                    found.setdefault((name, is_busy), []).append(measure())
                    print(
                        name,
                        "beside" if is_busy else "alone",
                        found[name, is_busy][-1],
                        file=sys.stderr,
                    )
    print("| training | steps a second alone | beside one busy process | times slower |")
    print("|---|---:|---:|---:|")
    for name in rows:
        alone, busy = (found[name, is_busy] for is_busy in (False, True))
        slower = statistics.median(alone) / statistics.median(busy)
        cells = [
            f"{statistics.median(one):.1f} ({min(one):.1f}-{max(one):.1f})" for one in (alone, busy)
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} | {slower:.1f} |")


if __name__ == "__main__":
    main()
