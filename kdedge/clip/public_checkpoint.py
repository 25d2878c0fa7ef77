"""Checkpoints of the public PromptSRC and PromptKD code, read without running anything in them.

A `model.pth.tar-<epoch>` or `model-best.pth.tar` of that code (built on Dassl) is a pickled dict of
`state_dict`, `epoch`, `optimizer`, `scheduler` and `val_result`. The scheduler is a pickled object,
so `torch.load(weights_only=True)` refuses the file. Here all but tensors and dictionaries becomes
an inert stand-in (`_unpickle.py`).

Code: github.com/muzairkhattak/PromptSRC (arXiv:2307.06948), github.com/zhengli97/PromptKD
(arXiv:2403.02781).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdedge.clip._unpickle import ForeignArchive, StoredTensor, kind_of, open_archive
from kdedge.clip.weights import for_message, layout_of
from kdedge.errors import DataError, ShapeError

_PROMPTSRC = "a PromptSRC checkpoint"
_PROMPTKD = "a checkpoint of a PromptKD student"
_DEEP_PROMPT = r"transformer\.resblocks\.(\d{1,4})\.VPT_shallow"
_IGNORED_BY_PROMPTSRC = (
    r"prompt_learner\.token_(prefix|suffix)2?",  # embeddings of one class list, made from names
    r"prompt_learner\.ZS_image_encoder\..+",  # the image encoder once more, without prompts
)
_BLOCK_KEYS = (
    r"transformer\.resblocks\.\d{1,4}\."
    r"((ln_[12]|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)|attn\.in_proj_(weight|bias))"
)
_BACKBONE_KEY = re.compile(
    r"logit_scale"
    r"|image_encoder\.(class_embedding|positional_embedding|proj|conv1\.weight"
    rf"|ln_(pre|post)\.(weight|bias)|{_BLOCK_KEYS})"
    r"|text_encoder\.(positional_embedding|text_projection"
    rf"|ln_final\.(weight|bias)|{_BLOCK_KEYS})"
)
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
"""PromptKD's `VPT_image_trans`, two 1x1 convolutions and a batch norm -> names of a projector."""


@dataclass(frozen=True)
class PublicCheckpoint:
    """The useful content of a checkpoint file.

    Attributes:
        state_dict: key without `module.` -> tensor on the CPU, in the stored type.
        epoch: epochs trained, from 1; None if the file does not say.
        ignored: top-level entries that were not read, such as `optimizer`.
    """

    state_dict: dict[str, Tensor]
    epoch: int | None
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class PromptSRCParameters:
    """PromptSRC's prompts and the backbone that the file carries.

    Attributes:
        context: [n_ctx, D_text], float32, for the first text block.
        deep_context: [J - 1, n_ctx, D_text], float32, for text blocks 1 to J - 1.
        visual_prompts: [J, n_ctx_vision, D_vision], float32, for vision blocks 0 to J - 1.
        backbone: open_clip name -> tensor as stored; without `token_embedding.weight`. Its
            half-precision values differ from OpenAI's by rounding, since the code averages all
            weights over the epochs and not only the prompts.
        ignored: known keys that kdedge does not use.
    """

    context: Tensor
    deep_context: Tensor
    visual_prompts: Tensor
    backbone: dict[str, Tensor]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class PromptKDParameters:
    """A PromptKD student's prompts, projector and image encoder.

    Attributes:
        visual_prompts: [J, n_ctx_vision, D_vision], float32, for vision blocks 0 to J - 1.
        projector: `linear1.{weight,bias}`, `batch_norm.*` and `linear2.{weight,bias}`; float32,
            except `batch_norm.num_batches_tracked`.
        backbone: open_clip name -> tensor as stored; the image encoder and `logit_scale`.
        ignored: known keys that kdedge does not use.
    """

    visual_prompts: Tensor
    projector: dict[str, Tensor]
    backbone: dict[str, Tensor]
    ignored: tuple[str, ...]


