"""`--engine ray`: the same files as in one process, by workers on the two nodes of a cluster."""

from __future__ import annotations

import importlib.util
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RAY = ("--engine", "ray")
EPOCHS = ("--set", "student.optim.epochs=12")
HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")


@pytest.fixture(scope="module")
def nodes(ray_nodes: ModuleType) -> Iterator[Any]:
    nodes = ray_nodes.Nodes()
    yield nodes
    nodes.close()


@needs_ray
def test_a_resumed_store_is_the_local_one_though_a_worker_is_killed(
    trained: Path, kdedge: Any, nodes: Any
) -> None:
    command = ("teach", "r.yaml", "--store", "--set", "student.views=12", *EPOCHS)
    assert kdedge(*command).code == 0
    (store,) = Path("runs/.cache/teacher_store").iterdir()
    files = sorted(store.glob("view-*/*.safetensors"))
    local = {file: file.read_bytes() for file in files}
    assert len(local) == 12
    kept = {file: file.stat().st_mtime_ns for file in files[:4]}
    for file in files[4:]:
        file.unlink()

    with nodes.killing_a_worker(files[4].exists) as killed:
        done = nodes.kdedge(*command, *RAY)
    assert done.code == 0, done.err
    assert len(killed) == 1
    assert "A worker died" in done.err
    assert "raylet" not in done.out
    assert "Computing 8 of 12 files.\n" in done.err
    assert {file: file.read_bytes() for file in files} == local
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert sorted(store.glob("view-*/*")) == files


@needs_ray
def test_ctrl_c_ends_the_command_and_keeps_what_is_finished(trained: Path, nodes: Any) -> None:
    command = ("teach", "r.yaml", "--store", "--set", "student.optim.epochs=400", "--set")
    store = Path("runs/.cache/teacher_store")
    with nodes.interrupting(lambda: list(store.glob("*/view-0001/*.safetensors"))):
        done = nodes.kdedge(*command, "student.views=400", *RAY)
    assert (done.code, done.out) == (130, "")
    assert len(list(store.glob("*/view-*/*.safetensors"))) < 400
    done = nodes.kdedge(*command, "student.views=1", *RAY)
    assert "It is complete: the teacher is not run." in done.err


@needs_ray
def test_pseudo_labels_are_the_local_ones(trained: Path, kdedge: Any, nodes: Any) -> None:
    command = ("pseudo-label", "r.yaml", "--per-class", "3", "-o")
    assert kdedge(*command, "here.jsonl").code == 0
    done = nodes.kdedge(*command, "there.jsonl", *RAY)
    assert done.code == 0, done.err
    assert Path("there.jsonl").read_bytes() == Path("here.jsonl").read_bytes()
    assert list(Path("runs/.cache/logits").iterdir()) == []


@pytest.fixture
def pictures(device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with an artifact, a folder of pictures and a shard of others."""
    monkeypatch.chdir(tmp_path)
    device._make_artifact(tmp_path / "art")
    for number in range(40):
        device._paint(tmp_path / f"pics/{number}.png", (6 * number, 200 - 5 * number, 90))
    with tarfile.open(tmp_path / "more.tar", "w") as shard:
        for number in range(10):
            shard.add(tmp_path / f"pics/{number}.png", f"{number}.png")
    (tmp_path / "pics/broken.png").write_bytes(b"no image")
    return tmp_path


@needs_ray
def test_predictions_are_the_local_ones_with_the_reasons_of_broken_images(
    pictures: Path, kdedge: Any, nodes: Any
) -> None:
    command = ("predict", "art", "pics", "more.tar", "--format", "csv")
    here = kdedge(*command)
    done = nodes.kdedge(*command, "--output", "there.csv", *RAY)
    assert done.code == 0, done.err
    assert Path("there.csv").read_text() == here.out
    assert not Path(".there.csv.unfinished.json").exists()
    assert "51 images: 50 classified, 1 unreadable" in done.err
    assert len(here.out.splitlines()) == 52


@needs_ray
def test_what_a_node_does_not_see_and_what_only_this_process_reads_is_named(
    pictures: Path, nodes: Any
) -> None:
    done = nodes.kdedge("predict", "art", "-", *RAY)
    assert done.code == 2
    assert "standard input are read in this process" in done.err
    # Its own current folder is another one in each process
    done = nodes.kdedge("predict", "art", "/proc/self/cwd/pics", *RAY)
    assert (done.code, done.out) == (4, "")
    assert "/proc/self/cwd/pics does not exist on a node of the Ray cluster.\n" in done.err
    assert "This is the message of a Ray worker on" in done.err


@needs_ray
def test_an_address_where_nothing_listens_is_named(pictures: Path, nodes: Any) -> None:
    command = ("predict", "art", "pics", *RAY)
    done = nodes.kdedge(*command, address="127.0.0.1:1")
    assert (done.code, done.out) == (4, "")
    assert "No Ray cluster could be used at 127.0.0.1:1: " in done.err


def test_a_cluster_that_does_not_start_is_named(
    trained: Path, kdedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine Ray gives up with an exception of no kind of its own."""

    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray

    ray: Any = ModuleType("ray")
    ray.init, ray.is_initialized = init, lambda: False
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ModuleType("ray.data"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = kdedge("teach", "r.yaml", "--store", "--set", "student.views=1", *RAY)
    assert (done.code, done.out) == (4, "")
    assert "at this machine: The current node timed out during startup.\n" in done.err
    assert "try again when the machine is less busy" in done.err


def test_without_ray_the_install_line_is_given(
    trained: Path, kdedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = kdedge("teach", "r.yaml", "--store", "--set", "student.views=1", *RAY)
    assert done.code == 4
    assert "pip install 'kdedge[ray]'" in done.err
