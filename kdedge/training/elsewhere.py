"""Opens models in other processes, from what can be sent there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kdedge.config.load import LoadedRecipe
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run
from kdedge.setup.device import choose_device
from kdedge.setup.method import Role
from kdedge.setup.role import RoleSetup, set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.workers import Share


def workspace_of(root: Path, share: Share) -> Workspace:
    """A worker's own workspace, on its share of the machine."""
    torch.set_num_threads(share.n_cores)
    return Workspace(root, choose_device(share.device))


def open_role(loaded: LoadedRecipe, role: Role, root: Path, share: Share) -> RoleSetup:
    """One of a recipe's models, as the recipe describes it."""
    return set_up_role(loaded, role, workspace_of(root, share))


def open_run(run: Path, names: Sequence[str], root: Path, share: Share) -> RunModel:
    """A finished run as a model of a class list."""
    return load_run(RunFolder.open(run), workspace_of(root, share), names=names)
