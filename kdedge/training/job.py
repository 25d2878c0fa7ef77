"""What one run trains: a role's method, its images, and what it learns from; and its key.

A job is cheap: its key is a hash of hashes, and the method is built on first use.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from kdedge.config.recipe import Recipe
from kdedge.data.classes import class_list_hash
from kdedge.data.images import Images
from kdedge.errors import RecipeError
from kdedge.files import sha256_json
from kdedge.loading.batch import Batch, FeaturesOfViews, ImageWeights
from kdedge.loading.decoding import Preparation
from kdedge.loading.loader import n_steps, training_batches
from kdedge.loading.views import Augmentation
from kdedge.methods.base import BaseMethod, Teacher
from kdedge.progress import working
from kdedge.runs.folder import RunFolder
from kdedge.runs.logit_adjustment import check_logit_adjustment
from kdedge.runs.model import MethodModel, RunModel
from kdedge.setup.images import RecipeImages
from kdedge.setup.method import MethodChoice, settings_record
from kdedge.setup.role import RoleSetup
from kdedge.training.loop.optim import check_fits
from kdedge.training.output_store.fill import StoreFiller

log = logging.getLogger(__name__)

_ONLY_SPEED = {"n_workers", "checkpoint_every_s", "micro_batch"}  # keys of `optim`


@dataclass(frozen=True)
class Job:
    """What one run trains.

    Attributes:
        setup: role, recipe, method, classes and backbone.
        labeled: images with labels, also with pseudo-labels; None if it learns from none.
        unlabeled: images without labels; None if it learns from none.
        train_classes: the classes that have labels, in label order; None for the setup's.
        weights: weights of the images in the loss, if they differ.
        sentences: sentences about each class, for a method that learns from texts.
        data_hashes: further hashes of what it learns from, for the key.
        test: labeled images that accuracy is measured on.
        validation: labeled images that select the best epoch.
        teacher: the frozen teacher of a student; None for other roles.
        filler: stores the teacher's features; None if it runs in every step.
    """

    setup: RoleSetup
    labeled: Images | None = None
    unlabeled: Images | None = None
    train_classes: Sequence[int] | None = None
    weights: ImageWeights | None = None
    sentences: Sequence[Sequence[str]] | None = None
    data_hashes: dict[str, str] = field(default_factory=dict)
    test: Images | None = None
    validation: Images | None = None
    teacher: Teacher | None = None
    filler: StoreFiller | None = None

    @property
    def images(self) -> Images | None:
        """The images of an epoch: unlabeled ones, if there are any; labeled ones join each batch.

        None if nothing is trained.
        """
        return self.unlabeled or self.labeled

    @property
    def training_images(self) -> Images:
        """The images of an epoch; only for a job that trains something."""
        assert self.images is not None
        return self.images

    @property
    def labeled_per_batch(self) -> Images | None:
        """The labeled images that join each batch of unlabeled ones."""
        return None if self.unlabeled is None else self.labeled

    @property
    def labels(self) -> Mapping[int, int]:
        """Position in the source -> label of the labeled images."""
        return {} if self.labeled is None else self.labeled.train_labels or {}

    @cached_property
    def method(self) -> BaseMethod:
        """The method, built on first use with its first values."""
        with working(f"preparing {self.setup.method_name} on {self.setup.backbone.name}"):
            return self.setup.build(
                train_classes=self.train_classes,
                teacher=self.teacher,
                sentences=self.sentences,
            )

    def load(self) -> None:
        """Builds the method and loads the teacher's weights; raises their errors."""
        if self.teacher is not None:
            _ = self.teacher.scale
        check_fits(self.method, self.setup.used_optim)

    @property
    def teacher_run(self) -> RunFolder | None:
        """The teacher's run; None for a file, for an untrained teacher, and for other roles."""
        return self.teacher.run if isinstance(self.teacher, RunModel) else None

    @property
    def n_steps(self) -> int:
        """Steps per epoch."""
        return n_steps(len(self.training_images.indices), self.setup.optim.batch_size)

    @property
    def augmentation(self) -> Augmentation:
        """The random changes of its training images."""
        optim = self.setup.optim
        recipe = self.setup.recipe
        seed = view_seed(recipe) if self.setup.role == "student" else recipe.seed
        return Augmentation(seed, optim.crop_scale_min, optim.flip, optim.strong_views)

    def batches(
        self, epoch: int, first_step: int, features: FeaturesOfViews | None = None
    ) -> Generator[Batch, None, None]:
        """The training batches from a step of an epoch on, to the end of the last epoch.

        Args:
            epoch: from 1.
            first_step: from 0.
            features: stored features, which replace the teacher; the epochs cycle through their
                views.
        """
        return training_batches(
            self.training_images,
            Preparation(
                self.setup.backbone.preprocess,
                self.augmentation,
                with_clean=self.setup.module.METHOD.needs_clean_images,
            ),
            self.setup.optim,
            seed=self.setup.recipe.seed,
            epoch=epoch,
            first_step=first_step,
            n_views=None if self.filler is None else self.filler.store.n_views,
            teacher_features=features,
            weights=self.weights,
            labeled=self.labeled_per_batch,
            device=self.setup.device,
            group=self.setup.workspace.group,
        )

    @property
    def truly_labeled(self) -> Images | None:
        """Its labeled images; None if a model gave some of the labels."""
        return None if self.setup.recipe.data.pseudo_labels is not None else self.labeled

    def model(self) -> MethodModel:
        """The method with its current weights, as a model."""
        return MethodModel(self.setup, self.method)

    @property
    def n_rounds(self) -> int:
        """How often the training loop trains its method: once, or as often as its own training."""
        own_training = self.setup.settings.own_training
        return 1 if own_training is None else own_training.n_rounds

    @property
    def selecting_images(self) -> Images | None:
        """Images that select the best epoch: for validation, or test images of labeled classes."""
        return self.validation or self._selecting_test_images

    @property
    def _selecting_test_images(self) -> Images | None:
        if self.setup.optim.selection != "test" or self.test is None:
            return None
        return self.test.of_classes(self.setup.classes.labeled)

    def vectors_hash(self) -> str:
        """Hash of what the class vectors depend on, with the tensors as they are now."""
        if self.teacher is not None and self.setup.settings.classifier == "teacher_vectors":
            return self.teacher.vectors_hash
        return self.model().vectors_hash

    def hashes(self) -> dict[str, str]:
        """Hashes of backbone, class list, images and teacher, by name."""
        setup = self.setup
        backbone = self.setup.backbone
        # The images that give the offsets of its logits; a teacher's offsets are not in its key
        adjustment = None if setup.role == "teacher" else setup.recipe.logit_adjustment
        pool = None if adjustment is None else setup.images.load("unlabeled")
        is_by_labels = adjustment is not None and adjustment.prior == "labels"
        lists = {
            "labeled_list": self.labeled,
            "unlabeled_list": self.unlabeled or pool,
            "prior_list": setup.images.load("labeled") if is_by_labels else None,
            "validation_list": self.validation,
            "test_list": self._selecting_test_images,
        }
        return {
            "backbone": backbone.identity,
            "weights": backbone.weights_hash,
            "class_list": class_list_hash(self.setup.classes.names),
            **{name: images.list_hash for name, images in lists.items() if images is not None},
            **({} if self.filler is None else {"teacher_store": self.filler.store.key}),
            **({} if self.teacher is None else {"teacher": _teacher_hash(self.teacher)}),
            **self.data_hashes,
        }

    def key(self) -> str:
        """The job's key: equal keys mean equal trained weights."""
        return job_key(self.setup.recipe, self.setup, self.hashes())


