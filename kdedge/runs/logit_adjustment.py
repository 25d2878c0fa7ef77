"""The offsets that balance a model's classes, from the unlabeled images of its recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdedge.clip.logit_adjustment import class_shares, find_offsets, offsets_for_unknown_prior
from kdedge.config.data_spec import LogitAdjustmentSpec
from kdedge.records.evaluation import LogitAdjustment
from kdedge.setup.images import RecipeImages

if TYPE_CHECKING:
    from kdedge.runs.model import MethodModel

MAX_ADJUSTMENT_IMAGES = 4000
"""Most unlabeled images on which the offsets are found."""
_WHY = "logit_adjustment is computed on unlabeled images"


def logit_adjustment_of(model: MethodModel, images: RecipeImages) -> LogitAdjustment | None:
    """Computes the offsets of a model's logits; None if the recipe has no `logit_adjustment`.

    Args:
        model: gives the logits.
        images: those of the recipe, which has prior and strength. Their class list may be
            another than that of the logits.

    Raises:
        RecipeError: the prior misses a class, or the recipe has no unlabeled images.
        DivergedError: a logit is not finite.
    """
    spec = images.recipe.logit_adjustment
    if spec is None:
        return None
    names = model.class_names
    images = images.in_one_process
    pool = images.require("unlabeled", _WHY)
    prior = _prior(spec, images, names)
    sample = pool.spread(MAX_ADJUSTMENT_IMAGES)
    logits = model.logits_of(sample, what="bringing classes into balance", without_offsets=True)
    offsets = offsets_for_unknown_prior(logits) if prior is None else find_offsets(logits, prior)
    return LogitAdjustment(
        prior=spec.prior,
        strength=spec.strength,
        offsets=dict(zip(names, (spec.strength * offsets).tolist(), strict=True)),
        n_images=len(sample.indices),
        images=f"{len(sample.indices)} of {len(pool.indices)} images of data.unlabeled",
    )


def check_logit_adjustment(images: RecipeImages) -> None:
    """Checks a recipe's `logit_adjustment` before the training; opens no unlabeled images.

    Raises:
        RecipeError: as for `logit_adjustment_of`.
    """
    spec = images.recipe.logit_adjustment
    if spec is not None:
        images.check_named("unlabeled", _WHY)
        _prior(spec, images, images.classes.names)


def _prior(spec: LogitAdjustmentSpec, images: RecipeImages, names: Sequence[str]) -> Tensor | None:
    """The expected shares of C names, [C], float64; None for auto."""
    if spec.prior == "auto":
        return None
    if spec.prior == "uniform":
        return class_shares(None, names, "logit_adjustment.prior")
    if spec.prior == "labels":
        labeled = images.require("labeled", "logit_adjustment.prior is labels")
        counts = Counter(images.classes.names[label] for label in labeled.class_labels().values())
        shares = torch.tensor([counts[name] + 1.0 for name in names], dtype=torch.float64)
        return shares / shares.sum()
    return class_shares(spec.prior, names, "logit_adjustment.prior")
