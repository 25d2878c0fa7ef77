"""Models with logits for a class list: a run, or a method in training.

`load_run` opens a finished run. It reads hashes and class vectors and checks that they belong
together. The backbone is built and the trained tensors are read when they are first needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kdedge.clip.backbone import ImageBackbone, unit_length
from kdedge.clip.class_vectors import ClassVectors, load_class_vectors
from kdedge.clip.vision import encode_image
from kdedge.config.load import load_recipe, recipe_values
from kdedge.config.recipe import Recipe
from kdedge.data.images import Images
from kdedge.errors import DataError, DivergedError, KdedgeError, RecipeError
from kdedge.loading.decoding import converted
from kdedge.loading.loader import evaluation_batches
from kdedge.methods.base import BaseMethod
from kdedge.progress import progress
from kdedge.records.evaluation import LogitAdjustment
from kdedge.runs.folder import RunFolder
from kdedge.runs.logit_adjustment import logit_adjustment_of
from kdedge.runs.results import read_logit_adjustment
from kdedge.runs.weights import (
    check_stored_weights,
    class_vectors_hash,
    features_hash,
    hash_trained,
    load_weights,
)
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.classes import Classes, classes_of
from kdedge.setup.images import RecipeImages
from kdedge.setup.method import settings_record
from kdedge.setup.role import RoleSetup, set_up_role
from kdedge.setup.workspace import Workspace, set_up_device

log = logging.getLogger(__name__)

_EVALUATION_BATCH = 100  # images without gradients, as in the methods' public code


class MethodModel:
    """A method as a model of a class list; it can teach (`methods.base.Teacher`).

    Its tensors may change, as in training.

    Attributes:
        setup: its role's method, classes and backbone.
        classes: the class list of its logits; a finished run may have another than in training.
    """

    def __init__(
        self,
        setup: RoleSetup,
        method: BaseMethod | None = None,
        *,
        classes: Classes | None = None,
        logit_adjustment: LogitAdjustment | None = None,
    ) -> None:
        """Makes a model of a method.

        Args:
            setup: its role's method, classes and backbone.
            method: the method, in the mode (evaluation or training) that its owner chose; None to
                build it on first use, see `build_method`.
            classes: the class list of its logits; None for the setup's.
            logit_adjustment: see `logit_adjustment`.
        """
        self.setup = setup
        self.classes = setup.classes if classes is None else classes
        self._method = method
        self._logit_adjustment = logit_adjustment

    @property
    def method(self) -> BaseMethod:
        """The method; built on first use if it was not given."""
        if self._method is None:
            self._method = self.build_method()
        return self._method

    def build_method(self) -> BaseMethod:
        """The method with its first values, untrained."""
        return self.setup.build()

    @property
    def logit_adjustment(self) -> LogitAdjustment | None:
        """What brings its classes into balance; None if the recipe does not ask for it."""
        return self._logit_adjustment

    @cached_property
    def offsets(self) -> Tensor | None:
        """[C], subtracted from its logits (`clip/logit_adjustment.py`), or None."""
        if self.logit_adjustment is None:
            return None
        offsets = [self.logit_adjustment.offsets[name] for name in self.class_names]
        return torch.tensor(offsets, device=self.device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C classes, in the order of the logits."""
        return self.classes.names

    @property
    def features_hash(self) -> str:
        """Hash of what image features depend on, with the tensors as they are now."""
        return features_hash(self.setup, hash_trained(self.method))

    @property
    def vectors_hash(self) -> str:
        """Hash of what class vectors depend on, with the tensors as they are now."""
        return class_vectors_hash(self.setup, hash_trained(self.method), self.setup.classes)

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of its images."""
        return self.setup.backbone.preprocess

    @property
    def device(self) -> torch.device:
        """The device of its images and results."""
        return self.setup.device

    @property
    def scale(self) -> float:
        """`logit_scale.exp()`, or a method's own scale."""
        return self.method.scale

    def class_vectors(self) -> Tensor:
        """[C, D], float32, in class-list order, no graph; computed once."""
        return self._class_vectors

    @cached_property
    def _class_vectors(self) -> Tensor:
        return self.method.class_vectors()

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], float32, no graph; unit length for class vectors."""
        return self.method.forward_features(images)

    def teacher_features(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        """[B, 3, H, W] -> [B, D] of a student's batch, which is prepared anew for this model."""
        return self.forward_features(converted(images, preprocess, self.preprocess))

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], float32, no graph; in balance where the recipe asks for it."""
        logits = self.plain_logits(images)
        return logits if self.offsets is None else logits - self.offsets

    @torch.no_grad()
    def plain_logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], float32, as the method gives them."""
        if self.setup.settings.classifier == "own_logits":
            return self.method.own_logits(images)
        return self.scale * self.forward_features(images) @ self.class_vectors().T

    @torch.no_grad()
    def teacher_logits(self, features: Tensor, keys: Sequence[str]) -> Tensor:
        """[B, D] -> [B, C]; `keys` are for teachers that look up images by name."""
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * features.float() @ self.class_vectors().T

    @torch.no_grad()
    def features_of(self, images: Images, *, what: str) -> Tensor:
        """[N, D], float32, unit length, on the CPU: features of images, as `logits_of` reads them.

        They are the frozen encoder's if the method's own features are its logits.
        """

        def encoded(images: Tensor) -> Tensor:
            return unit_length(encode_image(self.setup.load_backbone().visual, images))

        are_logits = self.setup.settings.classifier == "feature_logits"
        return self._outputs_of(images, encoded if are_logits else self.forward_features, what)

    @torch.no_grad()
    def logits_of(self, images: Images, *, what: str, without_offsets: bool = False) -> Tensor:
        """Logits of images over all classes, without crops or flips; no labels are needed.

        Args:
            images: the images, which it prepares by itself.
            what: name of the work, for progress.
            without_offsets: leave the logits as the method gives them, out of balance.

        Returns:
            [N, C] float32, on the CPU, in the images' order.

        Raises:
            DivergedError: a logit is not finite.
        """
        return self._outputs_of(images, self.plain_logits if without_offsets else self.logits, what)

    def _outputs_of(self, images: Images, forward: Callable[[Tensor], Tensor], what: str) -> Tensor:
        parts: list[Tensor] = []
        batches = evaluation_batches(
            images.source,
            images.indices,
            preprocess=self.preprocess,
            batch_size=_EVALUATION_BATCH,
            n_workers="auto",
            device=self.device,
        )
        n_done = 0
        with progress(what, len(images.indices), unit="images") as advance:
            for batch, indices in batches:
                parts.append(forward(batch).cpu())
                n_done += len(indices)
                advance(n_done)
        outputs = torch.cat(parts)
        n_bad = int((~outputs.isfinite().all(dim=1)).sum())
        if n_bad:
            raise DivergedError(
                f"The model's outputs are NaN or infinity for {n_bad} of {len(outputs)} images.\n"
                "  Its training diverged: train again with a lower optim.lr, optim.precision: fp32"
                " or optim.clip_grad_norm: 1.0."
            )
        return outputs


