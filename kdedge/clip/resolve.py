"""The config, weights and preprocessing of a recipe's model.

Weights come from a pretrained tag, from a local file (`clip/weights.py` lists the kinds), from a
file for the user's own model config, or are built in for the demo. The weights decide the
activation: QuickGELU weights with the other GELU lose accuracy without any error. So a
contradictory or missing statement is an error.

Weights of a pretrained tag are open_clip's cached ones, or are fetched once. A log line names the
file, its server and the folder before anything is fetched. Without a network the error is raised at
once, as the hub's client alone would retry for a minute.
"""

from __future__ import annotations

import functools
import logging
import socket
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import open_clip
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from kdedge.clip.architecture import EncoderSizes, encoder_sizes, image_size, read_config
from kdedge.clip.builtin import BUILTIN_MODELS, builtin_config, builtin_file, builtin_model
from kdedge.clip.weights import Weights, describe_missing_weights, infer_config
from kdedge.clip.weights_file import HashCache, WeightsFile
from kdedge.config.fields import looks_like_path
from kdedge.errors import RecipeError
from kdedge.runtime.preprocess import Preprocess

log = logging.getLogger(__name__)

TIMM_PREFIX = "timm/"
"""Prefix of the names of timm models, as on the hub."""


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone as a recipe names it.

    Attributes:
        name: an open_clip model name, a built-in one, or `timm/` and timm's name of a model; None
            to take all sizes from a file in OpenAI's layout.
        weights: a pretrained tag, a local file, or "builtin"; for timm `pretrained` or a file.
        config: the user's own open_clip model-config JSON, instead of a name; needs a local file of
            weights.
        quick_gelu: whether the activation is QuickGELU, for weights that do not say.
    """

    name: str | None
    weights: str | None
    config: Path | None = None
    quick_gelu: bool | None = None


@dataclass(frozen=True)
class Resolved:
    """An open_clip model with its config and weights.

    Attributes:
        label: the model's name in messages.
        model_config: open_clip's config, with the right activation.
        weights: its file.
        preprocess: the image preprocessing of its pre-training.
    """

    label: str
    model_config: dict[str, Any]
    weights: WeightsFile
    preprocess: Preprocess


Check = Callable[[str, Mapping[str, Any]], object]
"""Raises the errors of a model config, before its weights are read or fetched."""


def resolve(spec: BackboneSpec, *, check: Check, hashes: HashCache | None) -> Resolved:
    """Finds config, weights and preprocessing; errors as of `find_backbone`."""
    name, weights = spec.name, spec.weights
    if name is not None and name.startswith(TIMM_PREFIX):
        raise RecipeError(
            f"{name} has no text encoder, so it can only be a student with its teacher's class"
            " vectors.\n"
            "  Use it as student with method: promptkd and settings: {tune: full}, or choose a CLIP"
            " such as ViT-B-16."
        )
    if name in BUILTIN_MODELS:
        return _resolve_builtin(name, hashes)
    if spec.config is not None:
        return _resolve_config(spec, spec.config, check, hashes)
    if weights is not None and looks_like_path(weights):
        return _resolve_file(spec, Path(weights).expanduser(), hashes)
    if name is None or weights is None:
        raise RecipeError(
            f"A backbone needs a name and weights, got backbone: {name} and weights: {weights}.\n"
            "  Set both (backbone: ViT-B-16, weights: openai), or only weights: to a file in"
            " OpenAI's layout (.safetensors, .pt, .pth, .bin)."
        )
    return _resolve_tag(name, weights, spec.quick_gelu, check, hashes)


@functools.lru_cache(maxsize=64)  # a suite asks once per row, and a file of weights is large
def named_sizes(spec: BackboneSpec) -> EncoderSizes:
    """`encoder_sizes` of a backbone, without fetching or building anything.

    Raises:
        RecipeError: open_clip knows no such model.
        DataError: the config, or the file of weights, is damaged.
    """
    if spec.config is not None:
        return encoder_sizes(read_config(spec.config))
    if spec.name is None:
        file = WeightsFile(Path(str(spec.weights)).expanduser())
        return encoder_sizes(infer_config(file.shapes, where=str(file.path)))
    if spec.name.startswith(TIMM_PREFIX):
        return EncoderSizes()
    is_builtin = spec.name in BUILTIN_MODELS
    return encoder_sizes(builtin_config(spec.name) if is_builtin else named_config(spec.name))


def _resolve_builtin(name: str, hashes: HashCache | None) -> Resolved:
    def read(_: Path) -> Weights:
        return Weights(builtin_model(name)[1], None)

    weights = WeightsFile(builtin_file(name), hashes, read=read)
    model_config = builtin_config(name)
    return Resolved(name, model_config, weights, _default_preprocess(model_config))


def _resolve_config(
    spec: BackboneSpec, config: Path, check: Check, hashes: HashCache | None
) -> Resolved:
    """Sizes from the user's own config, weights from a local file."""
    if spec.weights is None:
        raise RecipeError(f"config: {config} has no weights.\n  Set weights: to a file of weights.")
    model_config = read_config(config)
    check(config.name, model_config)
    weights = WeightsFile(Path(spec.weights).expanduser(), hashes)
    declared = model_config.get("quick_gelu", False)
    settled = _settle_quick_gelu(config.name, declared, spec.quick_gelu, weights.quick_gelu)
    preprocess = _default_preprocess(model_config)
    return Resolved(config.stem, {**model_config, "quick_gelu": settled}, weights, preprocess)


