"""Filling the teacher store: killed, at the same time, on a full disk."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fill_run as filling
import pytest
import torch
from torch import Tensor

from kdedge.data.sources import folder
from kdedge.errors import DivergedError, ResourceError

Start = Callable[..., Any]


def test_a_whole_store_asks_no_teacher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, teacher = filling.fill(tmp_path)
    assert teacher.n_passes == 2 * filling.N_PASSES
    size = "290 images x 2 views x 24 dimensions x 2 bytes = 27.8 kB"
    said = rf"{size}\. Computing 580 of 580 crops\.$"
    assert re.search(said, caplog.messages[0])
    took = re.fullmatch(r"Teacher store filled in (\d+) s\.", caplog.messages[-1])
    assert took is not None, "not by the clock's own time"
    assert filling.fill(tmp_path)[1].n_passes == 0
    assert caplog.messages[-1].endswith(f"{size}. It is complete: nothing is computed.")


def test_a_killed_process_loses_the_file_it_was_at_and_no_other(
    start_filling: Start, tmp_path: Path
) -> None:
    process = start_filling(tmp_path / "killed", 0.0125)
    store = filling.make_filler(tmp_path / "killed").store
    process.wait_until(lambda: len(list(store.path.glob("view-0001/*.safetensors"))) == 3)
    process.send(signal.SIGKILL)
    process.wait()
    assert 0 < len(store.load()) <= 3
    (store.path / "view-0002" / ".12ab.safetensors.a1b2c3").write_bytes(b"half a file")
    assert filling.fill(tmp_path / "killed")[1].n_passes <= filling.N_PASSES + 2
    undisturbed, _ = filling.fill(tmp_path / "undisturbed")
    assert filling.files_of(store) == filling.files_of(undisturbed)


def test_of_two_commands_that_fill_one_store_one_waits_and_computes_nothing(
    start_filling: Start, tmp_path: Path
) -> None:
    both = [start_filling(tmp_path / "both", 0.025) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], [process.stderr for process in both]
    assert sorted(int(process.stdout) for process in both) == [0, 2 * filling.N_PASSES]
    assert "Waiting for another process that is filling" in both[0].stderr + both[1].stderr
    alone, _ = filling.fill(tmp_path / "alone")
    store = filling.make_filler(tmp_path / "both").store
    assert filling.files_of(store) == filling.files_of(alone)


def test_a_disk_that_fills_up_ends_in_a_resource_error_and_keeps_what_is_there(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(52)  # for the features, and not for the ends of pages
    filler = filling.make_filler(disk)
    with pytest.raises(ResourceError, match="the disk is full"):
        filler.fill()
    files = filling.files_of(filler.store)
    assert files
    assert not any("/." in name for name in files)
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    again = filling.make_filler(disk)
    assert len(again.store.load()) == 6 - len(files)
    again.fill()
    assert files.items() <= filling.files_of(again.store).items()


def test_a_disk_that_is_too_small_is_said_before_the_work(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    teacher = filling.SlowTeacher()
    with pytest.raises(
        ResourceError, match=r"\d kB free, and the teacher store needs 51\.0 kB more"
    ):
        filling.make_filler(small_disk(20), teacher=teacher).fill()
    assert teacher.n_passes == 0


def test_features_that_are_not_finite_name_their_image(tmp_path: Path) -> None:
    class Broken(filling.SlowTeacher):
        def teacher_features(self, *given: Any) -> Tensor:
            features = super().teacher_features(*given)
            features[3] = torch.nan
            return features

    filler = filling.make_filler(tmp_path, teacher=Broken())
    with pytest.raises(DivergedError, match="for image-3 are not finite"):
        filler.fill()
    assert not filling.files_of(filler.store)


def test_loader_processes_change_nothing(tmp_path: Path) -> None:
    for i in range(filling.N_IMAGES):
        (tmp_path / f"{i:03d}.png").write_bytes(filling.draw(i))
    source = folder.open_source(tmp_path, class_names=(), labeled=False)
    stores = []
    for n_workers in (0, 2):
        filler = filling.make_filler(tmp_path / str(n_workers), n_views=1)
        replace(filler, source=source, n_workers=n_workers).fill()
        stores.append(filling.files_of(filler.store))
    assert stores[0] == stores[1]
