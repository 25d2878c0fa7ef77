"""kdedge against the methods' public implementations: same weights and parameters, same numbers.

The vectors were computed in float32 on a CPU. KDEDGE_REFERENCE names another folder of the same
layout.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.find import find_backbone
from kdedge.clip.prompts import readable
from kdedge.clip.resolve import BackboneSpec
from kdedge.clip.weights import hash_weights
from kdedge.loading.batch import Batch
from kdedge.methods import promptkd, promptsrc, zeroshot
from kdedge.methods.base import MethodInputs
from kdedge.methods.registry import load_method

TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}
"""Float32 sums in another order; the vectors' README grants this much, gradients included."""


@pytest.fixture(scope="session")
def load_reference_clip(
    write_clip: Callable[..., Path], reference_meta: dict[str, Any]
) -> Callable[[str, int], Backbone]:
    def load(which: str, tag: int) -> Backbone:
        path = write_clip(reference_meta[which], seed=reference_meta["seed"], tag=tag)
        backbone = find_backbone(BackboneSpec(None, str(path))).load()
        expected = reference_meta[f"{which}_sha256"]
        assert hash_weights(backbone.model.state_dict()) == expected
        return backbone

    return load


@pytest.fixture(scope="session")
def student_clip(load_reference_clip: Callable[[str, int], Backbone]) -> Backbone:
    return load_reference_clip("student", 1)


@pytest.fixture(scope="session")
def teacher_clip(load_reference_clip: Callable[[str, int], Backbone]) -> Backbone:
    return load_reference_clip("teacher", 2)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        actual.detach().reshape(expected.shape), expected, check_dtype=True, **TOLERANCE
    )


def visual_prompts(vectors: dict[str, Tensor], kind: str, depth: int) -> Tensor:
    deep = [
        vectors[f"{kind}/image_encoder.transformer.resblocks.{index}.VPT_shallow"]
        for index in range(1, depth)
    ]
    return torch.stack([vectors[f"{kind}/image_encoder.VPT"], *deep])


def deep_context(vectors: dict[str, Tensor], kind: str, depth: int) -> Tensor:
    first = vectors[f"{kind}/prompt_learner.ctx"]
    deep = [
        vectors[f"{kind}/text_encoder.transformer.resblocks.{index}.VPT_shallow"]
        for index in range(1, depth)
    ]
    return torch.stack(deep) if deep else first.new_zeros(0, *first.shape)


def build(
    method: Any, backbone: Backbone, names: list[str], settings: Any, **arguments: Any
) -> Any:
    return method.Method(
        backbone,
        settings,
        MethodInputs(
            names,
            arguments.get("template", "a photo of a {}."),
            range(len(names)),
            torch.Generator().manual_seed(1),
            teacher=arguments.get("teacher"),
        ),
    )


@pytest.fixture(scope="session")
def reference_promptsrc(
    teacher_clip: Backbone, reference_folder: Path, reference_meta: dict[str, Any]
) -> tuple[promptsrc.Method, dict[str, Tensor]]:
    vectors = load_file(reference_folder / "promptsrc.safetensors")
    meta = reference_meta["settings"]["promptsrc"]
    settings = promptsrc.Settings(
        **{key: meta[key] for key in ("n_ctx_text", "n_ctx_vision", "context_init")},
        prompt_depth_text=meta["prompt_depth_text"],
        prompt_depth_vision=meta["prompt_depth_vision"],
        text_loss_weight=float(meta["text_loss_weight"]),
        image_loss_weight=float(meta["image_loss_weight"]),
    )
    method = build(promptsrc, teacher_clip, reference_meta["classnames"], settings)
    with torch.no_grad():
        prompts = method.module.text_prompts
        prompts.context.copy_(vectors["param/prompt_learner.ctx"])
        prompts.deep_context.copy_(deep_context(vectors, "param", meta["prompt_depth_text"]))
        method.module.visual_prompts.copy_(
            visual_prompts(vectors, "param", meta["prompt_depth_vision"])
        )
    return method, vectors