def _resolve_file(spec: BackboneSpec, path: Path, hashes: HashCache | None) -> Resolved:
    """Weights from a local file, sizes by model name or from the file itself."""
    weights = WeightsFile(path, hashes)
    if spec.name is None:
        model_config = infer_config(weights.shapes, where=str(path))
    else:
        model_config = named_config(spec.name)
    # A plain name says nothing: open_clip's ViT-B-16 has released weights of both kinds.
    declared = True if model_config.get("quick_gelu") else None
    label = spec.name or path.name
    settled = _settle_quick_gelu(label, declared, spec.quick_gelu, weights.quick_gelu)
    preprocess = _default_preprocess(model_config)
    model_config = {**model_config, "quick_gelu": settled}
    return Resolved(spec.name or path.stem, model_config, weights, preprocess)


def _resolve_tag(
    name: str, tag: str, quick_gelu: bool | None, check: Check, hashes: HashCache | None
) -> Resolved:
    """Weights by pretrained tag, from open_clip's own cache or its download."""
    model_config = named_config(name)
    pretrained = open_clip.get_pretrained_cfg(name, tag)
    if not pretrained:
        raise describe_missing_weights(name, tag, None)
    check(name, model_config)
    try:
        path = fetch_pretrained(pretrained)
    # urllib and the hub's client raise different errors for the same cause
    except Exception as error:
        raise describe_missing_weights(name, tag, error) from error
    declared = True if model_config.get("quick_gelu") else None
    by_tag = bool(pretrained.get("quick_gelu", False))
    settled = _settle_quick_gelu(name, declared, quick_gelu, by_tag)
    preprocess = pretrained_preprocess(model_config, pretrained)
    settled_config = {**model_config, "quick_gelu": settled}
    return Resolved(name, settled_config, WeightsFile(path, hashes), preprocess)


def pretrained_preprocess(
    model_config: Mapping[str, Any], pretrained: Mapping[str, Any]
) -> Preprocess:
    """The preprocessing of open_clip's entry for a pretrained tag; else CLIP's own."""
    return Preprocess(
        size_px=image_size(model_config),
        mean=tuple(pretrained.get("mean") or OPENAI_DATASET_MEAN),
        std=tuple(pretrained.get("std") or OPENAI_DATASET_STD),
        interpolation=pretrained.get("interpolation") or "bicubic",
        resize_mode=pretrained.get("resize_mode") or "shortest",
    )


