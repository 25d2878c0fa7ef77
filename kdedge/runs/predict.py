"""What a student answers for single images, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from kdedge.config.load import load_recipe
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import predict_logits
from kdedge.runs.model import load_student
from kdedge.setup.classes import load_classes
from kdedge.setup.images import load_images, require_images


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    Attributes:
        key: the image's name.
        label: the class it is of.
        top: the classes with the highest softmax over all classes, and that softmax in percent.
    """

    key: str
    label: str
    top: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def predict_examples(
    run: RunFolder, *, device: torch.device, n_images: int = 3, n_top: int = 3
) -> tuple[Prediction, ...]:
    """Predicts a few test images of a student run, spread over the test set.

    Args:
        run: a finished student run whose recipe has test images.
        device: where.
        n_images: how many.
        n_top: classes named for each.
    """
    loaded = load_recipe(run.recipe)
    classes = load_classes(loaded.recipe)
    images = require_images(
        load_images(loaded.recipe, "test", classes), "test", "predictions are shown on it"
    )
    step = max(1, len(images.indices) // n_images)
    few = images.only(images.indices[step // 2 :: step][:n_images])
    method, backbone = load_student(run, loaded, classes, device=device, cache=None)
    logits, labels = predict_logits(method, few, preprocess=backbone.preprocess, device=device)
    scores, best = logits.softmax(dim=-1).topk(min(n_top, len(classes.names)))
    return tuple(
        Prediction(
            few.source.items[index].key,
            classes.names[int(label)],
            tuple((classes.names[int(c)], 100 * float(s)) for s, c in zip(row, names, strict=True)),
        )
        for index, label, row, names in zip(few.indices, labels, scores, best, strict=True)
    )
