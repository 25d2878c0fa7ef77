"""Every method on the tiny CLIPs: its settings, what it trains, its first losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.weights import hash_weights
from kdedge.fold import FoldRequest, fold
from kdedge.loading.batch import Batch
from kdedge.methods import promptkd, zeroshot
from kdedge.methods.base import MethodInputs
from kdedge.methods.registry import load_method
from kdedge.runtime.preprocess import Preprocess

DEPTHS = {"prompt_depth_text": 2, "prompt_depth_vision": 2}
"""The tiny CLIP has three layers."""
FOUR = ("cat", "school_bus", "fox", "golden retriever")
OTHER_FOUR = ("cat", "dog", "school_bus", "fox")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def labeled(n: int = 4) -> Batch:
    return Batch(drawn(n, 3, 32, 32), torch.arange(n) % 2)


def pseudo_labeled() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return Batch(images, torch.randint(4, (4,), generator=generator))


def with_clean() -> Batch:
    views, clean = drawn(2, 4, 3, 32, 32)
    return Batch(views, None, clean_images=clean)


@dataclass(frozen=True)
class Case:
    """A method on the tiny CLIP, the losses of its first steps, and what it trains."""

    lr: float
    losses: Sequence[float]
    shapes: dict[str, tuple[int, ...]]
    settings: dict[str, Any] = field(default_factory=dict)
    names: Sequence[str] = FOUR
    template: str = "unused {}"
    n_trained: int = 2
    batch: Callable[[], Batch] = labeled


PROMPTS = {
    "visual_prompts": (2, 4, 64),
    "text_prompts.context": (4, 64),
    "text_prompts.deep_context": (1, 4, 64),
}
NORMS = [f"norms.{number}.{kind}" for number in range(8) for kind in ("weight", "bias")]
CASES = {
    "coop": Case(0.01, [1.06631, 1.05934, 1.04607, 1.02709, 1.00302], {"context": (4, 64)}),
    "cocoop": Case(
        0.01,
        [1.32006, 1.31403, 1.30271, 1.28686, 1.26729],
        {
            "context": (4, 64),
            "meta_net.linear1.weight": (1, 24),
            "meta_net.linear1.bias": (1,),
            "meta_net.linear2.weight": (64, 1),
            "meta_net.linear2.bias": (64,),
        },
    ),
    "vpt": Case(
        0.01,
        [0.944626, 0.812018, 0.56216, 0.444326, 0.381218],
        {"visual_prompts": (3, 8, 64)},
        {"prompt_depth": 3},
    ),
    "ivlp": Case(0.01, [0.895665, 2.46053, 0.834929, 0.806826, 0.782582], PROMPTS, DEPTHS),
    "maple": Case(
        0.01,
        [1.0301, 0.783827, 0.639924, 0.623137, 0.585312],
        {
            "text_prompts.context": (2, 64),
            "text_prompts.deep_context": (2, 2, 64),
            **{f"couplings.{layer}.weight": (64, 64) for layer in range(3)},
            **{f"couplings.{layer}.bias": (64,) for layer in range(3)},
        },
        {"prompt_depth": 3},
    ),
    "promptsrc": Case(
        0.005,
        [3.859, 3.30366, 2.72708, 2.32395, 2.3006],
        PROMPTS,
        {**DEPTHS, "n_anchor_templates": 3},
        OTHER_FOUR,
    ),
    "atprompt": Case(
        0.005,
        [3.43669, 3.2019, 3.02927, 2.93255, 2.73595],
        {
            **PROMPTS,
            "attribute_context": (4, 64),
            "text_prompts.context": (3, 64),
            "text_prompts.deep_context": (1, 3, 64),
        },
        {**DEPTHS, "n_anchor_templates": 3, "n_ctx_attribute": 2, "n_ctx_text": 3},
        OTHER_FOUR,
    ),
    "pseudo_label": Case(
        0.005,
        [4.57399, 3.74997, 3.81694, 3.43332, 3.44313],
        PROMPTS,
        {"promptsrc": {**DEPTHS, "n_anchor_templates": 3}},
        OTHER_FOUR,
        n_trained=4,
    ),
    "upl": Case(
        0.01,
        [7.34955, 6.80272, 5.8523, 4.77108, 3.92351],
        {"contexts": (3, 5, 64)},
        {"n_runs": 3, "n_ctx": 5},
        n_trained=4,
        batch=pseudo_labeled,
    ),
    "clip_pr": Case(
        0.01,
        [1.387496, 1.378163, 1.371714, 1.374487, 1.380439],
        {
            "linear1.weight": (128, 24),
            "linear1.bias": (128,),
            "linear2.weight": (128, 128),
            "linear2.bias": (128,),
            "linear3.weight": (4, 128),
        },
        template="a blurred photo of a {}.",
        n_trained=4,
        batch=lambda: Batch(drawn(6, 3, 32, 32), None),
    ),
    "lafter": Case(
        0.1,
        [0.753719, 0.422380, 0.498011, 0.466518, 0.409114],
        {"visual_prompts": (1, 3, 64), "classifier": (4, 24), **dict.fromkeys(NORMS, (64,))},
        {"n_ctx_vision": 3, "n_text_steps": 20},
        template="a blurred photo of a {}.",
        n_trained=4,
        batch=with_clean,
    ),
    "promptkd": Case(
        0.001,
        [301.943, 267.67, 228.584, 194.625, 173.95],
        {
            "visual_prompts": (2, 4, 64),
            "projector.linear1.weight": (40, 24),
            "projector.linear1.bias": (40,),
            "projector.batch_norm.weight": (40,),
            "projector.batch_norm.bias": (40,),
            "projector.linear2.weight": (40, 40),
            "projector.linear2.bias": (40,),
        },
        {"prompt_depth": 2},
        ("cat", "dog", "school bus", "fox", "pizza"),
        "a photo of a {}.",
        5,
        lambda: Batch(drawn(4, 3, 32, 32), None),
    ),
}


@pytest.fixture(scope="session")
def cases() -> Mapping[str, Case]:
    return CASES


@pytest.fixture(scope="session")
def labeled_batch() -> Callable[..., Batch]:
    """Draws so many images, 4 by default, labeled as the first two classes in turn."""
    return labeled


@pytest.fixture(scope="session")
def learn() -> Callable[..., list[float]]:
    """Takes steps on one batch; gives their losses."""

    def take(
        method: Any, batch: Batch, *, n_steps: int = 4, kind: Any = torch.optim.SGD, **options: Any
    ) -> list[float]:
        optimizer = kind(method.trainable_parameters().values(), **options)
        losses = []
        for _ in range(n_steps):
            optimizer.zero_grad()
            loss = method.training_step(batch).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    return take


@pytest.fixture(scope="session")
def fold_and_unfolded() -> Callable[..., tuple[Any, Tensor, Tensor]]:
    """Folds a method; gives the model, images for it, and the logits of the method for them."""

    def make(method: Any, preprocess: Preprocess, **options: Any) -> tuple[Any, Tensor, Tensor]:
        vectors, scale = method.class_vectors(), method.scale
        request = FoldRequest(vectors, scale=scale, preprocess=preprocess, **options)
        model = fold(method.image_modules(), request)
        pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
        features = method.forward_features((pixels - mean) / std)
        return model, pixels, (scale * features @ vectors.T).detach()

    return make


@pytest.fixture(scope="module", autouse=True)
def the_shared_backbones_stay_as_they_are(
    tiny_backbone: Backbone, tiny_teacher_backbone: Backbone
) -> Iterator[None]:
    backbones = (tiny_backbone, tiny_teacher_backbone)
    before = [hash_weights(backbone.model.state_dict()) for backbone in backbones]
    yield
    assert [hash_weights(backbone.model.state_dict()) for backbone in backbones] == before
    for backbone in backbones:
        assert not any(p.requires_grad for p in backbone.model.parameters())
        assert all(p.grad is None for p in backbone.model.parameters())


@pytest.fixture
def build(tiny_backbone: Backbone, tiny_teacher_backbone: Backbone) -> Callable[..., Any]:
    """Builds a method by its name; its teacher is zero-shot CLIP unless one is given."""

    def make(
        name: str,
        backbone: Any = tiny_backbone,
        teacher: Any = tiny_teacher_backbone,
        *,
        names: Sequence[str] = (),
        n_trained: int = 0,
        sentences: Any = None,
        **settings: Any,
    ) -> Any:
        case, module = CASES.get(name, Case(0, [], {})), load_method(name)
        names = names or case.names

        def inputs(n_trained: int, teacher: Any = None) -> MethodInputs:
            generator = torch.Generator().manual_seed(1)
            more = {"teacher": teacher, "sentences": sentences}
            return MethodInputs(names, case.template, range(n_trained), generator, **more)

        if not module.METHOD.needs_teacher:
            teacher = None
        elif isinstance(teacher, Backbone):
            teacher = zeroshot.Method(teacher, zeroshot.Settings(), inputs(len(names)))
        if teacher is not None:
            teacher.teacher_features = lambda images, _: teacher.forward_features(images)
        return module.Method(
            backbone,
            module.Settings(**{**case.settings, **settings}),
            inputs(n_trained or case.n_trained, teacher),
        )

    return make


@pytest.fixture
def student(build: Callable[..., Any]) -> Callable[..., promptkd.Method]:
    """Builds a student of five classes."""
    return partial(build, "promptkd")
