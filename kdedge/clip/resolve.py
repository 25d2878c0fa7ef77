"""The config, weights and preprocessing of a recipe's model.

Weights come from a pretrained tag, from a local file (`clip/weights.py` lists the kinds), from a
file for the user's own model config, or are built in for the demo. The weights decide the
activation: QuickGELU weights with the other GELU lose accuracy without any error. So it is an error
if the activation is unknown or contradictory.

Weights of a pretrained tag are open_clip's cached ones, or are fetched once. A log line names the
file, its server and the folder before anything is fetched. Without a network the error is raised at
once, as the hub's client alone would retry for a minute.
"""

from __future__ import annotations

import functools
import logging
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import open_clip
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from kdedge.clip.architecture import EncoderSizes, encoder_sizes, image_size, read_config
from kdedge.clip.builtin import BUILTIN_MODELS, builtin_config, builtin_file, builtin_model
from kdedge.clip.weights import Weights, infer_config
from kdedge.clip.weights_file import HashCache, WeightsFile
from kdedge.config.fields import looks_like_path
from kdedge.config.student_sizes import NO_NETWORK, PACKAGED
from kdedge.errors import RecipeError, SetupError
from kdedge.files import FileStamp, home_path
from kdedge.messages import first_line, name_some, suggestion
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


def named_sizes(spec: BackboneSpec) -> EncoderSizes:
    """`encoder_sizes` of a backbone, without fetching or building anything.

    Raises:
        RecipeError: open_clip knows no such model.
        DataError: the config, or the file of weights, is damaged.
    """
    file = local_file(spec)
    paths = [spec.config, None if file is None else file.path]
    return _sizes(spec, tuple(_stamp(path) for path in paths if path is not None))


def _stamp(path: Path) -> FileStamp | None:
    """A file's stamp, so that a file that was edited is read again; None if it is missing."""
    return FileStamp.of(path.stat()) if path.exists() else None


@functools.lru_cache(maxsize=64)  # a suite asks once per row, and a file of weights is large
def _sizes(spec: BackboneSpec, stamps: tuple[FileStamp | None, ...]) -> EncoderSizes:
    if spec.name is not None and spec.name.startswith(TIMM_PREFIX):
        return EncoderSizes()
    return encoder_sizes(read_model_config(spec, local_file(spec)).config)


def local_file(spec: BackboneSpec, hashes: HashCache | None = None) -> WeightsFile | None:
    """The file of weights that a recipe names; None for a pretrained tag."""
    if spec.weights is None or not looks_like_path(spec.weights):
        return None
    return WeightsFile(home_path(spec.weights), hashes)


class NamedConfig(NamedTuple):
    """A CLIP's architecture.

    Attributes:
        label: its name for messages.
        config: its open_clip config, with the activation undecided.
    """

    label: str
    config: dict[str, Any]


def read_model_config(spec: BackboneSpec, file: WeightsFile | None) -> NamedConfig:
    """Returns the architecture of a CLIP.

    Args:
        spec: the CLIP.
        file: its `local_file`, from which the config is inferred if `spec` has no name and config.

    Raises:
        RecipeError: open_clip knows no such model, or the recipe does not say which it is.
        DataError: the config, or the file of weights that it is inferred from, is damaged.
    """
    if spec.config is not None:
        return NamedConfig(spec.config.stem, read_config(spec.config))
    if spec.name is None:
        if file is None:
            raise _incomplete_error(spec)
        config = infer_config(file.known.shapes, where=str(file.path))
        return NamedConfig(file.path.stem, config)
    if spec.name in BUILTIN_MODELS:
        return NamedConfig(spec.name, builtin_config(spec.name))
    known = open_clip.get_model_config(spec.name)
    if known is None:
        raise RecipeError(
            f"{spec.name} is not a model of open_clip {open_clip.__version__}."
            f" {suggestion(spec.name, open_clip.list_models(), '')}".rstrip()
        )
    return NamedConfig(spec.name, dict(known))


def _incomplete_error(spec: BackboneSpec) -> RecipeError:
    near = suggestion(str(spec.weights), PACKAGED, "")
    if near:
        near += " "
    given = f"only the weights {spec.weights}" if spec.name is None else f"only {spec.name}"
    return RecipeError(
        f"A model needs a name and weights, got {given}.\n"
        f"  {near}Or give both (ViT-B-16:openai; in a recipe backbone: ViT-B-16, weights: openai),"
        " or only weights, as a file in OpenAI's layout (.safetensors, .pt, .pth, .bin)."
    )


