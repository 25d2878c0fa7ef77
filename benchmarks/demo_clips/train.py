"""Trains the two tiny CLIPs that `kdedge demo` brings along, on clean drawn images with captions.

    python benchmarks/demo_clips/train.py [--folder DIR] [NAME ...]

Writes `<name>.json` and `<name>.safetensors` to `kdedge/clip/builtin`, and prints zero-shot
accuracies. The images are drawn by the code of the synthetic set, over its full grid of
attributes, through a good camera. Loss: CLIP's (Radford et al. 2021, arXiv:2103.00020), except that
every true caption of an image in the batch is a target, since most captions name some attributes
only and are true of many images.

In half of the steps random tokens stand where prompts will: a large CLIP hardly notices a few
tokens of no meaning among its hundreds, so that prompt learning can start from random ones; one
with 17 tokens has to learn that.

The shipped files took ten minutes on one core. Their zero-shot accuracy on the demo's images,
whose test part was drawn anew since, is in benchmarks/README.md; on clean ones it was, base /
novel, percent:

    kdedge-demo-teacher  93.96 / 98.12
    kdedge-demo-student  73.96 / 76.46
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.blocks import make_wrappable
from kdedge.clip.builtin import TOKEN_TABLE, draw_token_table
from kdedge.clip.text import encode_text, tokenize
from kdedge.clip.vision import encode_image
from kdedge.data.drawings import CLEAN, COLORS, SHAPES, TEXTURES, draw_image
from kdedge.data.sources.synthetic import CLASS_NAMES, open_source

Attributes = tuple[str, str, str]  # texture, color, shape; "" where a caption does not say

FOLDER = Path(__file__).parents[2] / "kdedge" / "clip" / "builtin"
GRID: list[Attributes] = [(t, c, s) for t in TEXTURES for c in COLORS for s in SHAPES]
NAMED = (  # the attributes that a caption names: an image gets one caption from each row
    ((1, 1, 1),),
    ((1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
)
TEMPLATES: Sequence[Callable[[str], str]] = open_clip.OPENAI_IMAGENET_TEMPLATES
PROMPT_TEMPLATES: Sequence[Callable[[str], str]] = ("a photo of a {}.".format,)
N_PROMPTS = 4
PROMPT_STD = 0.02  # as prompt methods draw them
SIZE_PX = 32
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
N_PICTURES = 40_000
BATCH_SIZE = 128
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.05
MAX_SCALE = 25.0  # of exp(logit_scale); CLIP's own limit is 100


@dataclass(frozen=True)
class Plan:
    """One model: its sizes and how long it is trained."""

    embed_dim: int
    width: int
    layers: int
    n_steps: int
    lr: float
    seed: int

    @property
    def config(self) -> dict[str, Any]:
        """The open_clip model config."""
        vision = {
            "image_size": SIZE_PX,
            "layers": self.layers,
            "width": self.width,
            "head_width": 32,
            "patch_size": 8,
        }
        return {"embed_dim": self.embed_dim, "vision_cfg": vision, "text_cfg": TEXT}


PLANS = {
    "kdedge-demo-teacher": Plan(embed_dim=96, width=128, layers=4, n_steps=2000, lr=1.5e-3, seed=1),
    "kdedge-demo-student": Plan(embed_dim=64, width=64, layers=3, n_steps=800, lr=2e-3, seed=2),
}


def draw_images(attributes: list[Attributes], *, seed: int) -> Tensor:
    """Clean images in the models' size: [N, 3, 32, 32], uint8."""
    rng = np.random.default_rng([1000, seed])
    pictures = []
    for texture, color, shape in attributes:
        picture = draw_image(rng, color=color, texture=texture, shape=shape, camera=CLEAN)
        pictures.append(resize(Image.fromarray(picture)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def resize(picture: Image.Image) -> np.ndarray:
    """A square image in the models' size, as in kdedge's preprocessing."""
    return np.asarray(picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC))


def normalize(pictures: Tensor) -> Tensor:
    """uint8 images -> what an image encoder takes."""
    mean, std = torch.tensor(OPENAI_DATASET_MEAN), torch.tensor(OPENAI_DATASET_STD)
    return (pictures.float() / 255 - mean[:, None, None]) / std[:, None, None]


def write_captions(
    rng: np.random.Generator, pictures: list[Attributes], templates: Sequence[Callable[[str], str]]
) -> tuple[list[str], list[Attributes]]:
    """Captions in random templates, and the attributes that each names."""
    texts, named = [], []
    for attributes in pictures:
        for row in NAMED:
            mask = row[int(rng.integers(len(row)))]
            texture, color, shape = (
                word if is_named else "" for word, is_named in zip(attributes, mask, strict=True)
            )
            words = " ".join(word for word in (texture, color, shape or "shape") if word)
            texts.append(templates[int(rng.integers(len(templates)))](words))
            named.append((texture, color, shape))
    return texts, named


def true_captions(pictures: list[Attributes], captions: list[Attributes]) -> Tensor:
    """[B, T]: 1 where a caption is true of an image, else 0."""
    words = sorted({word for caption in captions for word in caption if word})
    has = torch.tensor([[word in picture for word in words] for picture in pictures]).float()
    names = torch.tensor([[word in caption for word in words] for caption in captions]).float()
    return (has @ names.T == names.sum(dim=1)).float()


def contrastive_loss(logits: Tensor, is_true: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy with all true pairs as targets. Both [B, T]."""
    loss = logits.new_zeros(())
    for scores, true in ((logits, is_true), (logits.T, is_true.T)):
        target = true / true.sum(dim=1, keepdim=True)
        loss = loss + F.cross_entropy(scores, target) / 2
    return loss


def learning_rate(plan: Plan, step: int) -> float:
    """A linear warm-up, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return plan.lr * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (plan.n_steps - WARMUP_STEPS)
    return plan.lr * 0.5 * (1 + math.cos(math.pi * progress))


def train(plan: Plan, pictures: Tensor, attributes: list[Attributes]) -> open_clip.CLIP:
    """Trains one CLIP; its token table stays as it was drawn."""
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng([2000, plan.seed])
    model = open_clip.CLIP(**plan.config, init_logit_scale=math.log(10))
    make_wrappable(model.transformer)
    make_wrappable(model.visual.transformer)
    model.token_embedding.weight.data = draw_token_table(plan.config)
    model.token_embedding.requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.lr, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    started = time.monotonic()
    for step in range(plan.n_steps):
        optimizer.param_groups[0]["lr"] = learning_rate(plan, step)
        chosen = rng.integers(len(pictures), size=BATCH_SIZE).tolist()
        images = normalize(pictures[chosen])
        images = torch.where(
            torch.from_numpy(rng.random((BATCH_SIZE, 1, 1, 1)) < 0.5), images.flip(3), images
        )
        shown = [attributes[index] for index in chosen]
        has_prompts = step % 2 == 1
        texts, named = write_captions(rng, shown, PROMPT_TEMPLATES if has_prompts else TEMPLATES)
        visual_prompts = context = None
        if has_prompts:
            depth = 1 + int(rng.integers(plan.layers))
            visual_prompts = PROMPT_STD * torch.randn(depth, N_PROMPTS, plan.width)
            context = PROMPT_STD * torch.randn(TEXT["layers"] - 1, N_PROMPTS, TEXT["width"])
        image_features = encode_image(model.visual, images, visual_prompts)
        tokens = tokenize(tokenizer, texts, context_length=TEXT["context_length"])
        text_features = encode_text(model, tokens, deep_context=context)
        image_features, text_features = F.normalize(image_features), F.normalize(text_features)
        logits = model.logit_scale.exp() * image_features @ text_features.T
        loss = contrastive_loss(logits, true_captions(shown, named))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_SCALE))
        if step % 100 == 99:
            scale, seconds = model.logit_scale.exp().item(), time.monotonic() - started
            print(
                f"step {step + 1}: loss {loss.item():.3f}, scale {scale:.1f}, {seconds:.0f} s",
                flush=True,
            )
    return model.eval()


