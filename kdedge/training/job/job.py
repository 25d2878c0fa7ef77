"""Everything a run is made from, and the batches it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from kdedge._files import sha256_json
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.config.load import LoadedRecipe
from kdedge.data.batch import Batch, FeaturesOfViews, Weights
from kdedge.data.classes import class_list_hash
from kdedge.data.loader import (
    EpochPart,
    ImageSet,
    LabeledStream,
    Loading,
    Preparation,
    training_batches,
)
from kdedge.data.views import Augmentation
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.methods import zeroshot
from kdedge.methods.protocol import Method
from kdedge.setup.classes import Classes
from kdedge.setup.images import Images
from kdedge.setup.method import MethodChoice, Role, build_method, settings_record
from kdedge.training.loop.train import FREE_SETTINGS
from kdedge.training.teacher_store.fill import StoreFiller


@dataclass(frozen=True)
class LabeledImages:
    """Images with labels, by position in their source."""

    images: Images
    labels: dict[int, int]


@dataclass(frozen=True)
class Job:
    """Everything a run is made from.

    Attributes:
        role: what is trained.
        loaded: the recipe.
        choice: the method with its settings.
        classes: the class list.
        backbone: the frozen CLIP under the method, or a student's image tower alone.
        method: built, untrained.
        images: what it is trained on; None for a method with nothing to train, and for one that
            learns from pseudo-labels alone, which each round adds.
        labels: position in the source -> label in a batch, or None to train without labels.
        test: what accuracy is measured on, if anything.
        validation: what an epoch may be chosen by, if anything.
        made_by: hash of the class vectors' makers, known once the method is trained.
        pool: the unlabeled images that the method gives pseudo-labels in rounds, if it does.
        labeled: labeled images beside `images` in each batch, for a method that learns from both.
        weights: what the images of a batch weigh, where they do not weigh the same.
        sources: further hashes for provenance and for telling one job from another.
        teacher_run: name of the run that taught, if one did.
        view_seed: what crops and flips are drawn from; None for the recipe's seed.
        filler: makes the teacher's features, where they are stored and not computed in every step.
    """

    role: Role
    loaded: LoadedRecipe
    choice: MethodChoice
    classes: Classes
    backbone: AnyBackbone
    method: Method
    images: Images | None
    labels: dict[int, int] | None
    test: Images | None
    validation: Images | None
    made_by: Callable[[], str]
    pool: Images | None = None
    labeled: LabeledImages | None = None
    weights: Weights | None = None
    sources: dict[str, str] = field(default_factory=dict)
    teacher_run: str | None = None
    view_seed: int | None = None
    filler: StoreFiller | None = None

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.backbone.device

    @property
    def training_images(self) -> Images:
        """The images of a job that trains something."""
        assert self.images is not None  # a method with parameters was given images
        return self.images

    @property
    def chosen_on_test(self) -> Images | None:
        """The test images that choose an epoch: those of labeled classes; None where none do."""
        if self.choice.optim.selection != "test" or self.test is None:
            return None
        return self.test.of_classes(self.classes.labeled)

    def hashes(self) -> dict[str, str]:
        """Hashes of what goes in, by name."""
        return {
            "backbone": self.backbone.identity,
            "weights": self.backbone.weights_hash,
            "class_list": class_list_hash(self.classes.names),
            **({} if self.images is None else {"image_list": self.images.list_hash}),
            **({} if self.labeled is None else {"labeled_list": self.labeled.images.list_hash}),
            **({} if self.pool is None else {"unlabeled_list": self.pool.list_hash}),
            **({} if self.validation is None else {"validation_list": self.validation.list_hash}),
            **({} if self.chosen_on_test is None else {"test_list": self.chosen_on_test.list_hash}),
            **({} if self.filler is None else {"teacher_store": self.filler.store.key}),
            **self.sources,
        }

    def key(self) -> str:
        """Equal for two jobs that must give the same weights."""
        return sha256_json(
            {
                "role": self.role,
                **settings_record(self.choice),
                "optim": self.choice.optim.model_dump(mode="json", exclude=FREE_SETTINGS),
                "template": self.classes.template,
                "split": self.classes.split,
                "seed": self.loaded.recipe.seed,
                **self._views(),
                **self.hashes(),
            }
        )

    def _views(self) -> dict[str, int]:
        """What is said of views where they are not simply the epochs' own."""
        drawn = {} if self.view_seed is None else {"view_seed": self.view_seed}
        stored = {} if self.filler is None else {"views": self.filler.store.n_views}
        return {**drawn, **stored}


def batches_of(
    job: Job,
    epoch: int,
    first_step: int,
    *,
    features: FeaturesOfViews | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[Batch]:
    """The training batches of an epoch (from 1), from a step (from 0) on.

    Where features are stored, epochs go through the views that they are of, again and again.
    """
    optim, seed = job.choice.optim, job.loaded.recipe.seed
    n_views = optim.epochs if job.filler is None else job.filler.store.n_views
    view_seed = seed if job.view_seed is None else job.view_seed
    images, labeled = job.training_images, None
    if job.labeled is not None:
        beside = job.labeled
        labeled = LabeledStream(
            ImageSet(beside.images.source, beside.images.indices, labels=beside.labels),
            optim.labeled_batch_size or optim.batch_size,
        )
    return training_batches(
        ImageSet(images.source, images.indices, job.labels, job.weights, features),
        Preparation(
            job.backbone.preprocess,
            Augmentation(view_seed, optim.crop_scale_min, optim.flip, optim.strong_views),
            with_clean=job.choice.module.METHOD.needs_clean_images,
        ),
        EpochPart(seed, epoch, optim.batch_size, first_step, view=(epoch - 1) % n_views + 1),
        Loading(optim.n_workers, job.device, group),
        labeled=labeled,
    )


def zero_shot(job: Job) -> Method:
    """Zero-shot CLIP with the recipe's template on a job's backbone, which has texts."""
    choice = MethodChoice("zeroshot", zeroshot, zeroshot.Settings(), job.choice.optim)
    return build_method(choice, job.backbone, job.classes, seed=job.loaded.recipe.seed)
