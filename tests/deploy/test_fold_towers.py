"""Folds of image encoders other than CLIP's ViT, over families of timm and open_clip.

Together they take every branch of the fold. Each is a small random model whose batch norms have
statistics of their own. The reference is the unfolded model in float64.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import timm
import torch
from timm.layers.norm import GroupNorm1
from timm.layers.std_conv import StdConv2d
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.efficientvit_mit import EfficientVit
from timm.models.fastvit import FastVit
from timm.models.levit import Levit
from timm.models.metaformer import MetaFormer
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.errors import RecipeError
from kdedge.fold import FoldedModel, FoldRequest, fold
from kdedge.methods.base import ImageModules, Projector
from kdedge.runtime.preprocess import Preprocess

SCALE = 20.0
MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.25, 0.27)
INSIDE = "in the first convolution"
MEAN_BEFORE = "mean before the first convolution, std in it"
BEFORE = "before the first convolution"
TOLERANCE = 1e-3
"""Of logits within -20 and 20: float32 against float64 differs by up to 1e-4 in the deepest."""


@dataclass(frozen=True)
class Family:
    """A small model: how it is built, its image size, and where its pixels are normalized."""

    build: Callable[[], nn.Module]
    size_px: int
    normalized: str


def of_timm(name: str, size_px: int, normalized: str = MEAN_BEFORE, **sizes: Any) -> Family:
    return Family(lambda: timm.create_model(name, num_classes=0, **sizes), size_px, normalized)


def of_open_clip(size_px: int, normalized: str, **vision: Any) -> Family:
    def build() -> nn.Module:
        text = {"width": 8, "heads": 1, "layers": 1}
        vision_cfg = {"image_size": size_px, **vision}
        visual: nn.Module = open_clip.CLIP(24, vision_cfg=vision_cfg, text_cfg=text).visual
        return visual

    return Family(build, size_px, normalized)


def repvgg() -> nn.Module:
    stages = tuple(ByoBlockCfg(type="rep", d=d, c=c, s=2, gs=0) for d, c in ((1, 16), (2, 24)))
    return ByobNet(ByoModelCfg(stages, stem_type="rep", stem_chs=16), num_classes=0)


def of_class(kind: Callable[..., nn.Module], size_px: int, normalized: str, **sizes: Any) -> Family:
    return Family(lambda: kind(num_classes=0, **sizes), size_px, normalized)


def fastvit() -> FastVit:
    return FastVit(
        num_classes=0, layers=(1, 1), embed_dims=(16, 32), token_mixers=("repmixer", "attention"),
        mlp_ratios=(2, 2), downsamples=(False, True), se_downsamples=(False, False),
        pos_embs=(None, None),
    )  # fmt: skip


def mobileclip() -> nn.Module:
    """MobileCLIP's image encoder as open_clip builds it, with a small trunk."""
    vision = {"timm_model_name": "test_resnet", "timm_proj": "linear", "image_size": 64}
    visual: Any = of_open_clip(64, MEAN_BEFORE, **vision).build()
    visual.trunk = fastvit()
    visual.head.proj = nn.Linear(visual.trunk.num_features, 24, bias=False)
    return visual


def cspnet() -> nn.Module:
    """The first two of its four stages."""
    model: Any = timm.create_model("cspresnet50", num_classes=0)
    model.stages = model.stages[:2]
    return cast(nn.Module, model)


def mobilenetv3() -> nn.Module:
    """The first three of its six stages, which have every kind of its blocks."""
    model: Any = timm.create_model("mobilenetv3_small_050", num_classes=0)
    model.blocks = model.blocks[:3]
    model.conv_head = nn.Conv2d(24, model.conv_head.out_channels, 1)
    return cast(nn.Module, model)


