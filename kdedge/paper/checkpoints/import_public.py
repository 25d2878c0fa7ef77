"""Imports checkpoints of the public PromptSRC and PromptKD code as finished runs.

The public file holds prompts, in a student's file a projector, and a copy of the backbone. A run
stores only the trained tensors and names the backbone's weights. PromptSRC's code averages the
frozen half-precision weights with the prompts, so the backbone in a teacher's file differs from the
original by rounding. The import reports the difference and fails if it is larger than rounding.
`is_exact` keeps the file's own backbone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from open_clip.transformer import QuickGELU
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.class_vectors import ClassVectors, load_class_vectors
from kdedge.clip.resolve import BackboneSpec
from kdedge.config.load import dump_recipe, load_recipe
from kdedge.config.recipe import Recipe
from kdedge.errors import DataError
from kdedge.files import sha256_file
from kdedge.methods import promptkd, promptsrc
from kdedge.methods.base import MethodSettings
from kdedge.paper.checkpoints.layout import (
    PublicParameters,
    deviation,
    promptkd_parameters,
    promptsrc_parameters,
    read_public_checkpoint,
)
from kdedge.records.evaluation import Role
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import MethodModel
from kdedge.runs.weights import write_weights
from kdedge.setup.role import set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.tensor_file import write_tensors

log = logging.getLogger(__name__)

_METHODS: dict[Role, str] = {"teacher": "promptsrc", "student": "promptkd"}

_MAX_DEVIATION = 0.02
"""Largest relative deviation of a file's backbone from the loaded one. Half precision rounds by
2**-11 of a value; PromptSRC's averaging over up to 50 epochs adds up a few such steps."""

_OWN_BACKBONE = "backbone.safetensors"  # in the run's folder, where paths of its recipe start


def import_public(
    file: Path,
    workspace: Workspace,
    *,
    name: str,
    spec: BackboneSpec,
    class_names: Sequence[str],
    teacher: RunFolder | None,
    is_exact: bool,
) -> RunFolder:
    """Makes a finished run of a PromptSRC teacher, or of a PromptKD student if `teacher` is given.

    Args:
        file: the public checkpoint; it holds no class names and no text features.
        workspace: the command's workspace.
        name: the run's name.
        spec: the backbone on which it was trained.
        class_names: for a teacher, the classes whose vectors are stored.
        teacher: for a student, the run of its teacher, which has class vectors and class list.
        is_exact: for a teacher, whether to keep the file's own backbone tensors in the run folder.

    Raises:
        DataError: the file is no such checkpoint, or belongs to another backbone or teacher.
    """
    checkpoint = read_public_checkpoint(file)
    role: Role = "teacher" if teacher is None else "student"
    vectors = None
    if teacher is None:
        parameters, settings = _read_promptsrc(checkpoint.state_dict)
    else:
        vectors = load_class_vectors(teacher.class_vectors)
        class_names = vectors.class_names
        parameters, settings = _read_promptkd(checkpoint.state_dict)
        width = len(parameters.trained["projector.linear2.weight"])
        dim = vectors.vectors.shape[1]
        if width != dim:
            raise DataError(
                f"{file} projects to {width} dimensions, but the class vectors of {teacher.name}"
                f" have {dim}.\n"
                "  Give the run of the teacher that this student was distilled from."
            )
    backbone = workspace.load_backbone(workspace.identify(spec))
    assert isinstance(backbone, Backbone)  # `identify` requires a text encoder
    largest = _largest_deviation(file, spec, backbone, parameters.backbone)
    recipe = _recipe(name, class_names, role, settings, spec)
    if is_exact:
        own = {"weights": _OWN_BACKBONE, "quick_gelu": None}
        section = recipe.needed_teacher().model_copy(update=own)
        recipe = recipe.model_copy(update={"teacher": section})
    run = RunFolder.create(
        workspace.root,
        name,
        role=role,
        recipe_text=dump_recipe(recipe),
        provenance={
            "method": _METHODS[role],
            "settings": settings.model_dump(mode="json"),
            "imported_from": str(file.absolute()),
            "epoch": checkpoint.epoch,
            "hashes": {"checkpoint": sha256_file(file)},
            "teacher_run": None if teacher is None else teacher.name_in(workspace.root),
        },
    )
    try:
        with run.lock():
            if is_exact:
                _write_own_backbone(run, backbone, parameters)
            _write_weights(run, workspace, parameters, vectors)
            run.finish()
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    log.info(
        f"{file}: its backbone differs from {spec.name or spec.weights} by at most"
        f" {largest[0]:.2g} (relative, at {largest[1]})."
    )
    return run


