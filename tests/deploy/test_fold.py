"""The folded model against the unfolded student, over sizes, depths, prompts and merged tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip import CLIP, get_model_config
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from kdedge.clip.backbone import Backbone, make_backbone, unit_length
from kdedge.clip.blocks import make_wrappable
from kdedge.errors import DataError
from kdedge.evaluation.flops import count_gmacs
from kdedge.fold import FoldedModel, FoldRequest, fold
from kdedge.methods import promptkd, promptsrc, zeroshot
from kdedge.methods.base import ImageModules, MethodInputs, Projector
from kdedge.paper.methods import lafter
from kdedge.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from kdedge.runtime.artifact import Precision

RELATIVE = 1e-4
"""Of the largest logit: the sums are the same, in another order."""

PREPROCESS = Preprocess(size_px=32, mean=(0.48, 0.41, 0.3), std=(0.27, 0.2, 0.35))
MAX_BATCH = 4


def make_clip(
    *,
    width: int = 32,
    n_layers: int = 3,
    image_px: int = 16,
    seed: int = 0,
    layer_scale: float | None = None,
) -> Backbone:
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
    backbone: Backbone, *, n_classes: int = 7, teacher_dim: int = 40, **chosen: Any
) -> promptkd.Method:
    """A student whose every part has been moved from its first values, as training does."""
    generator = torch.Generator().manual_seed(2)
    vectors = unit_length(torch.randn(n_classes, teacher_dim, generator=generator))
    teacher = SimpleNamespace(scale=20.0, class_vectors=lambda: vectors)
    names = [f"class {index}" for index in range(n_classes)]
    student = promptkd.Method(
        backbone,
        promptkd.Settings(**{"n_ctx_vision": 2, "prompt_depth": 2, **chosen}),
        MethodInputs(
            names, "{}", range(n_classes), torch.Generator().manual_seed(1), teacher=teacher
        ),
    )
    module = student.module
    with torch.no_grad():
        if module.visual_prompts is not None:
            module.visual_prompts.copy_(
                torch.randn(module.visual_prompts.shape, generator=generator)
            )
        for norm in () if module.projector is None else module.projector.batch_norms:
            norm.running_var.copy_(0.1 + torch.rand(teacher_dim, generator=generator))
            for values in (norm.running_mean, norm.weight, norm.bias):
                values.copy_(torch.randn(teacher_dim, generator=generator))
        for parameter in () if module.visual is None else module.visual.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    module.requires_grad_(False)
    return student


def draw_pixels(n_images: int, size_px: int) -> Tensor:
    """[B, 3, H, W], uint8."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(
        0, 256, (n_images, 3, size_px, size_px), generator=generator, dtype=torch.uint8
    )


def unfolded(method: Any, images: Tensor, preprocess: Preprocess) -> Tensor:
    """[B, C], what the method answers in evaluation mode, normalization outside."""
    mean, std = (
        torch.tensor(values, dtype=images.dtype)[:, None, None]
        for values in (preprocess.mean, preprocess.std)
    )
    features = method.forward_features((images - mean) / std)
    logits: Tensor = method.scale * features @ method.class_vectors().to(features.dtype).T
    return logits


def folded(method: Any, backbone: Backbone, **options: Any) -> FoldedModel:
    vectors, preprocess = method.class_vectors(), backbone.preprocess
    request = FoldRequest(vectors, scale=method.scale, preprocess=preprocess, **options)
    return fold(method.image_modules(), request)


def test_a_constant_leaves_the_values_of_a_block_and_its_memory() -> None:
    backbone = make_clip()
    block: Any = folded(make_student(backbone, prompt_depth=3), backbone).blocks[0]
    assert block.has_memory
    tokens, center = torch.randn(2, 5, 32), torch.randn(32)
    given = {"sizes": None, "n_patches": 4, "n_queries": None}
    expected, _ = block(tokens, **given)
    block.subtract_from_values(center)
    block.out.bias.add_(block.out.weight @ center)
    torch.testing.assert_close(block(tokens, **given)[0], expected)


def test_prompts_of_every_block_are_never_tokens() -> None:
    backbone = make_clip()
    models = [folded(make_student(backbone, prompt_depth=depth), backbone) for depth in (1, 2, 3)]
    assert [model.appended_at for model in models] == [0, 1, None]
    assert [sum(block.has_memory for block in model.blocks) for model in models] == [0, 1, 3]


def assert_equal_logits(actual: Tensor, expected: Tensor) -> None:
    # A cosine's rounding error does not shrink with the cosine
    atol = RELATIVE * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=0, atol=atol)


