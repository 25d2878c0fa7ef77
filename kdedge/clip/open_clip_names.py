"""Attention's parameters in files: open_clip's names, with query, key and value in one tensor.

In memory, `clip/blocks.py` has separate linear layers for query, key and value. The state dict of
an encoder still has open_clip's keys. Weight hashes, students, checkpoints and weight files
therefore do not depend on how the layers are built, and open_clip reads what kdedge writes.

An optimizer's state follows the parameters in memory. Version 0.1 had one parameter where there
are three now, so the state in its checkpoints is split on resume.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = ("q", "k", "v")
_KINDS = ("weight", "bias")
_SPLIT_NAME = re.compile(r"(|.*\.)(q|k|v|out)\.(weight|bias)")


def split_attention(state_dict: MutableMapping[str, Any], prefix: str = "") -> None:
    """Replaces open_clip's keys of one attention by those of its linear layers, in place.

    Args:
        state_dict: other keys are kept; the new tensors are views.
        prefix: prefix of the attention's keys, with the dot at its end.
    """
    for kind in _KINDS:
        fused = state_dict.pop(f"{prefix}in_proj_{kind}", None)
        if fused is not None:
            names = [f"{prefix}{part}.{kind}" for part in _PARTS]
            state_dict.update(zip(names, fused.chunk(3), strict=True))
        out = state_dict.pop(f"{prefix}out_proj.{kind}", None)
        if out is not None:
            state_dict[f"{prefix}out.{kind}"] = out


def fuse_attention(state_dict: MutableMapping[str, Any], prefix: str = "") -> None:
    """The reverse of `split_attention`.

    An attention with a wrapped or parametrized layer has other keys, for which open_clip has no
    names: it is left as it is.
    """
    own = {f"{prefix}{part}.{kind}" for part in (*_PARTS, "out") for kind in _KINDS}
    if own != {key for key in state_dict if key.startswith(prefix)}:
        return
    for kind in _KINDS:
        parts = [state_dict.pop(f"{prefix}{part}.{kind}") for part in _PARTS]
        state_dict[f"{prefix}in_proj_{kind}"] = torch.cat(parts)
    for kind in _KINDS:
        state_dict[f"{prefix}out_proj.{kind}"] = state_dict.pop(f"{prefix}out.{kind}")


def split_all(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Splits every attention in a mapping from parameter names to tensors."""
    split = dict(values)
    for key in values:
        if key.endswith("in_proj_weight"):
            split_attention(split, key.removesuffix("in_proj_weight"))
    return split


def split_optimizer_state(
    state: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
) -> dict[str, Any]:
    """Splits the state of fused parameters in an optimizer's state dict of version 0.1.

    SGD and AdamW keep a value per weight, so the split is exact.

    Args:
        state: result of `Optimizer.state_dict`.
        optimizer: the optimizer that will load it.
        parameters: the optimizer's parameters, by name.

    Returns:
        The split state. The unchanged state, if its number of parameters is not that of the same
        model in version 0.1.
    """
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    now = [name_of[id(one)] for group in optimizer.param_groups for one in group["params"]]
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(now):
        positions[_fused_name(name)].append(position)
    indices = [index for group in state["param_groups"] for index in group["params"]]
    if len(indices) != len(positions):
        return dict(state)
    new_indices = dict(zip(indices, positions.values(), strict=True))
    states = {}
    for index, values in state["state"].items():
        for part, position in enumerate(new_indices[index]):
            states[position] = {
                key: _part(value, part, len(new_indices[index])) for key, value in values.items()
            }
    groups = [
        {**group, "params": sorted(new for old in group["params"] for new in new_indices[old])}
        for group in state["param_groups"]
    ]
    return {**state, "state": states, "param_groups": groups}


def _fused_name(name: str) -> str:
    """A parameter's name in version 0.1."""
    found = _SPLIT_NAME.fullmatch(name)
    if found is None:
        return name
    head, part, kind = found.groups()
    return f"{head}out_proj.{kind}" if part == "out" else f"{head}in_proj_{kind}"


def _part(value: Any, part: int, n_parts: int) -> Any:
    """One part of a fused parameter's state, as a copy: a step count is each part's own."""
    if not isinstance(value, Tensor):
        return value
    return (value.chunk(n_parts)[part] if value.ndim > 0 else value).clone()