def _read_promptsrc(state_dict: Mapping[str, Tensor]) -> tuple[PublicParameters, MethodSettings]:
    """A teacher's tensors, and the settings that their shapes show."""
    parameters = promptsrc_parameters(state_dict)
    depth_vision, n_ctx_vision, _ = parameters.trained["visual_prompts"].shape
    settings = promptsrc.Settings(
        n_ctx_text=len(parameters.trained["text_prompts.context"]),
        n_ctx_vision=n_ctx_vision,
        prompt_depth_text=1 + len(parameters.trained["text_prompts.deep_context"]),
        prompt_depth_vision=depth_vision,
    )
    return parameters, settings


def _read_promptkd(state_dict: Mapping[str, Tensor]) -> tuple[PublicParameters, MethodSettings]:
    """A student's tensors, and the settings that their shapes show."""
    parameters = promptkd_parameters(state_dict)
    prompt_depth, n_ctx, _ = parameters.trained["visual_prompts"].shape
    return parameters, promptkd.Settings(n_ctx_vision=n_ctx, prompt_depth=prompt_depth)


def _write_weights(
    run: RunFolder, workspace: Workspace, parameters: PublicParameters, vectors: ClassVectors | None
) -> None:
    """Writes the trained tensors and the class vectors: a student's are its teacher's."""
    setup = set_up_role(load_recipe(run.recipe), run.role, workspace)
    class_vectors = None if vectors is None else vectors.vectors.to(workspace.device)
    built = setup.build(class_vectors=class_vectors)
    built.module.load_state_dict(parameters.trained)
    source = MethodModel(setup, built).vectors_hash if vectors is None else vectors.vectors_hash
    write_weights(run, setup, built, vectors_hash=source)


def _recipe(
    name: str, class_names: Sequence[str], role: Role, settings: MethodSettings, spec: BackboneSpec
) -> Recipe:
    """A recipe with only the section of the imported model."""
    keys = {
        "method": _METHODS[role],
        "settings": settings.model_dump(exclude_defaults=True),
        "backbone": spec.name,
        "weights": spec.weights,
        "config": spec.config and str(spec.config),
        "quick_gelu": spec.quick_gelu,
    }
    section = {key: value for key, value in keys.items() if value is not None}
    values = {"name": name, "classes": list(class_names), "data": {}, role: section}
    return Recipe.model_validate(values, context={"folder": Path.cwd()})


def _largest_deviation(
    file: Path, spec: BackboneSpec, backbone: Backbone, tensors: Mapping[str, Tensor]
) -> tuple[float, str]:
    """Largest relative deviation of the file's backbone from the loaded one, and its key.

    Raises:
        DataError: the deviation is larger than rounding, so the prompts belong to other weights.
    """
    relative, key = deviation(backbone.model.state_dict(), tensors)
    if relative > _MAX_DEVIATION:
        raise DataError(
            f"{file} was not trained on {spec.weights}: its backbone differs by {relative:.2g}"
            f" (relative, at {key}).\n"
            f"  Rounding in half precision explains about 0.001; above {_MAX_DEVIATION:g} these are"
            " other weights.\n"
            "  Name the weights that the checkpoint was trained on, for example openai."
        )
    return relative, key


def _write_own_backbone(run: RunFolder, backbone: Backbone, parameters: PublicParameters) -> None:
    """Writes a copy of the backbone with the checkpoint's tensors."""
    state: dict[str, Tensor] = dict(backbone.model.state_dict())
    state |= {key: value.float() for key, value in parameters.backbone.items()}
    is_quick = isinstance(backbone.model.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    tensors = {key: value.cpu().contiguous() for key, value in state.items()}
    write_tensors(run.path / _OWN_BACKBONE, tensors, {"quick_gelu": str(is_quick).lower()})
