"""What one run trains: a role's method, its images, and what it learns from.

A job is cheap: its key is a hash of hashes, and the method is built on first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch

from kdedge.data.batch import Batch, FeaturesOfViews, Weights
from kdedge.data.classes import class_list_hash
from kdedge.data.images import Images
from kdedge.data.loader import (
    EpochPart,
    ImageSet,
    LabeledStream,
    Loading,
    Preparation,
    n_steps,
    training_batches,
)
from kdedge.data.views import Augmentation
from kdedge.methods import zeroshot
from kdedge.methods.protocol import LearnsFromTexts, Method, Teacher
from kdedge.progress import working
from kdedge.runs.model import MethodModel
from kdedge.runs.weights import class_vectors_provenance, hash_trained
from kdedge.setup.classes import Classes
from kdedge.setup.method import MethodChoice
from kdedge.setup.role import RoleSetup
from kdedge.training.job.key import job_key, own_view_seed
from kdedge.training.loop.optim import check_fits
from kdedge.training.loop.train import Epochs
from kdedge.training.teacher_store.fill import StoreFiller
from kdedge.training.teachers import AnyTeacher, ModelTeacher


@dataclass(frozen=True)
class LabeledImages:
    """Images with labels, by position in their source."""

    images: Images
    labels: dict[int, int]


@dataclass(frozen=True)
class TrainingData:
    """What a method is trained on.

    Attributes:
        images: training images. None if the method trains nothing, or learns only from
            pseudo-labels, which each round adds.
        labels: position in the source -> label in a batch, or None to train without labels.
        pool: unlabeled images that the method pseudo-labels in rounds, if it does.
        labeled: labeled images added to each batch, for a method that learns from both kinds.
        weights: weights of the images in the loss, if they differ.
        sentences: sentences about each class, for a method that learns from texts.
        hashes: further hashes of the training data, for the key.
    """

    images: Images | None = None
    labels: dict[int, int] | None = None
    pool: Images | None = None
    labeled: LabeledImages | None = None
    weights: Weights | None = None
    sentences: Sequence[Sequence[str]] | None = None
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOut:
    """Labeled images that are not trained on.

    Attributes:
        test: accuracy is measured on these.
        validation: these select the best epoch.
    """

    test: Images | None = None
    validation: Images | None = None


@dataclass(frozen=True)
class Teaching:
    """What a student learns from.

    Attributes:
        teacher: the frozen teacher.
        filler: stores its features; None if it runs in every step.
    """

    teacher: AnyTeacher
    filler: StoreFiller | None = None

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of what teaches, by name."""
        store = {} if self.filler is None else {"teacher_store": self.filler.store.key}
        return {**store, "teacher": self.teacher.provenance}


