"""Image encoders alone: of CLIPs with other text encoders, and of timm."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip import CustomTextCLIP
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from torch import nn

from kdedge.clip.architecture import build_image_encoder, has_clip_text_encoder, why_no_prompts
from kdedge.clip.backbone import ImageBackbone, make_backbone
from kdedge.clip.find import find_backbone
from kdedge.clip.resolve import BackboneSpec, agreed_preprocess, read_model_config
from kdedge.clip.timm_encoder import timm_preprocess
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.runtime.preprocess import Preprocess

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
MODELS: dict[str, dict[str, Any]] = {
    # as MobileCLIP
    "mobile": {
        "vision_cfg": {"timm_model_name": "test_convnext", "image_size": 32, "timm_proj": "linear"},
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
    # as SigLIP
    "sigmoid": {
        "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, "timm_proj": "linear"},
        "text_cfg": {**TEXT, "pool_type": "last", "proj_bias": True},
        "init_logit_bias": -10,
    },
    # CLIP's own ViT beside another text encoder
    "vit": {
        "vision_cfg": {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32},
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
}


def write(folder: Path, name: str) -> tuple[Path, CustomTextCLIP]:
    """A config, its weights beside it, and open_clip's own model of both."""
    config = {"embed_dim": 24, **MODELS[name]}
    torch.manual_seed(0)
    model = CustomTextCLIP(**config).eval()
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**config, "custom_text": True}))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, path.with_suffix(".safetensors"))
    return path, model


def load_encoder(spec: BackboneSpec) -> ImageBackbone:
    backbone = find_backbone(spec, needs_text_encoder=False).load()
    assert isinstance(backbone, ImageBackbone)
    return backbone


def images(side: int, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_a_clips_image_encoder_gives_open_clips_own_features(tmp_path: Path, name: str) -> None:
    config, model = write(tmp_path, name)
    weights = str(config.with_suffix(".safetensors"))
    backbone = load_encoder(BackboneSpec(None, weights, config, False))
    side = MODELS[name]["vision_cfg"]["image_size"]
    with torch.no_grad():
        torch.testing.assert_close(backbone.visual(images(side)), model.encode_image(images(side)))
    assert (backbone.embed_dim, backbone.is_trained_with_texts, backbone.preprocess.size_px) == (
        24,
        True,
        side,
    )
    assert not backbone.visual.training
    assert not any(parameter.requires_grad for parameter in backbone.visual.parameters())
    assert (why_no_prompts(backbone.visual) is None) == (name == "vit")
    assert not has_clip_text_encoder(*read_model_config(BackboneSpec(None, None, config), None))
    with pytest.raises(RecipeError, match=r"(?s)kdedge cannot use .*can be a student: prom"):
        find_backbone(BackboneSpec(None, weights, config, False)).load()


def test_weights_without_the_image_encoder_are_another_models(tmp_path: Path) -> None:
    config, model = write(tmp_path, "mobile")
    state = {key: value for key, value in model.state_dict().items() if "visual" not in key}
    save_file(state, tmp_path / "texts.safetensors")
    with pytest.raises(DataError, match="mobile, image encoder: the file does not fit the model"):
        load_encoder(BackboneSpec(None, str(tmp_path / "texts.safetensors"), config))


def test_which_of_open_clips_models_have_clips_own_text_encoder() -> None:
    for name in ("ViT-B-16", "RN50", "ViT-B-16-quickgelu", "kdedge-demo-student"):
        assert has_clip_text_encoder(*read_model_config(BackboneSpec(name, None), None))
    for name in ("MobileCLIP-S1", "ViT-B-16-SigLIP", "coca_ViT-B-32"):
        assert not has_clip_text_encoder(*read_model_config(BackboneSpec(name, None), None))


@pytest.mark.parametrize(
    ("name", "size"), [("MobileCLIP-S1", 256), ("ViT-B-16-SigLIP", 224), ("coca_ViT-B-32", 224)]
)
def test_image_encoders_of_named_models_are_built_without_a_network(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", _not_to_be_called)
    visual = build_image_encoder(name, open_clip.get_model_config(name), device="meta")
    features = visual.eval()(torch.zeros(2, 3, size, size, device="meta"))
    assert list(features.shape) == [2, open_clip.get_model_config(name)["embed_dim"]]


def _not_to_be_called(*_: object, **__: object) -> None:
    raise SystemError("a connection was tried")


def test_a_file_of_a_named_models_weights_gets_what_its_published_ones_want(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = open_clip.get_model_config("MobileCLIP-S1")
    assert agreed_preprocess("MobileCLIP-S1", config) == Preprocess(
        size_px=256, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear"
    )
    quick = open_clip.get_model_config("ViT-H-14-378-quickgelu")
    assert agreed_preprocess("ViT-H-14-378-quickgelu", quick).resize_mode == "squash"
    # open_clip's ViT-L-14 has weights of two normalizations; OpenAI's have a QuickGELU
    config = open_clip.get_model_config("ViT-L-14")
    own = agreed_preprocess("ViT-L-14", config | {"quick_gelu": True})
    assert not caplog.messages
    assert agreed_preprocess("ViT-L-14", config) == own
    assert '"laion2b_s32b_b82k" was trained with another' in caplog.text


def write_timm(folder: Path, name: str, seed: int = 0) -> tuple[str, nn.Module]:
    """A file of a timm model's weights, classifier included, and that model."""
    torch.manual_seed(seed)
    model = timm.create_model(name).eval()
    path = folder / f"{name}-{seed}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return str(path), model


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_vit_relpos"])
def test_a_timm_model_gives_timms_pooled_features(tmp_path: Path, name: str) -> None:
    weights, model = write_timm(tmp_path, name)
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    backbone = load_encoder(BackboneSpec(f"timm/{name}", weights))
    assert torch.rand(1) == expected_draw
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images(160)), pre_logits=True)
        torch.testing.assert_close(backbone.visual(images(160)), pooled)
    wanted = resolve_model_data_config(model)
    assert backbone.preprocess.mean == wanted["mean"]
    assert backbone.preprocess.interpolation == wanted["interpolation"]
    assert (backbone.preprocess.size_px, backbone.preprocess.resize_mode) == (160, "shortest")
    assert (backbone.name, backbone.is_trained_with_texts) == (f"timm/{name}", False)
    assert backbone.embed_dim == pooled.shape[1]
    other, _ = write_timm(tmp_path, name, seed=1)
    assert load_encoder(BackboneSpec(f"timm/{name}", other)).identity != backbone.identity
    assert load_encoder(BackboneSpec(f"timm/{name}", weights)).identity == backbone.identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/test_resnett", r"not a model of timm .*\n  Did you mean timm/test_resnet\?"),
        ("timm/test_resnet.nothing", r"not a model of timm .*\n  Did you mean timm/test_resnet\."),
        ("timm/hf-hub:timm/resnet18", "not a model of timm"),
        ("timm/xq", r"timm/xq is not a model of timm [\d.]+\.$"),
    ],
)
def test_a_name_that_timm_does_not_know_is_a_mistake_in_the_recipe(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_encoder(BackboneSpec(name, "pretrained"))


def test_weights_of_a_timm_model_are_the_published_ones_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="weights: openai; expected pretrained, package or a file"
    ):
        load_encoder(BackboneSpec("timm/test_resnet", "openai"))
    weights, _ = write_timm(tmp_path, "test_convnext")
    with pytest.raises(DataError, match="timm/test_resnet: the file does not fit the model"):
        load_encoder(BackboneSpec("timm/test_resnet", weights))


