"""Checkpoints of the public PromptSRC and PromptKD code, read without running anything in them.

A `model.pth.tar-<epoch>` or `model-best.pth.tar` of that code (built on Dassl) is a pickled dict of
`state_dict`, `epoch`, `optimizer`, `scheduler` and `val_result`. The scheduler is a pickled object,
so `torch.load(weights_only=True)` refuses the file. `_unpickle.py` reads it: every object that is
not a tensor or a dictionary becomes an inert stand-in.

Code: github.com/muzairkhattak/PromptSRC (arXiv:2307.06948), github.com/zhengli97/PromptKD
(arXiv:2403.02781).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdedge.clip.unpickle import ForeignArchive, StoredTensor, kind_of, open_archive
from kdedge.clip.weights import for_message, layout_of
from kdedge.errors import DataError

_PROMPTSRC = "a PromptSRC checkpoint"
_PROMPTKD = "a checkpoint of a PromptKD student"
_IGNORED_BY_PROMPTSRC = re.compile(
    r"prompt_learner\.token_(prefix|suffix)2?"  # embeddings of one class list, made from names
    r"|prompt_learner\.ZS_image_encoder\..+"  # the image encoder once more, without prompts
)
# PromptKD's `VPT_image_trans`, two 1x1 convolutions and a batch norm -> names of a projector
_PROJECTOR_KEYS = {
    "conv1.0.weight": "linear1.weight",
    "conv1.0.bias": "linear1.bias",
    "conv1.1.weight": "batch_norm.weight",
    "conv1.1.bias": "batch_norm.bias",
    "conv1.1.running_mean": "batch_norm.running_mean",
    "conv1.1.running_var": "batch_norm.running_var",
    "conv1.1.num_batches_tracked": "batch_norm.num_batches_tracked",
    "conv1.3.weight": "linear2.weight",
    "conv1.3.bias": "linear2.bias",
}


@dataclass(frozen=True)
class PublicCheckpoint:
    """The useful content of a checkpoint file.

    Attributes:
        state_dict: key without `module.` -> tensor on the CPU, in the stored type.
        epoch: epochs trained, from 1; None if the file does not say.
    """

    state_dict: dict[str, Tensor]
    epoch: int | None


@dataclass(frozen=True)
class PublicParameters:
    """A checkpoint's tensors, separated into those of the method and of the backbone.

    Attributes:
        trained: tensors that the method trains, under its module's names; float32, except counts.
        backbone: open_clip name -> tensor as stored, without `token_embedding.weight`. PromptSRC's
            half-precision values differ from OpenAI's by rounding, since the code averages all
            weights over the epochs and not only the prompts. `deviation` checks the names.
    """

    trained: dict[str, Tensor]
    backbone: dict[str, Tensor]


def read_public_checkpoint(path: Path) -> PublicCheckpoint:
    """Reads `state_dict` and `epoch` of a checkpoint. No other object is built, no code is run.

    Raises:
        DataError: no such file, damaged, or not a checkpoint.
    """
    if kind_of(path) != "state dict":
        raise DataError(
            f"{path} is not a checkpoint of the public code, which torch.save writes.\n"
            "  Name a file such as model.pth.tar-20."
        )
    with open_archive(path) as archive:
        root = archive.root
        saved = root.get("state_dict") if isinstance(root, dict) else None
        if not isinstance(root, dict) or not isinstance(saved, dict) or not saved:
            raise DataError(
                f"{path} has no state_dict; a checkpoint holds state_dict, epoch and more.\n"
                "  Name a file model.pth.tar-<epoch> or model-best.pth.tar of the run's folder."
            )
        state_dict = _read_tensors(archive, saved)
    epoch = root.get("epoch")
    is_count = isinstance(epoch, int) and epoch >= 0
    return PublicCheckpoint(state_dict, epoch if is_count else None)


def _read_tensors(archive: ForeignArchive, saved: Mapping[object, object]) -> dict[str, Tensor]:
    """Reads a state dict's tensors, under their keys without `module.`."""
    state_dict: dict[str, Tensor] = {}
    for key, stored in saved.items():
        name = key.removeprefix("module.") if isinstance(key, str) else ""
        if not name or name in state_dict or not isinstance(stored, StoredTensor):
            raise DataError(
                f"{archive.path}: its state_dict has an entry that is not a named tensor, or has a"
                f" repeated name: {for_message(str(key))}."
            )
        state_dict[name] = archive.tensor(stored)
        if not bool(torch.isfinite(state_dict[name].float()).all()):
            raise DataError(
                f"{archive.path}: {for_message(name)} holds values that are not finite.\n"
                "  Its training diverged; name the checkpoint of an earlier epoch."
            )
    return state_dict


def promptsrc_parameters(state_dict: Mapping[str, Tensor]) -> PublicParameters:
    """Separates a PromptSRC checkpoint's tensors into prompts and backbone.

    IVLP's checkpoints are accepted, too: the two methods train the same prompts with different
    losses. Their keys are the same, except for a second image encoder, which is not needed.

    Raises:
        DataError: another method's checkpoint, a prompt is missing, or the prompts of an encoder
            have different shapes.
    """
    rest = _checked_copy(_PROMPTSRC, state_dict)
    context = _take_prompts(rest, "prompt_learner.ctx", "text_encoder", _PROMPTSRC)
    trained = {
        "text_prompts.context": context[0],
        "text_prompts.deep_context": context[1:],
        "visual_prompts": _take_prompts(rest, "image_encoder.VPT", "image_encoder", _PROMPTSRC),
    }
    rest = {key: rest[key] for key in rest if not _IGNORED_BY_PROMPTSRC.fullmatch(key)}
    return PublicParameters(trained, _open_clip_names(rest))