class RunModel(MethodModel):
    """A finished run as a model of a class list; `load_run` opens one.

    Attributes:
        setup: its method and backbone, with the class list that it was trained with.
        classes: the class list of its logits and class vectors.
        run: the run.
        images: those of its recipe with overrides, for measuring and exporting; their labels are
            positions in `images.classes`.
        recorded_recipe: its recipe without overrides.
        stored: the class vectors that the run has stored.
        trained_hash: hash of its trained tensors.
    """

    def __init__(
        self,
        setup: RoleSetup,
        *,
        classes: Classes,
        run: RunFolder,
        images: RecipeImages,
        recorded_recipe: Recipe,
        stored: ClassVectors,
    ) -> None:
        """Makes the model; its arguments are its attributes.

        Raises:
            DataError: files of the run are damaged or do not match.
        """
        super().__init__(setup, classes=classes)
        self.run = run
        self.images = images
        self.recorded_recipe = recorded_recipe
        self.stored = stored
        self.trained_hash = check_stored_weights(run, setup, stored)

    @property
    def recipe(self) -> Recipe:
        """Its recipe with overrides."""
        return self.images.recipe

    @property
    def backbone(self) -> ImageBackbone:
        """Its frozen CLIP, or only an image encoder; built on first use."""
        return self.setup.load_backbone()

    def build_method(self) -> BaseMethod:
        """The method with its trained tensors, frozen, in evaluation mode."""
        settings = self.setup.settings
        is_as_trained = settings.classifier != "own_logits" or settings.is_class_specific
        return self._trained_method(self.setup.classes if is_as_trained else self.classes)

    def _trained_method(self, classes: Classes) -> BaseMethod:
        """The method for a class list, with the run's tensors, frozen."""
        vectors = None
        if self.run.role == "student":
            vectors = self.stored.vectors.to(self.device)
        method = replace(self.setup, classes=classes).build(class_vectors=vectors)
        load_weights(self.run.weights, method)
        method.module.requires_grad_(False)
        return method

    @cached_property
    def scale(self) -> float:
        """`logit_scale.exp()`, or a method's own scale; read from the method once."""
        return self.method.scale

    @cached_property
    def _class_vectors(self) -> Tensor:
        """[C, D], float32; [C, 0] for a method without class vectors.

        Raises:
            DataError: a name has no stored vector, and the teacher is missing or did not make the
                stored ones.
        """
        if self.setup.settings.classifier == "own_logits":
            return torch.empty(len(self.class_names), 0, device=self.device)
        if self._has_stored_vectors:
            position = {name: row for row, name in enumerate(self.stored.class_names)}
            rows = [position[name] for name in self.class_names]
            return self.stored.vectors[rows].to(self.device)
        if self.run.role == "student":
            return self._teacher.class_vectors()
        return self._trained_method(self.classes).class_vectors()

    @property
    def vectors_hash(self) -> str:
        """Hash of what class vectors depend on; encodes no text.

        Raises:
            DataError: as for class vectors.
        """
        if self._has_stored_vectors:
            return self.stored.vectors_hash
        if self.run.role == "student":
            return self._teacher.vectors_hash
        return class_vectors_hash(self.setup, self.trained_hash, self.classes)

    @property
    def _has_stored_vectors(self) -> bool:
        """Whether every name has a stored vector, or the method has no class vectors."""
        is_known = set(self.class_names) <= set(self.stored.class_names)
        return is_known or self.setup.settings.classifier == "own_logits"

    @cached_property
    def _teacher(self) -> RunModel:
        """A student's teacher with the same class list, for names that have no stored vector.

        Raises:
            DataError: the student made the stored vectors; or the teacher is missing, or did not
                make them.
        """
        stored = self.stored.class_names
        names = self.class_names
        new = [name for name in names if name not in stored]
        what = f"{len(new)} of {len(names)} class names have no stored vector, first {new[0]!r}"
        vectors_file = self.run.class_vectors
        if self.setup.settings.classifier != "teacher_vectors":
            raise DataError(
                f"{what}, and this student made its own (class_vectors: student): the teacher's"
                " would not fit its image features.\n"
                f"  Use names among the {len(stored)} of {vectors_file}, or distill again with the"
                " new list."
            )
        problem = "its teacher is not a run"
        try:
            folder = self.run.teacher_folder()
        except RecipeError:
            problem = "its teacher's run is missing"
            folder = None
        if folder is not None:
            teacher = load_run(folder, self.setup.workspace, names=names)
            if teacher.stored.vectors_hash == self.stored.vectors_hash:
                return teacher
            problem = f"the teacher in {folder.path} did not make the stored vectors"
        raise DataError(
            f"{what}, and {problem}.\n"
            f"  Use names among the {len(stored)} of {vectors_file}, restore the teacher's run, or"
            " distill again."
        )

    def labels_of(self, images: Images) -> list[int | None]:
        """The classes of images as positions in `class_names`; None for classes not in it."""
        listed = self.images.classes.names
        position = {name: index for index, name in enumerate(self.class_names)}
        labels = [images.source.items[index].label for index in images.indices]
        return [None if label is None else position.get(listed[label]) for label in labels]

    @cached_property
    def logit_adjustment(self) -> LogitAdjustment | None:
        """What brings its classes into balance; None if the recipe has no `logit_adjustment`.

        Read from the run; computed again if the recipe's `logit_adjustment`, its images or the
        classes have changed.
        """
        spec = self.recipe.logit_adjustment
        if spec is None:
            return None
        stored = read_logit_adjustment(self.run)
        data = self.recipe.data
        own = self.recorded_recipe.data
        now = (spec.prior, spec.strength, set(self.class_names), data.unlabeled, data.labeled)
        if stored:
            of = (stored.prior, stored.strength, set(stored.offsets), own.unlabeled, own.labeled)
            if now == of:
                return stored
        return logit_adjustment_of(self, self.images)

    def plain_logits(self, images: Tensor) -> Tensor:
        """The logits of `class_names`, whichever classes the method was built for."""
        logits = super().plain_logits(images)
        settings = self.setup.settings
        if settings.classifier != "own_logits" or not settings.is_class_specific:
            return logits
        position = {name: index for index, name in enumerate(self.setup.classes.names)}
        return logits[:, [position[name] for name in self.class_names]]

    @property
    def features_hash(self) -> str:
        """Hash of what image features depend on; no class name is part of it."""
        return features_hash(self.setup, self.trained_hash)

    def provenance(self) -> dict[str, Any]:
        """The provenance of the model, as plain values."""
        record = self.run.read_provenance()
        offsets = self.offsets
        spec = self.recipe.logit_adjustment
        adjustment = {}
        if spec is not None and offsets is not None:
            values = dict(zip(self.class_names, offsets.tolist(), strict=True))
            adjustment = {"balance": {**spec.model_dump(mode="json"), "offsets": values}}
        return {
            "run": self.run.name,
            "role": self.run.role,
            "trained_at": record.finished_at,
            "trained_with": record.versions,
            "seed": record.seed,
            **settings_record(self.setup),
            "backbone": self.setup.backbone.name,
            "hashes": {**record.hashes, "class_vectors": self.vectors_hash},
            "scale": self.scale,
            **adjustment,
        }


