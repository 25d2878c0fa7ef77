"""Imports checkpoints of the public PromptSRC and PromptKD code as finished runs.

The public file holds prompts (and a projector) next to a copy of the backbone. A run stores only
what was trained and names the backbone's weights. PromptSRC's code averages the frozen
half-precision weights with the prompts, so the backbone in a teacher's file differs from the
original by rounding. The import reports the difference and fails if it is larger than rounding.
`is_exact` keeps the file's own backbone.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from open_clip.transformer import QuickGELU
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.class_vectors import load_class_vectors
from kdedge.clip.public_checkpoint import (
    PublicCheckpoint,
    PublicParameters,
    deviation,
    promptkd_parameters,
    promptsrc_parameters,
    read_public_checkpoint,
)
from kdedge.clip.resolve import BackboneSpec
from kdedge.clip.tensor_file import write_tensors
from kdedge.clip.weights import for_message
from kdedge.config.load import dump_recipe, load_recipe
from kdedge.config.recipe import Recipe
from kdedge.errors import DataError
from kdedge.files import sha256_file, write_atomic
from kdedge.methods import promptkd, promptsrc
from kdedge.methods.protocol import MethodSettings
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import MethodModel
from kdedge.runs.weights import write_weights
from kdedge.setup.role import set_up_role
from kdedge.setup.workspace import Workspace

MAX_DEVIATION = 0.02
"""Largest relative deviation of a file's backbone from the loaded one. Half precision rounds by
2**-11 of a value; PromptSRC's averaging over up to 50 epochs adds up a few such steps."""


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
        run: the finished run.
        epoch: epochs that the file says it was trained, or None.
        left_out: unused keys of the file's state dict, grouped: `a.b`, or `a.b.* (24 keys)`.
        unread: entries of the file other than `state_dict` and `epoch`, such as `optimizer`.
        largest_deviation: largest relative deviation of the file's backbone from the loaded one,
            and the key where it occurs.
    """

    run: RunFolder
    epoch: int | None
    left_out: tuple[str, ...]
    unread: tuple[str, ...]
    largest_deviation: tuple[float, str]


def import_teacher(
    file: Path,
    workspace: Workspace,
    *,
    name: str,
    spec: BackboneSpec,
    class_names: tuple[str, ...],
    is_exact: bool,
) -> Imported:
    """Makes a finished teacher run from a PromptSRC checkpoint.

    Args:
        file: the public checkpoint.
        workspace: where the command works.
        name: the run's name.
        spec: the backbone it was trained on.
        class_names: all classes to store vectors for, as the file has no class names.
        is_exact: keep the file's own backbone tensors, in the run folder.

    Raises:
        DataError: the file is no PromptSRC checkpoint, or is of another backbone.
    """
    checkpoint = read_public_checkpoint(file)
    parameters = promptsrc_parameters(checkpoint.state_dict)
    visual_prompts = parameters.trained["visual_prompts"]
    backbone = _load_backbone(spec, workspace)
    largest = _largest_deviation(file, spec, backbone, parameters.backbone)
    settings = promptsrc.Settings(
        n_ctx_text=len(parameters.trained["text_prompts.context"]),
        n_ctx_vision=visual_prompts.shape[1],
        prompt_depth_text=1 + len(parameters.trained["text_prompts.deep_context"]),
        prompt_depth_vision=len(visual_prompts),
    )
    recipe = _recipe(name, class_names, "teacher", _section("promptsrc", settings, spec))
    with _new_run(workspace.root, recipe, "teacher", checkpoint, file) as run:
        if is_exact:
            exact = replace(
                spec, weights=_write_own_backbone(run, backbone, parameters), quick_gelu=None
            )
            recipe = _recipe(name, class_names, "teacher", _section("promptsrc", settings, exact))
            write_atomic(run.recipe, dump_recipe(recipe).encode())
        setup = set_up_role(load_recipe(run.recipe), "teacher", workspace)
        method = setup.build()
        method.module.load_state_dict(parameters.trained)
        provenance = MethodModel(setup, method).vectors_provenance
        write_weights(run, setup, method, provenance=provenance)
    return Imported(run, checkpoint.epoch, grouped(parameters.ignored), checkpoint.ignored, largest)


def import_student(
    file: Path,
    workspace: Workspace,
    *,
    name: str,
    spec: BackboneSpec,
    teacher: RunFolder,
) -> Imported:
    """Makes a finished student run from a PromptKD checkpoint and its teacher's class vectors.

    Args:
        file: the public checkpoint; it holds no text features.
        workspace: where the command works.
        name: the run's name.
        spec: the backbone it was trained on.
        teacher: the run that it was distilled from; gives the class vectors and the class list.

    Raises:
        DataError: the file is no PromptKD checkpoint, or is of another backbone or teacher.
    """
    checkpoint = read_public_checkpoint(file)
    parameters = promptkd_parameters(checkpoint.state_dict)
    largest = _largest_deviation(file, spec, _load_backbone(spec, workspace), parameters.backbone)
    vectors = load_class_vectors(teacher.class_vectors)
    width, teacher_dim = (
        len(parameters.trained["projector.linear2.weight"]),
        vectors.vectors.shape[1],
    )
    if width != teacher_dim:
        raise DataError(
            f"{file} projects to {width} dimensions, but the class vectors of {teacher.name} have"
            f" {teacher_dim}.\n"
            "  Give the run of the teacher that this student was distilled from."
        )
    prompt_depth, n_ctx, _ = parameters.trained["visual_prompts"].shape
    settings = promptkd.Settings(n_ctx_vision=n_ctx, prompt_depth=prompt_depth)
    recipe = _recipe(name, vectors.class_names, "student", _section("promptkd", settings, spec))
    taught_by = teacher.name if teacher.root == workspace.root.resolve() else None
    with _new_run(workspace.root, recipe, "student", checkpoint, file, taught_by) as run:
        setup = set_up_role(load_recipe(run.recipe), "student", workspace)
        method = setup.build(class_vectors=vectors.vectors.to(workspace.device))
        method.module.load_state_dict(parameters.trained)
        write_weights(run, setup, method, provenance=vectors.provenance)
    return Imported(run, checkpoint.epoch, grouped(parameters.ignored), checkpoint.ignored, largest)


def _load_backbone(spec: BackboneSpec, workspace: Workspace) -> Backbone:
    backbone = workspace.load_backbone(workspace.identify(spec))
    assert isinstance(backbone, Backbone)  # it was found with its text encoder
    return backbone


def _section(method: str, settings: MethodSettings, spec: BackboneSpec) -> dict[str, Any]:
    """The recipe's section of the imported model."""
    keys = {
        "backbone": spec.name,
        "weights": spec.weights,
        "config": None if spec.config is None else str(spec.config),
        "quick_gelu": spec.quick_gelu,
    }
    changed = settings.model_dump(exclude_defaults=True)
    given = {key: value for key, value in keys.items() if value is not None}
    return {"method": method, **given, "settings": changed}


