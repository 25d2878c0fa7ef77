"""What a large pool costs, from parts measured on one machine, as processor time of one core.

Reads, decodes and hashes the images of a folder, or of the small photos. Runs `kdedge pseudo-label
--method zeroshot` on two numbers of small photos that have been read before, and takes the time
that the larger one needs more for each image: starting, loading and other processes do not count.
Then it does empty pieces of work by Ray, 100 and 500 of them. At the end it computes what 10^8
images cost.

    python benchmarks/scale/pool_cost.py [--teacher] [--images FOLDER]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kdedge.data.images import scan
from kdedge.data.sources import ImageSource, folder, webdataset
from kdedge.ray_workers import WorkerResources, open_workers

MINI = Path(__file__).parents[2] / "../shared/mini"
RECIPE = Path(__file__).parents[1] / "mini/photos100.yaml"
N_IMAGES = 100_000_000


def main() -> None:
    """Measures and computes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", action="store_true", help="encode with the teacher's CLIP")
    parser.add_argument("--images", type=Path, help="read these instead of the small photos")
    arguments = parser.parse_args()
    role = "teacher" if arguments.teacher else "student"
    read_s = read_seconds(arguments.images)
    print(f"reading, decoding and hashing an image: {1e3 * read_s:.2f} ms of one core")
    with tempfile.TemporaryDirectory() as runs:
        encode_s = encode_seconds(role, Path(runs))
    print(f"decoding and encoding a small photo ({role}): {1e3 * encode_s:.2f} ms of one core")
    wall_ms, driver_ms = piece_ms()
    print(f"an empty piece of work by Ray: {wall_ms:.1f} ms, {driver_ms:.1f} ms of the driver")
    for what, seconds in (("reading", read_s), ("encoding", encode_s)):
        print(f"10^8 images, {what}: {N_IMAGES * seconds / 3600:,.0f} core hours")


def small_photos(last: int) -> str:
    """The first shards of small photos."""
    return str(MINI / f"photos100/train-{{000000..00000{last}}}.tar")


def read_seconds(images: Path | None) -> float:
    """Processor time to read, decode and hash an image, as every command does once."""
    if images is None:
        source: ImageSource = webdataset.open_source(small_photos(1), class_names=(), labeled=False)
    else:
        source = folder.open_source(images, class_names=(), labeled=False)
    began = time.process_time()
    scan(source)
    return (time.process_time() - began) / len(source.items)


def encode_seconds(role: str, runs: Path) -> float:
    """Processor time to decode and encode a small photo."""
    times, counts = [], []
    for last in (0, 4):
        pool = small_photos(last)
        counts.append(len(webdataset.open_source(pool, class_names=(), labeled=False).items))
        label(pool, role, runs, f"{last}-first")  # the images are then in the cache
        times.append(label(pool, role, runs, f"{last}-second"))
    return (times[1] - times[0]) / (counts[1] - counts[0])


def label(pool: str, role: str, runs: Path, name: str) -> float:
    """Processor time of a command that labels a pool."""
    sets = [f"data.unlabeled={{webdataset: '{pool}'}}"]
    for key, ending in (("config", f"configs/mini-{role}.json"), ("weights", "weights/mini-")):
        path = ending if key == "config" else f"{ending}{role}.safetensors"
        sets.append(f"student.{key}={MINI / path}")
    command = [sys.executable, "-m", "kdedge", "pseudo-label", str(RECIPE), "--per-class", "1"]
    command += ["-o", str(runs / f"{name}.jsonl"), "--runs", str(runs), "--device", "cpu"]
    command += [part for one in sets for part in ("--set", one)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        ["taskset", "-c", "0", *command],  # on one core no other process decodes
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def piece_ms() -> tuple[float, float]:
    """Time, and processor time of the driver, of a piece of no work by Ray."""
    times = []
    with open_workers("cpu") as workers:
        for n_pieces in (100, 100, 500):  # the first starts Ray
            began = time.perf_counter(), time.process_time()
            list(workers.run(range(n_pieces), send))
            times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return 1e3 * (times[2][0] - times[1][0]) / 400, 1e3 * (times[2][1] - times[1][1]) / 400


def same(pieces: Iterable[int]) -> Iterator[int]:
    """No work."""
    yield from pieces


def send(share: WorkerResources) -> Callable[[Iterable[int]], Iterator[int]]:
    """No work elsewhere."""
    return same


if __name__ == "__main__":
    main()