def test_zeroshot_gives_the_reference_tokens_features_and_logits(
    student_clip: Backbone, reference_folder: Path, reference_meta: dict[str, Any]
) -> None:
    vectors = load_file(reference_folder / "zero_shot.safetensors")
    names, template = (
        reference_meta["classnames"],
        reference_meta["settings"]["zero_shot"]["template"],
    )
    texts = [template.format(readable(name)) for name in names]

    tokens = student_clip.tokenizer(texts, context_length=vectors["tokens"].shape[1])
    assert torch.equal(tokens, vectors["tokens"])
    close(student_clip.text_features_raw(texts), vectors["text_features"])
    from kdedge.clip.vision import encode_image

    close(encode_image(student_clip.model.visual, vectors["image"]), vectors["image_features"])
    method = build(zeroshot, student_clip, names, zeroshot.Settings(), template=template)
    features = method.forward_features(vectors["image"])
    close(method.scale * features @ method.class_vectors().T, vectors["logits"])


def test_promptsrc_gives_the_reference_features_and_logits(
    reference_promptsrc: tuple[promptsrc.Method, dict[str, Tensor]], teacher_clip: Backbone
) -> None:
    method, vectors = reference_promptsrc
    image_features = method.forward_features(vectors["image"])
    text_features = method.class_vectors()

    close(image_features, unit(vectors["image_features"]))
    close(text_features, unit(vectors["text_features"]))
    close(method.scale * image_features @ text_features.T, vectors["logits"])
    zeroshot_features = teacher_clip.image_features(vectors["image"])
    close(zeroshot_features, unit(vectors["zero_shot_image_features"]))
    close(method.anchor, unit(vectors["zero_shot_text_features"]))
    close(method.scale * zeroshot_features @ method.anchor.T, vectors["zero_shot_logits"])


