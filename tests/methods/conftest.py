"""A student of PromptKD on the tiny CLIPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdedge.clip.backbone import Backbone
from kdedge.methods import promptkd, zeroshot
from kdedge.methods.protocol import Inputs

NAMES = ["cat", "dog", "school bus", "fox", "pizza"]


@pytest.fixture
def student(
    tiny_backbone: Backbone, tiny_teacher_backbone: Backbone
) -> Callable[..., promptkd.Method]:
    """Builds a student of five classes; its teacher is zero-shot CLIP unless one is given."""

    def build(
        backbone: Any = tiny_backbone,
        teacher: Any = tiny_teacher_backbone,
        n_labeled: int = 5,
        **settings: Any,
    ) -> promptkd.Method:
        def inputs(n_trained: int, teacher: Any = None) -> Inputs:
            generator = torch.Generator().manual_seed(1)
            return Inputs(NAMES, "a photo of a {}.", range(n_trained), generator, teacher)

        if isinstance(teacher, Backbone):
            teacher = zeroshot.Method.build(teacher, zeroshot.Settings(), inputs(5))
        return promptkd.Method.build(
            backbone,
            promptkd.Settings(**{"prompt_depth": 2, **settings}),
            inputs(n_labeled, teacher),
        )

    return build
