"""Runs as models: a finished run opened for a class list."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdedge._files import sha256_json
from kdedge.clip.backbone import Backbone
from kdedge.clip.class_vectors import ClassVectors, load_class_vectors
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.weights import hash_weights
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.errors import DataError, SetupError
from kdedge.methods.protocol import ImagePath, Method, WithoutClassVectors
from kdedge.runs.folder import RunFolder
from kdedge.runs.weights import load_trained, made_by
from kdedge.setup.backbone import load_role_backbone, load_student_backbone
from kdedge.setup.classes import Classes
from kdedge.setup.method import (
    build_method,
    check_has_class_vectors,
    choose_method,
    settings_record,
)


class StoredTeacher:
    """A trained teacher with its stored class vectors, frozen.

    Attributes:
        scale: `logit_scale.exp()`.
        backbone: its frozen CLIP.
        stored: its class vectors.
        features_made_by: hash of what its image features depend on; no class name is among it.
        run_name: where it was trained; None for one that is not.
    """

    def __init__(
        self,
        method: Method,
        vectors: ClassVectors,
        backbone: AnyBackbone,
        *,
        record: Mapping[str, Any],
        run_name: str | None = None,
    ) -> None:
        self.scale = method.scale
        self.backbone = backbone
        self.run_name = run_name
        self.stored = vectors
        trained = hash_weights(method.module.state_dict())
        self.features_made_by = sha256_json([backbone.identity, trained, dict(record)])
        self._method = method
        self._vectors = vectors.vectors.to(backbone.device)

    def class_vectors(self) -> Tensor:
        """[C, D_teacher]."""
        return self._vectors

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher]."""
        return self._method.forward_features(images)

    def image_path(self) -> ImagePath:
        """The parts that `forward_features` runs."""
        return self._method.image_path()


