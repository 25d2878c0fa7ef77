"""Checkpoints of the public PromptSRC and PromptKD code, as finished runs.

The public file holds prompts (and a projector) beside a copy of the backbone; a run keeps what was
trained and names the backbone's weights. PromptSRC's code averages the frozen half-precision
weights with the prompts, so a teacher file's backbone differs from the original by rounding: how
far is reported, more than rounding is refused, and `exact` keeps the file's own.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor

from kdedge._files import sha256_file, write_atomic
from kdedge.clip.backbone import Backbone
from kdedge.clip.class_vectors import load_class_vectors
from kdedge.clip.find import load_backbone
from kdedge.clip.public_checkpoint import (
    PromptKDParameters,
    PromptSRCParameters,
    PublicCheckpoint,
    deviation,
    promptkd_parameters,
    promptsrc_parameters,
    read_public_checkpoint,
)
from kdedge.clip.resolve import BackboneSpec
from kdedge.clip.tensor_file import encode_tensors
from kdedge.clip.weights import printable
from kdedge.config.load import dump_recipe
from kdedge.config.recipe import OptimSettings, Recipe
from kdedge.errors import DataError
from kdedge.methods import promptkd, promptsrc
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import StoredVectors
from kdedge.runs.weights import made_by, store_trained
from kdedge.setup.classes import Classes
from kdedge.setup.method import MethodChoice, build_method, settings_record

MAX_DEVIATION = 0.02
"""Largest relative deviation of a file's backbone from the loaded one. Half precision rounds by
2**-11 of a value; PromptSRC's averaging over up to 50 epochs adds up a few such steps."""


@dataclass(frozen=True)
class ImportedBackbone:
    """Which CLIP the checkpoint was trained on, as a recipe says it."""

    name: str | None
    weights: str
    config: Path | None = None
    quick_gelu: bool | None = None

    def load(self, device: torch.device) -> Backbone:
        """Loads it."""
        spec = BackboneSpec(self.name, self.weights, self.config, self.quick_gelu)
        return load_backbone(spec, device=device)

    def as_recipe(self) -> dict[str, Any]:
        """The recipe keys that name it."""
        keys = {
            "backbone": self.name,
            "weights": self.weights,
            "config": None if self.config is None else str(self.config),
            "quick_gelu": self.quick_gelu,
        }
        return {key: value for key, value in keys.items() if value is not None}


@dataclass(frozen=True)
class Imported:
    """What an import gave.

    Attributes:
        run: the finished run.
        epoch: epochs that the file says it was trained, or None.
        left_out: keys of the file's state dict that are of no use here, as groups: `a.b`, or
            `a.b.* (24 keys)`.
        unread: entries of the file beside `state_dict` and `epoch`, such as `optimizer`.
        largest_deviation: of the file's backbone from the loaded one, relative, and the key it is
            at.
    """

    run: RunFolder
    epoch: int | None
    left_out: tuple[str, ...]
    unread: tuple[str, ...]
    largest_deviation: tuple[float, str]


def import_teacher(
    file: Path,
    *,
    name: str,
    on: ImportedBackbone,
    class_names: tuple[str, ...],
    root: Path,
    device: torch.device,
    is_exact: bool = False,
) -> Imported:
    """Makes a finished teacher run of a PromptSRC checkpoint.

    Args:
        file: the public checkpoint.
        name: the run's name.
        on: the backbone it was trained on.
        class_names: all classes to store vectors for; the file does not hold names.
        root: folder of all runs.
        device: where to compute the class vectors.
        is_exact: keep the file's own backbone tensors, in the run folder.

    Raises:
        DataError: the file is not such a checkpoint or not of this backbone.
    """
    checkpoint = read_public_checkpoint(file)
    found = promptsrc_parameters(checkpoint.state_dict)
    backbone = on.load(device)
    largest = _largest_deviation(file, on, backbone, found.backbone)
    settings = promptsrc.Settings(
        n_ctx_text=found.context.shape[0],
        n_ctx_vision=found.visual_prompts.shape[1],
        prompt_depth_text=1 + len(found.deep_context),
        prompt_depth_vision=len(found.visual_prompts),
    )
    section = {
        "method": "promptsrc",
        **on.as_recipe(),
        "settings": settings.model_dump(exclude_defaults=True),
    }
    classes = Classes(class_names, "a photo of a {}.", "all")
    with _new_run(root, name, "teacher", section, class_names, file, checkpoint) as run:
        if is_exact:
            backbone, own = _own_backbone(run, backbone, found, on, device)
            section |= own.as_recipe()
            write_atomic(run.recipe, _recipe_text(name, "teacher", section, class_names).encode())
        choice = MethodChoice("promptsrc", promptsrc, settings, OptimSettings())
        method = build_method(choice, backbone, classes, seed=0)
        method.module.load_state_dict(
            {
                "text_prompts.context": found.context,
                "text_prompts.deep_context": found.deep_context,
                "visual_prompts": found.visual_prompts,
            }
        )
        store_trained(
            run,
            method_name="promptsrc",
            method=method,
            backbone=backbone,
            classes=classes,
            made_by=made_by(backbone, method.module, classes, settings_record(choice)),
        )
    return Imported(run, checkpoint.epoch, grouped(found.ignored), checkpoint.ignored, largest)


