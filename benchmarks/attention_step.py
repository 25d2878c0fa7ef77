"""What attention of separate linear layers costs in a training step, against fused weights.

Until version 0.1, query, key and value were one matrix product with open_clip's fused weight; that
variant is kept here as `FusedBlock`. Both variants have the same weights. Measured:

* `prompts`: a PromptKD step, live teacher included, in which the encoders are frozen;
* `full`: the same with `tune: full`, in which the image encoder is trained;
* `teacher`: the teacher's image features alone, without gradients.

Steps are taken in turns, so that drift of the machine hits both alike; ratios are taken round by
round, and the variant that goes first changes each round.

    python benchmarks/attention_step.py [--mini shared/mini] [--batch 8] [--rounds 15]

With `--mini`, the mini CLIPs; without, ViT-L/14 as teacher and ViT-B/16 as student, random weights.
On a machine that other programs use too, `OMP_NUM_THREADS=1` and `--cpu-time` leave them out.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from open_clip.transformer import QuickGELU
from plain_loop import random_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, load_backbone
from kdedge.clip.blocks import AttentionBlock
from kdedge.data.batch import Batch
from kdedge.methods import promptkd, zeroshot
from kdedge.training.loop.heap import keep_freed_memory

N_CLASSES = 100
_SLOPE = 1.702


class FusedBlock(AttentionBlock):
    """Version 0.1's block: one product for query, key and value.

    Args:
        block: all of its parts are shared but the attention's weights, which are copied.
    """

    def __init__(self, block: AttentionBlock) -> None:
        nn.Module.__init__(self)
        self.ln_1, self.ls_1, self.ln_2 = block.ln_1, block.ls_1, block.ln_2
        self.mlp, self.ls_2 = block.mlp, block.ls_2
        attention = block.attn
        weights, is_trained = attention.state_dict(), attention.q.weight.requires_grad
        self.attn = nn.MultiheadAttention(attention.q.in_features, attention.num_heads)
        self.attn.load_state_dict(weights)
        self.attn.requires_grad_(is_trained)

    def forward(
        self,
        tokens: Tensor,
        *,
        queries: Tensor | None = None,
        memory: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """As `AttentionBlock.forward`."""
        attention = self.attn
        width = attention.embed_dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        normed = self.ln_1(tokens)
        if queries is None:
            queries = tokens
            query, key, value = F.linear(normed, weight, bias).chunk(3, dim=-1)
        else:
            query = F.linear(self.ln_1(queries), weight[:width], bias[:width])
            key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
        if memory is not None:
            shared = F.linear(self.ln_1(memory), weight[width:], bias[width:])
            shared_key, shared_value = shared.expand(len(tokens), -1, -1).chunk(2, dim=-1)
            key = torch.cat([key, shared_key], dim=1)
            value = torch.cat([value, shared_value], dim=1)
        heads = (
            one.reshape(*one.shape[:2], attention.num_heads, -1).transpose(1, 2)
            for one in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(*heads, attn_mask=attn_mask)
        out = attention.out_proj
        output = F.linear(attended.transpose(1, 2).flatten(2), out.weight, out.bias)
        residual = queries + self.ls_1(output)
        result: Tensor = residual + self.ls_2(_run_mlp(self.mlp, self.ln_2(residual)))
        return result


def _run_mlp(mlp: nn.Sequential, tokens: Tensor) -> Tensor:
    """Version 0.1's MLP, which looks at no hook."""
    if not isinstance(mlp.gelu, QuickGELU):
        result: Tensor = mlp(tokens)
        return result
    rows = tokens.flatten(0, -2)
    hidden = torch.addmm(mlp.c_fc.bias, rows, mlp.c_fc.weight.T, beta=_SLOPE, alpha=_SLOPE)
    output = torch.addmm(mlp.c_proj.bias, F.silu(hidden), mlp.c_proj.weight.T, alpha=1 / _SLOPE)
    return output.view(tokens.shape)


