"""What machine this is, from the operating system alone."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as it gives it itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory of the machine, or of the container where that is less; None where unknown.

    Args:
        root: the file system's root.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = (root / "sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is a Jetson.

    Args:
        root: the file system's root.
    """
    if (root / "etc/nv_tegra_release").is_file():
        return True
    for name in ("model", "compatible"):  # a container has no file of JetPack's
        try:
            text = (root / "proc/device-tree" / name).read_bytes()
        except OSError:
            continue
        if b"Jetson" in text or b"nvidia,tegra" in text:
            return True
    return False
