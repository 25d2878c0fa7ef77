"""Logits of a pool of images, kept on disk while they are computed.

They are a store as the teacher's features are (`teacher_store`), with C logits in float32 an image:
workers share the files, and what a killed command has finished is not computed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdedge.data.images import Images
from kdedge.files import sha256_json
from kdedge.runs.protocol import Model
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.workspace import Workspace
from kdedge.training.teacher_store.fill import FeatureModel, StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store
from kdedge.workers import Share


@dataclass(frozen=True)
class AnsweringModel:
    """A model as a store asks it, with its logits for features."""

    model: Model

    @property
    def preprocess(self) -> Preprocess:
        """How its images are prepared."""
        return self.model.preprocess

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        return self.model.device

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C]: its logits."""
        return self.model.logits(images)


class PoolLogits:
    """Logits of a model for the unlabeled images of a recipe.

    Args:
        model: the frozen model.
        images: the images.
        provenance: hash of what the logits depend on besides the images.
        opens: opens the model in another process; it can be pickled.
        workspace: has the folder of runs, and the workers.
    """

    def __init__(
        self,
        model: Model,
        images: Images,
        *,
        provenance: str,
        opens: Callable[[Share], FeatureModel],
        workspace: Workspace,
    ) -> None:
        description = describe_store(
            provenance=sha256_json(["logits", provenance]),
            images=images,
            preprocess=model.preprocess,
            augment=None,
            precision="fp32",
        )
        store = TeacherStore(
            workspace.root / ".cache" / "logits",
            description,
            indices=images.indices,
            dim=len(model.class_names),
            n_views=1,
            dtype=torch.float32,
            name="Logits",
            digests=images.digests,
        )
        answering, workers = AnsweringModel(model), workspace.workers
        self._filler = StoreFiller(
            store, answering, images.source, None, "fp32", "auto", opens, workers
        )

    def compute(self) -> Tensor:
        """[N, C] float32, on the CPU, in the order of the images' positions.

        Raises:
            KdedgeError: as of `StoreFiller.fill`.
        """
        self._filler.fill()
        return self._filler.store.read(self._filler.store.indices, 1)

    def forget(self) -> None:
        """Deletes the files, once what was made from them is written."""
        shutil.rmtree(self._filler.store.path, ignore_errors=True)
