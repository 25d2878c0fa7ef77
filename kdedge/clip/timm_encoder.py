"""timm's models as image encoders: pooled features, timm's own preprocessing.

Source: timm, https://github.com/huggingface/pytorch-image-models (Wightman 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import timm
import torch

from kdedge.clip.resolve import TIMM_PREFIX, fetch_from_hub, not_fetched
from kdedge.config.fields import looks_like_path
from kdedge.config.student_sizes import PACKAGED
from kdedge.errors import RecipeError
from kdedge.files import home_path
from kdedge.messages import nearest
from kdedge.packages import PACKAGES
from kdedge.runtime.preprocess import RESAMPLING, Preprocess

_RESIZE_MODES: dict[str, Literal["shortest", "squash"]] = {"center": "shortest", "squash": "squash"}
_FILE = "model.safetensors"
WEIGHTS_PACKAGES = dict(PACKAGED.values())
"""Name of a model -> the package that contains its weights."""


def build_timm(name: str, *, device: str) -> Any:
    """Builds a timm model without its classifier: [B, 3, H, W] -> [B, D], pooled.

    Args:
        name: `timm/` and timm's name, with the tag of its weights: timm/resnet18.a1_in1k.
        device: meta for shapes without values; cpu for initial values.

    Raises:
        RecipeError: timm has no such model or tag.
    """
    timm_name = name.removeprefix(TIMM_PREFIX)
    architecture = timm_name.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown_error(name, timm.list_models())
    with torch.random.fork_rng(devices=[]), torch.device(device):
        try:
            return timm.create_model(timm_name, num_classes=0)
        except (RuntimeError, TypeError, ValueError) as error:
            if "tag" in str(error):
                tags = timm.list_models(f"{architecture}.*", pretrained=True)
                raise _unknown_error(name, tags) from error
            raise RecipeError(
                f"{name}: timm cannot build it without a classifier: {error}.\n"
                "  Choose another model."
            ) from error


def _unknown_error(name: str, known: list[str]) -> RecipeError:
    guess = nearest(name.removeprefix(TIMM_PREFIX), known)
    return RecipeError(
        f"{name} is not a model of timm {timm.__version__}."
        + (f"\n  Did you mean {TIMM_PREFIX}{guess}?" if guess else "")
    )


def timm_preprocess(name: str, config: Mapping[str, Any]) -> Preprocess:
    """Turns timm's data config into preprocessing.

    Its `crop_pct`, which zooms in on test images by some percent, is ignored: a student is trained
    and tested on kdedge's own crops.

    Raises:
        RecipeError: kdedge does not support this preprocessing.
    """
    channels, height, width = config["input_size"]
    interpolation = config["interpolation"]
    resize_mode = _RESIZE_MODES.get(config["crop_mode"])
    is_square_rgb = channels == 3 and height == width
    if not is_square_rgb or interpolation not in RESAMPLING or resize_mode is None:
        raise RecipeError(
            f"{name} needs images of {height}x{width} pixels with {channels} channels,"
            f" interpolation {interpolation} and crop mode {config['crop_mode']}, which kdedge does"
            " not support.\n"
            "  Choose a model of square RGB images, bicubic or bilinear, whose crop mode is center"
            " or squash."
        )
    mean, std = tuple(config["mean"]), tuple(config["std"])
    return Preprocess(height, mean, std, interpolation, resize_mode)


def timm_weights(name: str, weights: str | None, published: Mapping[str, Any]) -> Path:
    """Returns the file of a timm model's weights.

    Args:
        name: as in `build_timm`.
        weights: `pretrained` for timm's published file, `package` for the file in an installed
            package (`WEIGHTS_PACKAGES`), or a file of the model's state dict.
        published: timm's `pretrained_cfg` of the model.

    Raises:
        RecipeError: there are no such weights.
        SetupError: the weights are not on this machine and cannot be downloaded.
    """
    if weights is not None and looks_like_path(weights):
        return home_path(weights)
    if weights == "package":
        return _packaged_file(name)
    if weights != "pretrained":
        raise RecipeError(
            f"{name} has weights: {weights}; expected pretrained, package or a file.\n"
            f"  The tag of timm's weights is part of the name: {TIMM_PREFIX}resnet18.a1_in1k."
        )
    repository = published.get("hf_hub_id")
    if not repository:
        raise RecipeError(
            f"timm publishes no weights of {name}.\n  Set weights: to a file of its state dict."
        )
    try:
        return fetch_from_hub(repository, _FILE)
    # urllib and the hub's client raise different errors for the same cause
    except Exception as error:
        raise not_fetched(f"of {name}", {"hf_hub": f"{repository}/{_FILE}"}, error) from error


def _packaged_file(name: str) -> Path:
    """Returns the only .pth file of the package that contains a model's weights."""
    package = WEIGHTS_PACKAGES.get(name)
    if package is None:
        raise RecipeError(
            f"No package has weights of {name}; there are some of {', '.join(WEIGHTS_PACKAGES)}.\n"
            "  Set weights: pretrained, or a file."
        )
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise PACKAGES[package.replace("-", "_")].missing(f"weights: package of {name}") from error
    return Path(str(next(file.locate() for file in files if file.suffix == ".pth")))
