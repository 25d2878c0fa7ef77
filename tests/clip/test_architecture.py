"""Model configs: what is wrong in one is said of it, before any weights are read or fetched."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from typing import Any

import open_clip
import pytest

from kdedge.clip.architecture import build_clip, image_size, read_config
from kdedge.clip.find import find_backbone
from kdedge.clip.resolve import BackboneSpec
from kdedge.errors import DataError, RecipeError

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 1,
        "layers": 2,
    },
}


def changed(section: str | None = None, **changes: Any) -> dict[str, Any]:
    """CONFIG with keys of a section, or of its own, replaced."""
    config: dict[str, Any] = copy.deepcopy(CONFIG)
    (config if section is None else config[section]).update(changes)
    return config


def test_a_config_is_built_without_values() -> None:
    model = build_clip("mine", CONFIG)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.visual.proj.shape == (64, 24)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "should be an object, got 5"),
        ("null", "should be an object, got None"),
        ("[" * 100_000, "is not valid JSON"),
        ("{}", "embed_dim: Field required"),
        (json.dumps(changed(vision_cfg=5)), "vision_cfg: Input should be an object, got 5"),
        (json.dumps(changed(text_cfg=None)), "text_cfg: Input should be an object, got None"),
        (json.dumps(changed(text_cfg=[1])), r"text_cfg: Input should be an object, got \[1\]"),
        (json.dumps(changed(quick_gelu="yes")), "quick_gelu: .*got 'yes'"),
    ],
    ids=["number", "null", "deep", "empty", "vision_cfg", "no text_cfg", "list", "quick_gelu"],
)
def test_a_file_that_is_no_config_is_refused_with_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"odd\.json.*{message}"):
        read_config(path)


@pytest.mark.parametrize(
    "config",
    [
        changed("vision_cfg", head_width=0),
        changed("vision_cfg", width=-64),
        changed("vision_cfg", width="wide"),
        changed("vision_cfg", width=None),
        changed("vision_cfg", patch_size=0),
        changed("vision_cfg", layers="two"),
        changed("vision_cfg", head_width=1e400),
        changed("vision_cfg", depth=2),
        changed("text_cfg", heads=5),
        changed("text_cfg", heads=0),
        changed("text_cfg", layers={}),
        changed("text_cfg", context_length=-1),
        changed(embed_dim="many"),
        changed(embed_dim=[]),
        changed(colour="red"),
    ],
    ids=lambda config: json.dumps(
        {key: value for key, value in config.items() if value != CONFIG.get(key)}
    ),
)
def test_a_value_that_open_clip_stumbles_over_is_an_error_of_the_config(
    config: dict[str, Any],
) -> None:
    with pytest.raises(RecipeError, match="mine: open_clip cannot build this model config"):
        build_clip("mine", config)


@pytest.mark.parametrize("size", [0, -1, "224", 22.5, None, [224], [224, 224, 3], True, {}])
def test_an_image_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(RecipeError, match=r"image_size is .*; expected the side of a square"):
        image_size(changed("vision_cfg", image_size=size))


def test_a_square_of_two_sides_is_one_size_and_others_are_refused() -> None:
    assert image_size(changed("vision_cfg", image_size=[64, 64])) == 64
    with pytest.raises(RecipeError, match=r"image_size is \[64, 32\]; expected the side"):
        image_size(changed("vision_cfg", image_size=[64, 32]))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (changed("text_cfg", hf_model_name="roberta-base"), "its text encoder is not CLIP's own"),
        (changed("text_cfg", hf_tokenizer_name="t5-base"), r"not CLIP's \(text_cfg\.hf_tokenizer"),
        (changed("text_cfg", tokenizer_kwargs={"clean": "x"}), "not CLIP's .*tokenizer_kwargs"),
        (changed("text_cfg", vocab_size=32000), "not CLIP's .*vocab_size: 32000, expected 49408"),
        (changed("text_cfg", vocab_size=10**12), "not CLIP's .*vocab_size"),
        (
            changed("vision_cfg", timm_model_name="hf-hub:timm/vit_base"),
            'timm would download its image encoder \\("hf-hub:timm/vit_base"\\)',
        ),
    ],
)
def test_other_encoders_and_tokenizers_are_refused_before_anything_is_built(
    config: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip.model.CLIP, "__init__", _not_to_be_called)
    with pytest.raises(RecipeError, match=why):
        build_clip("mine", config)


def _not_to_be_called(*_: object, **__: object) -> None:
    raise SystemError("open_clip was asked to build the model")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("roberta-ViT-B-32", "text encoder is not CLIP's own"),
        ("coca_ViT-B-32", "text encoder is not CLIP's own"),
        ("ViT-B-16-SigLIP", "text encoder is not CLIP's own"),
        ("ViT-H-14-CLIPA", "tokenizer is not CLIP's"),
    ],
)
def test_a_named_model_that_cannot_be_prompted_is_not_downloaded(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", _not_to_be_called)
    tag = open_clip.list_pretrained_tags_by_model(name)[0]
    with pytest.raises(RecipeError, match=rf"cannot use {name}: .*{why}"):
        find_backbone(BackboneSpec(name, tag)).load()