class _Reordered:
    """A method without class vectors, its logits in the order of another class list.

    Args:
        method: of its own class list.
        columns: where in that list the names of the other one are.
    """

    def __init__(self, method: WithoutClassVectors, columns: list[int]) -> None:
        self._method, self._columns = method, columns

    def own_logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C]."""
        return self._method.own_logits(images)[:, self._columns]


def load_without_class_vectors(
    run: RunFolder, classes: Classes, *, device: torch.device, cache: Path | None
) -> tuple[WithoutClassVectors, Backbone]:
    """Loads a finished run of a method without class vectors for a class list, to measure it.

    Raises:
        DataError: a name has no part in what was trained for each class.
    """
    loaded = load_recipe(run.recipe)
    choice = choose_method(loaded, run.kind)
    backbone = load_role_backbone(loaded.recipe, run.kind, device=device, cache=cache)
    stored = load_class_vectors(run.class_vectors)
    is_class_specific = choice.settings.is_class_specific
    built_for = classes
    if is_class_specific:
        _check_trained(run, stored.class_names, classes.names)
        built_for = replace(classes, names=stored.class_names)
    method = build_method(choice, backbone, built_for, seed=loaded.recipe.seed)
    load_trained(method, run.weights, backbone, made_by=stored.made_by)
    assert isinstance(method, WithoutClassVectors)
    if is_class_specific:
        position = {name: index for index, name in enumerate(stored.class_names)}
        return _Reordered(method, [position[name] for name in classes.names]), backbone
    return method, backbone


def _check_trained(run: RunFolder, trained: Sequence[str], names: Sequence[str]) -> None:
    """Sees to it that a method with a trained part for each class has one for these names.

    Raises:
        DataError: it has not.
    """
    new = [name for name in names if name not in trained]
    if new:
        raise DataError(
            f"{len(new)} class names have no part in {run.weights}, first {new[0]!r}: something of"
            " its own was trained for each class.\n"
            f"  Use names among its {len(trained)}, or train again with the new list."
        )


def load_teacher(
    run: RunFolder, classes: Classes, *, device: torch.device, cache: Path | None
) -> StoredTeacher:
    """Loads a finished teacher or baseline run for a class list.

    Stored class vectors are taken by name, in the order of `classes`. Names without one are encoded
    by the run's own text tower.

    Raises:
        RecipeError: its method has no class vectors.
        DataError: the stored class vectors were not made by the stored weights, or nothing
            was trained for a new name.
    """
    loaded = load_recipe(run.recipe)
    choice = choose_method(loaded, run.kind)
    check_has_class_vectors(choice)
    backbone = load_role_backbone(loaded.recipe, run.kind, device=device, cache=cache)

    def trained_on(names: Classes) -> Method:
        method = build_method(choice, backbone, names, seed=loaded.recipe.seed)
        load_trained(method, run.weights, backbone)
        return method

    vectors = load_class_vectors(run.class_vectors)
    own = Classes(
        vectors.class_names,
        loaded.recipe.classes.template,
        loaded.recipe.data.split,
        has_pseudo_labels=loaded.recipe.data.pseudo_labels is not None,
    )
    method, record = trained_on(own), settings_record(choice)
    if vectors.made_by != made_by(backbone, method.module, own, record):
        raise DataError(
            f"{run.class_vectors} was not made by {run.weights.name} beside it.\n"
            "  One of the two was replaced, or the vectors were stored before the weights were"
            " loaded: train or import this teacher again."
        )
    if choice.settings.is_class_specific:
        _check_trained(run, own.names, classes.names)
    if set(classes.names) <= set(own.names):
        vectors = vectors.select(classes.names)
    else:
        vectors = _encode(trained_on(classes), backbone, classes, record)
    method.module.requires_grad_(False)
    return StoredTeacher(method, vectors, backbone, record=record, run_name=run.name)


def untrained_teacher(
    method: Method, backbone: AnyBackbone, classes: Classes, record: Mapping[str, Any]
) -> StoredTeacher:
    """A teacher with the prompts it starts from: a trial step costs what a real one does."""
    vectors = _encode(method, backbone, classes, record)
    return StoredTeacher(method, vectors, backbone, record=record)


def _encode(
    method: Method, backbone: AnyBackbone, classes: Classes, record: Mapping[str, Any]
) -> ClassVectors:
    """The class vectors of a method as it is now."""
    maker = made_by(backbone, method.module, classes, record)
    return ClassVectors(method.class_vectors().cpu(), classes.names, maker)


class StoredVectors:
    """The class vectors that a student keeps of its teacher: enough to answer, not to learn.

    Attributes:
        scale: not known without the teacher; the student has its own.
    """

    scale = float("nan")

    def __init__(self, vectors: ClassVectors, device: torch.device) -> None:
        self._vectors = vectors.vectors.to(device)

    def class_vectors(self) -> Tensor:
        """[C, D_teacher]."""
        return self._vectors

    def forward_features(self, images: Tensor) -> Tensor:
        """There is no teacher here."""
        raise SetupError("Only the teacher's class vectors are here, not the teacher.")


def load_student(
    run: RunFolder,
    loaded: LoadedRecipe,
    classes: Classes,
    *,
    device: torch.device,
    cache: Path | None,
) -> tuple[Method, AnyBackbone]:
    """Loads a student run for a class list; class vectors go by name, in the order of `classes`."""
    stored = load_class_vectors(run.class_vectors)
    selected = stored.select(classes.names)
    if classes.names != stored.class_names:
        logging.getLogger(__name__).warning(
            "The class list is not the one of the run (%s): class vectors go by name, base and"
            " novel by the list as it is now.",
            "the same names in another order"
            if set(classes.names) == set(stored.class_names)
            else f"{len(classes.names)} of its {len(stored.class_names)} names",
        )
    choice = choose_method(loaded, "student")
    backbone = load_student_backbone(loaded.recipe, choice, device=device, cache=cache)
    method = build_method(
        choice,
        backbone,
        classes,
        seed=loaded.recipe.seed,
        teacher=StoredVectors(selected, device),
    )
    load_trained(method, run.weights, backbone, made_by=stored.made_by)
    return method, backbone
