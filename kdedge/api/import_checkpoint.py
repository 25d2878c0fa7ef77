"""A checkpoint of the public PromptSRC or PromptKD code as a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from kdedge.api.evaluate import run_argument
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
        config: the backbone's own model config (JSON), in place of a name.
        quick_gelu: activation of the backbone, if its weights do not tell.
        name: of the run; the file's name and the kind if left out.
        exact: keep the checkpoint's own backbone, which differs by rounding (promptsrc only).
        root: folder of all runs.
        device: where torch computes.
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
    """What to import.

    Attributes:
        file: the checkpoint.
        kind: a PromptSRC teacher or a PromptKD student.
        weights: of the backbone: a pretrained tag or a file.
        classes: class names, or a file of them, one a line; a PromptSRC checkpoint has no names.
        teacher: run of the teacher; a PromptKD checkpoint has no class vectors.
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
    """Makes a finished run of a checkpoint of the public PromptSRC or PromptKD code.

    Nothing in the file is executed.

    Args:
        file: the checkpoint.
        kind: `promptsrc` for a PromptSRC teacher, `promptkd` for a PromptKD student.
        weights: of the backbone that it was trained on: a pretrained tag or a file.
        classes: class names, or a file of them, one a line; a PromptSRC checkpoint has no names.
        teacher: a `Run`, its folder or name; a PromptKD checkpoint has no class vectors.
        options: `backbone` (an open_clip model name) or `config` (your own model config),
            `quick_gelu`, `name` (of the run), `exact` (keep the checkpoint's own backbone), `root`
            (folder of all runs) and `device`.

    Returns:
        The run.

    Raises:
        RecipeError: the kind is unknown, or needs class names or a teacher.
        DataError: the file is no such checkpoint, or of another backbone.
        SetupError: torch, weights or the device are missing.
    """
    from kdedge.api.run import Run

    unknown = sorted(options.keys() - CheckpointOptions.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: no such keyword. There are"
            f" {', '.join(CheckpointOptions.__annotations__)}."
        )
    request = CheckpointRequest(Path(file), kind, weights, classes, run_argument(teacher))
    return Run(make_import(request, options).run)


def make_import(request: CheckpointRequest, options: CheckpointOptions) -> Imported:
    """Makes the run, and tells what of the file was not used."""
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
            f"{request.kind!r} is no kind of public checkpoint.\n"
            "  There are promptsrc, a teacher, and promptkd, a student."
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