def _recipe(name: str, class_names: Sequence[str], role: str, section: dict[str, Any]) -> Recipe:
    """A recipe with only the model's section."""
    values = {"name": name, "classes": list(class_names), "data": {}, role: section}
    return Recipe.model_validate(values, context={"folder": Path.cwd()})


def grouped(keys: Iterable[str]) -> tuple[str, ...]:
    """Groups keys by their first two parts, with the number of keys in each group."""
    groups: dict[str, list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(".".join(key.split(".")[:2]), []).append(key)
    return tuple(
        for_message(members[0] if len(members) == 1 else f"{start}.* ({len(members)} keys)")
        for start, members in groups.items()
    )


def _largest_deviation(
    file: Path, spec: BackboneSpec, backbone: Backbone, tensors: Mapping[str, Tensor]
) -> tuple[float, str]:
    """Largest relative deviation of the file's backbone from the loaded one, and its key.

    Raises:
        DataError: it is larger than rounding: the prompts were trained on other weights.
    """
    relative, key = deviation(backbone.model.state_dict(), tensors)
    if relative > MAX_DEVIATION:
        raise DataError(
            f"{file} was not trained on {spec.weights}: its backbone differs by {relative:.2g}"
            f" (relative, at {key}).\n"
            f"  Rounding in half precision explains about 0.001; above {MAX_DEVIATION:g} these are"
            " other weights.\n"
            "  Give the weights that the checkpoint was trained on, for example --weights openai."
        )
    return relative, key


@contextlib.contextmanager
def _new_run(
    root: Path,
    recipe: Recipe,
    role: Literal["teacher", "student"],
    checkpoint: PublicCheckpoint,
    file: Path,
    teacher_run: str | None = None,
) -> Iterator[RunFolder]:
    """Context manager: a new run, finished at the end of the block, or deleted if it fails."""
    section = getattr(recipe, role)
    run = RunFolder.create(
        root,
        recipe.name,
        kind=role,
        recipe_text=dump_recipe(recipe),
        provenance={
            "method": section.method,
            "settings": section.settings,
            "imported_from": str(file.absolute()),
            "epoch": checkpoint.epoch,
            "hashes": {"checkpoint": sha256_file(file)},
            "teacher_run": teacher_run,
        },
    )
    try:
        with run.lock():
            yield run
            run.finish()
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise


def _write_own_backbone(run: RunFolder, backbone: Backbone, parameters: PublicParameters) -> str:
    """Writes the backbone with the file's tensors; returns the path."""
    state: dict[str, Tensor] = dict(backbone.model.state_dict())
    state |= {key: value.float() for key, value in parameters.backbone.items()}
    is_quick = isinstance(backbone.model.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    path = run.path / "backbone.safetensors"
    tensors = {key: value.cpu().contiguous() for key, value in state.items()}
    write_tensors(path, tensors, {"quick_gelu": str(is_quick).lower()})
    return str(path.absolute())
