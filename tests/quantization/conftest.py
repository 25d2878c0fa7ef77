"""A folded student with three blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdedge.clip.backbone import Backbone


@pytest.fixture(scope="session")
def folded(tiny_backbone: Backbone) -> Any:
    """A folded PromptKD student, 32x32 pixels, five classes; tests change copies of it."""
    import torch

    from kdedge.fold import fold
    from kdedge.methods import promptkd

    class Teacher:
        scale = 20.0

        def class_vectors(self) -> torch.Tensor:
            vectors = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
            return torch.nn.functional.normalize(vectors, dim=-1)

    student = promptkd.Method.build(
        tiny_backbone,
        [f"class {index}" for index in range(5)],
        promptkd.Settings(prompt_depth=2),
        template="{}",
        train_classes=range(5),
        teacher=Teacher(),
        generator=torch.Generator().manual_seed(0),
    )
    return fold(
        student.image_path(),
        student.class_vectors(),
        scale=student.scale,
        preprocess=tiny_backbone.preprocess,
    )


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """[24, 3, 32, 32]: pixels of 0 to 1."""
    return np.random.default_rng(0).random((24, 3, 32, 32), dtype=np.float32)
