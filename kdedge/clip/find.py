"""Identifies backbones by their files without building them, and loads them when they are needed.

`find_backbone` checks a file of weights against the architecture on torch's meta device, where
tensors have shapes but no values. `UnbuiltBackbone.load` builds the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP
from timm.data.config import resolve_model_data_config
from torch import nn

from kdedge.clip.architecture import (
    EncoderSizes,
    build_clip,
    build_image_encoder,
    encoder_sizes,
    has_clip_text_encoder,
    is_promptable_vit,
)
from kdedge.clip.backbone import ImageBackbone, count_features, make_backbone
from kdedge.clip.resolve import (
    TIMM_PREFIX,
    BackboneSpec,
    agreed_preprocess,
    find_weights,
    local_file,
    read_model_config,
)
from kdedge.clip.timm_encoder import build_timm, timm_preprocess, timm_weights
from kdedge.clip.weights import match_shapes, shapes_of
from kdedge.clip.weights_file import HashCache, WeightsFile
from kdedge.errors import RecipeError
from kdedge.files import sha256_json
from kdedge.runtime.preprocess import Preprocess

_VISUAL = "visual."  # before the image encoder's names in a CLIP's state dict

Build = Callable[..., Any]
"""Builds a model on a `device`: without values on meta, with initial values on the CPU."""


class UnbuiltBackbone:
    """A backbone that is not built yet, and whose file of weights was checked.

    Args:
        name: its name in tables and messages.
        empty: the model on the meta device, without values.
        build: builds the model with its initial values.
        weights: the file with its values.
        keys: name in the model's state dict -> key in the file.
        preprocess: the image preprocessing of its pre-training.
        model_config: its open_clip config; None for a model of timm.

    Attributes:
        weights_hash: SHA-256 of the file of weights.
        identity: hash of everything that decides its features: the file, the architecture and the
            preprocessing.
        embed_dim: D, the size of its image features.
        has_text_encoder: whether it loads as a `Backbone`, with a text encoder, or as an
            `ImageBackbone`.
        is_trained_with_texts: whether its image encoder was trained with texts.
        sizes: sizes of its encoders, as far as its config has them.

    Raises:
        DataError: the file does not fit the model.
    """

    def __init__(
        self,
        name: str,
        empty: nn.Module,
        build: Build,
        weights: WeightsFile,
        keys: Mapping[str, str],
        preprocess: Preprocess,
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.preprocess = preprocess
        self._empty = empty.eval()
        self._build = build
        self._weights = weights
        self._keys = keys
        known = weights.known
        self.has_text_encoder = isinstance(empty, CLIP)
        self.is_trained_with_texts = model_config is not None
        label = f"{name}, image encoder" if model_config and not self.has_text_encoder else name
        actual = {key: known.shapes[stored] for key, stored in keys.items()}
        match_shapes(shapes_of(empty.state_dict()), actual, label)
        self.weights_hash = known.sha256
        self.identity = sha256_json(
            [known.sha256, model_config or name, self.has_text_encoder, preprocess.to_dict()]
        )
        self.sizes = encoder_sizes(model_config) if model_config else EncoderSizes()
        if isinstance(empty, CLIP):
            self.embed_dim = int(empty.text_projection.shape[1])
        else:
            self.embed_dim = count_features(empty, name, preprocess.size_px)

    def load(
        self, *, device: torch.device | str = "cpu", text_cache_folder: Path | None = None
    ) -> ImageBackbone:
        """Builds the backbone.

        Args:
            device: device of the backbone.
            text_cache_folder: keeps features of frozen texts between runs; None keeps them in
                memory.
        """
        module = self._load_module()
        if isinstance(module, CLIP):
            module.attn_mask = None  # `encode_text` masks by position
        return make_backbone(
            module,
            name=self.name,
            preprocess=self.preprocess,
            device=device,
            text_cache_folder=text_cache_folder,
            identity=self.identity,
            is_trained_with_texts=self.is_trained_with_texts,
        )

    def _load_module(self) -> nn.Module:
        """Builds the model with the file's values, in float32."""
        stored = self._weights.tensors()
        keys = self._keys
        dtypes = {name: value.dtype for name, value in self._empty.state_dict().items()}
        visual = self._empty.visual if isinstance(self._empty, CLIP) else self._empty
        if is_promptable_vit(visual):
            module = copy.deepcopy(self._empty)
            # Each stored tensor is freed once it is copied, so that memory holds the model once.
            state = {
                name: stored.pop(keys[name]).to(dtype, copy=True) for name, dtype in dtypes.items()
            }
            module.load_state_dict(state, assign=True)
        else:  # the encoder may have tensors that no file of weights holds
            module = self._build(device="cpu")
            module.load_state_dict({name: stored[keys[name]] for name in dtypes})
        return module.float()


