"""Loads a file of an artifact on the backend of its target."""

from __future__ import annotations

from kdedge.errors import DataError
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import Backend
from kdedge.runtime.open_classes import with_classes
from kdedge.targets.registry import find_target, load_run


def load_file(artifact: Artifact, file: ModelFile, *, n_threads: int | None = None) -> Backend:
    """A file's backend, which gives logits; the caller closes it.

    Args:
        artifact: the artifact.
        file: one of its files, of a target that has a backend.
        n_threads: CPU threads; None for the engine's default.

    Raises:
        DataError: the file or the class matrix has changed since it was written, or the file's path
            is not UTF-8.
        SetupError: this machine cannot run the file; `MissingPackage` and `BackendUnavailable` if
            something is not installed or not there.
    """
    module = load_run(find_target(file.target))
    module.check_environment()
    path = artifact.checked(file.name)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{str(path)!a} is not UTF-8, and runtimes cannot open it.\n"
            "  Rename its folder; or, if its name is UTF-8, set LC_ALL=C.UTF-8."
        ) from error
    loaded = module.load(path, n_threads=n_threads, built_with=file.built_with or None)
    return with_classes(artifact, loaded)
