"""Classes in balance: subtracts from logits what a model prefers some classes by.

With logits `L` [N, C] of a pool of images and a prior `q` [C] of its classes,

    v <- 0;   five times:   v_k <- v_k + log mean_i softmax(L_i - v)_k - log q_k

and balanced logits are `L - v`.

Sources: the bias is seen in the mean prediction (DebiasPL, arXiv:2201.01490) and subtracted from
logits (logit adjustment, arXiv:2007.07314), by Sinkhorn's rule on one side (arXiv:1911.05371).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_N_ROUNDS = 5
_HIGHEST, _RISK = 0.75, 0.01


def find_offsets(logits: Tensor, prior: Tensor) -> Tensor:
    """The offsets `v` [C], float64, with which the mean prediction is the prior; their mean is 0.

    Args:
        logits: [N, C], finite.
        prior: [C], positive, sums to 1.
    """
    logits, log_prior = logits.double(), prior.double().log()
    offsets = torch.zeros_like(log_prior)
    for _ in range(_N_ROUNDS):
        sums = (logits - offsets).log_softmax(dim=1).logsumexp(dim=0)
        offsets = offsets + (sums - torch.tensor(len(logits)).log()) - log_prior
    return offsets - offsets.mean()


def careful_offsets(logits: Tensor) -> Tensor:
    """Offsets for a pool whose shares are not known: uniform ones, held back where that is risky.

    A pool that is unequal itself looks like a model that prefers classes. The model's mean
    prediction `m` tells the two apart only as far as its predictions differ from image to image:
    none are taken where `KL(m | uniform) (I / log C)^2 > 0.01`, with `I` the information between
    images and predictions. A class's logit is lowered by at most 0.75 more than the median class's.
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
    unequal = math.log(n_classes) - float(entropy)
    information = float(entropy - torch.special.entr(probabilities).sum(1).mean())
    if unequal * (information / math.log(n_classes)) ** 2 > _RISK:
        return torch.zeros(n_classes, dtype=torch.float64)
    offsets = find_offsets(logits, torch.full((n_classes,), 1 / n_classes))
    return (offsets - offsets.median()).clamp(max=_HIGHEST)
