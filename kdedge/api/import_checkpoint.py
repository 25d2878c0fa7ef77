"""Imports a checkpoint of the public PromptSRC or PromptKD code as a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from kdedge.api.evaluate import run_argument
from kdedge.api.keywords import check_keywords
from kdedge.errors import RecipeError
from kdedge.runs.find import find_run
from kdedge.setup.packages import need_training_packages

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kdedge.api.run import Run
    from kdedge.training.import_public import Imported

CheckpointKind = Literal["promptsrc", "promptkd"]


class CheckpointOptions(TypedDict, total=False):
    """The backbone that a checkpoint was trained on, and where its run goes.

    Attributes:
        backbone: an open_clip model name such as `ViT-L-14`.
        config: your own model config (JSON) instead of a name.
        quick_gelu: activation of the backbone, if its weights do not tell it.
        name: name of the run; by default the file's name and the kind.
        exact: use the checkpoint's own copy of the backbone, which differs by rounding (promptsrc
            only).
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
    """

    backbone: str | None
    config: str | Path | None
    quick_gelu: bool | None
    name: str | None
    exact: bool
    root: str | Path
    device: str | None


@dataclass(frozen=True)
class CheckpointRequest:
    """The kind of checkpoint, and what it does not hold itself.

    Attributes:
        file: the checkpoint.
        kind: a PromptSRC teacher or a PromptKD student.
        weights: weights of the backbone: a pretrained tag or a file.
        classes: class names, or a file with one per line. promptsrc needs them: the checkpoint has
            no names.
        teacher: run of the teacher. promptkd needs it: the checkpoint has no class vectors.
    """

    file: Path
    kind: CheckpointKind
    weights: str
    classes: str | Path | Sequence[str] | None = None
    teacher: str | None = None


def import_checkpoint(
    file: str | Path,
    kind: CheckpointKind,
    *,
    weights: str,
    classes: str | Path | Sequence[str] | None = None,
    teacher: Any = None,
    **options: Unpack[CheckpointOptions],
) -> Run:
    """Imports a checkpoint of the public PromptSRC or PromptKD code as a finished run.

    Nothing in the file is executed.

    Args:
        file: the checkpoint.
        kind: `promptsrc` for a PromptSRC teacher, `promptkd` for a PromptKD student.
        weights: weights of its backbone: a pretrained tag or a file.
        classes: class names, or a file with one per line. promptsrc needs them: the checkpoint has
            no names.
        teacher: a `Run`, its folder or name. promptkd needs it: the checkpoint has no class
            vectors.
        options: `backbone` (an open_clip model name) or `config` (your own model config),
            `quick_gelu`, `name` (of the run), `exact` (use the checkpoint's own backbone), `root`
            (folder of all runs) and `device`.

    Returns:
        The run.

    Raises:
        RecipeError: the kind is unknown, or needs class names or a teacher.
        DataError: the file is no such checkpoint, or is of another backbone or teacher.
        SetupError: torch, weights or the device is missing.
    """
    from kdedge.api.run import Run

    check_keywords(options, CheckpointOptions.__annotations__)
    request = CheckpointRequest(Path(file), kind, weights, classes, run_argument(teacher))
    return Run(make_import(request, options).run)


def make_import(request: CheckpointRequest, options: CheckpointOptions) -> Imported:
    """Makes the run; the result also lists what was not used of the file."""
    _check(request)
    need_training_packages("Reading a checkpoint")
    from kdedge.clip.resolve import BackboneSpec
    from kdedge.setup.classes import given_class_names
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.import_public import import_student, import_teacher

    file, config = request.file, options.get("config")
    on = BackboneSpec(
        options.get("backbone"),
        request.weights,
        None if config is None else Path(config),
        options.get("quick_gelu"),
    )
    name = options.get("name") or f"{file.name.split('.')[0]}-{request.kind}"
    root = Path(options.get("root", "runs"))
    workspace = Workspace(root, choose_device(options.get("device")))
    if request.kind == "promptsrc":
        assert request.classes is not None
        names = given_class_names(request.classes)
        exact = options.get("exact", False)
        return import_teacher(file, workspace, name=name, on=on, class_names=names, is_exact=exact)
    teacher = find_run(request.teacher, root)
    return import_student(file, workspace, name=name, on=on, teacher=teacher)


def _check(request: CheckpointRequest) -> None:
    if request.kind not in ("promptsrc", "promptkd"):
        raise RecipeError(
            f"{request.kind!r} is not a kind of public checkpoint.\n"
            "  Choose promptsrc for a teacher or promptkd for a student."
        )
    if request.kind == "promptsrc" and request.classes is None:
        raise RecipeError(
            f"{request.file} is a promptsrc checkpoint, which has no class names.\n"
            "  Give them: --classes FILE, in Python classes=FILE or a list."
        )
    if request.kind == "promptkd" and request.teacher is None:
        raise RecipeError(
            f"{request.file} is a promptkd checkpoint, which has no class vectors.\n"
            "  Name its teacher's run: --teacher RUN, in Python teacher=RUN."
        )
