"""`--engine ray`: the same files as in one process, by workers on the two nodes of a cluster."""

from __future__ import annotations

import importlib.util
import sys
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
    assert "It is complete: the teacher is not needed." in done.err


@needs_ray
def test_pseudo_labels_are_the_local_ones(trained: Path, kdedge: Any, nodes: Any) -> None:
    command = ("pseudo-label", "r.yaml", "--method", "zeroshot", "--per-class", "3", "-o")
    assert kdedge(*command, "here.jsonl").code == 0
    done = nodes.kdedge(*command, "there.jsonl", *RAY)
    assert done.code == 0, done.err
    assert Path("there.jsonl").read_bytes() == Path("here.jsonl").read_bytes()
    assert list(Path("runs/.cache/logits").iterdir()) == []


@needs_ray
def test_what_a_node_does_not_see_is_named(trained: Path, nodes: Any) -> None:
    # Its own current folder is another one in each process
    images = ("--set", "data.unlabeled.folder=/proc/self/cwd/pool")
    done = nodes.kdedge("teach", "r.yaml", "--store", "--set", "student.views=1", *images, *RAY)
    assert done.code == 4
    assert "This is the message of a Ray worker on" in done.err


@needs_ray
def test_an_address_where_nothing_listens_is_named(trained: Path, nodes: Any) -> None:
    command = ("teach", "r.yaml", "--store", "--set", "student.views=1", *RAY)
    done = nodes.kdedge(*command, address="127.0.0.1:1")
    assert done.code == 4
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
    done.fails(
        4,
        "at this machine: The current node timed out during startup.\n",
        "try again when the machine is less busy",
    )


def test_without_ray_the_install_line_is_given(
    trained: Path, kdedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = kdedge("teach", "r.yaml", "--store", "--set", "student.views=1", *RAY)
    assert done.code == 4
    assert "pip install 'kdedge[ray]'" in done.err
