"""`--threads`, and what commands do before torch is loaded."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from kdedge.cli.main import cli

COMPUTING = (
    *("teach", "train", "distill", "eval", "export", "bench", "predict", "pseudo-label", "suite"),
    *("demo", "check", "import"),
)


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process in whose environment the user has chosen nothing else."""
    names = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture
def busy() -> Iterator[None]:
    """Processes that keep every core busy."""
    code = "print(flush=True)\nwhile True: pass"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        for _ in range(os.cpu_count() or 1)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    yield
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", COMPUTING)
def test_what_computes_takes_a_number_of_threads(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert [option.type.min for option in command.params if option.name == "threads"] == [1]


def test_threads_are_chosen_before_torch_is_loaded() -> None:
    code = """if True:
        import os, sys
        from kdedge.cli.main import cli, run
        for name in cli.list_commands(None):
            cli.get_command(None, name)
        assert run(["train", "missing.yaml", *sys.argv[1:]]) == 2
        assert "torch" not in sys.modules
        names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        print(*(os.environ.get(name, "-") for name in names))
        """
    number, policy, spin = run(code).stdout.split()
    assert int(number) >= 1
    assert (policy, spin) in {("PASSIVE", "-"), ("-", "10000")}
    given = run(code, OMP_NUM_THREADS="3", OMP_WAIT_POLICY="active")
    assert given.stdout.split() == ["3", "active", "-"]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not count")
@pytest.mark.usefixtures("busy")
def test_a_busy_machine_is_said_once_with_what_to_do() -> None:
    call = "from kdedge.cli.main import run\nrun({!r})"
    said = run(call.format(["train", "missing.yaml"]), OMP_NUM_THREADS="2").stderr
    assert said.count("kdedge: warning: Other processes keep") == 1
    assert "--threads" not in said  # no core is left
    assert "Other processes" not in run(call.format(["train", "m.yaml", "--threads", "1"])).stderr
    said = run(call.format(["bench", "nothing", "--wait-quiet", "0.5"])).stderr
    assert "The machine is not quiet after" in said


def test_a_run_tells_with_how_many_threads_it_was_trained(
    trained: Path, kdedge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # restored afterwards
    before = torch.get_num_threads()
    done = kdedge("train", "r.yaml", "--method", "coop", "--threads", "2", "--runs", "runs")
    torch.set_num_threads(before)
    assert done.code == 0, done.err
    records = [json.loads(Path(f"runs/tiny/{n}/provenance.json").read_text()) for n in ("01", "03")]
    assert [record["threads"] for record in records] == [1, 2]
    again = kdedge("train", "r.yaml", "--method", "coop", "--runs", "runs", "--resume")
    assert "runs/tiny/03 is already finished" in again.err  # the same run, whatever the threads


def test_a_distillation_leaves_threads_and_heap_as_they_were(
    trained: Path, kdedge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("KDEDGE_CHOSEN", "OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    before = torch.get_num_threads()
    short = ("--set", "student.optim.epochs=1", "--set", "student.optim.n_workers=1")
    done = kdedge("distill", "r.yaml", *short, "--runs", "runs")
    assert done.code == 0, done.err
    assert json.loads(Path("runs/tiny/03/provenance.json").read_text())["threads"] == 7
    assert torch.get_num_threads() == before
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(1 << 24)  # 128 MiB, which the kernel clears each time
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults > 200  # huge pages
