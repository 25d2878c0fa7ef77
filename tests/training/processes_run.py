"""What one of several processes does; as torchrun would have started it.

As a script: `processes_run.py FOLDER SCENARIO RANK PORT`, of two processes. Prints what it found as
JSON; ends with the exit code of what went wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from kdedge.distributed import ProcessGroup, joined
from kdedge.errors import KdedgeError

N_ROWS = 5


def exchange(group: ProcessGroup) -> Any:
    """Rows put together, gradients, and what the processes say to each other."""
    weight = torch.tensor([2.0], requires_grad=True)  # of a tower
    head = torch.tensor([3.0], requires_grad=True)  # of what follows
    rows = torch.arange(N_ROWS, dtype=torch.float32)[:, None]
    whole = group.gather(weight * rows[group.shard(N_ROWS)], N_ROWS)
    (head * whole).square().mean().backward()
    gradients = [weight.grad, head.grad]
    group.all_reduce_mean(gradients)
    return {
        "whole": whole.flatten().tolist(),
        "gradients": [float(gradient) for gradient in gradients],
        "most": group.all_reduce_max(group.rank * 7),
        "first": group.on_rank0(lambda: {"made by": group.rank}),
    }


def death(group: ProcessGroup) -> Any:
    """A training whose second process dies in its fourth step."""
    toy = _toy()

    class Mortal(toy.ToyMethod):
        def training_step(self, batch: Any) -> Any:
            if group.rank == 1 and len(self.seen) == 3:
                os._exit(9)
            return super().training_step(batch)

    with tempfile.TemporaryDirectory() as folder:
        toy.train_toy(toy.make_run(Path(folder)), Mortal(), group=group)


def _toy() -> Any:
    spec = importlib.util.spec_from_file_location("toy_run", Path(__file__).with_name("toy_run.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_run"] = module
    spec.loader.exec_module(module)
    return module


def main(scenario: str, rank: str, port: str) -> int:
    torch.set_num_threads(1)
    os.environ |= {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank},
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    }
    try:
        with joined(torch.device("cpu")) as group:
            found = {"exchange": exchange, "death": death}[scenario](group)
            print(json.dumps(found))
    except KdedgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in names if "gloo" in name]
    if left:  # at Python's end they may abort the process
        print(f"threads that outlive the group: {left}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[2:]))
