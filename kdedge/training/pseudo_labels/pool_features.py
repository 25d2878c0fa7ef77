"""Stored features of the images that labels are found from, prepared as in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kdedge.clip.backbone import unit_length
from kdedge.clip.vision import encode_image
from kdedge.config.load import LoadedRecipe
from kdedge.files import sha256_json
from kdedge.runs.model import RunModel
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.images import Images
from kdedge.setup.role import RoleSetup
from kdedge.training.elsewhere import open_role, open_run
from kdedge.training.teacher_store.fill import FeatureModel, StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store
from kdedge.training.teachers import ModelTeacher
from kdedge.workers import Share


@dataclass(frozen=True)
class Members:
    """The images that labels are found from.

    Attributes:
        images: the unlabeled images, and behind them labeled ones that are not among them.
        unlabeled: positions in `images` of the images without a label.
        labels: position in `images` -> class, of the labeled images.
    """

    images: Images
    unlabeled: tuple[int, ...]
    labels: dict[int, int]


def members_of(pool: Images, labeled: Images | None) -> Members:
    """Unlabeled and labeled images together; an image that is in both counts as labeled."""
    if labeled is None:
        return Members(pool, pool.indices, {})
    label_of = {labeled.digests[index]: label for index, label in labeled.labels().items()}
    labels = {i: label_of[pool.digests[i]] for i in pool.shared_with(labeled)}
    unlabeled = tuple(i for i in pool.indices if i not in labels)
    others = labeled.without(pool)
    if not others.indices:
        return Members(pool, unlabeled, labels)
    n_own, of_others = len(pool.source.items), others.labels()
    behind = {n_own + i: of_others[i] for i in others.indices}
    return Members(pool.with_those_of(others), unlabeled, {**labels, **behind})


class _ImageEncoder:
    """A student's image encoder before training."""

    def __init__(self, setup: RoleSetup) -> None:
        self._setup = setup

    @property
    def preprocess(self) -> Preprocess:
        """How its images are prepared."""
        return self._setup.backbone.preprocess

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        return self._setup.device

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_student], unit length."""
        return unit_length(encode_image(self._setup.load_backbone().visual, images))


def _open_encoder(loaded: LoadedRecipe, root: Path, share: Share) -> _ImageEncoder:
    return _ImageEncoder(open_role(loaded, "student", root, share))


class PoolFeatures:
    """Features of images by the teacher, and by the student's image encoder if it is needed.

    The teacher's are always stored, as they give its probabilities.

    Attributes:
        fillers: fill the stores, by `teacher` and `student`; fill them before reading.
    """

    def __init__(
        self,
        which: Literal["teacher", "student", "both"],
        setup: RoleSetup,
        images: Images,
        teacher: ModelTeacher,
    ) -> None:
        self._which, self._setup, self._images = which, setup, images
        root, model = setup.workspace.root.absolute(), teacher.model
        opens = None
        if isinstance(model, RunModel):
            opens = partial(open_run, model.run.path.absolute(), model.class_names, root)
        provenance = teacher.features_provenance
        self.fillers = {"teacher": self._filler(model, opens, provenance, teacher.dim)}
        if which != "teacher":
            backbone, encoder = setup.backbone, _ImageEncoder(setup)
            provenance = sha256_json(["image encoder", backbone.identity])
            again = partial(_open_encoder, setup.loaded, root)
            self.fillers["student"] = self._filler(encoder, again, provenance, backbone.embed_dim)

    def _filler(
        self,
        model: FeatureModel,
        opens: Callable[[Share], FeatureModel] | None,
        provenance: str,
        dim: int,
    ) -> StoreFiller:
        images, optim = self._images, self._setup.choice.optim
        description = describe_store(
            provenance=provenance,
            images=images,
            preprocess=model.preprocess,
            augment=None,
            precision=optim.precision,
        )
        root = self._setup.workspace.root / ".cache" / "features"
        store = TeacherStore(
            root,
            description,
            indices=images.indices,
            dim=dim,
            n_views=1,
            digests=images.digests,
        )
        return StoreFiller(
            store,
            model,
            images.source,
            None,
            optim.precision,
            optim.n_workers,
            opens,
            self._setup.workspace.workers,
            self._setup.workspace.group,
        )

    def of(self, name: str, positions: Sequence[int]) -> Tensor:
        """[len(positions), D], float32, on the device: stored features by one of the two."""
        return self.fillers[name].store.read(positions, 1).to(self._setup.device)

    def side_by_side(self, positions: Sequence[int]) -> Tensor:
        """[len(positions), D], unit length; with `both`, each gives half of a cosine."""
        if self._which != "both":
            return self.of(self._which, positions)
        both = [self.of(name, positions) for name in ("teacher", "student")]
        return torch.cat(both, dim=1) / 2**0.5
