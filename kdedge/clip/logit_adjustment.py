"""Logit adjustment: subtracts a model's preference for some classes from its logits.

With logits `L` [N, C] of a pool of images and a prior `q` [C] of its classes,

    v <- 0;   five times:   v_k <- v_k + log mean_i softmax(L_i - v)_k - log q_k

and balanced logits are `L - v`.

Sources: the bias is estimated from the mean prediction (DebiasPL, arXiv:2201.01490) and subtracted
from logits (logit adjustment, arXiv:2007.07314), by one-sided Sinkhorn steps (arXiv:1911.05371).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdedge.config.fields import class_key
from kdedge.errors import RecipeError

_N_ROUNDS = 5
_MAX_OFFSET = 0.75
_MAX_RISK = 0.01
_LOWEST = -1000.0  # logit


def class_shares(shares: Mapping[str, float] | None, names: Sequence[str], key: str) -> Tensor:
    """The shares of the classes, [C], float64, sum 1, in class-list order; equal ones for None.

    Raises:
        RecipeError: the mapping, the recipe's value of `key`, has other names than the class list.
    """
    if shares is None:
        return torch.full((len(names),), 1 / len(names), dtype=torch.float64)
    shares = {class_key(name): share for name, share in shares.items()}
    keys = [class_key(name) for name in names]
    missing = [name for name, known in zip(names, keys, strict=True) if known not in shares]
    unknown = [known for known in shares if known not in keys]
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is no class"
        raise RecipeError(
            f"{key} {what}: it gives the share of each of the {len(names)} classes.\n"
            "  Name every class once, or leave it out."
        )
    values = torch.tensor([shares[known] for known in keys], dtype=torch.float64)
    return values / values.sum()


def find_offsets(logits: Tensor, prior: Tensor) -> Tensor:
    """The offsets `v` [C], float64, that make the mean prediction the prior; their mean is 0.

    Args:
        logits: [N, C], finite.
        prior: [C], positive, sums to 1.
    """
    logits = logits.double()
    log_prior = prior.double().log()
    offsets = torch.zeros_like(log_prior)
    # A class that a model cannot predict (`methods/ridge.py`, IMPOSSIBLE) stays so
    is_possible = logits.amax(dim=0) > _LOWEST
    for _ in range(_N_ROUNDS):
        sums = (logits - offsets).log_softmax(dim=1).logsumexp(dim=0)
        steps = sums - torch.tensor(len(logits)).log() - log_prior
        offsets = torch.where(is_possible, offsets + steps, 0)
    return offsets - offsets.mean()


def offsets_for_unknown_prior(logits: Tensor) -> Tensor:
    """Offsets for a pool of unknown class shares: towards equal shares, or 0 if that is risky.

    An imbalanced pool and a biased model give the same mean prediction `m`. If predictions differ
    much from image to image, `m` shows the pool's own shares. So the offsets are 0 if
    `KL(m | uniform) (I / log C)^2 > 0.01`, with `I` the mutual information of images and
    predictions. A class's logit is lowered by at most 0.75 more than the median class's.
    Both numbers were chosen on pools of five sets with equal shares, with one class of 50 to 95 %,
    and with long tails (docs/how-it-works.md).

    Args:
        logits: [N, C], finite.

    Returns:
        [C], float64; their median is 0.
    """
    n_classes = logits.shape[1]
    probabilities = logits.double().softmax(dim=1)
    mean = probabilities.mean(dim=0)
    # entr of 0 is 0
    entropy = torch.special.entr(mean).sum()
    imbalance = math.log(n_classes) - float(entropy)
    information = float(entropy - torch.special.entr(probabilities).sum(1).mean())
    if imbalance * (information / math.log(n_classes)) ** 2 > _MAX_RISK:
        return torch.zeros(n_classes, dtype=torch.float64)
    offsets = find_offsets(logits, torch.full((n_classes,), 1 / n_classes))
    return (offsets - offsets.median()).clamp(max=_MAX_OFFSET)