def test_without_a_network_the_message_says_which_file_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(SetupError) as caught:
        load_encoder(BackboneSpec("timm/resnet18.a1_in1k", "pretrained"))
    assert caught.value.exit_code == 4
    assert str(caught.value).splitlines()[:3] == [
        "The weights of timm/resnet18.a1_in1k are not on this machine and could not be fetched:"
        " no route to host",
        "  Fetch https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors",
        "  on a machine with a network, copy the file here, and set it in the recipe next to"
        " backbone: weights: /path/to/file",
    ]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"input_size": (1, 160, 160)}, "1 channels"),
        ({"input_size": (3, 160, 96)}, "160x96 pixels"),
        ({"interpolation": "nearest"}, "interpolation nearest"),
        ({"crop_mode": "border"}, "crop mode border"),
    ],
)
def test_images_that_kdedge_does_not_prepare_are_refused(change: dict[str, Any], what: str) -> None:
    wanted = {
        **{"input_size": (3, 160, 160), "mean": (0.5,) * 3, "std": (0.5,) * 3},
        **{"interpolation": "bicubic", "crop_mode": "squash"},
    }
    assert timm_preprocess("timm/mine", wanted).resize_mode == "squash"
    with pytest.raises(RecipeError, match=f"timm/mine needs images of .*{what}"):
        timm_preprocess("timm/mine", {**wanted, **change})


def test_a_timm_model_has_no_texts_and_the_message_says_what_it_can_be() -> None:
    with pytest.raises(RecipeError, match=r"timm/resnet18 has no text encoder.*only be a student"):
        find_backbone(BackboneSpec("timm/resnet18", "pretrained")).load()


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), r"gives \[1, 4, 8, 8\] for one image"),
        (nn.Sequential(nn.Flatten(), nn.LSTM(192, 4)), "gives tuple for one image"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(768, 4)),
            "cannot encode images of 8x8 pixels: RuntimeError: .*mat1 and mat2",
        ),
    ],
)
def test_an_encoder_without_pooled_features_is_refused(encoder: nn.Module, said: str) -> None:
    preprocess = Preprocess(size_px=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(RecipeError, match=f"flat {said}"):
        make_backbone(encoder, name="flat", preprocess=preprocess, is_trained_with_texts=False)
