"""The folded model against the unfused student, over sizes, depths and numbers of prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from kdedge.clip.backbone import Backbone, make_backbone, unit_length
from kdedge.clip.blocks import make_wrappable
from kdedge.errors import RecipeError, ShapeError
from kdedge.evaluation.flops import count_gmacs
from kdedge.fold import FoldedModel, fold
from kdedge.methods import lafter, promptkd, promptsrc, zeroshot
from kdedge.methods.protocol import MethodInputs
from kdedge.runtime.preprocess import Preprocess

RELATIVE = 1e-4
"""Of the largest logit: the sums are the same, in another order."""

PREPROCESS = Preprocess(size_px=32, mean=(0.48, 0.41, 0.3), std=(0.27, 0.2, 0.35))


class Vectors:
    """A teacher of which only the class vectors are known."""

    scale = 20.0

    def __init__(self, n_classes: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(n_classes)
        self._vectors = unit_length(torch.randn(n_classes, dim, generator=generator))

    def class_vectors(self) -> Tensor:
        return self._vectors


def make_clip(
    *, width: int, n_layers: int, image_px: int, seed: int, layer_scale: float | None = None
) -> Backbone:
    from open_clip import CLIP

    torch.manual_seed(seed)
    vision = {
        "layers": n_layers,
        "width": width,
        "head_width": 16,
        "patch_size": 8,
        "image_size": image_px,
        "ls_init_value": layer_scale,
    }
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    for parameter in model.visual.parameters():  # layer norms and biases begin as ones and zeros
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    preprocess = Preprocess(size_px=image_px, mean=PREPROCESS.mean, std=PREPROCESS.std)
    return make_backbone(model.eval().requires_grad_(False), name="drawn", preprocess=preprocess)


def make_student(
    backbone: Backbone,
    *,
    n_ctx: int = 2,
    depth: int = 2,
    n_classes: int = 7,
    teacher_dim: int = 40,
    **chosen: Any,
) -> promptkd.Method:
    """A student whose every part has been moved from its first values, as training does."""
    names = [f"class {index}" for index in range(n_classes)]
    student = promptkd.Method.build(
        backbone,
        promptkd.Settings(n_ctx_vision=n_ctx, prompt_depth=depth, **chosen),
        MethodInputs(
            names,
            "{}",
            range(n_classes),
            torch.Generator().manual_seed(1),
            teacher=Vectors(n_classes, teacher_dim),
        ),
    )
    generator = torch.Generator().manual_seed(2)
    projector = student.module.projector
    with torch.no_grad():
        if student.module.visual_prompts is not None:
            student.module.visual_prompts.copy_(
                torch.randn(student.module.visual_prompts.shape, generator=generator)
            )
        for norm in () if projector is None else projector.batch_norms:
            norm.running_mean.copy_(torch.randn(teacher_dim, generator=generator))
            norm.running_var.copy_(0.1 + torch.rand(teacher_dim, generator=generator))
            norm.weight.copy_(torch.randn(teacher_dim, generator=generator))
            norm.bias.copy_(torch.randn(teacher_dim, generator=generator))
        for parameter in (
            () if student.module.visual is None else student.module.visual.parameters()
        ):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    student.module.requires_grad_(False)
    return student


def draw_pixels(n_images: int, size_px: int) -> Tensor:
    """[B, 3, H, W], uint8."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(
        0, 256, (n_images, 3, size_px, size_px), generator=generator, dtype=torch.uint8
    )