class FoundWeights(NamedTuple):
    """What a CLIP is loaded from.

    Attributes:
        file: the weights.
        model_config: its open_clip config, with the activation of the weights.
        preprocess: how images become its input.
    """

    file: WeightsFile
    model_config: dict[str, Any]
    preprocess: Preprocess


def find_weights(
    spec: BackboneSpec,
    label: str,
    model_config: dict[str, Any],
    file: WeightsFile | None,
    hashes: HashCache | None,
) -> FoundWeights:
    """Finds a CLIP's weights, and fetches them if they are not on this machine.

    Args:
        spec: the CLIP.
        label: its name in messages.
        model_config: as `read_model_config` returns it.
        file: its `local_file`.
        hashes: facts about files from earlier commands.

    Raises:
        RecipeError: unknown tag, or the activation is unknown or contradictory.
        DataError: the file is damaged.
        SetupError: the weights are not on this machine and cannot be downloaded.
    """
    name = spec.name
    tag = spec.weights
    pretrained: dict[str, Any] = {}
    if name in BUILTIN_MODELS:
        if tag not in (None, "builtin"):
            raise RecipeError(
                f"{name} has weights of its own, got {tag}.\n"
                "  Set weights: builtin, or name the model of these weights."
            )

        def read(_: Path) -> Weights:
            return Weights(builtin_model(label).weights, None)

        file = WeightsFile(builtin_file(label), hashes, read=read)
        return FoundWeights(file, model_config, _pretrained_preprocess(model_config, {}))
    if file is not None:
        by_weights = file.known.quick_gelu
    elif name is None or tag is None:
        raise _incomplete_error(spec)
    else:
        pretrained = open_clip.get_pretrained_cfg(name, tag)
        if not pretrained:
            tags = open_clip.list_pretrained_tags_by_model(name)
            near = suggestion(tag, tags, "")
            problem = f"{tag} is not a pretrained tag of {name}. {near}".rstrip()
            known = ", ".join(tags) if tags else "none; set weights: to a file"
            raise RecipeError(f"{problem}\n  Its pretrained tags: {known}.")
        try:
            file = WeightsFile(fetch_pretrained(pretrained), hashes)
        # urllib and the hub's client raise different errors for the same cause
        except Exception as error:
            raise not_fetched(f"{tag} of {name}", pretrained, error) from error
        by_weights = bool(pretrained.get("quick_gelu", False))
    by_name = model_config.get("quick_gelu", False)
    if spec.config is None and not by_name:
        by_name = None  # open_clip's ViT-B-16 has released weights of both kinds
    quick_gelu = _settle_quick_gelu(label, by_name, spec.quick_gelu, by_weights)
    preprocess = _pretrained_preprocess(model_config, pretrained)
    return FoundWeights(file, {**model_config, "quick_gelu": quick_gelu}, preprocess)


def _pretrained_preprocess(
    model_config: Mapping[str, Any], pretrained: Mapping[str, Any]
) -> Preprocess:
    """The preprocessing of open_clip's entry for a pretrained tag; missing keys have CLIP's own."""
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
    given = {
        "the weights": by_weights,
        "the recipe's quick_gelu": by_recipe,
        "the model's name or config": by_name,
    }
    stated = {origin: value for origin, value in given.items() if value is not None}
    if not stated:
        raise RecipeError(
            f"{label}: it is unknown whether these weights were trained with QuickGELU or GELU.\n"
            "  Next to weights, set quick_gelu: true (OpenAI's weights, and weights fine-tuned"
            " from them) or quick_gelu: false."
        )
    if len(set(stated.values())) > 1:
        activations = [
            f"{origin}: {'QuickGELU' if is_quick else 'GELU'}"
            for origin, is_quick in stated.items()
        ]
        raise RecipeError(
            f"{label}: the activation is contradictory ({', '.join(activations)}).\n"
            "  The wrong activation lowers accuracy without any error; name the model that the"
            " weights belong to."
        )
    return next(iter(stated.values()))