@dataclass(frozen=True)
class Job:
    """What one run trains.

    Attributes:
        setup: role, recipe, method, classes and backbone.
        data: training data.
        held_out: test and validation images.
        teaching: what a student learns from; None without a teacher.
    """

    setup: RoleSetup
    data: TrainingData
    held_out: HeldOut = field(default_factory=HeldOut)
    teaching: Teaching | None = None

    @cached_property
    def method(self) -> Method:
        """The method, built on first use with its first values."""
        with working(f"preparing {self.choice.name} on {self.setup.backbone.name}"):
            if self.teaching is None:
                method = self.setup.build()
            else:
                method = self.setup.build(teacher=self.teacher)
        if self.data.sentences is not None:
            assert isinstance(method, LearnsFromTexts)  # else no texts were read
            method.use_texts(self.data.sentences)
        return method

    @cached_property
    def teacher(self) -> Teacher:
        """What teaches a student, for its images; for any images if only its store is read."""
        assert self.teaching is not None
        taught = self.teaching.teacher
        if self.choice.is_solved and self.filler is not None and isinstance(taught, ModelTeacher):
            return taught.model
        return taught.for_student(self.setup.backbone)

    def prepare(self) -> None:
        """Builds the method and loads the teacher's weights, so that their errors are raised."""
        if self.teaching is not None:
            self.teaching.teacher.load()
        check_fits(self.method, self.choice.optim)

    def with_data(self, data: TrainingData) -> Job:
        """The same job and method object with other training data."""
        job = replace(self, data=data)
        job.__dict__["method"] = self.method  # where cached_property keeps it
        return job

    @property
    def n_steps(self) -> int:
        """Steps per epoch."""
        return n_steps(len(self.training_images.indices), self.choice.optim.batch_size)

    def epochs(self, features: FeaturesOfViews | None = None) -> Epochs:
        """Batches of all epochs.

        Args:
            features: stored features, which replace the teacher.
        """
        return Epochs(partial(batches_of, self, features=features), self.n_steps)

    def model(self) -> MethodModel:
        """The method with its current weights, as a model."""
        return MethodModel(self.setup, self.method)

    @property
    def choice(self) -> MethodChoice:
        """The method with its settings."""
        return self.setup.choice

    @property
    def classes(self) -> Classes:
        """The class list."""
        return self.setup.classes

    @property
    def device(self) -> torch.device:
        """Device of the training."""
        return self.setup.device

    @property
    def training_images(self) -> Images:
        """The training images; only for a job that trains something."""
        assert self.data.images is not None  # a method with parameters was given images
        return self.data.images

    @property
    def filler(self) -> StoreFiller | None:
        """Stores the teacher's features; None if they are not stored."""
        return None if self.teaching is None else self.teaching.filler

    @property
    def selecting_images(self) -> Images | None:
        """Images that select the best epoch: for validation, or test images of labeled classes."""
        if self.held_out.validation is not None:
            return self.held_out.validation
        return self._selecting_test_images

    @property
    def _selecting_test_images(self) -> Images | None:
        test = self.held_out.test
        if self.choice.optim.selection != "test" or test is None:
            return None
        return test.of_classes(self.classes.labeled)

    def provenance(self) -> str:
        """Provenance hash of the class vectors, with the tensors as they are now."""
        if self.teaching is not None and not self.choice.settings.has_own_class_vectors:
            return self.teaching.teacher.provenance
        return class_vectors_provenance(self.setup, hash_trained(self.method), self.classes)

    def hashes(self) -> dict[str, str]:
        """Hashes of backbone, class list, images and teacher, by name."""
        backbone = self.setup.backbone
        lists = {
            "image_list": self.data.images,
            "labeled_list": None if self.data.labeled is None else self.data.labeled.images,
            "unlabeled_list": self.data.pool,
            "validation_list": self.held_out.validation,
            "test_list": self._selecting_test_images,
        }
        return {
            "backbone": backbone.identity,
            "weights": backbone.weights_hash,
            "class_list": class_list_hash(self.classes.names),
            **{name: images.list_hash for name, images in lists.items() if images is not None},
            **({} if self.teaching is None else self.teaching.hashes),
            **self.data.hashes,
        }

    def key(self) -> str:
        """The job's key: equal keys mean equal trained weights."""
        return job_key(self.setup.role, self.setup.loaded.recipe, self.choice, self.hashes())


def batches_of(
    job: Job,
    epoch: int,
    first_step: int,
    *,
    features: FeaturesOfViews | None = None,
) -> Iterator[Batch]:
    """The training batches of an epoch (from 1), from a step (from 0) on.

    With stored features, the epochs cycle through the stored views.
    """
    optim, setup, data = job.choice.optim, job.setup, job.data
    n_views = optim.epochs if job.filler is None else job.filler.store.n_views
    own_seed = own_view_seed(setup.loaded.recipe) if setup.role == "student" else None
    view_seed = setup.seed if own_seed is None else own_seed
    images, labeled = job.training_images, None
    if data.labeled is not None:
        beside = data.labeled
        labeled = LabeledStream(
            ImageSet(beside.images.source, beside.images.indices, labels=beside.labels),
            optim.labeled_batch_size or optim.batch_size,
        )
    return training_batches(
        ImageSet(images.source, images.indices, data.labels, data.weights, features),
        Preparation(
            setup.backbone.preprocess,
            Augmentation(view_seed, optim.crop_scale_min, optim.flip, optim.strong_views),
            with_clean=job.choice.module.METHOD.needs_clean_images,
        ),
        EpochPart(setup.seed, epoch, optim.batch_size, first_step, view=(epoch - 1) % n_views + 1),
        Loading(optim.n_workers, job.device, setup.workspace.group),
        labeled=labeled,
    )


def zero_shot_model(job: Job) -> MethodModel:
    """Zero-shot CLIP with the recipe's template; the backbone must have a text encoder."""
    choice = MethodChoice(
        "zeroshot", zeroshot, zeroshot.Settings(), job.choice.optim, job.setup.role
    )
    setup = replace(job.setup, choice=choice)
    return MethodModel(setup, setup.build())
