"""State dicts in open_clip's names, and the split of an optimizer's state."""

from __future__ import annotations

import copy

import pytest
import torch
from open_clip import CLIP
from torch import nn

from kdedge.clip.backbone import Backbone

BLOCK = "visual.transformer.resblocks.0.attn."


def test_a_backbones_state_dict_is_open_clips_to_the_bit(
    tiny_backbone: Backbone, tiny_open_clip: CLIP
) -> None:
    ours, theirs = tiny_backbone.model.state_dict(), tiny_open_clip.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_state_dict_loads_strictly_and_to_the_bit(tiny_backbone: Backbone) -> None:
    visual = copy.deepcopy(tiny_backbone.visual)
    state = visual.state_dict()
    other = copy.deepcopy(visual)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(state)
    assert all(
        torch.equal(now, before)
        for now, before in zip(other.parameters(), visual.parameters(), strict=True)
    )
    missing = {key: value for key, value in state.items() if "out_proj.bias" not in key}
    with pytest.raises(RuntimeError, match=r"Missing key.*resblocks\.0\.attn\.out\.bias"):
        other.load_state_dict(missing)


def test_an_attention_with_a_wrapped_layer_keeps_the_names_of_its_layers(
    tiny_backbone: Backbone,
) -> None:
    visual = copy.deepcopy(tiny_backbone.visual)
    first = visual.transformer.resblocks[0].attn
    first.q = nn.Sequential(first.q)
    state = visual.state_dict()
    wrapped = {key for key in state if key.startswith(BLOCK.removeprefix("visual."))}
    parts = ("q.0", "k", "v", "out")
    assert wrapped == {
        f"transformer.resblocks.0.attn.{part}.{kind}"
        for part in parts
        for kind in ("weight", "bias")
    }
    assert "transformer.resblocks.1.attn.in_proj_weight" in state
    visual.load_state_dict(state)
