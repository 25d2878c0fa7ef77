"""Imports checkpoints of public code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kdedge.api.arguments import check_name, need_training_packages
from kdedge.api.run import Run
from kdedge.errors import RecipeError
from kdedge.files import home_path
from kdedge.messages import option
from kdedge.runs.find import RunOrArtifact, find_run
from kdedge.runs.folder import runs_folder
from kdedge.runtime.process import torch_as_before


@torch_as_before()
def import_checkpoint(
    file: str | Path,
    kind: Literal["promptsrc", "promptkd"],
    *,
    weights: str,
    classes: str | Path | Sequence[str] | None = None,
    teacher: RunOrArtifact | None = None,
    backbone: str | None = None,
    config: str | Path | None = None,
    quick_gelu: bool | None = None,
    name: str | None = None,
    exact: bool = False,
    root: str | Path | None = None,
    device: str | None = None,
) -> Run:
    """Imports a checkpoint of the public PromptSRC or PromptKD code as a finished run.

    Code in the file is not executed. The log lists the entries that were not used.

    Args:
        file: the checkpoint.
        kind: `promptsrc` for a PromptSRC teacher, `promptkd` for a PromptKD student.
        weights: weights of its backbone: a pretrained tag or a file.
        classes: class names, or a file with one per line. promptsrc needs them: the checkpoint has
            no names.
        teacher: a `Run`, its folder or name. promptkd needs it: the checkpoint has no class
            vectors.
        backbone: an open_clip model name such as `ViT-L-14`.
        config: your own model config (JSON) instead of a name.
        quick_gelu: activation of the backbone, if its weights do not tell it.
        name: name of the run; by default the file's name and the kind.
        exact: use the checkpoint's own copy of the backbone, which differs by rounding (promptsrc
            only).
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The run.

    Raises:
        RecipeError: the kind is unknown, needs class names or a teacher, or does not use an
            argument; or the name cannot be used.
        DataError: the file is no such checkpoint, or is of another backbone or teacher.
        SetupError: torch, weights or the device is missing.
    """
    kinds = {"promptsrc": ("classes", "class names"), "promptkd": ("teacher", "class vectors")}
    if kind not in kinds:
        raise RecipeError(
            f"{kind!r} is not a kind of public checkpoint.\n"
            "  Choose promptsrc for a teacher or promptkd for a student."
        )
    needed, lacks = kinds[kind]
    given = {"teacher": teacher, "classes": classes, "exact": exact or None}
    if given.pop(needed) is None:
        what = option(f"--{needed}")
        raise RecipeError(f"{file}, a {kind} checkpoint, has no {lacks}.\n  Give it with {what}.")
    for extra, value in given.items():
        if value is not None and (kind, extra) != ("promptsrc", "exact"):
            what = option(f"--{extra}")
            raise RecipeError(f"{what} has no effect on a {kind} checkpoint.\n  Leave it out.")
    file = home_path(file)
    root = runs_folder(root)
    config = None if config is None else home_path(config)
    # A browser names a second download "model (1).pth"
    name = name or f"{re.sub('[^A-Za-z0-9_-]+', '-', file.name.split('.')[0])}-{kind}"
    check_name(name)
    need_training_packages("Reading a checkpoint")
    from kdedge.clip.resolve import BackboneSpec
    from kdedge.paper.checkpoints.import_public import import_public
    from kdedge.setup.classes import given_class_names
    from kdedge.setup.workspace import Workspace, set_up_device

    run = import_public(
        file,
        Workspace(root, set_up_device(device)),
        name=name,
        spec=BackboneSpec(backbone, weights, config, quick_gelu),
        class_names=() if classes is None else given_class_names(classes),
        teacher=None if teacher is None else find_run(teacher, root),
        is_exact=exact,
    )
    return Run(run)