VIT = {"depth": 1, "embed_dim": 48, "num_heads": 2}
CLIP_VIT = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
FAMILIES = {
    "resnet": of_timm("test_resnet", 32),
    "bit": of_class(
        ResNetV2, 32, MEAN_BEFORE, layers=(1, 1), channels=(128, 256), conv_layer=StdConv2d
    ),
    "nfnet": of_timm("test_nfnet", 64),
    "mobilenetv3": Family(mobilenetv3, 32, MEAN_BEFORE),
    "efficientnet-lite": of_timm("tf_efficientnet_lite0", 32),
    "edgenext": of_timm("edgenext_xx_small", 64, INSIDE, depths=(1, 1, 1, 1)),
    "repvgg": Family(repvgg, 32, MEAN_BEFORE),
    "fastvit": Family(fastvit, 64, MEAN_BEFORE),
    "cspnet": Family(cspnet, 32, MEAN_BEFORE),
    "starnet": of_timm("starnet_s050", 32),
    "poolformer": of_class(
        MetaFormer, 32, MEAN_BEFORE,
        depths=(1, 1), dims=(32, 64), downsample_norm=None, mlp_act=nn.GELU, mlp_bias=True,
        norm_layers=GroupNorm1, res_scale_init_values=None, use_mlp_head=False,
    ),
    "levit": of_class(
        Levit, 64, MEAN_BEFORE,
        img_size=64, embed_dim=(32, 48), key_dim=8, num_heads=(2, 3), depth=(1, 1),
    ),
    # With dynamic_img_size, onnxscript resizes its positions in Python, for minutes
    "vit": of_timm("test_vit", 160, INSIDE, dynamic_img_size=False),
    "dinov3": of_timm("vit_small_patch16_dinov3", 32, INSIDE, img_size=32, **VIT),
    "swin": of_timm(
        "swin_tiny_patch4_window7_224", 56, INSIDE,
        img_size=56, depths=(1, 1), embed_dim=32, num_heads=(1, 2),
    ),
    "maxvit": of_timm("test_maxvit", 64, img_size=64),
    "coatnet": of_timm("test_coatnet", 64, img_size=64),
    "efficientvit": of_class(
        EfficientVit, 32, MEAN_BEFORE,
        widths=(8, 16, 32), depths=(1, 1, 1), head_dim=8, head_widths=(32, 32),
    ),
    "clip-resnet": of_open_clip(64, MEAN_BEFORE, layers=(1, 1, 1, 1), width=8),
    "clip-vit-pooled": of_open_clip(32, INSIDE, attentional_pool=True, **CLIP_VIT),
    "siglip": of_timm("vit_base_patch16_siglip_224", 32, INSIDE, img_size=32, **VIT),
    "mobileclip": Family(mobileclip, 64, MEAN_BEFORE),
}  # fmt: skip


EXPORTED = [
    *("resnet", "nfnet", "mobilenetv3", "edgenext", "cspnet", "poolformer", "dinov3", "swin"),
    *("clip-vit-pooled", "mobileclip"),
]
"""Together they have every operator of all families."""


@dataclass(frozen=True)
class Student:
    """A frozen student, its class vectors and images for it."""

    path: ImageModules
    vectors: Tensor
    preprocess: Preprocess
    pixels: Tensor

    def fold(self, **options: Any) -> FoldedModel:
        given = {"scale": SCALE, "preprocess": self.preprocess, **options}
        return fold(self.path, FoldRequest(self.vectors, **given))

    def reference(self) -> Tensor:
        """Logits of the unfolded student in float64."""
        path = copy.deepcopy(self.path)
        mean, std = (
            torch.tensor(value, dtype=torch.float64)[:, None, None]
            for value in (self.preprocess.mean, self.preprocess.std)
        )
        normalized = (self.pixels.double() - mean) / std
        with torch.no_grad():
            features = path.visual.double()(normalized)
            if path.projector is not None:
                features = cast(nn.Module, path.projector).double()(features)
        return SCALE * F.normalize(features, dim=-1) @ self.vectors.double().T


def make_student(
    family: Family, *, mean: tuple[float, ...] = MEAN, projector: bool = True
) -> Student:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    visual, size = family.build().eval(), family.size_px
    with torch.no_grad():
        dim = visual(torch.zeros(1, 3, size, size)).shape[1]
    after = Projector(dim, 16, generator) if projector else None
    for module in (*visual.modules(), *(after.modules() if after else ())):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _fill(module, generator)
    vectors = torch.randn(5, 16 if projector else dim, generator=generator)
    return Student(
        ImageModules(visual.requires_grad_(False), None, cast(Any, after and after.eval())),
        F.normalize(vectors, dim=-1),
        Preprocess(size_px=size, mean=mean, std=STD),  # type: ignore[arg-type]
        torch.rand(3, 3, size, size, generator=generator),
    )


@torch.no_grad()
def _fill(norm: nn.modules.batchnorm._BatchNorm, generator: torch.Generator) -> None:
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.normal_(0, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    if norm.affine:
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0, 0.2, generator=generator)


def assert_same(actual: Any, expected: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(actual).double(), expected, atol=TOLERANCE, rtol=0)