def _teacher_hash(teacher: Teacher) -> str:
    """Hash of what a teacher's answers depend on; a student's class vectors are not its own."""
    if isinstance(teacher, RunModel) and teacher.run.role == "student":
        return sha256_json([teacher.vectors_hash, teacher.features_hash])
    return teacher.vectors_hash


def zero_shot_model(job: Job) -> MethodModel:
    """Zero-shot CLIP with the recipe's template; the backbone must have a text encoder."""
    setup = job.setup.with_method("zeroshot", job.setup.role)
    return MethodModel(setup, setup.build())


def with_measured_images(job: Job) -> Job:
    """A job with the images that select its epoch and test it.

    Raises:
        RecipeError: the images that select an epoch are missing, or validation images are test
            images; or the recipe's `logit_adjustment` is wrong.
        DataError: the images that select an epoch have none of a labeled class.
    """
    setup = job.setup
    images = setup.images
    selection = setup.optim.selection
    check_logit_adjustment(images)
    test = images.load("test")
    if selection == "test":
        test = images.require("test", "selection: test chooses the epoch on it")
        images.check_has_labeled_classes(test, "test")
    by_validation = selection == "validation"
    labeled = job.labeled if setup.trains_by_gradient else None  # else no epochs
    validation = validation_images(images, labeled, test) if by_validation else None
    return replace(job, test=test, validation=validation)


