"""Compressed students: folded encoders with zeros and INT8 layers, and what files store of them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.compression.quantizers import learn_int8
from kdedge.compression.student import Compression, fold_encoder
from kdedge.data.batch import Batch
from kdedge.errors import RecipeError
from kdedge.fold import fold
from kdedge.methods import promptkd
from kdedge.quantization.fake import attach, attached, round_scale

NAMES = ["cat", "dog", "school bus"]


class Teacher:
    scale = 20.0

    def class_vectors(self) -> Tensor:
        vectors = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
        return nn.functional.normalize(vectors, dim=-1)

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(images.flatten(1)[:, :40], dim=-1)


def build(backbone: Any, **settings: Any) -> promptkd.Method:
    student = promptkd.Method.build(
        backbone,
        NAMES,
        promptkd.Settings(**settings),
        template="{}",
        train_classes=range(3),
        teacher=Teacher(),
        generator=torch.Generator().manual_seed(0),
    )
    student.module.train()
    with torch.no_grad():
        student.image_features(images(16))  # the projector's batch norm has seen images
    student.module.eval()
    return student


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))


@pytest.fixture(params=[{"prompt_depth": 2}, {"merge_tokens": 3, "prompt_depth": 3}])
def student(request: pytest.FixtureRequest, tiny_backbone: Backbone) -> promptkd.Method:
    return build(tiny_backbone, **request.param)


def folded(method: Any, backbone: Any) -> Any:
    return fold(
        method.image_path(),
        method.class_vectors(),
        scale=method.scale,
        preprocess=backbone.preprocess,
    )


def raw_pixels(x: Tensor, backbone: Any) -> Tensor:
    """The 0-1 pixels of normalized images."""
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (backbone.preprocess.mean, backbone.preprocess.std)
    )
    return x * std + mean


def logits(method: Any, x: Tensor) -> Tensor:
    return method.scale * method.forward_features(x) @ method.class_vectors().T


@torch.no_grad()
def test_a_folded_encoder_gives_the_students_features(
    student: promptkd.Method, tiny_backbone: Backbone
) -> None:
    encoder = fold_encoder(student.image_path(), tiny_backbone.preprocess)
    x = images(4)
    torch.testing.assert_close(encoder(x), student.image_features_raw(x), rtol=1e-4, atol=1e-4)
    again = student.with_encoder(encoder)
    torch.testing.assert_close(
        again.forward_features(x), student.forward_features(x), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_a_sparse_student_is_the_folded_one_with_zeros(
    student: promptkd.Method, tiny_backbone: Backbone
) -> None:
    plain = fold_encoder(student.image_path(), tiny_backbone.preprocess)
    sparse = Compression(True, False, tiny_backbone.preprocess).apply(student)
    names = Compression(True, False, tiny_backbone.preprocess).layers(sparse)
    assert len(names.sparse) == 18
    assert names.untouched == ("fused_head", "patch_conv")
    for name in names.sparse:
        weight = plain.get_submodule(name).weight
        for group in weight.view(-1, 4):
            group[group.abs().argsort(stable=True)[:2]] = 0
    x = images(4)
    assert torch.equal(sparse.image_features_raw(x), plain(x))
    whole = folded(sparse, tiny_backbone)
    torch.testing.assert_close(
        whole(raw_pixels(x, tiny_backbone)), logits(sparse, x), rtol=1e-4, atol=1e-3
    )
    for name in names.sparse:
        weight = whole.get_submodule(f"encoder.{name}").weight
        assert type(whole.get_submodule(f"encoder.{name}")) is nn.Linear
        assert (weight.view(-1, 4).count_nonzero(dim=1) <= 2).all()
    # The fold of a copy leaves the student as it was
    assert torch.equal(sparse.image_features_raw(x), plain(x))


@pytest.mark.parametrize("is_sparse", [False, True])
def test_what_a_file_stores_of_a_quantized_student_is_what_was_trained(
    student: promptkd.Method, tiny_backbone: Backbone, is_sparse: bool
) -> None:
    compression = Compression(is_sparse, True, tiny_backbone.preprocess)
    trained = compression.apply(student, images(8))
    assert len(compression.layers(trained).quantized) == 18
    optimizer = torch.optim.AdamW(trained.trainable_parameters().values(), lr=1e-3)
    trained.module.train()
    batch = Batch(images(8), None, keys=tuple("abcdefgh"))
    for _ in range(3):
        optimizer.zero_grad()
        trained.training_step(batch).loss.backward()
        optimizer.step()
    trained.module.eval()
    whole = folded(trained, tiny_backbone)
    assert whole.quantized.keys() == {f"encoder.{n}" for n in compression.layers(trained).quantized}
    with torch.no_grad():
        for name, layer in whole.quantized.items():
            module = trained.module.visual.get_submodule(name.removeprefix("encoder."))
            scale = module.parametrizations.weight[0].scale
            assert layer.input_scale == module.input_quantizer.scale.item()
            assert np.array_equal(layer.weight_scale, scale.numpy())
            stored = layer.levels.astype(np.float32) * layer.weight_scale[:, None]
            assert np.array_equal(stored, module.weight.numpy())
            if is_sparse:
                assert (np.count_nonzero(layer.levels.reshape(-1, 4), axis=1) <= 2).all()
        quantized = copy.deepcopy(whole)
        attach(quantized, whole.quantized)
        x = images(6)
        found = quantized(raw_pixels(x, tiny_backbone))
        # Of inputs that differ by float32 rounding, a few are rounded to the next level, and
        # other tokens may be merged
        away = (found - logits(trained, x)).abs().mean()
        unquantized = (whole(raw_pixels(x, tiny_backbone)) - logits(trained, x)).abs().mean()
        assert away < 0.03
        assert away < unquantized / 10


def test_all_parts_of_a_quantized_student_learn(tiny_backbone: Backbone) -> None:
    trained = Compression(False, True, tiny_backbone.preprocess).apply(
        build(tiny_backbone, prompt_depth=2), images(8)
    )
    trained.module.train()
    trained.training_step(Batch(images(8), None, keys=tuple("abcdefgh"))).loss.backward()
    grads = {name: p.grad for name, p in trained.trainable_parameters().items()}
    assert [name for name, grad in grads.items() if grad is None or not grad.any()] in (
        [],
        [f"visual.blocks.{i}.key.bias" for i in range(3)],  # softmax does not see it
    )
    assert sum(name.endswith("growth") for name in grads) == 36


def test_a_learned_scale_is_one_that_fp16_represents_and_a_step_changes_it_by_a_share() -> None:
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight[1] = 0  # a dead channel
        layer.weight[2] = 1e-7  # below FP16's smallest normal scale
    learn_int8(layer, 0.0123456)
    quantizer, weights = layer.input_quantizer, layer.parametrizations.weight[0]
    for scale in (quantizer.scale, weights.scale):
        assert torch.equal(scale, scale.half().float())
        assert (scale > 0).all()
    assert weights.scale[1] == round_scale(torch.tensor(1 / 127))
    assert torch.isfinite(layer(torch.zeros(1, 8))).all()
    with torch.no_grad():
        quantizer.growth += 0.001
    assert quantizer.scale.item() == pytest.approx(0.0123456 * np.exp(0.1), rel=1e-3)


def test_a_scales_gradient_is_the_papers() -> None:
    """Equation 3 of arXiv:1902.08153, one value at a time, times the derivative of exp."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    learn_int8(layer, 0.01)
    x = torch.tensor([[0.5, -0.333, 3.0, -2.0]])
    out = layer(x)
    out.sum().backward()
    scale = layer.input_quantizer.scale.item()
    into = layer.weight.detach().sum(dim=0)  # of the sum of all outputs, by input
    expected = 0.0
    for value, gradient in zip(x[0].tolist(), into.tolist(), strict=True):
        ratio = value / scale
        if ratio <= -128:
            step = -128.0
        elif ratio >= 127:
            step = 127.0
        else:
            step = round(ratio) - ratio
        expected += gradient * step
    unrounded = layer.input_quantizer.start.item()
    assert layer.input_quantizer.growth.grad.item() == pytest.approx(
        expected * unrounded * 100, rel=1e-3
    )