def import_student(
    file: Path,
    *,
    name: str,
    on: ImportedBackbone,
    teacher: RunFolder,
    root: Path,
    device: torch.device,
) -> Imported:
    """Makes a finished student run of a PromptKD checkpoint and its teacher's class vectors.

    Args:
        file: the public checkpoint; it holds no text features.
        name: the run's name.
        on: the backbone it was trained on.
        teacher: the run whose class vectors it learned; gives the class list too.
        root: folder of all runs.
        device: where to load it.

    Raises:
        DataError: the file is not such a checkpoint, or not of this backbone or teacher.
    """
    checkpoint = read_public_checkpoint(file)
    found = promptkd_parameters(checkpoint.state_dict)
    backbone = on.load(device)
    largest = _largest_deviation(file, on, backbone, found.backbone)
    vectors = load_class_vectors(teacher.class_vectors)
    _check_dimension(file, found, vectors.vectors.shape[1], teacher)
    settings = promptkd.Settings(
        n_ctx_vision=found.visual_prompts.shape[1], prompt_depth=len(found.visual_prompts)
    )
    section = {
        "method": "promptkd",
        **on.as_recipe(),
        "settings": settings.model_dump(exclude_defaults=True),
    }
    names = vectors.class_names
    classes = Classes(names, "a photo of a {}.", "all")
    choice = MethodChoice("promptkd", promptkd, settings, OptimSettings())
    stored = StoredVectors(vectors, device)
    method = build_method(choice, backbone, classes, seed=0, teacher=stored)
    projector = {f"projector.{key}": value for key, value in found.projector.items()}
    method.module.load_state_dict({"visual_prompts": found.visual_prompts, **projector})
    with _new_run(root, name, "student", section, names, file, checkpoint) as run:
        store_trained(
            run,
            method_name="promptkd",
            method=method,
            backbone=backbone,
            classes=classes,
            made_by=vectors.made_by,
        )
    return Imported(run, checkpoint.epoch, grouped(found.ignored), checkpoint.ignored, largest)


def grouped(keys: Iterable[str]) -> tuple[str, ...]:
    """Puts keys that share their first two parts under one name with their number."""
    groups: dict[str, list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(".".join(key.split(".")[:2]), []).append(key)
    return tuple(
        printable(members[0] if len(members) == 1 else f"{start}.* ({len(members)} keys)")
        for start, members in groups.items()
    )


def _largest_deviation(
    file: Path, on: ImportedBackbone, backbone: Backbone, theirs: Mapping[str, Tensor]
) -> tuple[float, str]:
    """How far the file's backbone is from the loaded one, relative, and the key it is at.

    Raises:
        DataError: too far for rounding: the prompts were trained on other weights.
    """
    _, relative, key = deviation(backbone.model.state_dict(), theirs)
    if relative > MAX_DEVIATION:
        raise DataError(
            f"{file} was not trained on {on.weights}: its backbone differs by {relative:.2g}"
            f" (relative, at {key}).\n"
            "  Averaging in half precision moves weights by at most about 0.001; above"
            f" {MAX_DEVIATION:g} they are others.\n"
            "  Name the weights that the checkpoint was trained on, such as --weights openai."
        )
    return relative, key


def _check_dimension(
    file: Path, found: PromptKDParameters, teacher_dim: int, teacher: RunFolder
) -> None:
    width = found.projector["linear2.weight"].shape[0]
    if width != teacher_dim:
        raise DataError(
            f"{file} projects to {width} dimensions, and the class vectors of {teacher.name} have"
            f" {teacher_dim}.\n  Name the run of the teacher that this student learned from."
        )


def _recipe_text(
    name: str,
    role: Literal["teacher", "student"],
    section: Mapping[str, Any],
    class_names: tuple[str, ...],
) -> str:
    values = {"name": name, "classes": list(class_names), "data": {}, role: dict(section)}
    return dump_recipe(Recipe.model_validate(values, context={"folder": Path.cwd()}))


@contextlib.contextmanager
def _new_run(
    root: Path,
    name: str,
    role: Literal["teacher", "student"],
    section: Mapping[str, Any],
    class_names: tuple[str, ...],
    file: Path,
    checkpoint: PublicCheckpoint,
) -> Iterator[RunFolder]:
    """A run that is finished after the block, or gone where the block fails."""
    run = RunFolder.create(
        root,
        name,
        kind=role,
        recipe_text=_recipe_text(name, role, section, class_names),
        provenance={
            "method": section["method"],
            "settings": section["settings"],
            "imported_from": str(file.absolute()),
            "epoch": checkpoint.epoch,
            "hashes": {"checkpoint": sha256_file(file)},
        },
    )
    try:
        with run.lock():
            yield run
            run.finish()
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise


def _own_backbone(
    run: RunFolder,
    backbone: Backbone,
    found: PromptSRCParameters,
    on: ImportedBackbone,
    device: torch.device,
) -> tuple[Backbone, ImportedBackbone]:
    """Writes the loaded backbone with the file's tensors over it, and loads that."""
    state: dict[str, Tensor] = dict(backbone.model.state_dict())
    state |= {key: value.float() for key, value in found.backbone.items()}
    is_quick = isinstance(backbone.model.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    path = run.path / "backbone.safetensors"
    tensors = {key: value.cpu().contiguous() for key, value in state.items()}
    write_atomic(path, encode_tensors(tensors, {"quick_gelu": str(is_quick).lower()}))
    own = ImportedBackbone(on.name, str(path.absolute()), on.config)
    return own.load(device), own
