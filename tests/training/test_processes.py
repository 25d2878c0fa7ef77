"""Two real processes that train together."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kdedge import torchrun
from kdedge.config.load import load_recipe
from kdedge.distributed import ProcessGroup, joined
from kdedge.errors import RecipeError
from kdedge.paper.pseudo_labels.file import make_pseudo_label_file
from kdedge.setup.workspace import Workspace
from kdedge.training.run_job import run_job
from kdedge.training.teacher import baseline_job, with_baseline

Pair = Callable[[str], list[tuple[int, str, str]]]


@pytest.fixture
def pair(_started: Callable[..., Any], tmp_path: Path) -> Pair:
    """Runs a scenario of processes_run.py in two processes; exit code, stdout, stderr of each."""

    def run(scenario: str) -> list[tuple[int, str, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [
            _started("processes_run", tmp_path / str(rank), scenario, str(rank), str(port))
            for rank in range(2)
        ]
        return [(process.wait(), process.stdout, process.stderr) for process in started]

    return run


def test_shares_are_put_together_and_gradients_are_those_of_one_process(pair: Pair) -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    head = torch.tensor([3.0], requires_grad=True)
    whole = weight * torch.arange(5.0)[:, None]
    (head * whole).square().mean().backward()
    for code, out, said in pair("exchange"):
        assert code == 0, said
        found = json.loads(out.splitlines()[-1])
        expected = [float(weight.grad), float(head.grad)]
        assert found.pop("gradients") == pytest.approx(expected, rel=1e-6)
        assert found == {
            "whole": whole.flatten().tolist(),
            "most": 7,
            "first": {"made by": 0},
        }


def test_a_process_that_dies_ends_the_others_with_a_message(pair: Pair) -> None:
    (code, _, said), (dead, _, _) = pair("death")
    assert (code, dead) == (7, 9)
    assert "Another of the 2 processes of this training has ended" in said
    assert "resume" in said


@pytest.mark.parametrize("n_rows", [2, 3, 8, 13])
@pytest.mark.parametrize("size", [1, 2])
def test_every_row_is_in_one_share(n_rows: int, size: int) -> None:
    shares = [range(n_rows)[ProcessGroup(rank, size).shard(n_rows)] for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(n_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_machines_with_one_gpu_each_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torchrun --nnodes 2 --nproc-per-node 1`: the GPU has no number, which torch may refuse."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "a-machine")
    started: list[str] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: started.append(backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with joined(torch.device("cuda")) as group:
        assert group.world_size == 2
    assert started == ["cpu:gloo,cuda:nccl"]


def test_what_processes_exchange_stays_on_the_gpu(gpu: Any) -> None:
    """As the first of two would see it whose second sends zeros."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with gpu():
        rows = torch.ones(2, 3, device="cuda", requires_grad=True)
        group = ProcessGroup(0, 2)
        whole = group.gather(rows, 4)
        whole.sum().backward()
        group.all_reduce_mean([rows.grad])
        assert {whole.device, rows.grad.device} == {rows.device}
        assert whole.tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
        assert rows.grad.tolist() == [[1.0] * 3] * 2
        assert group.all_reduce_max(7) == 7
    dist.destroy_process_group()


def test_a_rank_without_other_processes_prints_as_the_only_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert (torchrun.rank(), torchrun.world_size()) == (0, 1)


def test_one_process_writes_pseudo_labels(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, torch.device("cpu"), group=ProcessGroup(0, 2))
    with pytest.raises(RecipeError, match="without torchrun"):
        make_pseudo_label_file(
            load_recipe("demo"), workspace, "zeroshot", tmp_path / "labels", per_class=1
        )


def test_a_method_with_its_own_training_is_trained_by_one_process(tmp_path: Path) -> None:
    settings = {"variant": "fpl", "per_class": 1, "coop": {}}
    loaded = with_baseline(load_recipe("demo", {"baseline.settings": settings}), "pseudo_label")
    job = baseline_job(loaded, Workspace(tmp_path, torch.device("cpu")))
    both = Workspace(tmp_path, torch.device("cpu"), group=ProcessGroup(0, 2))
    with pytest.raises(RecipeError, match=r"pseudo_label trains in its own way(.|\n)*torchrun"):
        run_job(replace(job, setup=replace(job.setup, workspace=both)), resume=False)
    assert not list(tmp_path.glob("demo/*"))
