"""Attention's parameters in files: open_clip's names, with query, key and value in one tensor.

In memory, `clip/blocks.py` has separate linear layers for query, key and value. The state dict of
an encoder still has open_clip's keys. Weight hashes, students, checkpoints and weight files
therefore do not depend on how the layers are built, and open_clip reads what kdedge writes.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch

_PARTS = ("q", "k", "v")
_KINDS = ("weight", "bias")


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
