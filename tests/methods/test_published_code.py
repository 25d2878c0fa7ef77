"""What the methods' public code does in a step: the scale of its gradient, and its precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.config.load import load_recipe, shipped_recipes
from kdedge.loading.batch import Batch
from kdedge.training.loop.precision import MixedPrecision

Build = Callable[..., Any]


def linear(name: str) -> set[str]:
    return {f"{name}.weight", f"{name}.bias"}


# CoOp repository, trainers/coop.py and cocoop.py: ctx in CLIP's dtype, meta_net.half()
# PromptSRC repository, trainers/promptsrc.py: ctx; clip/model.py: VPT_shallow float32
# MaPLe repository, trainers/maple.py: ctx and proj.half(), the compound layers float32
# MaPLe repository, trainers/vpt.py: the whole model float32
# ATPrompt repository, trainers/coop_atp.py: ctx and ctx_att1 to ctx_att3
# UPL repository, trainers/upltrainer.py: ctx
# PromptKD repository, trainers/promptkd.py: convert_weights(VPT_image_trans)
# LaFTer repository, utils/utils.py: model.float(); CLIPPR repository, model.py: float()
IN_HALF: dict[str, set[str]] = {
    "coop": {"context"},
    "cocoop": {"context", *linear("meta_net.linear1"), *linear("meta_net.linear2")},
    "ivlp": {"text_prompts.context"},
    "promptsrc": {"text_prompts.context"},
    "maple": {"text_prompts.context", *linear("couplings.0")},
    "vpt": set(),
    "atprompt": {"text_prompts.context", "attribute_context"},
    "upl": {"contexts"},
    "promptkd": linear("projector.linear1") | linear("projector.linear2"),
    "lafter": set(),
    "clip_pr": set(),
}


@pytest.mark.parametrize("name", IN_HALF)
def test_in_half_precision_is_what_the_public_code_keeps_in_it(name: str, build: Build) -> None:
    method = build(name)
    names = {id(parameter): own for own, parameter in method.module.named_parameters()}
    assert {names[id(parameter)] for parameter in method.half_parameters()} == IN_HALF[name]


def test_in_half_precision_products_are_rounded_and_prompts_and_sums_are_not(
    build: Build, tiny_backbone: Backbone
) -> None:
    method = build("ivlp")
    seen: dict[str, set[torch.dtype]] = {"sums": set(), "products": set()}
    hooks = [
        module.register_forward_hook(
            lambda _module, inputs, output, kind=kind: seen[kind].add(
                (inputs[0] if kind == "sums" else output).dtype
            )
        )
        for name, module in tiny_backbone.model.named_modules()
        for ending, kind in ((".ln_1", "sums"), (".ln_2", "sums"), (".c_fc", "products"))
        if name.endswith(ending)
    ]
    batch = Batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    precision = MixedPrecision("fp16-unscaled", torch.device("cpu"), method.half_parameters())
    with precision.autocast():
        loss = method.training_step(batch).loss
        logits = method.class_logits(torch.ones(2, tiny_backbone.embed_dim))
    for hook in hooks:
        hook.remove()
    assert (loss.dtype, logits.dtype) == (torch.float32, torch.float32)
    assert seen == {"sums": {torch.float32}, "products": {torch.float16}}
    assert {p.dtype for p in method.module.parameters()} == {torch.float32}


def divergence_of_an_image(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """[B, C] -> the mean over images of KL(teacher || student)."""
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


@pytest.mark.parametrize(
    ("recipe", "n_classes", "weight_of_an_image"),
    [("eurosat", 10, 100.0), ("eurosat_cross", 10, 100.0), ("dtd", 47, 200 / 47)],
)
def test_a_step_of_a_recipe_has_the_gradient_of_the_launch_scripts_weight(
    recipe: str, n_classes: int, weight_of_an_image: float, build: Build
) -> None:
    student = load_recipe(shipped_recipes()[recipe]).recipe.student
    names = [f"class {number}" for number in range(n_classes)]
    settings = {**student.settings, "prompt_depth": 2}
    method = build("promptkd", names=names, n_trained=n_classes, **settings)
    method.module.train()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    parameters = list(method.trainable_parameters().values())
    step = torch.autograd.grad(method.training_step(Batch(images, None)).loss, parameters)
    outputs = method.outputs(Batch(images, None), method.image_features(images))
    loss = divergence_of_an_image(outputs.student_logits, outputs.teacher_logits)
    plain = torch.autograd.grad(weight_of_an_image * loss, parameters)
    largest = max(float(gradient.abs().max()) for gradient in plain)
    assert largest > 0
    torch.testing.assert_close(step, plain, rtol=1e-4, atol=1e-6 * largest)