@torch.no_grad()
def zero_shot(model: open_clip.CLIP, pictures: Tensor, labels: Tensor) -> tuple[float, float]:
    """Base and novel accuracy, percent, each among its own half of the class names."""
    names = CLASS_NAMES
    tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
    texts = tokenizer([f"a photo of a {name}." for name in names])
    logits = model.encode_image(normalize(pictures)) @ model.encode_text(texts, normalize=True).T
    accuracies = []
    for half in torch.arange(len(names)).chunk(2):
        chosen = torch.isin(labels, half)
        answers = half[logits[chosen][:, half].argmax(dim=1)]
        accuracies.append(100 * float((answers == labels[chosen]).float().mean()))
    return accuracies[0], accuracies[1]


def evaluation_sets() -> dict[str, tuple[Tensor, Tensor]]:
    """Clean images of the demo's classes, and the demo's own test images."""
    source = open_source(part="test", labeled=True)
    labels = [item.label for item in source.items if item.label is not None]
    attributes = [tuple(CLASS_NAMES[label].split()) for label in labels]
    files = [source.read(index) for index in range(len(labels))]
    dim = np.stack([resize(Image.open(io.BytesIO(file))) for file in files])
    return {
        "clean": (draw_images(attributes, seed=2), torch.tensor(labels)),
        "demo": (torch.from_numpy(dim).permute(0, 3, 1, 2), torch.tensor(labels)),
    }


def main() -> None:
    """Trains both models and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", default=list(PLANS), metavar="NAME", help="default: both"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    attributes = [GRID[index % len(GRID)] for index in range(N_PICTURES)]
    pictures = draw_images(attributes, seed=1)
    for name in arguments.names:
        model = train(PLANS[name], pictures, attributes)
        state = model.state_dict()
        weights = {key: state[key].half() for key in state if key != TOKEN_TABLE}
        (arguments.folder / f"{name}.safetensors").write_bytes(save(weights))
        config = json.dumps(PLANS[name].config, indent=2)
        (arguments.folder / f"{name}.json").write_text(config + "\n")
        for what, (shown, labels) in evaluation_sets().items():
            base, novel = zero_shot(model, shown, labels)
            print(f"{name} zero-shot on {what} pictures: base {base:.2f}, novel {novel:.2f}")


if __name__ == "__main__":
    main()