def assert_equal_ranks(actual: Tensor, expected: Tensor) -> None:
    """Equal up to a positive factor an image."""
    actual = actual.to(expected.dtype)
    factor = (actual * expected).sum(dim=1, keepdim=True) / expected.pow(2).sum(1, keepdim=True)
    assert bool((factor > 0).all())
    assert_equal_logits(actual / factor, expected)


def assert_folds_exactly(method: Any, backbone: Backbone, **options: Any) -> None:
    pixels = draw_pixels(3, backbone.preprocess.size_px)
    images = pixels.float() / 255
    expected = unfolded(method, images, backbone.preprocess)
    logits = folded(method, backbone, **options)(
        pixels if options.get("pixels") == "uint8" else images
    )
    compare = assert_equal_ranks if options.get("head") == "argmax" else assert_equal_logits
    compare(logits, expected)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=st.fixed_dictionaries(
        {
            "n_heads": st.integers(1, 3),
            "n_layers": st.integers(1, 4),
            "side": st.integers(1, 5),
            "n_ctx": st.integers(0, 5),
            "prompt_depth": st.integers(0, 4),
            "depth": st.none() | st.integers(2, 4),
            "merged": st.sampled_from([0, 0.5, 1]),
            "n_classes": st.integers(1, 9),
            "projector_depth": st.integers(1, 3),
            "teacher_dim": st.sampled_from([8, 40]),
            "n_images": st.integers(1, 3),
            "seed": st.integers(0, 5),
        }
    )
)
def test_folding_changes_no_logit(drawn: dict[str, Any]) -> None:
    """Prompts that are constant keys, ordinary tokens, or in the last block; r up to the most.

    The encoder in float64, since a rounding error may change which tokens are merged.
    """
    side, n_layers, depth = drawn["side"], drawn["n_layers"], drawn["depth"]
    image_px = 8 * side
    backbone = make_clip(
        width=16 * drawn["n_heads"], n_layers=n_layers, image_px=image_px, seed=drawn["seed"]
    )
    depth = None if depth is None else min(depth, n_layers)
    n_blocks = depth or n_layers
    student = make_student(
        backbone,
        n_ctx_vision=drawn["n_ctx"],
        prompt_depth=min(drawn["prompt_depth"], n_blocks),
        depth=depth,
        merge_tokens=0 if n_blocks == 1 else round(drawn["merged"] * (side**2 // n_blocks)),
        **{name: drawn[name] for name in ("n_classes", "projector_depth", "teacher_dim")},
    )
    models = [folded(student, backbone, head=head).double() for head in ("scores", "argmax")]
    assert len(models[0].blocks) == n_blocks
    backbone.model.visual.double()
    student.module.double().projector.float()
    images = draw_pixels(drawn["n_images"], image_px).double() / 255
    expected = unfolded(student, images, backbone.preprocess)
    scores, ranking = (model(images) for model in models)
    assert_equal_logits(scores, expected)
    assert_equal_ranks(ranking, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_student_of_another_precision_folds_into_float32_and_stays_as_it_is(
    dtype: torch.dtype,
) -> None:
    backbone = make_clip(image_px=32, seed=4)
    student = make_student(backbone)
    student.module.to(dtype)
    backbone.model.visual.to(dtype)
    path = student.image_modules()
    model = folded(student, backbone)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert {value.dtype for value in path.visual.parameters()} == {dtype}
    backbone.model.visual.float()
    student.module.float()
    images = draw_pixels(3, 32).float() / 255
    assert_equal_logits(model(images), unfolded(student, images, PREPROCESS))


def test_what_is_added_to_variances_is_folded_too() -> None:
    backbone = make_clip()
    backbone.visual.ln_post.eps = 0.5
    student = make_student(backbone)
    for norm in student.module.projector.batch_norms:
        norm.running_var.fill_(norm.eps)  # as of a feature that hardly changes
    assert_folds_exactly(student, backbone)


def followed_by_another(layer: nn.Linear) -> nn.Module:
    torch.manual_seed(layer.in_features)
    return nn.Sequential(layer, nn.Linear(layer.out_features, layer.out_features))


class Halved(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values / 2


def parametrize_by_half(layer: nn.Linear) -> nn.Module:
    register_parametrization(layer, "weight", Halved())
    return layer


@pytest.mark.parametrize("wrap", [followed_by_another, parametrize_by_half])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_wrapped_and_parametrized_layers_fold_into_plain_ones(
    wrap: Callable[[nn.Linear], nn.Module], layer_scale: float | None
) -> None:
    backbone = make_clip(layer_scale=layer_scale)
    student = make_student(backbone, tune="full")
    plain = folded(student, backbone)
    for block in student.module.visual.transformer.resblocks:
        for part, names in ((block.attn, "q k v out"), (block.mlp, "c_fc c_proj")):
            for name in names.split():
                setattr(part, name, wrap(getattr(part, name)))
    student.module.requires_grad_(False)
    images = draw_pixels(3, 16).float() / 255
    expected = unfolded(student, images, backbone.preprocess)
    model = folded(student, backbone)
    assert_equal_logits(model(images), expected)
    assert float((plain(images) - expected).abs().max()) > 0.1
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in plain.modules()]
    assert count_gmacs(model, images) == count_gmacs(plain, images)


OWN_TEXT: dict[str, Any] = {"class_vectors": "student", "prompt_depth_text": 1}


@pytest.mark.parametrize("options", [{}, {"head": "argmax"}, {"pixels": "uint8"}])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"n_ctx_vision": 0},
        {"n_ctx_vision": 4, "prompt_depth": 3},
        {"n_ctx_vision": 4, "prompt_depth": 0},
        {"tune": "projector"},
        {"tune": "projector", "projector_depth": 1},
        {"tune": "full"},
        {"tune": "full", "projector_depth": 3},
        OWN_TEXT,
        {"tune": "full", **OWN_TEXT},
    ],
)
def test_every_ablation_folds_exactly(chosen: dict[str, Any], options: dict[str, Any]) -> None:
    backbone = make_clip(layer_scale=0.3)
    assert_folds_exactly(make_student(backbone, **chosen), backbone, **options)


