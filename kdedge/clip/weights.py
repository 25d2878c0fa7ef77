"""Local files of CLIP weights, read strictly, without running anything in them.

It reads safetensors, state dicts written by `torch.save` (bare, or under "state_dict" as in
open_clip's training checkpoints), and the TorchScript archives that OpenAI published. A file's
content decides its kind, not its name.

No file is trusted. State dicts are read by `torch.load(weights_only=True)`, and a file that torch
refuses raises an error. Only the tensors of a TorchScript archive are read (`_unpickle.py`), since
`torch.jit.load` runs the archive's code.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdedge.clip.unpickle import DTYPES, MALFORMED, REMEDY, Inert, kind_of, open_archive
from kdedge.errors import DataError
from kdedge.files import open_regular
from kdedge.messages import first_line, some_of

OPENAI_EXTRA_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Sizes that OpenAI's archives keep among the weights (openai/CLIP, clip/model.py)."""

Shapes = Mapping[str, Sequence[int]]
"""Name -> shape of each tensor in a state dict."""


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


HEAD_WIDTH = 64
"""Width of an attention head in both encoders of every CLIP in OpenAI's layout (same file)."""

_LAYOUTS = (
    (r"prompt_learner\.|image_encoder\.|VPT_image_trans\.", "a checkpoint of prompt-learning code"),
    (r"ctx$|token_prefix$", "a prompt learner's checkpoint (CoOp), which holds no CLIP"),
    (r"text_decoder\.|visual\.attn_pool\.", "a CoCa (open_clip)"),
    (r"logit_bias$", "a SigLIP"),
    (r"(vision_model|text_model)\.", "a CLIP of Hugging Face transformers"),
    (r"visual\.trunk\.", "a CLIP with an image encoder of timm"),
    (r"visual\.layer1\.|visual\.attnpool\.", "a ResNet CLIP"),
    (r"text\.", "a CLIP with a text encoder of its own (open_clip's CustomTextCLIP)"),
    (r"(cls_token|patch_embed\.)", "a ViT of timm without a text encoder"),
)


@dataclass(frozen=True)
class Weights:
    """Content of a file of weights.

    Attributes:
        state_dict: name -> tensor on the CPU, in the stored type, without OpenAI's extra keys.
        quick_gelu: whether the activation is QuickGELU; None if the file does not say.
    """

    state_dict: dict[str, Tensor]
    quick_gelu: bool | None


def read_weights(path: Path) -> Weights:
    """Reads a file of weights.

    Three extra keys mark OpenAI's archives and state dicts, which were trained with QuickGELU. A
    safetensors file may state it in its metadata as "quick_gelu": "true" or "false".

    Raises:
        DataError: no such file, another kind of file, damaged, refused by torch as unsafe, or
            values that are not finite.
    """
    kind = kind_of(path)
    quick_gelu: bool | None = None
    if kind == "safetensors":
        values, quick_gelu = _read_safetensors(path)
    elif kind == "OpenAI archive":
        with open_archive(path) as archive:
            stored = archive.module_tensors()
            values = {key: archive.tensor(tensor) for key, tensor in stored.items()}
            attributes = archive.root.state if isinstance(archive.root, Inert) else None
        if isinstance(attributes, dict) and all(key in attributes for key in OPENAI_EXTRA_KEYS):
            quick_gelu = True
    else:
        values = _read_state_dict(path)
    prefix = "module."  # distributed training puts it before every key
    if all(isinstance(key, str) and key.startswith(prefix) for key in values):
        values = {key.removeprefix(prefix): value for key, value in values.items()}
    state_dict = _check_values(path, values)
    if all(key in state_dict for key in OPENAI_EXTRA_KEYS):
        quick_gelu = True
    state_dict = {k: v for k, v in state_dict.items() if k not in OPENAI_EXTRA_KEYS}
    return Weights(state_dict, quick_gelu)


def hash_weights(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted keys: each key's bytes, then its values' float32 bytes."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        digest.update(key.encode())
        # A view of the values' memory: nothing is copied
        digest.update(state_dict[key].detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], bool | None]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, *MALFORMED) as error:
        raise DataError(f"{path} is a damaged safetensors file: {error}.\n{REMEDY}") from error
    stated = metadata.get("quick_gelu")
    if stated not in (None, "true", "false"):
        raise DataError(
            f'{path} has the metadata "quick_gelu": "{stated}"; expected "true" or "false".'
        )
    return values, None if stated is None else stated == "true"


def _read_state_dict(path: Path) -> dict[str, Any]:
    """Reads a file of torch.save; a file that torch refuses is not read in another way."""
    try:
        # An open file, since torch would choose the format by a path's suffix
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch also warns about files that it reads
            saved = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it names {unknown[1]}" if unknown else "it holds more than weights, or is damaged"
        raise DataError(
            f"{path} is not loaded: {what}. Loading it could run code.\n"
            "  On a machine where you trust the file, save only its state dict:"
            " torch.save(model.state_dict(), ...) or safetensors."
        ) from error
    except MALFORMED as error:
        raise DataError(
            f"{path} is damaged or truncated: {first_line(error)}.\n{REMEDY}"
        ) from error
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict):
        raise DataError(f"{path} holds a {type(saved).__name__}, not a state dict.\n{REMEDY}")
    return saved


