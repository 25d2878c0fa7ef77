"""Folded students that merge tokens or have fewer blocks, in PyTorch, as ONNX files and engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, make_backbone, unit_length
from kdedge.evaluation.flops import count_gmacs
from kdedge.fold import FoldedModel, fold
from kdedge.methods import promptkd
from kdedge.methods.protocol import MethodInputs
from kdedge.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from kdedge.runtime.artifact import Precision

RELATIVE = 1e-5
"""Of the largest logit: folded weights are rounded to float32 once, sums are float64."""

MEAN, STD = (0.48, 0.41, 0.3), (0.27, 0.2, 0.35)
MAX_BATCH = 4


class Vectors:
    """A teacher of which only the class vectors are known."""

    scale = 20.0

    def class_vectors(self) -> Tensor:
        return unit_length(torch.randn(7, 40, generator=torch.Generator().manual_seed(0)))


def make_clip(*, n_layers: int, image_px: int, seed: int) -> Backbone:
    from open_clip import CLIP

    torch.manual_seed(seed)
    sizes = {"width": 32, "head_width": 16, "patch_size": 8, "image_size": image_px}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"layers": n_layers, **sizes}
    model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    for parameter in model.visual.parameters():  # layer norms and biases begin as ones and zeros
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    preprocess = Preprocess(size_px=image_px, mean=MEAN, std=STD)
    return make_backbone(model.eval().requires_grad_(False), name="drawn", preprocess=preprocess)


def make_student(backbone: Backbone, **chosen: Any) -> promptkd.Method:
    student = promptkd.Method.build(
        backbone,
        promptkd.Settings(**chosen),
        MethodInputs(
            [f"class {index}" for index in range(7)],
            "{}",
            range(7),
            torch.Generator().manual_seed(1),
            teacher=Vectors(),
        ),
    )
    prompts = student.module.visual_prompts
    if prompts is not None:
        prompts.data = torch.randn(prompts.shape, generator=torch.Generator().manual_seed(2))
    return student


def folded(student: promptkd.Method, backbone: Backbone) -> FoldedModel:
    return fold(
        student.image_path(),
        student.class_vectors(),
        scale=student.scale,
        preprocess=backbone.preprocess,
    )


def unfused(student: promptkd.Method, pixels: Tensor) -> Tensor:
    """[B, C]: the student's logits for pixels in 0-1, normalization outside."""
    mean, std = (torch.tensor(values, dtype=pixels.dtype)[:, None, None] for values in (MEAN, STD))
    projector = student.module.eval().projector
    features = projector(student.image_features_raw((pixels - mean) / std))
    vectors = student.class_vectors().to(features.dtype)
    return student.scale * F.normalize(features, dim=-1) @ vectors.T


def draw_pixels(n_images: int, size_px: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n_images, 3, size_px, size_px, generator=generator)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    n_layers=st.integers(2, 4),
    side=st.integers(2, 5),
    share=st.floats(0, 1),
    n_ctx=st.integers(0, 3),
    prompt_depth=st.integers(1, 4),
    depth=st.none() | st.integers(2, 4),
    seed=st.integers(0, 5),
)
def test_folding_changes_no_logit(
    n_layers: int,
    side: int,
    share: float,
    n_ctx: int,
    prompt_depth: int,
    depth: int | None,
    seed: int,
) -> None:
    """Prompts that are constant keys, ordinary tokens, or in the last block; r up to the most."""
    backbone = make_clip(n_layers=n_layers, image_px=8 * side, seed=seed)
    depth = None if depth is None else min(depth, n_layers)
    n_blocks = depth or n_layers
    student = make_student(
        backbone,
        n_ctx_vision=n_ctx,
        prompt_depth=min(prompt_depth, n_blocks),
        depth=depth,
        merge_tokens=round(share * (side**2 // n_blocks)),
    )
    model = folded(student, backbone).double()
    assert len(model.blocks) == n_blocks
    backbone.model.visual.double()
    student.module.double()
    pixels = draw_pixels(3, 8 * side).double()
    with torch.no_grad():
        expected = unfused(student, pixels)
        actual = model(pixels)
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE * scale)


def test_the_graph_has_fewer_tokens_and_as_many_fewer_multiply_adds() -> None:
    n, width, r, n_layers = 25, 32, 4, 4
    backbone = make_clip(n_layers=n_layers, image_px=40, seed=0)
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
    from kdedge.targets.onnx.half import to_fp16
    from kdedge.targets.onnx.trace import write_onnx

    backbone = make_clip(n_layers=4, image_px=40, seed=0)
    model = folded(make_student(backbone, prompt_depth=2, merge_tokens=5), backbone)
    folder, images = tmp_path_factory.mktemp("merging"), draw_pixels(8, 40).numpy()
    paths = {precision: folder / f"model.{precision}.onnx" for precision in ("fp32", "fp16")}
    paths["int8"] = folder / "model.int8.onnx"
    write_onnx(model, paths["fp32"], size_px=40, max_batch=MAX_BATCH)
    to_fp16(paths["fp32"], paths["fp16"], images=images)
    int8_by_maxima(paths["fp32"], paths["int8"], calibration=images)
    return model, paths


def run(path: Path, images: np.ndarray) -> np.ndarray:
    from kdedge.targets.onnx.run import load

    session = load(path, n_threads=1)
    try:
        return session.run(images)
    finally:
        session.close()


def test_the_onnx_file_gives_the_models_logits_at_every_batch(
    files: tuple[FoldedModel, dict[str, Path]],
) -> None:
    model, paths = files
    images = draw_pixels(MAX_BATCH, 40)
    expected = model(images).numpy()
    for n_images in (1, 3, MAX_BATCH):
        actual = run(paths["fp32"], images[:n_images].numpy())
        np.testing.assert_allclose(
            actual, expected[:n_images], rtol=0, atol=1e-4 * np.abs(expected).max()
        )


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_run_and_stay_near(
    files: tuple[FoldedModel, dict[str, Path]], precision: str
) -> None:
    """A rounding error may change which tokens are merged, so only roughly."""
    model, paths = files
    images = draw_pixels(8, 40)
    expected, actual = model(images).numpy(), run(paths[precision], images.numpy())
    correlation = np.corrcoef(expected.ravel(), actual.ravel())[0, 1]
    assert correlation > 0.98


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_rtx_builds_engines_with_merging(
    files: tuple[FoldedModel, dict[str, Path]],
    tmp_path: Path,
    no_gpu: None,
    precision: Precision,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from kdedge.runtime.artifact import Artifact
    from kdedge.targets.protocol import BuildRequest
    from kdedge.targets.tensorrt_rtx import build as target

    artifact = Artifact(
        path=tmp_path,
        name="merging",
        class_names=tuple("abcdefg"),
        preprocess=Preprocess(40, MEAN, STD),
        pixels="float",
        head="scores",
        max_batch=MAX_BATCH,
        batch="dynamic",
    )
    (file,) = target.plan(precision)
    target.build(file, BuildRequest(artifact, tmp_path, onnx_path=files[1][precision]))
    assert (tmp_path / file.name).stat().st_size > 0