def test_a_projector_of_one_linear_layer_leaves_no_layer_of_its_own() -> None:
    backbone = make_clip()
    models = {n: folded(make_student(backbone, projector_depth=n), backbone) for n in (1, 2, 3)}
    assert models[1].hidden is None
    assert models[1].fused_head.in_features == 32
    assert [len(list(models[n].hidden.parameters())) // 2 for n in (2, 3)] == [1, 2]


def test_ranks_are_those_of_the_logits_without_the_offsets() -> None:
    """Offsets are subtracted from logits of features of unit length, for the head argmax too."""
    backbone = make_clip()
    student = make_student(backbone)
    offsets = torch.linspace(-3, 3, 7)
    images = draw_pixels(3, 16).float() / 255
    expected = unfolded(student, images, backbone.preprocess) - offsets
    assert_equal_ranks(folded(student, backbone, head="argmax", offsets=offsets)(images), expected)


@pytest.mark.parametrize("projector_depth", [1, 2, 3])
@pytest.mark.parametrize("head", ["scores", "argmax"])
def test_open_classes_give_features_whose_products_with_the_class_vectors_are_the_logits(
    head: str, projector_depth: int
) -> None:
    backbone = make_clip()
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
    built = module.Method(
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
    assert_folds_exactly(built, tiny_backbone)


def test_a_folded_model_is_not_touched_by_further_training(tiny_backbone: Backbone) -> None:
    student = make_student(tiny_backbone)
    model = folded(student, tiny_backbone)
    images = draw_pixels(2, 32).float() / 255
    before = model(images)
    with torch.no_grad():
        student.module.visual_prompts.zero_()
        student.module.projector.linear2.weight.zero_()
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)


def test_class_vectors_of_another_dimension_are_refused(tiny_backbone: Backbone) -> None:
    student = make_student(tiny_backbone)
    with pytest.raises(DataError, match=r"\[5, 39\] do not fit .* dimension 40"):
        fold(
            student.image_modules(),
            FoldRequest(torch.zeros(5, 39), scale=1.0, preprocess=PREPROCESS),
        )


def test_folding_leaves_out_work_and_never_adds_any(tiny_backbone: Backbone) -> None:
    images = torch.zeros(2, 3, 32, 32)
    student = make_student(tiny_backbone, n_ctx_vision=4, prompt_depth=3, n_classes=50)
    before = count_gmacs(
        lambda batch: student.forward_features(batch) @ student.class_vectors().T, images
    )
    after = count_gmacs(folded(student, tiny_backbone), images)
    ranking = count_gmacs(folded(student, tiny_backbone, head="argmax"), images)
    assert ranking < after < before


@pytest.mark.slow
def test_vit_b16_with_397_classes_needs_less_than_clips_bare_image_encoder() -> None:
    with torch.device("meta"):
        model = CLIP(**get_model_config("ViT-B-16"), quick_gelu=True).eval().requires_grad_(False)
    make_wrappable(model.visual.transformer)
    visual = model.visual.to_empty(device="cpu")
    for parameter in visual.parameters():
        parameter.data.zero_()
    prompts = torch.zeros(9, 4, 768)
    projector = Projector(512, 768, torch.Generator().manual_seed(0)).eval()
    modules = ImageModules(visual, prompts, projector.requires_grad_(False))
    vectors = torch.zeros(397, 768)
    request = FoldRequest(vectors, scale=100.0, preprocess=PREPROCESS)
    model = fold(modules, request)

    images = torch.zeros(1, 3, 224, 224, device="meta")  # they need no values to be counted
    bare, after = (2 * count_gmacs(counted.to("meta"), images) for counted in (visual, model))

    assert bare == pytest.approx(35.13, abs=0.005)  # open_clip's published profile
    assert after == pytest.approx(32.91, abs=0.005)


@pytest.mark.parametrize("head", ["scores", "argmax"])
def test_lafters_norms_prompts_and_classifier_fold_exactly(head: str) -> None:
    backbone = make_clip(layer_scale=0.3)
    built = lafter.Method(
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
    assert_folds_exactly(built, backbone, head=head)


# Merged tokens


def test_the_graph_has_fewer_tokens_and_as_many_fewer_multiply_adds() -> None:
    n, width, r, n_layers = 25, 32, 4, 4
    backbone = make_clip(n_layers=n_layers, image_px=40)
    images = torch.zeros(2, 3, 40, 40)

    def count(r: int, **chosen: Any) -> float:
        student = make_student(backbone, tune="projector", merge_tokens=r, **chosen)
        return count_gmacs(folded(student, backbone), images) * 1e9 / len(images)

    def tokens(r: int, n_blocks: int) -> int:
        """Multiply-adds of the blocks; the last one has one query."""
        total = 0
        for index in range(n_blocks):
            before = 1 + n - r * index
            is_last = index == n_blocks - 1
            queries = 1 if is_last else before
            merging = 0 if is_last else r
            total += 2 * before * width**2 + 2 * queries * width**2  # k, v; q, out
            total += 2 * queries * before * width
            total += 8 * (queries - merging) * width**2
            if merging:
                a, b = (before - 1 + 1) // 2, (before - 1) // 2
                # Similarities of 16 numbers a key; sums of tokens and of sizes
                total += a * b * 16 + b * merging * (width + 1)
        return total

    around = count(0) - tokens(0, n_layers)
    assert count(r) == pytest.approx(around + tokens(r, n_layers), abs=0.5)
    assert count(r, depth=2) == pytest.approx(around + tokens(r, 2), abs=0.5)
    assert count(r) < 0.8 * count(0)


@pytest.fixture(scope="module")
def files(
    int8_by_maxima: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> tuple[FoldedModel, dict[str, Path]]:
    """A folded student that merges 5 of its 25 patch tokens in each block, and its ONNX files."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from kdedge.builders.onnx.trace import write_onnx
    from kdedge.targets.onnx.half import to_fp16

    backbone = make_clip(n_layers=3, image_px=40)
    model = folded(make_student(backbone, merge_tokens=5), backbone)
    folder, images = tmp_path_factory.mktemp("merging"), (draw_pixels(8, 40) / 255).numpy()
    paths = {name: folder / f"model.{name}.onnx" for name in ("fp32", "fp16", "int8")}
    write_onnx(model, paths["fp32"], size_px=40, batches=(1, MAX_BATCH))
    to_fp16(paths["fp32"], paths["fp16"], images=images)
    int8_by_maxima(paths["fp32"], paths["int8"], calibration=images)
    return model, paths


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_files_with_merging_give_the_models_logits_and_engines_are_built_from_them(
    files: tuple[FoldedModel, dict[str, Path]], tmp_path: Path, no_gpu: None, precision: Precision
) -> None:
    from kdedge.targets.onnx.run import load

    model, paths = files
    images = draw_pixels(8, 40) / 255
    expected = model(images).numpy()
    session = load(paths[precision], n_threads=1)
    if precision == "fp32":
        for n_images in (1, 3, MAX_BATCH):
            np.testing.assert_allclose(
                session.run(images[:n_images].numpy()),
                expected[:n_images],
                rtol=0,
                atol=1e-4 * np.abs(expected).max(),
            )
    else:  # a rounding error may change which tokens are merged, so only roughly
        actual = session.run(images.numpy())
        assert np.corrcoef(expected.ravel(), actual.ravel())[0, 1] > 0.98
    session.close()

    pytest.importorskip("tensorrt_rtx")
    from kdedge.runtime.artifact import Artifact
    from kdedge.targets.base import BuildRequest
    from kdedge.targets.tensorrt_rtx import build as target

    artifact = Artifact(
        path=tmp_path,
        name="merging",
        class_names=tuple("abcdefg"),
        preprocess=Preprocess(40, PREPROCESS.mean, PREPROCESS.std),
        pixels="float",
        head="scores",
        max_batch=MAX_BATCH,
        batch="dynamic",
    )
    file = target.plan(precision)
    target.build(file, BuildRequest(artifact, tmp_path / file.name, onnx_path=paths[precision]))
    assert (tmp_path / file.name).stat().st_size > 0
