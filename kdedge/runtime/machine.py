"""Facts about this machine, from the operating system only."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# The file system's root; tests replace it by a folder with the files of another system
ROOT = Path("/")

# Vector, 8-bit and half-precision instructions of x86-64, then of Arm
_INSTRUCTIONS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

_VNNI = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})


def allowed_cores() -> int:
    """Cores that this process may run on, whatever a container's CPU quota is."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cores() -> int:
    """Cores that this process may use, limited to whole cores of a container's CPU quota."""
    cores = [allowed_cores()]
    for limit in _group_limits("cpu.max"):
        parts = limit.split()  # quota and period in us; the quota is "max" if there is none
        if len(parts) == 2 and parts[0] != "max":
            quota, period = map(int, parts)
            cores.append(quota // period)
    return max(1, min(cores))


def physical_cores() -> int:
    """Physical cores that this process may use, since a core's second thread adds no speed."""
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = os.sched_getaffinity(0) if has_affinity else range(allowed_cores())
    topology = ROOT / "sys/devices/system/cpu"
    siblings = {
        _read(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed
    }
    return min(len(siblings), usable_cores())


def _group_limits(file: str) -> list[str]:
    """Contents of a file in this process's control group (version 2) and in its parent groups."""
    lines = _read(ROOT / "proc/self/cgroup").splitlines()
    group = Path(next((line[3:] for line in lines if line.startswith("0::")), "/"))
    # In a container, the path may start at the host's root, but the folders at the container's
    root = ROOT / "sys/fs/cgroup"
    return [_read(root / str(name).strip("/") / file) for name in (group, *group.parents)]


def _read(path: Path) -> str:
    """A system file's text; empty if there is no such file."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def cpu_model() -> str:
    """The processor's name, as it reports it."""
    lines = _read(ROOT / "proc/cpuinfo").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def cpu_instructions() -> tuple[str, ...]:
    """The processor's instruction sets on which the speed of models depends, by Linux's names.

    Returns:
        The members of `_INSTRUCTIONS` that the processor has; empty if Linux does not list any.
    """
    for line in _read(ROOT / "proc/cpuinfo").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):  # on x86 and on Arm
            present = set(flags.split())
            return tuple(instruction for instruction in _INSTRUCTIONS if instruction in present)
    return ()


def lacks_vnni() -> bool:
    """Whether INT8 products can overflow: on x86 processors without VNNI.

    They multiply unsigned with signed bytes, and add two products in 16 bits.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i686", "x86")
    return is_x86 and _VNNI.isdisjoint(cpu_instructions())


def memory_bytes() -> int | None:
    """Memory of the machine, or of the container if that is less; None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limits = [int(limit) for limit in _group_limits("memory.max") if limit.isdigit()]
    return min([total, *limits])


def is_jetson() -> bool:
    """Whether this is a Jetson, by its device tree, which containers also show."""
    tree = ROOT / "proc/device-tree"
    return "Jetson" in _read(tree / "model") or "nvidia,tegra" in _read(tree / "compatible")


@dataclass(frozen=True)
class Contention:
    """Use of this process's cores by other processes in a period of time.

    Attributes:
        seconds: length of the period.
        n_cores: number of cores that this process may use.
        others_s: CPU time that other processes, or other virtual machines of the hypervisor, used
            on these cores, in s; None if unknown.
    """

    seconds: float
    n_cores: int
    others_s: float | None

    @property
    def others_cores(self) -> float | None:
        """Number of cores that other processes kept busy; None if unknown."""
        if self.others_s is None or self.seconds <= 0:
            return None
        return max(0.0, self.others_s / self.seconds)

    @property
    def others_percent(self) -> float | None:
        """Share of the cores that other processes kept busy, in percent; None if unknown."""
        return None if self.others_cores is None else 100 * self.others_cores / self.n_cores


# Starts a period when called; returns a function that returns the `Contention` so far
Watch = Callable[[], Callable[[], Contention]]


def all_of(parts: Iterable[Contention]) -> Contention:
    """Adds up several periods."""
    parts = list(parts)
    others = [part.others_s for part in parts if part.others_s is not None]
    return Contention(
        sum(part.seconds for part in parts),
        max((part.n_cores for part in parts), default=1),
        sum(others) if len(others) == len(parts) else None,
    )


def watch_contention() -> Callable[[], Contention]:
    """Starts a period; returns a function that returns the `Contention` so far."""
    began = time.monotonic()
    cpu = _cpu_s()
    process = time.process_time()

    def since() -> Contention:
        now = _cpu_s()
        seconds = time.monotonic() - began
        if cpu is None or now is None:
            return Contention(seconds, allowed_cores(), None)
        return Contention(seconds, allowed_cores(), now - cpu - (time.process_time() - process))

    return since


def _cpu_s() -> float | None:
    """CPU time of all processes and stolen time, in s, on the cores that this process may use."""
    try:
        lines = (ROOT / "proc/stat").read_text(encoding="ascii").splitlines()
        allowed = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        ticks_per_s = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):  # not Linux
        return None
    ticks = 0
    for line in lines:
        name, *counts = line.split()
        if name in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + stolen
    return ticks / ticks_per_s
