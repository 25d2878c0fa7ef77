"""PromptKD's step as the methods' public code takes it, for comparison.

The teacher's text encoder runs over all class texts at 77 positions, and its image encoder over the
images, in every step; both image encoders run every block on every token, prompts as ordinary
tokens.
"""

from __future__ import annotations

import open_clip
import torch
from open_clip import CLIP
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, make_backbone
from kdedge.methods import promptkd, promptsrc
from kdedge.runtime.preprocess import Preprocess

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def random_backbone(name: str, device: str = "cpu") -> Backbone:
    """A CLIP of real size with random weights."""
    model = CLIP(**open_clip.get_model_config(name), quick_gelu=True).eval().requires_grad_(False)
    model.logit_scale.fill_(4.6052)
    preprocess = Preprocess(size_px=224, mean=CLIP_MEAN, std=CLIP_STD)
    return make_backbone(model, name=name, preprocess=preprocess, device=device)


def plain_image_features(model: CLIP, images: Tensor, prompts: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, D]: every block on every token, prompts as ordinary tokens."""
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
    """[C, 77] -> [C, D]: all positions of all texts through every block."""
    x = model.token_embedding(tokens)
    n_ctx = len(context)
    mask = torch.full((77, 77), float("-inf"), device=x.device).triu(1)
    x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + n_ctx :]], dim=1)
    x = x + model.positional_embedding
    for index, block in enumerate(model.transformer.resblocks):
        if 1 <= index <= len(deep):
            shared = deep[index - 1].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], shared, x[:, 1 + n_ctx :]], dim=1)
        x = block(x, attn_mask=mask)
    x = model.ln_final(x)
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection


class PlainLoop:
    """The public code's loss of a batch.

    Args:
        teacher: gives the prompts that are frozen.
        teacher_clip: under it.
        student: gives the module that is trained.
        student_clip: under it.
        names: of the classes.
    """

    def __init__(
        self,
        teacher: promptsrc.Method,
        teacher_clip: Backbone,
        student: promptkd.Method,
        student_clip: Backbone,
        names: list[str],
    ) -> None:
        self._teacher, self._student = teacher, student
        self._teacher_clip, self._student_clip = teacher_clip.model, student_clip.model
        tokens = teacher_clip.tokenizer([f"a photo of a {name}." for name in names])
        self._tokens = tokens.to(teacher_clip.device)

    def loss(self, images: Tensor) -> Tensor:
        """1000 times the divergence averaged over images and classes, with gradients."""
        prompts, module = self._teacher.module, self._student.module
        text = prompts.text_prompts
        with torch.no_grad():
            vectors = plain_text_features(
                self._teacher_clip, self._tokens, text.context, text.deep_context
            )
            vectors = F.normalize(vectors, dim=-1)
            raw = plain_image_features(self._teacher_clip, images, prompts.visual_prompts)
            teacher_logits = self._teacher.scale * F.normalize(raw, dim=-1) @ vectors.T
        raw = plain_image_features(self._student_clip, images, module.visual_prompts)
        features = F.normalize(module.projector(raw), dim=-1)
        logits = self._student.scale * features @ vectors.T
        divergence = F.kl_div(
            logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="sum", log_target=True
        )
        return 1000.0 * divergence / logits.numel()
