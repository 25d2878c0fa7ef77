"""Step time of PromptKD, ViT-L/14 to ViT-B/16 at 397 classes, against the plain loop.

The plain loop is the methods' public code: the teacher's text tower runs over all class texts at 77
positions in every step, and both image towers run every block on every token. Weights are random,
sizes are real. Both losses are computed on the same batch from the same parameters and must agree.
FLOPs are counted by torch (2 a multiply-add) over forward and backward pass.

    python benchmarks/promptkd_step.py [--batch 8] [--steps 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from open_clip import CLIP
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdedge.clip.backbone import Backbone, make_backbone
from kdedge.data.batch import Batch
from kdedge.methods import promptkd, promptsrc
from kdedge.runtime.preprocess import Preprocess

N_CLASSES = 397


class OnceTeacher:
    """A teacher whose class vectors are computed once, as a stored teacher's are."""

    def __init__(self, method: promptsrc.Method) -> None:
        self.scale = method.scale
        self.forward_features = method.forward_features
        self._vectors = method.class_vectors()

    def class_vectors(self) -> Tensor:
        """[C, D]."""
        return self._vectors


def random_backbone(name: str) -> Backbone:
    """A CLIP of real size with random weights."""
    model = CLIP(**open_clip.get_model_config(name), quick_gelu=True).eval().requires_grad_(False)
    model.logit_scale.fill_(4.6052)
    clip_mean = (0.48145466, 0.4578275, 0.40821073)
    clip_std = (0.26862954, 0.26130258, 0.27577711)
    preprocess = Preprocess(size_px=224, mean=clip_mean, std=clip_std)
    return make_backbone(model, name=name, preprocess=preprocess)


def plain_image_features(model: CLIP, images: Tensor, prompts: Tensor) -> Tensor:
    """Every block on every token, prompts as ordinary tokens."""
    visual = model.visual
    tokens = visual.conv1(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(len(images), 1, -1), tokens], dim=1)
    tokens = tokens + visual.positional_embedding
    n_ctx = prompts.shape[1]
    for index, block in enumerate(visual.transformer.resblocks):
        if index == 0:
            tokens = torch.cat([tokens, prompts[0].expand(len(images), -1, -1)], dim=1)
            tokens = visual.ln_pre(tokens)
        elif index < len(prompts):
            own = prompts[index].expand(len(images), -1, -1)
            tokens = torch.cat([tokens[:, :-n_ctx], own], dim=1)
        tokens = block(tokens)
    return visual.ln_post(tokens)[:, 0] @ visual.proj


def plain_text_features(model: CLIP, tokens: Tensor, context: Tensor, deep: Tensor) -> Tensor:
    """All 77 positions of all texts through every block."""
    x = model.token_embedding(tokens)
    n_ctx = len(context)
    mask = torch.full((77, 77), float("-inf")).triu(1)
    x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + n_ctx :]], dim=1)
    x = x + model.positional_embedding
    for index, block in enumerate(model.transformer.resblocks):
        if 1 <= index <= len(deep):
            shared = deep[index - 1].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], shared, x[:, 1 + n_ctx :]], dim=1)
        x = block(x, attn_mask=mask)
    x = model.ln_final(x)
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection


def timed(step: Callable[[], Tensor], n_steps: int) -> tuple[float, float, float]:
    """Median seconds and spread of a step, and its GFLOPs; one warm-up step before."""
    # Fused attention on a CPU and torch's fast path for frozen blocks are kernels that the counter
    # does not know; the same step in plain matrix products has the same operations.
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    torch.backends.mha.set_fastpath_enabled(True)
    seconds = []
    for _ in range(n_steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), max(seconds) - min(seconds), counter.get_total_flops() / 1e9


def main() -> None:
    """Prints both loops' figures and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    names = [f"place number {index}" for index in range(N_CLASSES)]
    common = {"template": "{}", "train_classes": range(1), "generator": torch.Generator()}
    teacher_clip, student_clip = random_backbone("ViT-L-14"), random_backbone("ViT-B-16")
    teacher = promptsrc.Method.build(
        teacher_clip, names, promptsrc.Settings(), teacher=None, **common
    )
    began = time.perf_counter()
    stored = OnceTeacher(teacher)
    once = time.perf_counter() - began
    student = promptkd.Method.build(
        student_clip, names, promptkd.Settings(), teacher=stored, **common
    )
    teacher.module.requires_grad_(False)
    images = torch.randn(arguments.batch, 3, 224, 224)
    tokens = teacher_clip.tokenizer([f"a photo of a {name}." for name in names])
    text, module = teacher.module.text_prompts, student.module

    def ours() -> Tensor:
        loss = student.training_step(Batch(images, None)).loss
        module.zero_grad()
        loss.backward()
        return loss.detach()

    def plain() -> Tensor:
        with torch.no_grad():
            vectors = F.normalize(
                plain_text_features(teacher_clip.model, tokens, text.context, text.deep_context),
                dim=-1,
            )
            answers = plain_image_features(
                teacher_clip.model, images, teacher.module.visual_prompts
            )
            teacher_logits = teacher.scale * F.normalize(answers, dim=-1) @ vectors.T
        raw = plain_image_features(student_clip.model, images, module.visual_prompts)
        features = F.normalize(module.projector(raw), dim=-1)
        logits = student.scale * features @ vectors.T
        divergence = F.kl_div(
            logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="sum", log_target=True
        )
        loss = 1000.0 * divergence / logits.numel()
        module.zero_grad()
        loss.backward()
        return loss.detach()

    torch.testing.assert_close(ours(), plain(), rtol=1e-3, atol=1e-3)
    ours_s, ours_spread, ours_gflops = timed(ours, arguments.steps)
    plain_s, plain_spread, plain_gflops = timed(plain, arguments.steps)
    print(
        f"batch {arguments.batch}, {N_CLASSES} classes, fp32, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}; median of {arguments.steps} steps (max - min)"
    )
    print(f"plain loop   {plain_s:8.2f} s ({plain_spread:.2f})  {plain_gflops:9.1f} GFLOPs a step")
    print(f"kdedge       {ours_s:8.2f} s ({ours_spread:.2f})  {ours_gflops:9.1f} GFLOPs a step")
    print(f"ratio        {plain_s / ours_s:8.2f}            {plain_gflops / ours_gflops:9.2f}")
    print(f"class vectors, once: {once:.1f} s; the two losses agree within 1e-3")


if __name__ == "__main__":
    main()