def run_workspace(run: RunFolder, device: str | None) -> Workspace:
    """A workspace beside a run, wherever it lies; raises the errors of `set_up_device`."""
    return Workspace(run.root, set_up_device(device))


def load_run(
    run: RunFolder,
    workspace: Workspace,
    *,
    overrides: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
) -> RunModel:
    """Opens a finished run as a model.

    Args:
        run: run of a teacher, a student or a baseline.
        workspace: builds its backbone.
        overrides: other keys of the run's recipe.
        names: the class list; default: the run's own. Names without a stored vector are encoded by
            the run's text encoder, or by the teacher's for a student.
        label_names: the class list in which labels are positions; default: the run's own.

    Raises:
        RecipeError: the run is not finished.
        DataError: files of the run are damaged or do not match, or a name needs a tensor that was
            not trained.
    """
    if not run.is_finished:
        raise RecipeError(f"{run.path} is not finished.\n  Resume it, or name a finished run.")
    loaded = load_recipe(run.recipe, overrides)
    stored = load_class_vectors(run.class_vectors)
    trained = load_recipe(run.recipe) if overrides else loaded
    trained_classes = classes_of(trained.recipe, stored.class_names)
    # For a student, overrides may name the new place of its backbone's weights
    source = loaded if run.role == "student" else trained
    setup = set_up_role(source, run.role, workspace, classes=trained_classes)
    classes = trained_classes if names is None else classes_of(loaded.recipe, names)
    listed = trained_classes if label_names is None else classes_of(loaded.recipe, label_names)
    images = RecipeImages(loaded.recipe, listed, workspace)
    model = RunModel(
        setup,
        classes=classes,
        run=run,
        images=images,
        recorded_recipe=trained.recipe,
        stored=stored,
    )
    new = [name for name in classes.names if name not in trained_classes.names]
    if new and setup.settings.is_class_specific:
        raise DataError(
            f"{len(new)} class names have no tensors in {run.weights}, first {new[0]!r}: the method"
            " trains separate tensors for each class.\n"
            f"  Use names among its {len(trained_classes.names)}, or train again with the new list."
        )
    return model