def read_public_checkpoint(path: Path) -> PublicCheckpoint:
    """Reads `state_dict` and `epoch` of a checkpoint. Nothing else is built, no code is run.

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
    return PublicCheckpoint(
        state_dict,
        epoch if isinstance(epoch, int) and epoch >= 0 else None,
        tuple(sorted(for_message(str(key)) for key in root if key not in ("state_dict", "epoch"))),
    )


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


def promptsrc_parameters(state_dict: Mapping[str, Tensor]) -> PromptSRCParameters:
    """Sorts a PromptSRC checkpoint's tensors into prompts and backbone.

    IVLP's checkpoints are accepted, too: the two methods train the same prompts with different
    losses. Their keys are the same, except for a second image encoder, which is not needed.

    Raises:
        DataError: another method's checkpoint, a key that is not known, a prompt that is missing.
    """
    _refuse_other_methods(state_dict, method=_PROMPTSRC)
    context = _prompt(state_dict, "prompt_learner.ctx", _PROMPTSRC)
    deep_context = _deep_prompts(state_dict, "text_encoder", like=context)
    shallow = _prompt(state_dict, "image_encoder.VPT", _PROMPTSRC)
    deep = _deep_prompts(state_dict, "image_encoder", like=shallow)
    ignored, backbone = _rest(
        state_dict,
        used={"prompt_learner.ctx", "image_encoder.VPT"},
        ignorable=_IGNORED_BY_PROMPTSRC,
        method=_PROMPTSRC,
    )
    return PromptSRCParameters(
        context=context,
        deep_context=deep_context,
        visual_prompts=torch.cat([shallow[None], deep]),
        backbone=backbone,
        ignored=ignored,
    )


def promptkd_parameters(state_dict: Mapping[str, Tensor]) -> PromptKDParameters:
    """Sorts a PromptKD student's tensors into prompts, projector and backbone.

    Raises:
        DataError: another method's checkpoint, a key that is not known, a tensor that is missing.
    """
    _refuse_other_methods(state_dict, method=_PROMPTKD)
    shallow = _prompt(state_dict, "image_encoder.VPT", _PROMPTKD)
    deep = _deep_prompts(state_dict, "image_encoder", like=shallow)
    projector = _projector(state_dict)
    ignored, backbone = _rest(
        state_dict,
        used={"image_encoder.VPT", *(f"VPT_image_trans.{key}" for key in _PROJECTOR_KEYS)},
        ignorable=(),
        method=_PROMPTKD,
    )
    return PromptKDParameters(
        visual_prompts=torch.cat([shallow[None], deep]),
        projector=projector,
        backbone=backbone,
        ignored=ignored,
    )


def deviation(
    backbone_state: Mapping[str, Tensor], checkpoint_backbone: Mapping[str, Tensor]
) -> tuple[float, str]:
    """Measures the deviation of a checkpoint's backbone from a loaded one.

    Args:
        backbone_state: the loaded CLIP's state dict, under open_clip's names.
        checkpoint_backbone: the file's tensors under the same names; compared in float32.

    Returns:
        The largest relative difference and its tensor's name; 0 and "" if there are no tensors. A
        tensor's is its largest difference over its largest loaded magnitude.

    Raises:
        ShapeError: a tensor has different shapes in the two.
        DataError: the loaded CLIP has no tensor of that name.
    """
    relative, where = 0.0, ""
    for key, tensor in checkpoint_backbone.items():
        if key not in backbone_state:
            raise DataError(
                f"The checkpoint has {for_message(key)}, which the loaded CLIP does not have.\n"
                "  Load the CLIP that the checkpoint was trained on, such as ViT-B-16 or ViT-L-14."
            )
        ours = backbone_state[key].detach().float().cpu()
        if ours.shape != tensor.shape:
            raise ShapeError(
                f"{key} is {list(tensor.shape)} in the checkpoint and {list(ours.shape)} in the"
                " loaded CLIP.\n"
                "  Load the CLIP that the checkpoint was trained on, such as ViT-B-16 or ViT-L-14."
            )
        if not ours.numel():
            continue
        difference = float((ours - tensor.detach().float().cpu()).abs().max())
        magnitude = max(float(ours.abs().max()), torch.finfo(torch.float32).tiny)
        if not where or difference / magnitude > relative:
            relative, where = difference / magnitude, key
    return relative, where


def _prompt(state_dict: Mapping[str, Tensor], key: str, method: str) -> Tensor:
    """Gives a first block's prompt, [n, D], float32."""
    if key not in state_dict:
        raise DataError(f"The state_dict has no {key}, which {method} has.")
    prompt = state_dict[key].float()
    if prompt.ndim != 2:
        raise ShapeError(f"{key} is {list(prompt.shape)}; expected [tokens, width].")
    return prompt


