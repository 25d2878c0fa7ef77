"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from kdedge.config.optim_spec import OptimSettings
from kdedge.errors import RecipeError
from kdedge.methods.base import BaseMethod


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    settings: OptimSettings,
    lr_factors: Mapping[nn.Parameter, float],
) -> torch.optim.Optimizer:
    """Makes the optimizer; each step sets the scheduled learning rate times a group's `lr_factor`.

    SGD is as in the CoOp family's reference code: dampening 0, no Nesterov momentum, weight decay
    added to the gradient. Learned scales (scalars) get no weight decay. AdamW decouples the decay
    from the gradient (arXiv:1711.05101); its second beta is 0.999.

    Args:
        parameters: the trained parameters.
        settings: algorithm, momentum, weight decay.
        lr_factors: parameter -> factor of its learning rate; 1 for parameters that are not listed.
    """
    scales: list[nn.Parameter] = []
    by_factor: defaultdict[float, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        factor = lr_factors.get(parameter, 1.0)
        (by_factor[factor] if parameter.ndim > 0 else scales).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": group, "lr_factor": factor} for factor, group in by_factor.items()
    ]
    if scales:
        groups.append({"params": scales, "lr_factor": 1.0, "weight_decay": 0.0})
    lr = settings.lr
    momentum = settings.momentum
    decay = settings.weight_decay
    if settings.algorithm == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), weight_decay=decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=decay)


def lr_factors(method: BaseMethod, settings: OptimSettings) -> dict[nn.Parameter, float]:
    """Factors of the learning rate with `layer_decay`: decay ** (number of layers above).

    Source: BEiT (arXiv:2106.08254, section 3.1). Empty if `layer_decay` is not set.

    Raises:
        RecipeError: `layer_decay` is set, but no layer of an image encoder is trained.
    """
    decay = settings.layer_decay
    if decay is None:
        return {}
    layers_above = method.layers_above()
    if not layers_above:
        raise RecipeError(
            f"optim.layer_decay is {decay:g}, but no layer of an image encoder is trained.\n"
            "  Remove that key, or set it in student.optim for a student with tune: full or lora."
        )
    parameters = method.trainable_parameters()
    return {parameters[name]: decay**above for name, above in layers_above.items()}


def check_fits(method: BaseMethod, settings: OptimSettings) -> None:
    """Checks that a method can be trained with these settings.

    Raises:
        RecipeError: `layer_decay` is set, but no layer is trained; or `ema_decay` is set, but the
            method averages over epochs itself.
    """
    lr_factors(method, settings)
    if settings.ema_decay is None or method.averaging_weights(settings.epochs) is None:
        return
    raise RecipeError(
        f"optim.ema_decay is {settings.ema_decay:g}, but this method itself averages its trained"
        " tensors over the epochs.\n"
        "  Remove that key, or set it in student.optim."
    )


def learning_rate(settings: OptimSettings, *, epoch: int) -> float:
    """Learning rate of an epoch.

    As in PromptSRC's and PromptKD's reference code, after Dassl's scheduler: `warmup_lr` in the
    first w epochs, then lr/2 * (1 + cos(pi * (epoch - 1 - w) / T)). The cosine starts after the
    warm-up, but T counts all epochs, so the last epoch is not at zero.

    Args:
        settings: lr, warmup_lr, warmup_epochs (w), epochs (T), schedule.
        epoch: number of the epoch, from 1.
    """
    if epoch <= settings.warmup_epochs:
        return settings.warmup_lr
    progress = (epoch - 1 - settings.warmup_epochs) / settings.epochs
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr / 2 * (1 + math.cos(math.pi * progress))