def validation_images(images: RecipeImages, labeled: Images | None, test: Images | None) -> Images:
    """The validation images, drawn, to select an epoch or a student; warns of `labeled` ones.

    Raises:
        RecipeError: they are missing, or some are test images.
        DataError: they have no image of a labeled class.
    """
    drawn = images.drawn_validation()
    images.check_has_labeled_classes(drawn, "validation")
    shared = () if test is None else drawn.shared_with(test)
    if shared:
        raise RecipeError(
            f"data.validation and data.test share {len(shared)} images, for example"
            f" {drawn.source.items[shared[0]].key}.\n"
            "  Selecting an epoch or a student on test images makes the test accuracy too high:"
            " use other images as data.validation."
        )
    if labeled is not None and (n_shared := len(drawn.shared_with(labeled))):
        log.warning(
            f"An epoch or a student is selected on {n_shared} images of data.validation that are"
            " also labels to train on.\n  Use other images as data.validation."
        )
    return drawn


def job_key(recipe: Recipe, choice: MethodChoice, hashes: Mapping[str, str]) -> str:
    """Hash of everything that decides a run's final weights, and the offsets of its logits.

    Args:
        recipe: gives seed, template, split and views.
        choice: the role, the method, its settings and how it is optimized.
        hashes: of backbone, class list, image lists and teacher, by name.
    """
    role = choice.role
    # A teacher's logits are not adjusted: one serves recipes with adjustment and without
    adjustment = None if role == "teacher" else recipe.logit_adjustment
    is_student = role == "student"
    has_store = is_student and "teacher_store" in hashes
    return sha256_json(
        {
            "role": role,
            **settings_record(choice),
            "optim": choice.used_optim.model_dump(mode="json", exclude=_ONLY_SPEED),
            "template": recipe.classes.template,
            "split": recipe.data.split,
            "seed": recipe.seed,
            "balance": None if adjustment is None else adjustment.model_dump(mode="json"),
            "view_seed": view_seed(recipe) if is_student else None,
            "views": n_stored_views(recipe, choice) if has_store else None,
            **hashes,
        }
    )


def view_seed(recipe: Recipe) -> int:
    """The seed of the student's crops and flips; the recipe's, unless it has one of its own."""
    seed = None if recipe.student is None else recipe.student.view_seed
    return recipe.seed if seed is None else seed


def n_stored_views(recipe: Recipe, choice: MethodChoice) -> int:
    """Views per image in a student's teacher store; at most one for each time it is seen."""
    return min(recipe.needed_student().views, 1 if choice.is_closed_form else choice.optim.epochs)