def warn_of_other_test_images(model: RunModel, images: Images | None) -> None:
    """Warns if a run's recipe has other test images now than when the run was measured.

    Nothing is said of images or classes that overrides name.
    """
    has_own_images = model.recipe.data.test == model.recorded_recipe.data.test
    is_own = has_own_images and model.class_names == model.setup.classes.names
    measured_on = model.run.read_provenance().measured_on
    if images is not None and is_own and measured_on not in (None, images.list_hash):
        log.warning(
            f"The test images of {model.run.name} are others than it was measured on: added,"
            " removed, renamed or changed.\n"
            "  Do not compare the figures from before with those from now."
        )


def load_teacher(
    run: RunFolder,
    workspace: Workspace,
    recipe: Recipe,
    names: Sequence[str],
    label_names: Sequence[str] | None = None,
) -> RunModel:
    """Opens a finished run as the teacher of a recipe's student, as `load_run` does.

    Its classes are brought into the balance of that recipe, so that both are compared on equal
    terms.

    Args:
        run: the teacher's run.
        workspace: builds its backbone.
        recipe: the student's, which names the images.
        names: the student's class list.
        label_names: the class list in which labels are positions; default: the same.
    """
    values = recipe_values(recipe)
    listed = label_names or names
    overrides = {key: values.get(key) for key in ("data", "logit_adjustment")}
    return load_run(run, workspace, overrides=overrides, names=names, label_names=listed)


def load_teacher_of(model: RunModel) -> RunModel | None:
    """The teacher of a student; None if it is missing or a file, or the model is no student."""
    try:
        run = model.run.teacher_folder()
        if run is None:
            return None
        workspace = model.setup.workspace
        listed = model.images.classes.names
        teacher = load_teacher(run, workspace, model.recipe, model.class_names, listed)
        _ = teacher.logit_adjustment  # found now, so that its error leaves the teacher out, too
    except KdedgeError as error:
        log.warning(f"The teacher's predictions are left out: {error}")
        return None
    return teacher