def _deep_prompts(state_dict: Mapping[str, Tensor], encoder: str, *, like: Tensor) -> Tensor:
    """Gives the prompts of blocks 1 to J - 1, [J - 1, n, D], float32; J comes from the keys."""
    pattern = re.compile(rf"{encoder}\.{_DEEP_PROMPT}")
    blocks = {int(match[1]): key for key in state_dict if (match := pattern.fullmatch(key))}
    missing = [str(block) for block in range(1, max(blocks, default=0)) if block not in blocks]
    if missing or 0 in blocks:
        raise DataError(
            f"The prompts of {encoder} reach block {max(blocks)}, but VPT_shallow"
            + (f" is missing in block {', '.join(missing)}." if missing else " is also in block 0.")
            + "\n"
            "  The file is incomplete or was changed; copy it again, or name another"
            " checkpoint."
        )
    prompts = [like.new_empty(0, *like.shape)]
    for block in sorted(blocks):
        prompt = state_dict[blocks[block]].float()
        if prompt.shape != like.shape:
            raise ShapeError(
                f"{blocks[block]} is {list(prompt.shape)}; expected {list(like.shape)} as in the"
                " first block."
            )
        prompts.append(prompt[None])
    return torch.cat(prompts)


def _projector(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the projector's tensors, its 1x1 convolutions as matrices."""
    projector: dict[str, Tensor] = {}
    for key, name in _PROJECTOR_KEYS.items():
        full = f"VPT_image_trans.{key}"
        if full not in state_dict:
            raise DataError(f"The state_dict has no {full}, which {_PROMPTKD} has.")
        value = state_dict[full]
        if key in ("conv1.0.weight", "conv1.3.weight"):
            if value.ndim != 4 or value.shape[2:] != (1, 1):
                raise ShapeError(f"{full} is {list(value.shape)}; expected [out, in, 1, 1].")
            value = value[:, :, 0, 0]
        projector[name] = value.float() if value.is_floating_point() else value
    return projector


def _rest(
    state_dict: Mapping[str, Tensor], *, used: set[str], ignorable: Iterable[str], method: str
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Gives the keys that are not used, and the backbone under open_clip's names."""
    deep_prompt = re.compile(rf"(image|text)_encoder\.{_DEEP_PROMPT}")
    ignored: list[str] = []
    backbone: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if key in used or deep_prompt.fullmatch(key):
            continue
        if any(re.fullmatch(pattern, key) for pattern in ignorable):
            ignored.append(key)
        elif _BACKBONE_KEY.fullmatch(key):
            name = re.sub(r"^image_encoder\.", "visual.", key).removeprefix("text_encoder.")
            backbone[name] = value
        else:
            raise DataError(
                f"The state_dict has {for_message(key)}, which {method} does not have.\n"
                "  The file may come from modified code, which kdedge cannot import."
            )
    return tuple(sorted(ignored)), backbone


def _refuse_other_methods(state_dict: Mapping[str, Tensor], *, method: str) -> None:
    looks_like = _method_of(state_dict)
    if looks_like != method:
        raise DataError(f"Expected {method}; the state_dict looks like {looks_like}.")


def _method_of(state_dict: Mapping[str, Tensor]) -> str:
    """Names the method that a state dict looks like, by the keys that only it has."""
    has = "\n".join(["", *state_dict, ""])
    signs = (
        ("\nVPT_image_trans.", _PROMPTKD),
        ("compound_prompt", "a MaPLe checkpoint"),
        ("\nprompt_learner.ZS_image_encoder.", _PROMPTSRC),
        ("\nmeta_net.", "a CoCoOp checkpoint (the prompt learner alone)"),
        ("\nctx\n", "a CoOp checkpoint (the prompt learner alone)"),
    )
    for sign, method in signs:
        if sign in has:
            return method
    if "\nprompt_learner.ctx\n" in has and "\nimage_encoder.VPT\n" in has:
        # IVLP's keys are PromptSRC's without the second image encoder, which is of no use.
        return _PROMPTSRC
    if "\nimage_encoder.VPT\n" in has:
        return "a VPT checkpoint (no text context, no projector)"
    return layout_of(state_dict) or "nothing known: " + ", ".join(
        for_message(key) for key in list(state_dict)[:3]
    )
