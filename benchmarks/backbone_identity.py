"""Seconds and memory to know a ViT-L/14's hashes, and to load it, from a file of random weights.

    python benchmarks/backbone_identity.py [--folder DIR] [--kind safetensors|pt]

Each step runs in its own process on a file in the system's cache, so that the disk does not count.
`hash 0.1` and `hash` are the old and the new way to hash the same tensors, and give the same value.
`found cold` reads and hashes the file; `found warm` uses what the cold one kept. CPU seconds are
those of all threads, and hardly depend on what else the machine does. Peak memory is how much the
process's resident set grew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "ViT-L-14"
STEPS = ("hash 0.1", "hash", "found cold", "found warm", "found cold, loaded", "found warm, loaded")


def write_weights(path: Path) -> None:
    """Draws the 428 million parameters in float32."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(MODEL))
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.randn(value.shape, generator=generator).mul_(0.02)
        for key, value in model.state_dict().items()
    }
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def hash_of_version_01(state_dict: dict[str, Any]) -> str:
    """The hash as version 0.1 computed it."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        digest.update(key.encode())
        digest.update(state_dict[key].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def resident_bytes() -> int:
    """The largest resident set of this process so far; `getrusage` would count its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(step: str, path: Path) -> dict[str, Any]:
    """Runs one step."""
    from kdedge.clip.find import find_backbone
    from kdedge.clip.resolve import BackboneSpec
    from kdedge.clip.weights import hash_weights, read_weights
    from kdedge.clip.weights_file import HashCache

    before = resident_bytes()
    if step.startswith("hash"):
        state_dict = read_weights(path).state_dict
        start = time.perf_counter(), time.process_time()
        value = (hash_of_version_01 if step == "hash 0.1" else hash_weights)(state_dict)
        return {**since(*start), "value": value}
    cache = path.parent / "cache"
    if "cold" in step:
        for kept in cache.glob("*"):
            kept.unlink()
    start = time.perf_counter(), time.process_time()
    spec = BackboneSpec(MODEL, str(path), quick_gelu=True)
    hashes = HashCache(cache, now=lambda: time.time() + 60)
    found = find_backbone(spec, needs_texts=True, hashes=hashes)
    if step.endswith("loaded"):
        found.load()
    peak_gb = (resident_bytes() - before) / 1e9
    return {**since(*start), "peak_gb": peak_gb, "value": found.weights_hash}


def since(start_s: float, start_cpu_s: float) -> dict[str, float]:
    """Seconds since two readings of the clocks."""
    return {
        "seconds": time.perf_counter() - start_s,
        "cpu_s": time.process_time() - start_cpu_s,
    }


def main() -> None:
    """Measures every step and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--kind", choices=["safetensors", "pt"], default="safetensors")
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--file", type=Path)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(measure(arguments.step, arguments.file)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / f"weights.{arguments.kind}"
        write_weights(path)
        values = set()
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--file", str(path)]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            values.add(result["value"])
            peak = f"{result['peak_gb']:6.2f} GB" if "peak_gb" in result else ""
            times = f"{result['seconds']:8.2f} s {result['cpu_s']:8.2f} CPU s"
            print(f"{step:20}{times} {peak}", flush=True)
        assert len(values) == 1, "the hashes differ"


if __name__ == "__main__":
    main()
