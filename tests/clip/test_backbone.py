"""Backbones: every way to name one, the activation decided by the weights, clear refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from kdedge.clip.backbone import Backbone, make_backbone
from kdedge.clip.find import find_backbone
from kdedge.clip.resolve import BackboneSpec
from kdedge.clip.weights import hash_weights
from kdedge.errors import DataError, RecipeError

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 1,
        "layers": 3,
    },
}
PLAIN_KEYS = {"input_resolution", "context_length", "vocab_size"}


def activation(backbone: Backbone) -> type[nn.Module]:
    kinds = {
        type(block.mlp.gelu)
        for encoder in (backbone.model.visual.transformer, backbone.model.transformer)
        for block in encoder.resblocks
    }
    (kind,) = kinds
    return kind


def test_a_backbone_lies_on_the_device_it_is_asked_for(tiny_weights: Path) -> None:
    backbone = find_backbone(BackboneSpec(None, str(tiny_weights))).load(device="meta")
    assert {value.device.type for value in backbone.model.state_dict().values()} == {"meta"}
    assert backbone.device.type == "meta"


@pytest.fixture
def plain_file(tiny_weights: Path, tmp_path: Path) -> Path:
    """The same weights in a file that does not say whose they are."""
    state = torch.load(tiny_weights, weights_only=True)
    path = tmp_path / "plain.safetensors"
    save_file({key: value for key, value in state.items() if key not in PLAIN_KEYS}, path)
    return path


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "my-clip.json"
        path.write_text(json.dumps({**CONFIG, **changes}))
        return path

    return write


def test_openais_layout_tells_sizes_and_activation(tiny_backbone: Backbone) -> None:
    assert activation(tiny_backbone) is QuickGELU
    assert tiny_backbone.embed_dim == 24
    assert tiny_backbone.context_length == 77
    assert tiny_backbone.preprocess.size_px == 32
    assert tiny_backbone.scale == pytest.approx(20.0, rel=1e-5)


def test_nothing_of_a_backbone_is_trained(tiny_backbone: Backbone) -> None:
    assert not tiny_backbone.model.training
    assert not any(parameter.requires_grad for parameter in tiny_backbone.model.parameters())
    assert {p.dtype for p in tiny_backbone.model.parameters()} == {torch.float32}


def test_a_config_of_ones_own_builds_the_gelu_it_says(
    plain_file: Path, config_file: Callable[..., Path], tiny_backbone: Backbone
) -> None:
    plain = find_backbone(BackboneSpec(None, str(plain_file), config_file())).load()
    quick = find_backbone(BackboneSpec(None, str(plain_file), config_file(quick_gelu=True))).load()
    assert activation(plain) is nn.GELU
    assert activation(quick) is QuickGELU
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    same = tiny_backbone.image_features(images)
    torch.testing.assert_close(quick.image_features(images), same, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(plain.image_features(images), same, atol=1e-3)
    assert quick.identity != plain.identity


def test_weights_that_contradict_the_config_are_an_error(
    tiny_weights: Path, config_file: Callable[..., Path]
) -> None:
    with pytest.raises(RecipeError, match="activation is contradictory") as error:
        find_backbone(BackboneSpec(None, str(tiny_weights), config_file())).load()
    assert "the weights: QuickGELU" in str(error.value)
    assert "the model's name or config: GELU" in str(error.value)


def test_weights_that_contradict_the_recipe_are_an_error(tiny_weights: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe's quick_gelu: GELU"):
        find_backbone(BackboneSpec(None, str(tiny_weights), quick_gelu=False)).load()


def test_weights_that_do_not_say_need_a_word_in_the_recipe(plain_file: Path) -> None:
    with pytest.raises(RecipeError, match="it is unknown whether"):
        find_backbone(BackboneSpec(None, str(plain_file))).load()
    assert (
        activation(find_backbone(BackboneSpec(None, str(plain_file), quick_gelu=True)).load())
        is QuickGELU
    )


@pytest.fixture
def put_in_hub_cache(
    plain_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], None]:
    """Lays the tiny weights where the hub's client keeps a model's and tag's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: {**CONFIG, "quick_gelu": False})

    def put(name: str, tag: str) -> None:
        repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rstrip("/")
        folder = tmp_path / "hub" / ("models--" + repository.replace("/", "--"))
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc").mkdir(parents=True)
        shutil.copy(plain_file, folder / "snapshots" / "abc" / "open_clip_model.safetensors")

    return put