def gradients_of(loss: Tensor, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def coupled_names(depth: int) -> dict[str, str]:
    names = {}
    for layer in range(depth):
        theirs = f"compound_prompt_projections.{layer - 1}" if layer else "proj"
        names |= linear(f"couplings.{layer}", theirs)
    return names


def linear(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


def reference(vectors: dict[str, Tensor], kind: str, name: str, settings: Any) -> dict[str, Tensor]:
    """The reference's parameters or gradients by our names."""
    own = {"context": "ctx"}
    if name == "cocoop":
        own |= linear("meta_net.linear1", "meta_net.linear1")
        own |= linear("meta_net.linear2", "meta_net.linear2")
    if name in ("ivlp", "maple"):
        own = {"text_prompts.context": "ctx"}
    if name == "maple":
        own |= coupled_names(settings.prompt_depth)
    found = {ours: vectors[f"{kind}/prompt_learner.{theirs}"] for ours, theirs in own.items()}
    if name == "ivlp":
        found["text_prompts.deep_context"] = deep_context(vectors, kind, settings.prompt_depth_text)
        found["visual_prompts"] = visual_prompts(vectors, kind, settings.prompt_depth_vision)
    if name == "maple":
        deep = f"{kind}/prompt_learner.compound_prompts_text"
        rows = [vectors[f"{deep}.{i}"] for i in range(settings.prompt_depth - 1)]
        found["text_prompts.deep_context"] = torch.stack(rows)
    return found


@pytest.mark.parametrize("name", ["coop", "cocoop", "ivlp", "maple"])
def test_a_supervised_method_gives_the_reference_logits_loss_and_gradients(
    name: str, student_clip: Backbone, reference_folder: Path, reference_meta: dict[str, Any]
) -> None:
    vectors, module = load_file(reference_folder / f"{name}.safetensors"), load_method(name)
    meta = dict(reference_meta["settings"][name])
    if name == "coop":
        assert meta["class_token_position"] == "end"
        meta = {"n_ctx": meta["n_ctx"]}
    settings = module.Settings(**meta)
    method = build(module, student_clip, reference_meta["classnames"], settings)
    parameters = method.trainable_parameters()
    given = reference(vectors, "param", name, settings)
    assert set(given) == set(parameters)
    with torch.no_grad():
        for key, value in given.items():
            parameters[key].copy_(value)
    if name == "cocoop":
        logits = method.own_logits(vectors["image"])
    else:
        features = method.forward_features(vectors["image"])
        logits = method.scale * features @ method.class_vectors().T
    close(logits, vectors["logits"])
    step = method.training_step(Batch(vectors["image"], vectors["label"]))
    close(step.loss, vectors["loss"])
    gradients = gradients_of(step.loss, parameters)
    for key, expected in reference(vectors, "grad", name, settings).items():
        close(gradients[key], expected)


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=-1)


def test_promptsrc_gives_every_reference_loss_term_and_gradient(
    reference_promptsrc: tuple[promptsrc.Method, dict[str, Tensor]],
) -> None:
    method, vectors = reference_promptsrc
    losses = method.losses(Batch(vectors["image"], vectors["label"]))

    close(losses["cross_entropy"], vectors["loss_ce"])
    close(losses["text"], vectors["loss_text"])
    close(losses["image"], vectors["loss_image"])
    close(losses["logit"], vectors["loss_logits"])
    total = sum(losses.values())
    close(total, vectors["loss"])
    parameters = method.trainable_parameters()
    gradients = gradients_of(total, parameters)
    close(gradients["text_prompts.context"], vectors["grad/prompt_learner.ctx"])
    depth_text = 1 + len(method.module.text_prompts.deep_context)
    close(gradients["text_prompts.deep_context"], deep_context(vectors, "grad", depth_text))
    depth_vision = len(method.module.visual_prompts)
    close(gradients["visual_prompts"], visual_prompts(vectors, "grad", depth_vision))


PROJECTOR_KEYS = {
    "projector.linear1.weight": "VPT_image_trans.conv1.0.weight",
    "projector.linear1.bias": "VPT_image_trans.conv1.0.bias",
    "projector.batch_norm.weight": "VPT_image_trans.conv1.1.weight",
    "projector.batch_norm.bias": "VPT_image_trans.conv1.1.bias",
    "projector.linear2.weight": "VPT_image_trans.conv1.3.weight",
    "projector.linear2.bias": "VPT_image_trans.conv1.3.bias",
}


def test_promptkd_gives_the_reference_logits_loss_gradients_and_batch_norm_statistics(
    student_clip: Backbone,
    reference_promptsrc: tuple[promptsrc.Method, dict[str, Tensor]],
    reference_folder: Path,
    reference_meta: dict[str, Any],
) -> None:
    vectors = load_file(reference_folder / "promptkd.safetensors")
    meta = reference_meta["settings"]["promptkd"]
    settings = promptkd.Settings(
        n_ctx_vision=meta["n_ctx_vision"],
        prompt_depth=meta["prompt_depth"],
        losses={"kl": {"temperature": meta["temperature"], "weight": meta["kd_weight"]}},
    )
    teacher = reference_promptsrc[0]
    close(teacher.class_vectors(), unit(vectors["teacher_text_features"]))
    close(teacher.forward_features(vectors["image"]), unit(vectors["teacher_image_features"]))
    teacher.teacher_features = lambda images, _: teacher.forward_features(images)
    names = reference_meta["classnames"]
    method = build(promptkd, student_clip, names, settings, teacher=teacher)
    set_student(method, vectors, meta["prompt_depth"])

    method.module.train()
    features = method.image_features(vectors["image"])
    close(features, unit(vectors["student_image_features_train"]))
    close(method.scale * features @ method.class_vectors().T, vectors["student_logits_train"])
    set_student(method, vectors, meta["prompt_depth"])  # batch norm's statistics as before
    step = method.training_step(Batch(vectors["image"], None))
    close(step.loss, vectors["loss"])
    parameters = method.trainable_parameters()
    gradients = gradients_of(step.loss, parameters)
    close(gradients["visual_prompts"], visual_prompts(vectors, "grad", meta["prompt_depth"]))
    for ours, theirs in PROJECTOR_KEYS.items():
        close(gradients[ours], vectors[f"grad/{theirs}"].squeeze())
    norm = method.module.projector.batch_norm
    close(norm.running_mean, vectors["buffer/VPT_image_trans.conv1.1.running_mean"])
    close(norm.running_var, vectors["buffer/VPT_image_trans.conv1.1.running_var"])

    features = method.forward_features(vectors["image"])
    close(features, unit(vectors["student_image_features_eval"]))
    close(method.scale * features @ method.class_vectors().T, vectors["student_logits_eval"])


def set_student(method: promptkd.Method, vectors: dict[str, Tensor], depth: int) -> None:
    parameters = method.trainable_parameters()
    norm = method.module.projector.batch_norm
    with torch.no_grad():
        parameters["visual_prompts"].copy_(visual_prompts(vectors, "param", depth))
        for ours, theirs in PROJECTOR_KEYS.items():
            parameters[ours].copy_(vectors[f"param/{theirs}"].squeeze())
        norm.running_mean.copy_(vectors["init_buffer/VPT_image_trans.conv1.1.running_mean"])
        norm.running_var.copy_(vectors["init_buffer/VPT_image_trans.conv1.1.running_var"])
