"""The second head of a student that also learns from labeled images.

Source: DHO (Kang et al. 2025, arXiv:2505.07675). With one head the two objectives conflict; with
two linear heads on the same features they do not. That paper mixes the heads' probabilities at
inference. Here their logits are mixed, so that both heads fold into one linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdedge.clip.backbone import unit_length


class LabelHead(nn.Module):
    """A second linear head, for labels, beside the teacher's class vectors.

    Its rows are normalized like class vectors, so that both heads' logits have one scale. Classes
    without labels have no row here, and stay comparable.

    Args:
        class_vectors: [C, D], unit length, the teacher's; the rows start from them.
        labeled_classes: positions in the class list of the classes with labels.
        share: share of this head's logits in the mixed ones, between 0 and 1.

    Attributes:
        weight: [C_labeled, D], not normalized.
        teacher_vectors: [C, D], constant.
    """

    teacher_vectors: Tensor

    def __init__(
        self, class_vectors: Tensor, labeled_classes: Sequence[int], *, share: float
    ) -> None:
        super().__init__()
        self._labeled_classes, self._share = list(labeled_classes), share
        self.weight = nn.Parameter(class_vectors[self._labeled_classes].clone())
        self.register_buffer("teacher_vectors", class_vectors.clone())

    def vectors(self) -> Tensor:
        """[C_labeled, D], unit length, with gradients."""
        return unit_length(self.weight)

    @torch.no_grad()
    def mixed_vectors(self) -> Tensor:
        """[C, D]: (1 - share) teacher's + share own; the teacher's for classes without labels.

        An image's logits with them are the two heads' logits, mixed.
        """
        mixed = self.teacher_vectors.clone()
        own = self.vectors()
        mixed[self._labeled_classes] = torch.lerp(mixed[self._labeled_classes], own, self._share)
        return mixed