def fused(backbone: Backbone) -> Backbone:
    """A copy of a backbone with version 0.1's blocks in its image encoder."""
    model = copy.deepcopy(backbone.model)
    blocks = model.visual.transformer.resblocks
    for index, block in enumerate(blocks):
        blocks[index] = FusedBlock(block)
    return dataclasses.replace(backbone, model=model)


def build(teacher: Backbone, student: Backbone, *, tune: str) -> promptkd.Method:
    """PromptKD with a zero-shot teacher."""
    names = [f"place {number}" for number in range(N_CLASSES)]
    common = {"template": "a photo of a {}.", "train_classes": range(1)}
    taught_by = zeroshot.Method.build(
        teacher,
        names,
        zeroshot.Settings(),
        teacher=None,
        generator=torch.Generator(),
        **common,
    )
    depth = len(student.visual.transformer.resblocks) * 3 // 4
    return promptkd.Method.build(
        student,
        names,
        promptkd.Settings(tune=tune, **({"prompt_depth": depth} if tune == "prompts" else {})),
        teacher=taught_by,
        generator=torch.Generator().manual_seed(0),
        **common,
    )


def step_of(method: promptkd.Method, images: Tensor) -> Callable[[], Tensor]:
    """A call that takes one step without the optimizer's part and gives its loss."""
    parameters = list(method.trainable_parameters().values())
    method.module.train()

    def step() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = method.training_step(Batch(images, None)).loss
        loss.backward()
        return loss.detach()

    return step


def teacher_of(backbone: Backbone, images: Tensor) -> Callable[[], Tensor]:
    """A call that gives the frozen image features."""

    @torch.no_grad()
    def features() -> Tensor:
        return backbone.image_features(images)

    return features


def seconds(call: Callable[[], Tensor], n_calls: int, clock: Callable[[], float]) -> float:
    """The time of one of some calls in a row."""
    began = clock()
    for _ in range(n_calls):
        call()
    return (clock() - began) / n_calls


def load_mini(folder: Path, name: str) -> Backbone:
    """A mini CLIP."""
    weights = folder / "weights" / f"{name}.safetensors"
    return load_backbone(
        name=None, weights=str(weights), config=folder / "configs" / f"{name}.json"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mini", type=Path, help="folder of the mini CLIPs, measured instead")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=1, help="steps in a row in each round")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the processor")
    parser.add_argument("--only", nargs="*", help="prompts, full, teacher")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    keep_freed_memory()
    torch.manual_seed(0)
    if arguments.mini:
        clips = [load_mini(arguments.mini, f"mini-{role}") for role in ("teacher", "student")]
    else:
        clips = [random_backbone(name) for name in ("ViT-L-14", "ViT-B-16")]
    size = clips[0].preprocess.size_px
    images = torch.randn(arguments.batch, 3, size, size)
    old = [fused(backbone) for backbone in clips]
    print(
        f"{clips[0].name} teaches {clips[1].name}, batch {arguments.batch},"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}, seconds of the"
        f" {'processor' if arguments.cpu_time else 'wall clock'}\n"
    )
    print("| step | fused, s | linear layers, s | linear / fused | largest difference |")
    print("|---|---:|---:|---:|---:|")
    for name in arguments.only or ("prompts", "full", "teacher"):
        if name == "teacher":
            calls = [teacher_of(pair[0], images) for pair in (old, clips)]
        else:
            calls = [step_of(build(*pair, tune=name), images) for pair in (old, clips)]
        difference = float((calls[0]() - calls[1]()).abs().max())  # this warms up, too
        rounds = []
        for number in range(arguments.rounds):
            order = (0, 1) if number % 2 == 0 else (1, 0)
            took = {which: seconds(calls[which], arguments.calls, clock) for which in order}
            rounds.append((took[0], took[1]))
        ratios = [new / before for before, new in rounds]
        before, new = (statistics.median(one) for one in zip(*rounds, strict=True))
        print(
            f"| {name} | {before:.4f} | {new:.4f} | {statistics.median(ratios):.3f}"
            f" ({min(ratios):.3f}-{max(ratios):.3f}) | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