@functools.cache
def student_of(name: str) -> Student:
    return make_student(FAMILIES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folded_encoder_gives_the_unfolded_ones_logits_and_leaves_it_as_it_is(name: str) -> None:
    made = student_of(name)
    expected = made.reference()
    assert expected.std() > 0.1  # else the images would not tell two models apart
    before = copy.deepcopy(made.path.visual.state_dict())
    model = made.fold()
    with torch.no_grad():
        assert_same(model(made.pixels), expected)
    assert model.normalization == FAMILIES[name].normalized
    torch.testing.assert_close(made.path.visual.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_runtime_gives_the_same_for_any_batch_in_the_same_opset(
    name: str, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from kdedge.builders.onnx.trace import OPSET, write_onnx

    made = student_of(name)
    model = made.fold()
    path = tmp_path / "model.onnx"
    write_onnx(model, path, size_px=made.preprocess.size_px)
    assert [entry.version for entry in onnx.load(path).opset_import] == [OPSET]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(made.pixels).double()
    for n_images in (1, 3):
        (logits,) = session.run(None, {"images": made.pixels[:n_images].numpy()})
        assert_same(np.asarray(logits), expected[:n_images])


@pytest.mark.parametrize("name", ["resnet", "vit", "efficientnet-lite"])
def test_bytes_are_normalized_exactly(name: str) -> None:
    made = student_of(name)
    bytes_ = (255 * made.pixels).round()
    made = Student(made.path, made.vectors, made.preprocess, bytes_ / 255)
    with torch.no_grad():
        logits = made.fold(pixels="uint8")(bytes_.to(torch.uint8))
    assert_same(logits, made.reference())


def test_a_padded_convolution_of_pixels_without_a_mean_takes_everything_in() -> None:
    made = make_student(FAMILIES["mobileclip"], mean=(0.0, 0.0, 0.0))
    model = made.fold()
    assert model.normalization == INSIDE
    with torch.no_grad():
        assert_same(model(made.pixels), made.reference())


class Made(nn.Module):
    """An encoder of two stems, a convolution and a batch norm, as a function calls them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.other_stem = (nn.Conv2d(3, 8, 4, stride=4) for _ in range(2))
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, images)


def two_stems(made: Any, images: Tensor) -> Tensor:
    first, second = (conv(images).mean(dim=(2, 3)) for conv in (made.stem, made.other_stem))
    return torch.cat([first, second.relu()], dim=1)


def reading_the_stems_weight(made: Any, images: Tensor) -> Tensor:
    return made.stem(images).relu().mean(dim=(2, 3)) * made.stem.weight.flatten(1).norm(dim=1)


def branching_before_the_norm(made: Any, images: Tensor) -> Tensor:
    values = made.stem(images)
    return (values + made.norm(values)).relu().mean(dim=(2, 3))


def repeating_the_convolution(made: Any, images: Tensor) -> Tensor:
    values = made.conv(made.stem(images)).relu()
    return made.norm(made.conv(values)).mean(dim=(2, 3))


def reading_the_convolutions_weight(made: Any, images: Tensor) -> Tensor:
    values = made.norm(made.conv(made.stem(images))).relu().mean(dim=(2, 3))
    return values * made.conv.weight.flatten(1).norm(dim=1)


def choosing_by_the_pixels(made: Any, images: Tensor) -> Tensor:
    values = made.stem(images).mean(dim=(2, 3))
    return values if float(values.mean()) > 0 else values.relu()


@pytest.mark.parametrize("encoder", [two_stems, reading_the_stems_weight])
def test_pixels_of_a_convolution_that_cannot_take_it_in_are_normalized_before(encoder: Any) -> None:
    made = make_student(Family(lambda: Made(encoder), 16, BEFORE))
    model = made.fold()
    assert model.normalization == BEFORE
    with torch.no_grad():
        assert_same(model(made.pixels), made.reference())


@pytest.mark.parametrize(
    "encoder",
    [branching_before_the_norm, repeating_the_convolution, reading_the_convolutions_weight],
)
def test_a_batch_norm_that_cannot_move_stays(encoder: Any) -> None:
    made = make_student(Family(lambda: Made(encoder), 16, INSIDE))
    model = made.fold()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 1
    with torch.no_grad():
        assert_same(model(made.pixels), made.reference())


@pytest.mark.parametrize("name", ["resnet", "repvgg", "levit", "bit", "clip-resnet"])
def test_no_batch_norm_is_left_after_a_convolution(name: str) -> None:
    made = student_of(name)
    names = {type(module).__name__ for module in made.fold().modules()}
    assert not {"BatchNorm2d", "BatchNorm1d", "BatchNormAct2d", "StdConv2d"} & names


@pytest.mark.parametrize("name", ["resnet", "clip-resnet"])
@pytest.mark.parametrize("head", ["scores", "argmax"])
def test_without_a_projector_the_class_vectors_follow_the_encoder(name: str, head: Any) -> None:
    made = make_student(FAMILIES[name], projector=False)
    with torch.no_grad():
        logits = made.fold(head=head)(made.pixels)
    expected = made.reference()
    if head == "scores":
        assert_same(logits, expected)
    else:
        ratio = logits / expected
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-3, rtol=1e-3)
        assert (ratio > 0).all()


def test_an_encoder_whose_steps_depend_on_the_pixels_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from kdedge.builders.onnx.trace import write_onnx

    model = make_student(Family(lambda: Made(choosing_by_the_pixels), 16, INSIDE)).fold()
    with pytest.raises(RecipeError, match="cannot be exported to ONNX: ") as caught:
        write_onnx(model, tmp_path / "model.onnx", size_px=16)
    assert "Distill another image encoder" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