def _settle_quick_gelu(
    label: str, by_name: bool | None, by_recipe: bool | None, by_weights: bool | None
) -> bool:
    """Decides the activation: weights, recipe and model name must agree."""
    configured = {
        key: value
        for key, value in (
            ("the weights", by_weights),
            ("the recipe's quick_gelu", by_recipe),
            ("the model's name or config", by_name),
        )
        if value is not None
    }
    kinds = {True: "QuickGELU", False: "GELU"}
    if not configured:
        raise RecipeError(
            f"{label}: it is unknown whether these weights were trained with QuickGELU or GELU.\n"
            "  Next to weights, set quick_gelu: true (OpenAI's weights, and weights fine-tuned"
            " from them) or quick_gelu: false."
        )
    if len(set(configured.values())) > 1:
        lines = ", ".join(f"{origin}: {kinds[value]}" for origin, value in configured.items())
        raise RecipeError(
            f"{label}: the activation is contradictory ({lines}).\n"
            "  The wrong activation lowers accuracy without any error; name the model that the"
            " weights belong to."
        )
    return next(iter(configured.values()))


def named_config(name: str) -> dict[str, Any]:
    """open_clip's config of a model.

    Raises:
        RecipeError: it knows no such model.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise describe_missing_weights(name, None, None)
    return dict(config)


def _default_preprocess(model_config: Mapping[str, Any]) -> Preprocess:
    """CLIP's own preprocessing, in the model's size."""
    return pretrained_preprocess(model_config, {})


def agreed_preprocess(name: str, model_config: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing that all published weights of a model share; None if they differ.

    A local file of weights does not state its own.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    settings = {
        pretrained_preprocess(model_config, open_clip.get_pretrained_cfg(name, tag)) for tag in tags
    }
    return settings.pop() if len(settings) == 1 else None


_REACH_WITHIN_S = 10.0
_URL_CACHE = Path("~/.cache/clip")
"""open_clip's folder for files from a plain address, whose SHA-256 it checks."""

_DEFAULT_FILE = "open_clip_pytorch_model.bin"
"""The file that open_clip fetches if a pretrained entry names only a repository."""


def fetch_pretrained(pretrained: Mapping[str, Any]) -> Path:
    """The file of open_clip's pretrained weights, fetched if it is not on this machine.

    Args:
        pretrained: open_clip's entry for a model and tag: `hf_hub` or `url`.

    Raises:
        OSError: it is not on this machine, and its server cannot be reached. Other errors of the
            transport pass through.
    """
    if pretrained.get("hf_hub"):
        cached = _file_in_hub_cache(pretrained["hf_hub"])
        if cached is not None:
            return cached
        _say(pretrained["hf_hub"].rstrip("/"), constants.ENDPOINT, Path(constants.HF_HUB_CACHE))
        _check_reachable(constants.ENDPOINT)
    else:
        folder, name = _URL_CACHE.expanduser(), pretrained["url"].rpartition("/")[2]
        if not (folder / name).is_file():
            _say(name, pretrained["url"], folder)
            _check_reachable(pretrained["url"])
    return Path(open_clip.download_pretrained(dict(pretrained)))


def fetch_from_hub(repository: str, name: str) -> Path:
    """A file of a repository on the hub, fetched if it is not on this machine.

    Args:
        repository: `owner/repository`.
        name: name of the file.

    Raises:
        OSError: it is not on this machine, and its server cannot be reached. Other errors of the
            transport pass through.
    """
    cached = try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return Path(cached)
    _say(f"{repository}/{name}", constants.ENDPOINT, Path(constants.HF_HUB_CACHE))
    _check_reachable(constants.ENDPOINT)
    return Path(hf_hub_download(repository, name))


def _say(what: str, address: str, folder: Path) -> None:
    server = urlsplit(address).netloc.rpartition("@")[2]  # the address without a password
    log.info("Fetching the weights %s from %s into %s.", what, server, folder)


def _file_in_hub_cache(place: str) -> Path | None:
    """The file of `owner/repository/[name]`, safetensors first, as open_clip looks for it."""
    repository, _, name = place.rpartition("/")
    name = name or _DEFAULT_FILE
    stem = "open_clip_model" if name == _DEFAULT_FILE else name.rpartition(".")[0]
    for candidate in (f"{stem}.safetensors", name):
        cached = try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _check_reachable(address: str) -> None:
    """Connects once; skipped behind a proxy, as only the proxy can reach the server."""
    if {"http", "https", "all"} & urllib.request.getproxies().keys():
        return
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((parts.hostname or "", port), timeout=_REACH_WITHIN_S).close()
