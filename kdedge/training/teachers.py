"""Teachers and baselines that are stored: found by what made them, loaded, checked, frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kdedge._files import sha256_json, write_atomic
from kdedge.clip.backbone import Backbone, hash_weights
from kdedge.clip.class_vectors import ClassVectors, load_class_vectors
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.tensor_file import encode_tensors
from kdedge.config.load import load_recipe
from kdedge.errors import DataError, RecipeError
from kdedge.methods._protocol import ImagePath, Method, WithoutClassVectors
from kdedge.training.parts import (
    Classes,
    MethodChoice,
    build_method,
    choose_method,
    load_role_backbone,
    settings_record,
)
from kdedge.training.runs import RunFolder


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


def made_by(
    backbone: AnyBackbone, module: nn.Module, classes: Classes, method: Mapping[str, Any]
) -> str:
    """Hash of what class vectors depend on.

    Args:
        backbone: the frozen CLIP.
        module: the trained tensors.
        classes: names and template.
        method: its name and settings, as `parts.settings_record` gives them.
    """
    trained = hash_weights(module.state_dict())
    return sha256_json(
        [backbone.identity, trained, list(classes.names), classes.template, dict(method)]
    )


def store_trained(
    run: RunFolder,
    *,
    method_name: str,
    method: Method,
    backbone: AnyBackbone,
    classes: Classes,
    made_by: str,
) -> None:
    """Writes what was trained, and the class vectors made by exactly that.

    Args:
        run: where to.
        method_name: as in recipes.
        method: with its trained tensors in place: class vectors are computed here and not before.
        backbone: the frozen CLIP under it, kept by hash.
        classes: all of them.
        made_by: hash of what the class vectors depend on.
    """
    method.module.eval()
    state = {key: value.cpu().contiguous() for key, value in method.module.state_dict().items()}
    metadata = {
        "method": method_name,
        "backbone": backbone.identity,
        "backbone_name": backbone.name,
        "trained": hash_weights(state),
        "class_vectors": made_by,
    }
    write_atomic(run.weights, encode_tensors(state, metadata))
    ClassVectors(method.class_vectors().cpu(), classes.names, made_by).save(run.class_vectors)


def load_trained(
    method: Method, path: Path, backbone: AnyBackbone, *, made_by: str | None = None
) -> None:
    """Puts a run's trained tensors into a freshly built method, strictly.

    Args:
        method: built from the run's recipe.
        path: the run's file of trained tensors.
        backbone: under the method.
        made_by: of the class vectors that go with it; None where the caller checks them itself.

    Raises:
        DataError: the file is missing or damaged, belongs to other weights, to other class vectors
            or to a method of other sizes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.\n"
            "  The file is missing or damaged: train or import again, which makes a new run."
        ) from error
    if metadata.get("backbone") != backbone.identity:
        raise DataError(
            f"{path} was trained on another backbone than {backbone.name} as it is now: weights,"
            " activation or preprocessing differ (hash"
            f" {metadata.get('backbone', 'missing')[:12]}, now {backbone.identity[:12]}).\n"
            "  Use the weights of that run; its recipe.yaml names them."
        )
    expected = {key: tuple(value.shape) for key, value in method.module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if expected != found:
        odd = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise DataError(
            f"{path} holds other tensors than its recipe builds, first {odd}:"
            f" {found.get(odd, 'missing')} where {expected.get(odd, 'nothing')} is expected.\n"
            "  Put back the recipe.yaml that this run was made with, or train again."
        )
    if metadata.get("trained") != hash_weights(state):
        raise DataError(
            f"{path} is damaged: its tensors are not the ones that were written.\n"
            "  Train or import again, which makes a new run."
        )
    if made_by is not None and metadata.get("class_vectors") != made_by:
        raise DataError(
            f"{path} was trained with other class vectors than those beside it.\n"
            "  One of the two files was replaced: train or import again, which makes a new run."
        )
    method.module.load_state_dict(state)
    method.module.eval()


def has_class_vectors(choice: MethodChoice) -> bool:
    """Whether a method's logits are cosines with one vector a class."""
    return not issubclass(choice.module.Method, WithoutClassVectors)


def check_has_class_vectors(choice: MethodChoice) -> None:
    """Refuses a method as a teacher and for export that can be neither.

    Raises:
        RecipeError: it has no class vectors.
    """
    if not has_class_vectors(choice):
        raise RecipeError(
            f"{choice.name} {choice.module.Method.why_no_class_vectors}, so it has no class"
            " vectors: it can neither teach a student nor be exported.\n"
            f"  Measure it with `kdedge train RECIPE --method {choice.name}`; to teach or export,"
            " choose another method, such as promptsrc."
        )


def check_can_teach(choice: MethodChoice) -> None:
    """Refuses a method as a teacher.

    Raises:
        RecipeError: it learns from a teacher, or has no class vectors.
    """
    if choice.module.Method.needs_teacher:
        raise RecipeError(
            f"{choice.name} learns from a teacher itself.\n"
            "  Choose another teacher.method, such as promptsrc or zeroshot."
        )
    check_has_class_vectors(choice)


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
