"""`torchrun -m kdedge distill`: what one process learns, and an end for all when one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kdedge as package

pytestmark = pytest.mark.usefixtures("trained")

Torchrun = Callable[..., "subprocess.Popen[str]"]
DISTILL = ("distill", "r.yaml", "--set", "student.views=2", "--set", "student.optim.epochs=3")
CLOSE = {"atol": 2e-4, "rtol": 2e-3}
"""Sums of gradients in another order, over some dozen steps."""


@pytest.fixture
def torchrun(_forking: Any) -> Iterator[Torchrun]:
    """Starts a command in several processes."""
    started: list[subprocess.Popen[str]] = []

    def start(n_processes: int, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={n_processes}", "-m", "kdedge", *arguments]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHON_EXEC": str(_forking.python),  # which loads torch once for all processes
            "PYTHONPATH": str(Path(package.__file__).parents[1]),
        }
        process = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()  # it ends its own processes
        process.communicate()


def curve(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines]


def assert_same_training(one: Path, other: Path, name: str) -> None:
    assert curve(one) == pytest.approx(curve(other), rel=1e-3)
    torch.testing.assert_close(load_file(one / name), load_file(other / name), **CLOSE)


def test_two_processes_learn_what_one_does(project: Path, kdedge: Any, torchrun: Torchrun) -> None:
    alone = kdedge(*DISTILL, "--runs", "alone")
    assert alone.code == 0, alone.err
    out, said = (process := torchrun(2, *DISTILL)).communicate()
    assert process.returncode == 0, said
    assert out.replace("runs/", "alone/") == alone.out
    for number, name in (("01", "teacher"), ("02", "student")):
        pair = Path("alone/tiny") / number, Path("runs/tiny") / number
        assert_same_training(*pair, f"{name}.safetensors")
        one, other = (json.loads((run / "eval.json").read_text()) for run in pair)
        assert one.keys() == other.keys()
        record = json.loads((pair[1] / "provenance.json").read_text())
        assert (record["status"], record["n_processes"]) == ("finished", 2)
    assert [path.name for path in sorted(Path("runs/tiny").iterdir())] == ["01", "02"]


def test_no_process_waits_for_images_that_one_reads_alone(torchrun: Torchrun) -> None:
    short = (
        "name=other",
        "baseline.optim={epochs: 1, batch_size: 4}",
        "logit_adjustment={prior: auto}",
    )
    alone = ("name=other", "data.unlabeled.hold_out=25%", "data.test=null", "student.method=ridge")
    alone += ("student.settings={outputs: features}", "teacher={run: runs/tiny/01}")
    for first, options in ((("train", "--method=coop"), short), (("distill",), alone)):
        command = (*first, "r.yaml", *(word for text in options for word in ("--set", text)))
        _, said = (process := torchrun(2, *command)).communicate(timeout=240)
        assert process.returncode == 0, said
    assert Path("runs/other/01/balance.json").exists()
    assert Path("runs/other/02/eval_unlabeled.json").exists()


def workers(process: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> process id of what torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = [value for value in variables if value.startswith(b"RANK=")]
        if rank:
            found[int(rank[0][5:])] = child
    return found


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    while process.poll() is None:
        names = [path.name for path in run.glob("checkpoints/e*.safetensors")]
        if any(10 * (int(name[1:3]) - 1) + int(name[5:10]) >= step for name in names):
            return
        time.sleep(0.005)
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_loses_a_process_and_is_interrupted_goes_on_with_any_number_of_them(
    trained: Path, kdedge: Any, torchrun: Torchrun
) -> None:
    taught = ("distill", "r.yaml", "--set", "teacher.run=runs/tiny/01")
    long = (*taught, "--set", "student.optim.epochs=8", "--resume")
    often = (*long, "--set", "optim.checkpoint_every_s=0.001")
    assert kdedge(*long, "--runs", "alone").code == 0
    run = Path("runs/tiny/03")

    process = torchrun(2, *often)
    wait_for_step(process, run, 10)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode != 0
    # "in" the run where the signal comes after the lost connection has ended the training loop
    ends = ("processes of this training has ended", "Interrupted ", "torchrun ended")
    assert any(end in said for end in ends), said
    assert "--resume" in said
    assert json.loads((run / "provenance.json").read_text())["status"] != "finished"

    process = torchrun(3, *often)
    wait_for_step(process, run, 35)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert "kdedge (process 1 of 3): Interrupted at epoch" in said
    assert json.loads((run / "provenance.json").read_text())["status"] == "interrupted"

    done = kdedge(*often)
    assert done.code == 0, done.err
    assert "resuming where it stopped" in done.err
    assert_same_training(Path("alone/tiny/01"), run, "student.safetensors")


# Ray: the same files as in one process, by workers on the two nodes of a cluster


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def nodes(load_module: Any) -> Iterator[Any]:
    nodes = load_module("ray_nodes").Nodes()
    yield nodes
    nodes.close()


@needs_ray
def test_a_store_is_the_local_one_after_ctrl_c_and_though_a_worker_is_killed(
    kdedge: Any, nodes: Any
) -> None:
    epochs = ("teach", "r.yaml", "--store", "--set", "student.optim.epochs=400", "--set")
    command = (*epochs, "student.views=12")
    assert kdedge(*command).code == 0
    (store,) = Path("runs/.cache/teacher_store").iterdir()
    files = sorted(store.glob("view-*/*.safetensors"))
    local = {file: file.read_bytes() for file in files}
    assert len(local) == 12
    for file in files:
        file.unlink()

    with nodes.interrupting(files[3].exists):
        done = nodes.kdedge(*epochs, "student.views=400", "--ray")
    assert (done.code, done.out) == (130, "")
    finished = sorted(store.glob("view-*/*.safetensors"))
    assert len(finished) < 400
    for file in finished:
        if file not in files[:4]:
            file.unlink()
    kept = {file: file.stat().st_mtime_ns for file in finished if file.exists()}

    with nodes.killing_a_worker(files[4].exists) as killed:
        done = nodes.kdedge(*command, "--ray")
    assert done.code == 0, done.err
    assert len(killed) == 1
    assert "raylet" not in done.out
    assert f"Computing {40 * (12 - len(kept))} of 480 crops." in done.err
    assert {file: file.read_bytes() for file in files} == local
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert sorted(store.glob("view-*/*.safetensors")) == files


@needs_ray
def test_pseudo_labels_are_the_local_ones(kdedge: Any, nodes: Any) -> None:
    command = ("pseudo-label", "r.yaml", "--method", "zeroshot", "--per-class", "3", "-o")
    assert kdedge(*command, "here.jsonl").code == 0
    done = nodes.kdedge(*command, "there.jsonl", "--ray")
    assert done.code == 0, done.err
    assert Path("there.jsonl").read_bytes() == Path("here.jsonl").read_bytes()
    assert list(Path("runs/.cache/logits").rglob("*.safetensors")) == []


@needs_ray
def test_what_a_node_does_not_see_is_named(nodes: Any) -> None:
    # Its own current folder is another one in each process
    images = ("--set", "data.unlabeled.folder=/proc/self/cwd/pool")
    done = nodes.kdedge("teach", "r.yaml", "--store", "--set", "student.views=1", *images, "--ray")
    assert done.code == 4
    assert "This is the message of a Ray worker on" in done.err


@needs_ray
def test_an_address_where_nothing_listens_is_named(nodes: Any) -> None:
    command = ("teach", "r.yaml", "--store", "--set", "student.views=1", "--ray")
    done = nodes.kdedge(*command, address="127.0.0.1:1")
    assert done.code == 4
    assert "No Ray cluster could be used at 127.0.0.1:1: " in done.err


def test_a_cluster_that_does_not_start_is_named(
    kdedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine Ray gives up with an exception of no kind of its own."""

    def init(**options: Any) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray

    ray: Any = ModuleType("ray")
    ray.__spec__ = ModuleSpec("ray", None)
    ray.init, ray.is_initialized = init, lambda: False
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = kdedge("teach", "r.yaml", "--store", "--set", "student.views=1", "--ray")
    done.fails(4, "at this machine: The current node timed out during startup.\n", "try again when")