def promptkd_parameters(state_dict: Mapping[str, Tensor]) -> PublicParameters:
    """Separates a PromptKD student's tensors into prompts, projector and backbone.

    Raises:
        DataError: another method's checkpoint, a tensor is missing, the prompts have different
            shapes, or the projector has no 1x1 convolutions.
    """
    rest = _checked_copy(_PROMPTKD, state_dict)
    visual_prompts = _take_prompts(rest, "image_encoder.VPT", "image_encoder", _PROMPTKD)
    trained = {"visual_prompts": visual_prompts}
    for key, name in _PROJECTOR_KEYS.items():
        full = f"VPT_image_trans.{key}"
        value = _take(rest, full, _PROMPTKD)
        if key in ("conv1.0.weight", "conv1.3.weight"):
            if value.ndim != 4 or value.shape[2:] != (1, 1):
                raise DataError(f"{full} is {list(value.shape)}; expected [out, in, 1, 1].")
            value = value[:, :, 0, 0]
        trained[f"projector.{name}"] = value.float() if value.is_floating_point() else value
    return PublicParameters(trained, _open_clip_names(rest))


def deviation(
    backbone_state: Mapping[str, Tensor], checkpoint_backbone: Mapping[str, Tensor]
) -> tuple[float, str]:
    """Measures the deviation of a checkpoint's backbone from a loaded one.

    Args:
        backbone_state: the loaded CLIP's state dict, under open_clip's names.
        checkpoint_backbone: the file's tensors under the same names; compared in float32.

    Returns:
        The largest relative difference and its tensor's name; 0 and "" if there are no tensors. A
        tensor's relative difference is its largest difference divided by the largest magnitude of
        the loaded tensor.

    Raises:
        DataError: the loaded CLIP has no tensor of that name and shape.
    """
    relative = 0.0
    worst = ""
    for key, tensor in checkpoint_backbone.items():
        loaded = backbone_state.get(key)
        if loaded is None or loaded.shape != tensor.shape:
            shape = "not there" if loaded is None else list(loaded.shape)
            raise DataError(
                f"{for_message(key)} is {list(tensor.shape)} in the checkpoint and {shape} in the"
                " loaded CLIP.\n"
                "  Load the CLIP that the checkpoint was trained on, such as ViT-B-16 or ViT-L-14."
            )
        loaded = loaded.detach().float().cpu()
        if not loaded.numel():
            continue
        difference = float((loaded - tensor.detach().float().cpu()).abs().max())
        magnitude = max(float(loaded.abs().max()), torch.finfo(torch.float32).tiny)
        if not worst or difference / magnitude > relative:
            relative = difference / magnitude
            worst = key
    return relative, worst


def _checked_copy(method: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies a state dict after a check that its keys are those of the method."""
    looks_like = _method_of(state_dict)
    if looks_like != method:
        raise DataError(f"Expected {method}; the state_dict looks like {looks_like}.")
    return dict(state_dict)


def _take(state_dict: dict[str, Tensor], key: str, method: str) -> Tensor:
    """Removes and returns a tensor that every checkpoint of the method has."""
    if key not in state_dict:
        raise DataError(f"The state_dict has no {key}, which {method} has.")
    return state_dict.pop(key)


def _take_prompts(state_dict: dict[str, Tensor], first: str, encoder: str, method: str) -> Tensor:
    """Removes and returns the prompts of all prompted blocks, [J, n, D], float32."""
    prompts = {0: _take(state_dict, first, method).float()}
    pattern = re.compile(rf"{encoder}\.transformer\.resblocks\.(\d{{1,4}})\.VPT_shallow")
    blocks = {int(match[1]): key for key in state_dict if (match := pattern.fullmatch(key))}
    if sorted(blocks) != list(range(1, 1 + len(blocks))):
        raise DataError(
            f"{encoder} has VPT_shallow in blocks {', '.join(map(str, sorted(blocks)))}; expected"
            " all blocks from 1 to the last of them.\n"
            "  The file is incomplete or was changed; copy it again, or name another checkpoint."
        )
    prompts |= {block: state_dict.pop(key).float() for block, key in sorted(blocks.items())}
    for block, prompt in prompts.items():
        if prompt.ndim != 2 or prompt.shape != prompts[0].shape:
            raise DataError(
                f"The prompts of {encoder} in block {block} are {list(prompt.shape)}; expected"
                f" [tokens, width] as in the first block, {list(prompts[0].shape)}."
            )
    return torch.stack(list(prompts.values()))


def _open_clip_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        re.sub(r"^image_encoder\.", "visual.", key).removeprefix("text_encoder."): value
        for key, value in state_dict.items()
    }


def _method_of(state_dict: Mapping[str, Tensor]) -> str:
    """Names the method that a state dict belongs to, by keys that no other method has."""
    if any(key.startswith("VPT_image_trans.") for key in state_dict):
        return _PROMPTKD
    if {"prompt_learner.ctx", "image_encoder.VPT"} <= state_dict.keys():
        return _PROMPTSRC
    known = layout_of(state_dict)
    return known or f"nothing known: {', '.join(map(for_message, list(state_dict)[:3]))}"
