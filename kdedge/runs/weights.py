"""Trained tensors of a run: written with their provenance hash, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from kdedge._files import sha256_json, write_atomic
from kdedge.clip.class_vectors import ClassVectors
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.clip.tensor_file import encode_tensors
from kdedge.clip.weights import hash_weights
from kdedge.errors import DataError
from kdedge.methods.protocol import Method
from kdedge.runs.folder import RunFolder
from kdedge.setup.classes import Classes


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
