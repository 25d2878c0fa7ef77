"""What machine this is, on systems made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdedge.runtime.machine import is_jetson, memory_bytes


@pytest.mark.parametrize(
    ("limit", "expected"), [("1048576\n", 1 << 20), ("max\n", None), (f"{1 << 60}\n", None)]
)
def test_a_containers_memory_is_what_it_may_use(
    tmp_path: Path, limit: str, expected: int | None
) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(limit)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes(tmp_path) == (expected or total)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("etc/nv_tegra_release", "# R36", True),
        ("proc/device-tree/model", "NVIDIA Jetson Orin Nano\0", True),
        ("proc/device-tree/compatible", "nvidia,p3768\0nvidia,tegra234\0", True),
        ("proc/device-tree/model", "Raspberry Pi 5\0", False),
        ("etc/os-release", "", False),
    ],
)
def test_a_jetson_is_known_by_jetpacks_file_or_its_device_tree(
    tmp_path: Path, file: str, text: str, expected: bool
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert is_jetson(tmp_path) is expected
