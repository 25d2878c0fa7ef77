"""Imports a checkpoint of the public PromptSRC or PromptKD code as a finished run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kdedge.api.evaluate import run_argument
from kdedge.api.run import Run
from kdedge.errors import RecipeError
from kdedge.runs.find import find_run
from kdedge.setup.packages import need_training_packages

log = logging.getLogger(__name__)


def import_checkpoint(
    file: str | Path,
    kind: Literal["promptsrc", "promptkd"],
    *,
    weights: str,
    classes: str | Path | Sequence[str] | None = None,
    teacher: Any = None,
    backbone: str | None = None,
    config: str | Path | None = None,
    quick_gelu: bool | None = None,
    name: str | None = None,
    exact: bool = False,
    root: str | Path = "runs",
    device: str | None = None,
) -> Run:
    """Imports a checkpoint of the public PromptSRC or PromptKD code as a finished run.

    Nothing in the file is executed. The log lists what was not used of it.

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
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The run.

    Raises:
        RecipeError: the kind is unknown, or needs class names or a teacher.
        DataError: the file is no such checkpoint, or is of another backbone or teacher.
        SetupError: torch, weights or the device is missing.
    """
    if kind not in ("promptsrc", "promptkd"):
        raise RecipeError(
            f"{kind!r} is not a kind of public checkpoint.\n"
            "  Choose promptsrc for a teacher or promptkd for a student."
        )
    if kind == "promptkd" and teacher is None:
        raise RecipeError(
            f"{file} is a promptkd checkpoint, which has no class vectors.\n"
            "  Name its teacher's run: --teacher RUN, in Python teacher=RUN."
        )
    if kind == "promptsrc" and classes is None:
        raise RecipeError(
            f"{file} is a promptsrc checkpoint, which has no class names.\n"
            "  Give them: --classes FILE, in Python classes=FILE or a list."
        )
    need_training_packages("Reading a checkpoint")
    from kdedge.clip.resolve import BackboneSpec
    from kdedge.setup.classes import given_class_names
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.import_public import import_student, import_teacher

    file, root = Path(file), Path(root)
    on = BackboneSpec(backbone, weights, None if config is None else Path(config), quick_gelu)
    name = name or f"{file.name.split('.')[0]}-{kind}"
    workspace = Workspace(root, choose_device(device))
    if classes is not None and kind == "promptsrc":
        names = given_class_names(classes)
        found = import_teacher(file, workspace, name=name, on=on, class_names=names, is_exact=exact)
    else:
        of = find_run(run_argument(teacher), root)
        found = import_student(file, workspace, name=name, on=on, teacher=of)
    log.info(
        "%s: not needed: %s; not read, beside state_dict: %s. Its backbone differs from %s by at"
        " most %.2g (relative, at %s).",
        *(file, ", ".join(found.left_out) or "no key", ", ".join(found.unread) or "no entry"),
        *(backbone or weights, *found.largest_deviation),
    )
    return Run(found.run)
