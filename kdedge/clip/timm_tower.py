"""timm's models as image towers: pooled features, timm's own preprocessing, weights read strictly.

Source: timm, https://github.com/huggingface/pytorch-image-models (Wightman 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from kdedge.clip.download import fetch_from_hub
from kdedge.clip.resolve import TIMM_PREFIX
from kdedge.clip.weights import match_state_dict, read_weights
from kdedge.config.explain import nearest
from kdedge.config.fields import looks_like_path
from kdedge.errors import RecipeError, SetupError
from kdedge.runtime.preprocess import RESAMPLING, Preprocess

_RESIZE_MODES = {"center": "shortest", "squash": "squash"}
_FILE = "model.safetensors"


def load_timm_tower(name: str, weights: str | None) -> tuple[nn.Module, Preprocess]:
    """Loads a timm model without its classifier, on the CPU.

    Args:
        name: `timm/` and timm's name, with the tag of its weights: timm/resnet18.a1_in1k.
        weights: `pretrained` for what timm publishes, or a file of the model's state dict.

    Returns:
        [B, 3, H, W] -> [B, D], pooled, and what its images want.

    Raises:
        RecipeError: timm has no such model or tag, or its images are not prepared here.
        DataError: the file is damaged or is another model's.
        SetupError: the weights would have to be downloaded and cannot be.
    """
    model = _build(name)
    preprocess = timm_preprocess(name, resolve_model_data_config(model))
    path = _weights_file(name, weights, model.pretrained_cfg)
    head = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{part}." for part in ((head,) if isinstance(head, str) else head))
    own = {
        key: value
        for key, value in read_weights(path).state_dict.items()
        if not (heads and key.startswith(heads))
    }
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    match_state_dict(shapes, own, name)
    model.load_state_dict(own)
    return model, preprocess


def _build(name: str) -> Any:
    timms = name.removeprefix(TIMM_PREFIX)
    architecture = timms.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown(name, timm.list_models())
    with torch.random.fork_rng(devices=[]):
        try:
            return timm.create_model(timms, num_classes=0)
        except (RuntimeError, TypeError, ValueError) as error:
            if "tag" in str(error):
                tags = timm.list_models(f"{architecture}.*", pretrained=True)
                raise _unknown(name, tags) from error
            raise RecipeError(
                f"{name}: timm cannot build it without a classifier: {error}.\n"
                "  Choose another model."
            ) from error


def _unknown(name: str, known: list[str]) -> RecipeError:
    guess = nearest(name.removeprefix(TIMM_PREFIX), known)
    return RecipeError(
        f"{name} is not a model of timm {timm.__version__}."
        + (f"\n  Did you mean {TIMM_PREFIX}{guess}?" if guess else "")
    )


def timm_preprocess(name: str, wanted: Mapping[str, Any]) -> Preprocess:
    """What timm's data config says of images, as preprocessing.

    Its `crop_pct` is left out: it zooms test images in by some percent, and a student is trained
    and tested on crops of kdedge's own.

    Raises:
        RecipeError: it wants images that are not prepared here.
    """
    channels, *sides = wanted["input_size"]
    odd = {
        f"{channels} channels": channels != 3,
        f"{sides[0]}x{sides[1]} pixels": sides[0] != sides[1],
        f"interpolation {wanted['interpolation']}": wanted["interpolation"] not in RESAMPLING,
        f"crop mode {wanted['crop_mode']}": wanted["crop_mode"] not in _RESIZE_MODES,
    }
    for what, is_there in odd.items():
        if is_there:
            raise RecipeError(
                f"{name} wants images of {what}, which kdedge does not prepare.\n"
                "  Choose a model of square RGB images, bicubic or bilinear, whose crop mode is"
                " center or squash."
            )
    return Preprocess(
        size_px=sides[0],
        mean=tuple(wanted["mean"]),
        std=tuple(wanted["std"]),
        interpolation=wanted["interpolation"],
        resize_mode=_RESIZE_MODES[wanted["crop_mode"]],  # type: ignore[arg-type]
    )


def _weights_file(name: str, weights: str | None, published: dict[str, Any]) -> Path:
    if weights is not None and looks_like_path(weights):
        return Path(weights).expanduser()
    if weights != "pretrained":
        raise RecipeError(
            f"{name} has weights: {weights}; expected pretrained or a file.\n"
            f"  The tag of timm's weights is part of the name: {TIMM_PREFIX}resnet18.a1_in1k."
        )
    repository = published.get("hf_hub_id")
    if not repository:
        raise RecipeError(
            f"timm publishes no weights of {name}.\n  Name a file of its state dict under weights."
        )
    try:
        return fetch_from_hub(repository, _FILE)
    # Each transport has errors of its own, and all mean the same here
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SetupError(
            f"The weights of {name} are not on this machine and could not be fetched: {reason}\n"
            f"  Fetch https://huggingface.co/{repository}/resolve/main/{_FILE}\n"
            "  where there is a network, copy the file here, and name it in the recipe beside"
            " backbone: weights: /path/to/file"
        ) from error