def find_backbone(
    spec: BackboneSpec, *, needs_text_encoder: bool = True, hashes: HashCache | None = None
) -> UnbuiltBackbone:
    """Finds a backbone and its identity without building it.

    Weights are read only if `hashes` does not know their file, and fetched only if a pretrained tag
    is not on this machine.

    Args:
        spec: the backbone as a recipe names it.
        needs_text_encoder: whether its text encoder is needed. If not, a model whose text encoder
            is not CLIP's own gives its image encoder alone.
        hashes: hashes of files of weights from earlier commands.

    Raises:
        RecipeError: unknown name or tag, contradictory activation, an architecture that kdedge does
            not run, or preprocessing that it does not support.
        DataError: the file of weights is damaged or belongs to another model.
        SetupError: the weights are not on this machine and cannot be downloaded.
    """
    if spec.name is not None and spec.name.startswith(TIMM_PREFIX):
        if needs_text_encoder:
            raise RecipeError(
                f"{spec.name} has no text encoder, so it can only be a student with its teacher's"
                " class vectors.\n"
                "  Use it as student with method: promptkd and settings: {tune: full}, or choose a"
                " CLIP such as ViT-B-16."
            )
        return _find_timm_encoder(spec.name, spec.weights, hashes)
    file = local_file(spec, hashes)
    label, config = read_model_config(spec, file)
    has_text_encoder = needs_text_encoder or has_clip_text_encoder(label, config)
    build: Build = build_clip if has_text_encoder else build_image_encoder
    if file is None or spec.config is not None:
        build(label, config, device="meta")  # raises its errors before weights are fetched or read
    weights, config, preprocess = find_weights(spec, label, config, file, hashes)
    keys = {key: key for key in weights.known.shapes}
    if not has_text_encoder:
        keys = {key.removeprefix(_VISUAL): key for key in keys if key.startswith(_VISUAL)}
    if spec.name is not None and file is not None:
        preprocess = agreed_preprocess(spec.name, config)
    build = partial(build, label, config)
    return UnbuiltBackbone(label, build(device="meta"), build, weights, keys, preprocess, config)


def has_text_encoder(spec: BackboneSpec) -> bool:
    """Whether a backbone has CLIP's own text encoder; nothing is fetched for it.

    Raises:
        RecipeError: unknown name.
        DataError: the config, or the file of weights, is damaged.
    """
    is_timm = spec.name is not None and spec.name.startswith(TIMM_PREFIX)
    return not is_timm and has_clip_text_encoder(*read_model_config(spec, local_file(spec)))


def check_weights_file(spec: BackboneSpec) -> None:
    """Checks that a local file of weights has the shapes of the CLIP that the recipe names.

    Raises:
        RecipeError: unknown name.
        DataError: the file is damaged or belongs to another model.
    """
    file = local_file(spec)
    if file is not None and has_text_encoder(spec):
        label, config = read_model_config(spec, file)
        match_shapes(shapes_of(build_clip(label, config).state_dict()), file.known.shapes, label)


def _find_timm_encoder(name: str, weights: str | None, hashes: HashCache | None) -> UnbuiltBackbone:
    build = partial(build_timm, name)
    model = build(device="meta")  # timm 1.0.31 can build all of its 1,371 models there
    preprocess = timm_preprocess(name, resolve_model_data_config(model))
    file = WeightsFile(timm_weights(name, weights, model.pretrained_cfg), hashes)
    if weights == "package":  # other names in the same order, with the classifier last
        keys = dict(zip(model.state_dict(), file.known.shapes, strict=False))
    else:
        heads = model.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        keys = {key: key for key in file.known.shapes if not key.startswith(heads)}
    return UnbuiltBackbone(name, model, build, file, keys, preprocess)