def agreed_preprocess(name: str, model_config: Mapping[str, Any]) -> Preprocess:
    """The preprocessing of a model's published weights with this activation; CLIP's if they differ.

    A local file of weights gets it, as the file does not state its own.
    """
    quick_gelu = model_config.get("quick_gelu", False)
    tags: dict[str, Preprocess] = {}
    for tag in open_clip.list_pretrained_tags_by_model(name):
        entry = open_clip.get_pretrained_cfg(name, tag)
        if entry.get("quick_gelu", False) == quick_gelu:
            tags[tag] = _pretrained_preprocess(model_config, entry)
    found = set(tags.values())
    default = _pretrained_preprocess(model_config, {})
    if len(found) == 1:
        return found.pop()
    if found:
        others = [tag for tag, preprocess in tags.items() if preprocess != default]
        log.warning(
            f"{name}: the file of weights gets CLIP's preprocessing, and {name_some(others)} was"
            " trained with another.\n  Name such weights by their tag."
        )
    return default


_CONNECT_TIMEOUT_S = 10.0
# open_clip's folder for files from a plain address, whose SHA-256 it checks
_URL_CACHE = Path("~/.cache/clip")

# The file that open_clip fetches if a pretrained entry names only a repository
_DEFAULT_FILE = "open_clip_pytorch_model.bin"


def fetch_pretrained(pretrained: Mapping[str, Any]) -> Path:
    """Returns the file of open_clip's pretrained weights; fetches it if it is not on this machine.

    Args:
        pretrained: open_clip's entry for a model and tag: `hf_hub` or `url`.

    Raises:
        OSError: the file is not on this machine, and its server cannot be reached. Other errors of
            the transport pass through.
    """
    if pretrained.get("hf_hub"):
        cached = _file_in_hub_cache(pretrained["hf_hub"])
        if cached is not None:
            return cached
        _connect(pretrained["hf_hub"].rstrip("/"), constants.ENDPOINT, constants.HF_HUB_CACHE)
    else:
        folder = home_path(_URL_CACHE)
        name = pretrained["url"].rpartition("/")[2]
        if not (folder / name).is_file():
            _connect(name, pretrained["url"], folder)
    return Path(open_clip.download_pretrained(dict(pretrained)))


def not_fetched(what: str, source: Mapping[str, Any], error: Exception) -> SetupError:
    """The error for weights that could not be fetched; it names the file to fetch by hand.

    Args:
        what: the weights, in words.
        source: open_clip's entry for a model and tag: `hf_hub`, `url` or both.
        error: the error of the transport.
    """
    places = [source["url"]] if source.get("url") else []
    if source.get("hf_hub"):
        repository, _, file = source["hf_hub"].rpartition("/")
        file = file or "open_clip_model.safetensors"
        places.append(f"https://huggingface.co/{repository}/resolve/main/{file}")
    return SetupError(
        f"The weights {what} are not on this machine and could not be fetched:"
        f" {first_line(error)}\n"
        f"  Fetch {' or '.join(places)}\n"
        "  on a machine with a network, copy the file here, and set it in the recipe next to"
        " backbone: weights: /path/to/file\n  " + "\n  ".join(NO_NETWORK)
    )


def fetch_from_hub(repository: str, name: str) -> Path:
    """Returns a file of a repository on the hub; fetches it if it is not on this machine.

    Args:
        repository: `owner/repository`.
        name: name of the file.

    Raises:
        OSError: the file is not on this machine, and its server cannot be reached. Other errors of
            the transport pass through.
    """
    cached = try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return Path(cached)
    _connect(f"{repository}/{name}", constants.ENDPOINT, constants.HF_HUB_CACHE)
    return Path(hf_hub_download(repository, name))


def _file_in_hub_cache(place: str) -> Path | None:
    """The cached file of `owner/repository/[name]`, searched in open_clip's order."""
    repository, _, name = place.rpartition("/")
    name = name or _DEFAULT_FILE
    stem = "open_clip_model" if name == _DEFAULT_FILE else name.rpartition(".")[0]
    for candidate in (f"{stem}.safetensors", name):
        cached = try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _connect(what: str, address: str, folder: str | Path) -> None:
    """Logs the file to fetch, and checks the connection once if no proxy is set."""
    parts = urlsplit(address)
    server = parts.netloc.rpartition("@")[2]  # the address without a password
    log.info(f"Fetching the weights {what} from {server} into {folder}.")
    if {"http", "https", "all"} & urllib.request.getproxies().keys():
        return
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_TIMEOUT_S).close()
