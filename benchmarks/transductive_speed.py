"""How long transductive labels of a large pool take, part by part, from drawn features.

    python benchmarks/transductive_speed.py --images 100000 --classes 397 --dim 512 --threads 2

Prints seconds of the clock and of the processor, and the most memory that the process held. On a
machine that does other work as well, seconds of the processor over threads are what an idle one
would take.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from kdedge.data.transductive import N_ROUNDS, N_SWEEPS, Objective, Pool, Search


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Prints how long the context took."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    print(f"{what:24} {clock:8.1f} s {processor:8.1f} s of the processor", flush=True)


def main() -> None:
    """Draws a pool and labels it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=397)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = torch.Generator().manual_seed(1)
    n_images, n_classes, dim = arguments.images, arguments.classes, arguments.dim
    truth = torch.randint(n_classes, (n_images,), generator=rng)
    centers = F.normalize(torch.randn(n_classes, dim, generator=rng), dim=1)
    noise = torch.randn(n_images, dim, generator=rng) / dim**0.5
    features = F.normalize(centers[truth] + 6 * noise, dim=1)
    log_prior = (20 * features @ centers.T).log_softmax(dim=1)
    pool = Pool(features, log_prior, torch.empty(0, dtype=torch.int64))
    print(
        f"{n_images:,} images, {n_classes} classes, {dim} dimensions, {arguments.threads} threads,"
    )
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}")
    with timed("all"):
        with timed("nearest neighbors"):
            search = Search(pool, Objective())
        search.start()
        with timed(f"{N_ROUNDS} x {N_SWEEPS} updates of z"):
            for _ in range(N_ROUNDS):
                search.update_assignments(N_SWEEPS)
        with timed(f"{N_ROUNDS} updates of mu, sigma"):
            for _ in range(N_ROUNDS):
                search.update_mixture()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    before, after = (
        100 * (rows.argmax(dim=1) == truth).float().mean() for rows in (log_prior, search.z)
    )
    print(f"right labels: {before:.2f} % before, {after:.2f} % after")
    print(f"peak memory: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