def test_a_plain_name_with_openais_tag_builds_quickgelu(
    put_in_hub_cache: Callable[[str, str], None],
) -> None:
    """open_clip builds the other GELU here and warns; the tag's own word decides."""
    put_in_hub_cache("ViT-B-16", "openai")
    put_in_hub_cache("ViT-B-16", "laion2b_s34b_b88k")
    assert activation(find_backbone(BackboneSpec("ViT-B-16", "openai")).load()) is QuickGELU
    assert (
        activation(find_backbone(BackboneSpec("ViT-B-16", "laion2b_s34b_b88k")).load()) is nn.GELU
    )


def test_a_tags_weights_that_contradict_the_recipe_are_an_error(
    put_in_hub_cache: Callable[[str, str], None],
) -> None:
    put_in_hub_cache("ViT-B-16", "laion2b_s34b_b88k")
    with pytest.raises(RecipeError, match="the weights: GELU, the recipe's quick_gelu: QuickGELU"):
        find_backbone(BackboneSpec("ViT-B-16", "laion2b_s34b_b88k", quick_gelu=True)).load()


def test_another_models_weights_are_refused_with_the_keys_that_differ(tiny_weights: Path) -> None:
    with pytest.raises(DataError, match="visual"):
        find_backbone(BackboneSpec("ViT-B-32", str(tiny_weights))).load()


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("ViT-B-61", "openai", r"Did you mean ViT-B-16\?"),
        ("ViT-B-16", "opneai", r"Did you mean openai\?(?s:.)*laion2b_s34b_b88k"),
        ("ViT-B-16", None, "needs a name and weights"),
    ],
)
def test_unknown_names_and_tags_give_the_nearest(
    name: str, weights: str | None, expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        find_backbone(BackboneSpec(name, weights)).load()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True}}, "no causal text mask"),
        ({"text_cfg": {**CONFIG["text_cfg"], "pool_type": "last"}}, "other than the end token"),
        ({"init_logit_bias": -10.0}, "a logit bias"),
        ({"custom_text": True}, "text encoder is not CLIP's own"),
    ],
)
def test_a_text_encoder_that_is_not_clips_is_refused(
    plain_file: Path, config_file: Callable[..., Path], changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(RecipeError, match=why):
        find_backbone(BackboneSpec(None, str(plain_file), config_file(**changes))).load()


def test_the_activation_is_part_of_a_backbones_identity_and_of_its_cache(
    plain_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def features(quick_gelu: bool) -> tuple[str, torch.Tensor]:
        backbone = find_backbone(BackboneSpec(None, str(plain_file), quick_gelu=quick_gelu)).load(
            text_cache_folder=cache
        )
        return backbone.identity, backbone.text_features_raw(["a photo of a cat."])

    quick_identity, quick = features(True)
    plain_identity, plain = features(False)
    assert quick_identity != plain_identity
    assert not torch.allclose(quick, plain, atol=1e-4)


def test_the_hash_of_weights_is_of_sorted_names_and_float32_bytes() -> None:
    state = {"b": torch.ones(2, dtype=torch.float16), "a": torch.zeros(1)}
    text = b"a" + np.zeros(1, np.float32).tobytes() + b"b" + np.ones(2, np.float32).tobytes()
    assert hash_weights(state) == hashlib.sha256(text).hexdigest()


def test_frozen_texts_are_encoded_in_float32_whatever_format_a_forward_pass_has(
    tiny_backbone: Backbone,
) -> None:
    def features() -> torch.Tensor:
        backbone = make_backbone(
            tiny_backbone.model, name="any", preprocess=tiny_backbone.preprocess
        )  # with a cache of its own
        return backbone.text_features_raw(["a photo of a cat."])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = features()
    assert torch.equal(actual, features())


def test_a_config_is_judged_before_its_weights_are_read(
    config_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = config_file(vision_cfg={**CONFIG["vision_cfg"], "head_width": 0})
    with pytest.raises(RecipeError, match="my-clip: open_clip cannot build"):
        find_backbone(BackboneSpec(None, str(tmp_path / "absent.safetensors"), path)).load()


def test_a_folder_named_as_a_tag_does_not_make_it_a_file(
    put_in_hub_cache: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_hub_cache("ViT-B-16", "openai")
    (tmp_path / "openai").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_backbone(BackboneSpec("ViT-B-16", "openai")).load().embed_dim == 24


def test_a_backbone_of_a_file_alone_has_its_name_and_a_home_folder_is_expanded(
    plain_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(plain_file.parent))
    found = find_backbone(BackboneSpec(None, "~/plain.safetensors", quick_gelu=True)).load()
    assert (found.name, found.embed_dim) == ("plain", 24)
