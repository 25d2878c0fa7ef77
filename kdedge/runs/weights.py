"""Writes and reads a run's trained tensors and the class vectors that are computed with them.

Both files have the hash of what the class vectors were made from, so that files of different runs
are never mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kdedge.clip.class_vectors import ClassVectors
from kdedge.clip.weights import hash_weights
from kdedge.errors import DataError
from kdedge.files import check_regular, sha256_json
from kdedge.methods.base import BaseMethod
from kdedge.runs.folder import RunFolder
from kdedge.setup.classes import Classes
from kdedge.setup.method import settings_record
from kdedge.setup.role import RoleSetup
from kdedge.tensor_file import read_tensors, write_tensors


def class_vectors_hash(setup: RoleSetup, trained: str, classes: Classes) -> str:
    """Hash of all inputs of class vectors.

    Args:
        setup: the model's method and backbone.
        trained: hash of the model's trained tensors.
        classes: class names and template.
    """
    record = settings_record(setup)
    names = list(classes.names)
    template = classes.template
    return sha256_json([setup.backbone.identity, trained, names, template, record])


def features_hash(setup: RoleSetup, trained: str) -> str:
    """Hash of all inputs of image features, which do not depend on class names."""
    return sha256_json([setup.backbone.identity, trained, settings_record(setup)])


def hash_trained(method: BaseMethod) -> str:
    """Hash of a method's trained tensors."""
    return hash_weights(method.module.state_dict())


def write_weights(run: RunFolder, setup: RoleSetup, method: BaseMethod, vectors_hash: str) -> None:
    """Writes the trained tensors and the class vectors computed with them.

    Args:
        run: the run's folder.
        setup: the model's method and backbone; only the backbone's hash is stored.
        method: the method with its trained tensors, with which the class vectors are computed.
        vectors_hash: hash of what the class vectors were made from.
    """
    method.module.eval()
    state = {key: value.cpu().contiguous() for key, value in method.module.state_dict().items()}
    facts = {
        "method": setup.method_name,
        "backbone": setup.backbone.identity,
        "backbone_name": setup.backbone.name,
        "trained": hash_weights(state),
        "class_vectors": vectors_hash,
    }
    write_tensors(run.weights, state, facts)
    names = setup.classes.names
    ClassVectors(method.class_vectors().cpu(), names, vectors_hash).save(run.class_vectors)


def load_weights(path: Path, method: BaseMethod) -> None:
    """Loads a run's trained tensors into a newly built method, strictly; sets evaluation mode.

    Raises:
        DataError: the file is damaged, or the method's tensors have other names or sizes.
    """
    try:
        state, _ = read_tensors(path)
    except DataError as error:
        raise DataError(f"{error}\n  Train or import again; that makes a new run.") from error
    try:
        method.module.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(
            f"{path} holds other tensors than its recipe builds: {error}\n"
            "  Restore the recipe.yaml of this run, or train again."
        ) from error
    method.module.eval()


def check_stored_weights(run: RunFolder, setup: RoleSetup, stored: ClassVectors) -> str:
    """Checks that a run's trained tensors belong to its backbone and class vectors, by metadata.

    Args:
        run: the run.
        setup: the run's method and backbone, with the class list of its training.
        stored: the run's class vectors.

    Returns:
        The hash of the trained tensors.

    Raises:
        DataError: the file is missing or damaged, or belongs to another backbone or to other class
            vectors.
    """
    path = run.weights
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, Any] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.\n"
            "  The file is missing or damaged: train or import again; that makes a new run."
        ) from error
    backbone = setup.backbone
    if metadata.get("backbone") != backbone.identity:
        raise DataError(
            f"{path} was trained on another backbone than the current {backbone.name}: weights,"
            " activation or preprocessing differ (hash"
            f" {metadata.get('backbone', 'missing')[:12]}, now {backbone.identity[:12]}).\n"
            "  Use the weights that the run's recipe.yaml names."
        )
    trained = str(metadata.get("trained"))
    is_pair = metadata.get("class_vectors") == stored.vectors_hash
    if is_pair and run.role != "student":  # a student has its teacher's class vectors
        is_pair = stored.vectors_hash == class_vectors_hash(setup, trained, setup.classes)
    if not is_pair:
        raise DataError(
            f"{path} was trained with other class vectors than those in {run.class_vectors.name}"
            " next to it.\n"
            "  One of the two files was replaced: train or import again; that makes a new run."
        )
    return trained
