"""What each method declares to learn from, and that it is so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdedge.clip.backbone import Backbone
from kdedge.data.batch import Batch
from kdedge.methods import zeroshot
from kdedge.methods.protocol import Inputs
from kdedge.methods.registry import Sees, list_methods, load_method

NAMES = ["cat", "school_bus", "fox", "golden retriever"]
SMALL: dict[str, dict[str, Any]] = {
    "atprompt": {"prompt_depth_text": 2, "prompt_depth_vision": 2},
    "ivlp": {"prompt_depth_text": 2, "prompt_depth_vision": 2},
    "maple": {"prompt_depth": 2},
    "promptkd": {"prompt_depth": 2},
    "pseudo_label": {"promptsrc": {"prompt_depth_text": 2, "prompt_depth_vision": 2}},
    "promptsrc": {"prompt_depth_text": 2, "prompt_depth_vision": 2},
    "vpt": {"prompt_depth": 2},
}
"""The tiny CLIP has three layers."""

TRAINED = [name for name in list_methods() if name not in ("zeroshot", "ridge")]
"""Those with training steps."""


def build(name: str, backbone: Backbone, class_names: list[str]) -> Any:
    module = load_method(name)
    given: dict[str, Any] = {
        "template": "a photo of a {}.",
        "train_classes": range(4 if module.METHOD.sees.novel_class_names else 2),
        "generator": torch.Generator().manual_seed(1),
    }
    teacher = None
    if module.METHOD.needs_teacher:
        settings = zeroshot.Settings()
        teacher = zeroshot.Method.build(backbone, settings, Inputs(class_names, **given))
    settings = module.Settings(**SMALL.get(name, {}))
    return module.Method.build(backbone, settings, Inputs(class_names, teacher=teacher, **given))


def first_loss(name: str, backbone: Backbone, class_names: list[str]) -> float:
    # So many that some look like a class without labels
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module = load_method(name)
    has_labels = module.METHOD.sees.labels or module.Settings().n_rounds > 0
    labels = torch.arange(len(images)) % 2 if has_labels else None
    method = build(name, backbone, class_names)
    method.module.train()
    torch.manual_seed(0)
    return float(method.training_step(Batch(images, labels, clean_images=images)).loss.detach())


@pytest.mark.parametrize("name", list_methods())
def test_a_method_declares_its_label_and_its_paper(name: str) -> None:
    module = load_method(name)
    assert module.__doc__.startswith(f"{module.METHOD.label}: ")
    assert module.METHOD.paper.removeprefix("arXiv:") in module.__doc__


@pytest.mark.parametrize("name", TRAINED)
def test_the_names_of_classes_without_labels_matter_where_they_are_declared(
    name: str, tiny_backbone: Backbone
) -> None:
    before = first_loss(name, tiny_backbone, NAMES)
    after = first_loss(name, tiny_backbone, [*NAMES[:2], "pizza", "submarine"])
    assert (before != after) == load_method(name).METHOD.sees.novel_class_names


def test_two_see_together_what_either_sees() -> None:
    labels = Sees(labels=True, unlabeled_images=False, novel_class_names=False)
    pool = Sees(labels=False, unlabeled_images=True, novel_class_names=True)
    assert labels | pool == Sees(labels=True, unlabeled_images=True, novel_class_names=True)
    assert labels | labels == labels