def _check_values(path: Path, values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Checks that all entries are plain dense tensors, and returns them.

    Raises:
        DataError: an entry is something else, or has values that are not finite.
    """
    if not values:
        raise DataError(f"{path} holds no tensors.\n{REMEDY}")
    state_dict: dict[str, Tensor] = {}
    for key, entry in values.items():
        is_size = key in OPENAI_EXTRA_KEYS and isinstance(entry, int)
        value = torch.tensor(entry) if is_size else entry
        is_dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(key, str) or not is_dense or value.dtype not in DTYPES.values():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise DataError(
                f"{path} is not a state dict: {key!r} is not a plain tensor but {kind}.\n{REMEDY}"
            )
        has_extremes = value.is_floating_point() and value.numel() and not _is_buffer_to_ignore(key)
        # Extremes take one pass without a copy
        if has_extremes and not all(extreme.isfinite() for extreme in torch.aminmax(value)):
            raise DataError(
                f"{path}: {key} holds values that are not finite.\n"
                "  The file is damaged or its training diverged; fetch it again."
            )
        state_dict[key] = value.detach()
    return state_dict


def infer_config(shapes: Shapes, *, where: str = "The state dict") -> dict[str, Any]:
    """Infers open_clip's model config of a ViT CLIP in OpenAI's layout from tensor shapes.

    Heads are `HEAD_WIDTH` wide in both encoders, which shapes do not show (openai/CLIP,
    clip/model.py, `build_model`). The activation is not part of the result. `match_shapes` tells
    whether the file has all tensors of that model.

    Args:
        shapes: name -> shape of each tensor.
        where: the file, for messages.

    Returns:
        `embed_dim`, `vision_cfg` and `text_cfg`.

    Raises:
        DataError: another layout, a ResNet CLIP, or a key is missing.
    """
    width, _, _, patch = _shape(shapes, "visual.conv1.weight", 4, where)
    positions, _ = _shape(shapes, "visual.positional_embedding", 2, where)
    _, embed_dim = _shape(shapes, "text_projection", 2, where)
    context_length, text_width = _shape(shapes, "positional_embedding", 2, where)
    vocab_size, _ = _shape(shapes, "token_embedding.weight", 2, where)
    return {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": round((positions - 1) ** 0.5) * patch,
            "patch_size": patch,
            "head_width": HEAD_WIDTH,
            **_encoder_sizes(shapes, "visual.transformer.resblocks", width, where),
        },
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": vocab_size,
            "heads": text_width // HEAD_WIDTH,
            **_encoder_sizes(shapes, "transformer.resblocks", text_width, where),
        },
    }


def _encoder_sizes(shapes: Shapes, prefix: str, width: int, where: str) -> dict[str, int | float]:
    """Width, number of layers and, if it is not 4, MLP ratio of a transformer."""
    matches = (re.match(rf"{re.escape(prefix)}\.(\d{{1,4}})\.", key) for key in shapes)
    layers = 1 + max((int(match[1]) for match in matches if match), default=0)
    hidden, _ = _shape(shapes, f"{prefix}.0.mlp.c_fc.weight", 2, where)
    ratio = {} if hidden == 4 * width else {"mlp_ratio": hidden / width}
    return {"width": width, "layers": layers, **ratio}


def _shape(shapes: Shapes, key: str, n_dims: int, where: str) -> Sequence[int]:
    if key not in shapes:
        looks_like = layout_of(shapes)
        guess = f"; it looks like {looks_like}" if looks_like else ""
        raise DataError(
            f"{where} has no {key}{guess}.\n"
            "  Expected a ViT CLIP under OpenAI's names, as open_clip saves it; convert the"
            " file or name another.\n"
            "  For a CLIP with another image encoder, add the model's name, such as backbone:"
            " RN50."
        )
    shape = shapes[key]
    if len(shape) != n_dims or 0 in shape:
        raise DataError(
            f"{where} has {key} of shape {list(shape)}; expected {n_dims} dimensions, none empty."
        )
    return shape


def layout_of(keys: Iterable[str]) -> str | None:
    """Names the layout that a state dict's keys look like, for messages; None if unknown."""
    names = list(keys)
    for pattern, layout in _LAYOUTS:
        if any(re.match(pattern, name) for name in names):
            return layout
    return None


def match_shapes(expected: Shapes, actual: Shapes, where: str) -> None:
    """Checks that a file has exactly a model's tensors.

    One difference is allowed: the file may hold the buffer `attn_mask` (an encoder's causal mask),
    which open_clip makes anew and does not save.

    Args:
        expected: name -> shape of each tensor in the model's state dict.
        actual: name -> shape of each tensor in the file.
        where: the file or the model, for the message.

    Raises:
        DataError: lists the missing, the unexpected and the wrongly shaped names.
    """
    known = [key for key in actual if key in expected or not _is_buffer_to_ignore(key)]
    reshaped = []
    for key, shape in expected.items():
        if key in actual and list(actual[key]) != list(shape):
            reshaped.append(f"{key} {list(actual[key])} (the model: {list(shape)})")
    differences = {
        "missing": [key for key in expected if key not in actual],
        "unexpected": [key for key in known if key not in expected],
        "of another shape": reshaped,
    }
    lines = [
        f"  {len(names)} {what}: {', '.join(some_of(map(for_message, names)))}\n"
        for what, names in differences.items()
        if names
    ]
    if lines:
        looks_like = layout_of(known)
        guess = f"; it looks like {looks_like}" if looks_like else ""
        raise DataError(
            f"{where}: the file does not fit the model{guess}.\n{''.join(lines)}"
            "  Name the model that the weights were saved from, or a file that belongs to it."
        )


def for_message(name: str) -> str:
    """Makes a name from a file fit for a message: no control characters, at most one line."""
    return name if name.isprintable() and len(name) <= 200 else f"{name[:200]!r}"


def _is_buffer_to_ignore(key: str) -> bool:
    return key.rpartition(".")[2] == "attn_mask"
