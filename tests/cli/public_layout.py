"""Checkpoints as the public PromptSRC and PromptKD code writes them, made from runs of ours."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class LearningRateSchedule:
    """Stands for the pickled object in the public code's checkpoints."""


def public_names(state: dict[str, Tensor], *, text: bool) -> dict[str, Tensor]:
    """A backbone's tensors under the public code's names; the token table is not among them."""
    named = {}
    for key, value in state.items():
        if key == "logit_scale":
            named[key] = value
        elif key.startswith("visual."):
            named["image_encoder." + key.removeprefix("visual.")] = value
        elif text and key != "token_embedding.weight":
            named["text_encoder." + key] = value
    return named


def add_prompts(state: dict[str, Tensor], encoder: str, deep: Tensor, *, first: int) -> None:
    for block, prompt in enumerate(deep, start=first):
        state[f"{encoder}.transformer.resblocks.{block}.VPT_shallow"] = prompt


def promptsrc_checkpoint(weights: Path, trained_tensors: Path, n_classes: int) -> dict[str, Tensor]:
    original, found = _backbone_state(weights), load_file(trained_tensors)
    state = public_names(original, text=True)
    context, visual = found["text_prompts.context"], found["visual_prompts"]
    state["prompt_learner.ctx"] = context
    state["prompt_learner.token_prefix"] = torch.zeros(n_classes, 1, context.shape[1])
    state["prompt_learner.token_suffix"] = torch.zeros(n_classes, 72, context.shape[1])
    for key, value in public_names(original, text=False).items():
        if key != "logit_scale":
            name = key.removeprefix("image_encoder.")
            state[f"prompt_learner.ZS_image_encoder.{name}"] = value
    state["image_encoder.VPT"] = visual[0]
    add_prompts(state, "image_encoder", visual[1:], first=1)
    add_prompts(state, "text_encoder", found["text_prompts.deep_context"], first=1)
    return state


def promptkd_checkpoint(weights: Path, trained_tensors: Path) -> dict[str, Tensor]:
    found = load_file(trained_tensors)
    state = public_names(_backbone_state(weights), text=False)
    state["image_encoder.VPT"] = found["visual_prompts"][0]
    add_prompts(state, "image_encoder", found["visual_prompts"][1:], first=1)
    layers = {"linear1": "conv1.0", "batch_norm": "conv1.1", "linear2": "conv1.3"}
    for key, value in found.items():
        if key.startswith("projector."):
            _, layer, name = key.split(".")
            is_matrix = layer != "batch_norm" and name == "weight"
            shaped = value[:, :, None, None] if is_matrix else value
            state[f"VPT_image_trans.{layers[layer]}.{name}"] = shaped
    return state


def _backbone_state(weights: Path) -> dict[str, Tensor]:
    sizes = ("input_resolution", "context_length", "vocab_size")
    saved = torch.load(weights, weights_only=True)
    return {key: value for key, value in saved.items() if key not in sizes}


def save_public(path: Path, state: dict[str, Tensor]) -> Path:
    """Writes a state dict as the public code does, with an object in it that must not be built."""
    whole = {"state_dict": state, "epoch": 20, "scheduler": LearningRateSchedule()}
    torch.save({**whole, "optimizer": {"state": {}}, "val_result": 0.5}, path)
    return path