def unfused(method: Any, pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """[B, C], what the method answers in evaluation mode, normalization outside."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    features = method.forward_features((pixels.float() / 255 - mean) / std)
    logits: Tensor = method.scale * features @ method.class_vectors().T
    return logits


def folded(method: Any, backbone: Backbone, **options: Any) -> FoldedModel:
    return fold(
        method.image_path(),
        method.class_vectors(),
        scale=method.scale,
        preprocess=backbone.preprocess,
        **options,
    )


def test_a_constant_leaves_the_values_of_a_block_and_its_memory() -> None:
    backbone = make_clip(width=32, n_layers=3, image_px=16, seed=0)
    block: Any = folded(make_student(backbone, depth=3), backbone).blocks[0]
    assert block.has_memory
    tokens, center = torch.randn(2, 5, 32), torch.randn(32)
    expected, _ = block(tokens, n_patches=4)
    block.subtract_from_values(center)
    block.out.bias.add_(block.out.weight @ center)
    torch.testing.assert_close(block(tokens, n_patches=4)[0], expected)


def test_prompts_of_every_block_are_never_tokens() -> None:
    backbone = make_clip(width=32, n_layers=3, image_px=16, seed=0)
    models = [folded(make_student(backbone, depth=depth), backbone) for depth in (1, 2, 3)]
    assert [model.appended_at for model in models] == [0, 1, None]
    assert [sum(block.has_memory for block in model.blocks) for model in models] == [0, 1, 3]


def assert_equal_logits(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=RELATIVE * float(expected.abs().max())
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n_heads=st.integers(1, 3),
    n_layers=st.integers(1, 4),
    n_patches=st.integers(1, 3),
    n_ctx=st.integers(0, 5),
    depth=st.integers(0, 4),
    n_classes=st.integers(1, 9),
    projector_depth=st.integers(1, 3),
    teacher_dim=st.sampled_from([8, 40]),
    n_images=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_folding_changes_no_logit(
    n_heads: int,
    n_layers: int,
    n_patches: int,
    n_ctx: int,
    depth: int,
    n_classes: int,
    projector_depth: int,
    teacher_dim: int,
    n_images: int,
    seed: int,
) -> None:
    image_px = 8 * n_patches
    backbone = make_clip(width=16 * n_heads, n_layers=n_layers, image_px=image_px, seed=seed)
    student = make_student(
        backbone,
        n_ctx=n_ctx,
        depth=min(depth, n_layers),
        n_classes=n_classes,
        projector_depth=projector_depth,
        teacher_dim=teacher_dim,
    )
    pixels = draw_pixels(n_images, image_px)
    expected = unfused(student, pixels, backbone.preprocess)

    scores = folded(student, backbone)(pixels.float() / 255)
    ranking = folded(student, backbone, head="argmax")(pixels.float() / 255)

    assert_equal_logits(scores, expected)
    # Equal up to a positive factor an image, so that every rank is the same
    factor = (ranking * expected).sum(dim=1, keepdim=True) / expected.pow(2).sum(1, keepdim=True)
    assert bool((factor > 0).all())
    assert_equal_logits(ranking / factor, expected)


def test_every_block_prompted_and_no_prompt_at_all_fold_alike() -> None:
    backbone = make_clip(width=32, n_layers=3, image_px=16, seed=0)
    pixels = draw_pixels(2, 16)
    for n_ctx, depth in ((0, 1), (4, 3), (1, 1), (4, 0)):
        student = make_student(backbone, n_ctx=n_ctx, depth=depth)
        expected = unfused(student, pixels, backbone.preprocess)
        assert_equal_logits(folded(student, backbone)(pixels.float() / 255), expected)


def test_raw_bytes_give_the_same_logits() -> None:
    backbone = make_clip(width=32, n_layers=2, image_px=16, seed=0)
    student = make_student(backbone, n_ctx=2, depth=2)
    pixels = draw_pixels(3, 16)
    expected = unfused(student, pixels, backbone.preprocess)
    assert_equal_logits(folded(student, backbone, pixels="uint8")(pixels), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_student_of_another_precision_folds_into_float32_and_stays_as_it_is(
    dtype: torch.dtype,
) -> None:
    backbone = make_clip(width=32, n_layers=3, image_px=32, seed=4)
    student = make_student(backbone)
    student.module.to(dtype)
    backbone.model.visual.to(dtype)
    path = student.image_path()
    model = folded(student, backbone)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert {value.dtype for value in path.visual.parameters()} == {dtype}
    backbone.model.visual.float()
    student.module.float()
    pixels = draw_pixels(3, 32).float() / 255
    assert_equal_logits(model(pixels), unfused(student, draw_pixels(3, 32), PREPROCESS))


def test_layer_scale_is_folded_too() -> None:
    backbone = make_clip(width=32, n_layers=2, image_px=16, seed=0, layer_scale=0.3)
    student = make_student(backbone, n_ctx=2, depth=2)
    pixels = draw_pixels(3, 16)
    expected = unfused(student, pixels, backbone.preprocess)
    assert_equal_logits(folded(student, backbone)(pixels.float() / 255), expected)


def test_what_is_added_to_variances_is_folded_too() -> None:
    backbone = make_clip(width=32, n_layers=2, image_px=16, seed=0)
    backbone.visual.ln_post.eps = 0.5
    student = make_student(backbone, n_ctx=2, depth=2)
    for norm in student.module.projector.batch_norms:
        norm.running_var.fill_(norm.eps)  # as of a feature that hardly changes
    pixels = draw_pixels(3, 16)
    expected = unfused(student, pixels, backbone.preprocess)
    assert_equal_logits(folded(student, backbone)(pixels.float() / 255), expected)


class LowRank(nn.Module):
    """A linear layer with an adapter beside it, as LoRA (arXiv:2106.09685)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(layer.in_features)
        self.layer = layer
        self.down = nn.Parameter(0.1 * torch.randn(2, layer.in_features, generator=generator))
        self.up = nn.Parameter(torch.randn(layer.out_features, 2, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        plain: Tensor = self.layer(tokens)
        return plain + tokens @ self.down.T @ self.up.T


class Halved(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values / 2


def parametrize_by_half(layer: nn.Linear) -> nn.Module:
    register_parametrization(layer, "weight", Halved())
    return layer


@pytest.mark.parametrize("wrap", [LowRank, parametrize_by_half])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_wrapped_and_parametrized_layers_fold_into_plain_ones(
    wrap: Callable[[nn.Linear], nn.Module], layer_scale: float | None
) -> None:
    backbone = make_clip(width=32, n_layers=3, image_px=16, seed=0, layer_scale=layer_scale)
    student = make_student(backbone, tune="full")
    plain = folded(student, backbone)
    for block in student.module.visual.transformer.resblocks:
        for part, names in ((block.attn, "q k v out"), (block.mlp, "c_fc c_proj")):
            for name in names.split():
                setattr(part, name, wrap(getattr(part, name)))
    student.module.requires_grad_(False)
    pixels = draw_pixels(3, 16)
    images = pixels.float() / 255
    expected = unfused(student, pixels, backbone.preprocess)
    model = folded(student, backbone)
    assert_equal_logits(model(images), expected)
    assert float((plain(images) - expected).abs().max()) > 0.1
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in plain.modules()]
    assert count_gmacs(model, images) == count_gmacs(plain, images)


def test_a_wrapped_layer_that_is_not_linear_is_refused() -> None:
    backbone = make_clip(width=32, n_layers=2, image_px=16, seed=0)
    student = make_student(backbone, tune="full")
    mlp = student.module.visual.transformer.resblocks[0].mlp
    mlp.c_fc = nn.Sequential(mlp.c_fc, nn.Tanh())
    with pytest.raises(RecipeError, match="A Sequential inside the image encoder cannot be folded"):
        folded(student, backbone)


OWN_TEXT: dict[str, Any] = {"class_vectors": "student", "prompt_depth_text": 1}


@pytest.mark.parametrize("head", ["scores", "argmax"])
@pytest.mark.parametrize(
    "chosen",
    [
        {"tune": "projector"},
        {"tune": "projector", "projector_depth": 1},
        {"tune": "full"},
        {"tune": "full", "projector_depth": 3},
        OWN_TEXT,
        {"tune": "full", **OWN_TEXT},
    ],
)
def test_every_ablation_folds_exactly(chosen: dict[str, Any], head: str) -> None:
    backbone = make_clip(width=32, n_layers=3, image_px=16, seed=0, layer_scale=0.3)
    student = make_student(backbone, **chosen)
    pixels = draw_pixels(3, 16)
    expected = unfused(student, pixels, backbone.preprocess)
    logits = folded(student, backbone, head=head)(pixels.float() / 255)
    if head == "argmax":
        factor = (logits * expected).sum(1, keepdim=True) / expected.pow(2).sum(1, keepdim=True)
        assert bool((factor > 0).all())
        logits = logits / factor
    assert_equal_logits(logits, expected)


def test_a_tuned_tower_is_folded_and_not_the_backbone_it_came_from() -> None:
    backbone = make_clip(width=32, n_layers=3, image_px=16, seed=0)
    tuned = make_student(backbone, tune="full", **OWN_TEXT)
    frozen = make_student(backbone, n_ctx=0, **OWN_TEXT)
    images = draw_pixels(2, 16).float() / 255
    difference = folded(tuned, backbone)(images) - folded(frozen, backbone)(images)
    assert float(difference.abs().max()) > 0.1


def test_a_projector_of_one_linear_layer_leaves_no_layer_of_its_own() -> None:
    backbone = make_clip(width=32, n_layers=2, image_px=16, seed=0)
    models = {n: folded(make_student(backbone, projector_depth=n), backbone) for n in (1, 2, 3)}
    assert models[1].hidden is None
    assert models[1].fused_head.in_features == 32
    assert [len(list(models[n].hidden.parameters())) // 2 for n in (2, 3)] == [1, 2]


@pytest.mark.parametrize("projector_depth", [1, 2, 3])
@pytest.mark.parametrize("head", ["scores", "argmax"])
def test_open_classes_give_features_whose_products_with_the_class_vectors_are_the_logits(
    head: str, projector_depth: int
) -> None:
    backbone = make_clip(width=32, n_layers=2, image_px=16, seed=0)
    student = make_student(backbone, projector_depth=projector_depth)
    images = draw_pixels(3, 16).float() / 255
    plain = folded(student, backbone, head=head)
    model = folded(student, backbone, head=head, open_classes=True)
    features = model(images)
    assert features.shape == (3, 40)
    assert_equal_logits(student.scale * features @ student.class_vectors().T, plain(images))
    lengths = features.norm(dim=-1)
    assert bool((lengths - 1).abs().max() < 1e-5) == (head == "scores")
    assert (model.output_name, model.fused_head) == ("features", None)
    assert plain.output_name == "logits"


@pytest.mark.parametrize("method", ["promptsrc", "zeroshot"])
def test_methods_without_a_projector_fold_too(tiny_backbone: Backbone, method: str) -> None:
    module: Any = {"promptsrc": promptsrc, "zeroshot": zeroshot}[method]
    settings = {"prompt_depth_text": 2, "prompt_depth_vision": 2} if method == "promptsrc" else {}
    built = module.Method.build(
        tiny_backbone,
        module.Settings(**settings),
        MethodInputs(
            ["cat", "dog", "red fox"],
            "a photo of a {}.",
            range(3),
            torch.Generator().manual_seed(0),
        ),
    )
    built.module.requires_grad_(False)
    pixels = draw_pixels(3, 32)
    expected = unfused(built, pixels, tiny_backbone.preprocess)
    assert_equal_logits(folded(built, tiny_backbone)(pixels.float() / 255), expected)


def test_a_folded_model_is_not_touched_by_further_training(tiny_backbone: Backbone) -> None:
    student = make_student(tiny_backbone, n_ctx=2, depth=2)
    model = folded(student, tiny_backbone)
    images = draw_pixels(2, 32).float() / 255
    before = model(images)
    with torch.no_grad():
        student.module.visual_prompts.zero_()
        student.module.projector.linear2.weight.zero_()
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)


def test_class_vectors_of_another_dimension_are_refused(tiny_backbone: Backbone) -> None:
    student = make_student(tiny_backbone, n_ctx=2, depth=2)
    with pytest.raises(ShapeError, match=r"\[5, 39\] do not fit .* dimension 40"):
        fold(student.image_path(), torch.zeros(5, 39), scale=1.0, preprocess=PREPROCESS)


def test_folding_leaves_out_work_and_never_adds_any(tiny_backbone: Backbone) -> None:
    images = torch.zeros(2, 3, 32, 32)
    student = make_student(tiny_backbone, n_ctx=4, depth=3, n_classes=50)
    before = count_gmacs(
        lambda batch: student.forward_features(batch) @ student.class_vectors().T, images
    )
    after = count_gmacs(folded(student, tiny_backbone), images)
    ranking = count_gmacs(folded(student, tiny_backbone, head="argmax"), images)
    assert ranking < after < before


@pytest.mark.slow
def test_vit_b16_with_397_classes_needs_less_than_clips_bare_image_encoder() -> None:
    from open_clip import CLIP, get_model_config

    with torch.device("meta"):
        model = CLIP(**get_model_config("ViT-B-16"), quick_gelu=True).eval().requires_grad_(False)
    make_wrappable(model.visual.transformer)
    visual = model.visual.to_empty(device="cpu")
    for parameter in visual.parameters():
        parameter.data.zero_()
    prompts = torch.zeros(9, 4, 768)
    projector = promptkd.Projector(512, 768, torch.Generator().manual_seed(0)).eval()
    path = promptkd.ImagePath(visual, prompts, projector.requires_grad_(False))
    vectors = torch.zeros(397, 768)
    images = torch.zeros(1, 3, 224, 224)

    bare = 2 * count_gmacs(visual, images)
    after = 2 * count_gmacs(fold(path, vectors, scale=100.0, preprocess=PREPROCESS), images)

    assert bare == pytest.approx(35.13, abs=0.005)  # open_clip's published profile
    assert after == pytest.approx(32.91, abs=0.005)


@pytest.mark.parametrize("head", ["scores", "argmax"])
def test_lafters_norms_prompts_and_classifier_fold_exactly(head: str) -> None:
    backbone = make_clip(width=32, n_layers=3, image_px=16, seed=0, layer_scale=0.3)
    built = lafter.Method.build(
        backbone,
        lafter.Settings(n_ctx_vision=5),
        MethodInputs(
            ["cat", "dog", "red fox"], "a {}.", range(3), torch.Generator().manual_seed(0)
        ),
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in built.module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    built.module.requires_grad_(False)
    pixels = draw_pixels(3, 16)
    expected = unfused(built, pixels, backbone.preprocess)
    logits = folded(built, backbone, head=head)(pixels.float() / 255)
    if head == "argmax":
        factor = (logits * expected).sum(1, keepdim=True) / expected.pow(2).sum(1, keepdim=True)
        assert bool((factor > 0).all())
        logits = logits / factor
    assert_equal_logits(logits, expected)
