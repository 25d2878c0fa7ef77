"""What machine this is, on systems made of files."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from kdedge.runtime.machine import (
    cpu_instructions,
    is_jetson,
    lacks_vnni,
    memory_bytes,
    physical_cores,
    usable_cores,
)

pytestmark = pytest.mark.usefixtures("system_root")


@pytest.mark.parametrize(
    ("limit", "expected"), [("1048576\n", 1 << 20), ("max\n", None), (f"{1 << 60}\n", None)]
)
def test_a_containers_memory_is_what_it_may_use(
    tmp_path: Path, limit: str, expected: int | None
) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    write(tmp_path, {"sys/fs/cgroup/memory.max": limit})
    assert memory_bytes() == (expected or total)
    job = {"proc/self/cgroup": "0::/slurm/job\n", "sys/fs/cgroup/slurm/memory.max": limit}
    write(tmp_path, {**job, "sys/fs/cgroup/memory.max": "max"})
    assert memory_bytes() == (expected or total)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        (  # the group's own limit is wider than that of the group around it
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/cpu.max": "600000 100000\n",
                "sys/fs/cgroup/user/cpu.max": "200000 100000\n",
            },
            2,
        ),
        (  # half a core is one thread
            {"proc/self/cgroup": "0::/docker/1\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
            1,
        ),
        ({"proc/self/cgroup": "1:cpu:/\n"}, 8),
    ],
    ids=["none", "version 2", "no limit", "parent", "half", "version 1"],
)
def test_a_containers_cores_are_what_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(tmp_path, files)
    assert usable_cores() == expected


def test_two_threads_of_a_core_are_one_physical_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    write(tmp_path, {topology.format(cpu): f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert physical_cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert physical_cores() == 2
    shutil.rmtree(tmp_path / "sys")
    assert physical_cores() == 3


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("proc/device-tree/model", "NVIDIA Jetson Orin Nano\0", True),
        ("proc/device-tree/compatible", "nvidia,p3768\0nvidia,tegra234\0", True),
        ("proc/device-tree/model", "Raspberry Pi 5\0", False),
        ("etc/os-release", "", False),
    ],
)
def test_a_jetson_is_known_by_its_device_tree(
    tmp_path: Path, file: str, text: str, expected: bool
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert is_jetson() is expected


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "instructions", "overflows"),
    [
        ("x86_64", "flags\t: fpu avx2 sse", ("avx2",), True),
        ("x86_64", "flags\t: avx512_vnni fpu avx2", ("avx2", "avx512_vnni"), False),
        ("AMD64", "", (), True),  # Windows does not tell
        ("aarch64", "Features\t: fp asimd i8mm bf16", ("asimd", "i8mm", "bf16"), False),
    ],
)
def test_the_instructions_for_bytes_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    cpuinfo: str,
    instructions: tuple[str, ...],
    overflows: bool,
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\n{cpuinfo}\n")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert cpu_instructions() == instructions
    assert lacks_vnni() is overflows
