"""Checks a client program in any language against an artifact."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdedge.api.artifact import open_artifact
from kdedge.errors import RecipeError
from kdedge.runtime.artifact import Artifact, ModelFile

if TYPE_CHECKING:
    from kdedge.deploy.client import ClientCheck, Pictures

_BY_DEFAULT = ("model.image.onnx", "model.onnx")


def verify_client(
    source: Any,
    client: str | Sequence[str],
    *,
    file: str | None = None,
    pictures: Pictures = "ppm",
    timeout_s: float = 60.0,
) -> ClientCheck:
    """Checks that a program classifies the images of an artifact's smoke set as the artifact does.

    The program is called as `CLIENT MODEL IMAGE ...` and prints a line such as
    `{"label": "cat", "score": 93.1}` for each image. Its label has to be the artifact's, and its
    score within one percentage point.

    Args:
        source: an artifact or its folder; or a run or its folder, for its newest artifact.
        client: the program with its first arguments, as one text or as a list.
        file: the model file that the client gets; None for `model.image.onnx` if there is one, and
            else `model.onnx`.
        pictures: format of the images, `ppm` or `png`; both are lossless.
        timeout_s: time for all images, seconds.

    Returns:
        The largest differences.

    Raises:
        GateError: an answer differs, or the program fails, hangs, or prints something else.
        RecipeError: the program cannot be started, or the artifact has no such file.
        DataError: there is no artifact or no smoke set, or a file has changed since the export.
    """
    found = make_client_check(source, client, file=file, pictures=pictures, timeout_s=timeout_s)
    if found.error is not None:
        raise found.error
    return found


def make_client_check(
    source: Any,
    client: str | Sequence[str],
    *,
    file: str | None,
    pictures: Pictures,
    timeout_s: float,
) -> ClientCheck:
    """Checks a client; `error` of the result says whether an answer differs."""
    from kdedge.deploy.client import check_client

    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise RecipeError(f"timeout_s is {timeout_s}; it must be above 0 seconds.")
    if pictures not in ("ppm", "png"):
        raise RecipeError(f"pictures is {pictures!r}; expected ppm or png.")
    command = _words(client)
    artifact = open_artifact(source)
    return check_client(
        artifact, command, file=_file(artifact, file), pictures=pictures, timeout_s=timeout_s
    )


def _words(client: str | Sequence[str]) -> list[str]:
    """The program and its arguments.

    Raises:
        RecipeError: there is none, or a quote is not closed.
    """
    try:
        words = shlex.split(client) if isinstance(client, str) else list(client)
    except ValueError as error:
        raise RecipeError(
            f"The client {client!r} cannot be split into words: {str(error).lower()}."
        ) from error
    if not words:
        raise RecipeError('The client is empty.\n  Give a program: --client "python client.py"')
    return words


def _file(artifact: Artifact, name: str | None) -> ModelFile:
    there = {file.name: file for file in artifact.files}
    wanted = _BY_DEFAULT if name is None else (name,)
    found = next((there[one] for one in wanted if one in there), None)
    if found is None:
        raise RecipeError(
            f"{artifact.path} has no {wanted[-1]}; it has: {', '.join(there) or 'no model files'}."
            "\n  Name one of them with --file."
        )
    return found