def test_a_compressed_student_is_compressed_further_from_its_weights_before_rounding(
    tiny_backbone: Backbone,
) -> None:
    student = build(tiny_backbone, prompt_depth=2)
    preprocess = tiny_backbone.preprocess
    sparse = Compression(True, False, preprocess).apply(student)
    both = Compression(True, True, preprocess).apply(sparse, images(8))
    again = Compression(True, False, preprocess).apply(both)
    for name in Compression(True, False, preprocess).layers(sparse).sparse:
        first, second = (m.module.visual.get_submodule(name).weight for m in (sparse, again))
        assert torch.equal(first, second)
    assert not attached(again.module.visual)


def test_an_encoder_without_such_layers_is_refused(tiny_backbone: Backbone) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.proj = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(self.conv(x).mean(dim=(2, 3)))

    class Other:
        def image_path(self) -> Any:
            return dataclasses.replace(
                build(tiny_backbone, prompt_depth=2).image_path(),
                visual=Pooled(),
                visual_prompts=None,
            )

        def with_encoder(self, encoder: nn.Module) -> Any:
            raise AssertionError

    other: Any = Other()
    with pytest.raises(RecipeError, match="has no layer that can be compressed"):
        Compression(True, True, tiny_backbone.preprocess).apply(other)
    with pytest.raises(RecipeError, match="has no with_encoder"):
        Compression(True, False, tiny_backbone.preprocess).apply(object())  # type: ignore[arg-type]


def test_a_convolutional_encoder_is_compressed_without_its_narrow_layers() -> None:
    timm = pytest.importorskip("timm")
    from kdedge.clip.image_backbone import make_image_backbone
    from kdedge.runtime.preprocess import Preprocess

    torch.manual_seed(0)
    visual = timm.create_model("resnet10t", num_classes=24)
    preprocess = Preprocess(size_px=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    backbone = make_image_backbone(
        visual,
        name="resnet",
        preprocess=preprocess,
        is_trained_with_texts=False,
        device=torch.device("cpu"),
    )
    student = build(backbone, tune="full")
    compression = Compression(True, True, preprocess)
    trained = compression.apply(student, images(4))
    layers = compression.layers(trained)
    assert layers.quantized == layers.sparse
    assert any("conv1.0" in name or "stem" in name for name in layers.untouched)
    whole = folded(trained, backbone)
    quantized = copy.deepcopy(whole)
    attach(quantized, whole.quantized)
    with torch.no_grad():
        x = images(3)
        torch.testing.assert_close(
            quantized(raw_pixels(x, backbone)), logits(trained, x), rtol=0.02, atol=0.1
        )
