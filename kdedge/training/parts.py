"""From a recipe to what training needs: classes, readable images, settings, a backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import ValidationError

from kdedge._processes import ALONE, Processes, local_rank, n_local
from kdedge._progress import progress
from kdedge.clip.backbone import Backbone, load_backbone
from kdedge.clip.image_backbone import AnyBackbone, has_texts, load_image_backbone
from kdedge.config.explain import explain_validation
from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import (
    ModelSpec,
    OptimSettings,
    Recipe,
    SourceSpec,
    UnlabeledSpec,
    resolve_optim,
)
from kdedge.data.classes import load_class_names
from kdedge.data.few_shot import Draws
from kdedge.data.images import BadImage, check_limit, image_list_hash, put_together, scan
from kdedge.data.open import is_own_split, open_source
from kdedge.data.sources._protocol import Joined, Source, WithoutLabels
from kdedge.data.split import base_novel
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.methods._protocol import Method, MethodSettings, Teacher
from kdedge.methods._sees import Sees
from kdedge.methods.registry import load_method

Role = Literal["teacher", "student", "baseline"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """The class list of a run.

    Attributes:
        names: all C class names, in order.
        template: text pattern for frozen texts.
        split: "all" or "base-to-novel".
        has_pseudo_labels: whether the recipe has pseudo-labels, which may be of any class.
    """

    names: tuple[str, ...]
    template: str
    split: Literal["all", "base-to-novel"]
    has_pseudo_labels: bool = False

    @property
    def labeled(self) -> range:
        """Classes whose labels may be trained on: the base half, or all."""
        return (
            base_novel(len(self.names))[0]
            if self.split == "base-to-novel"
            else range(len(self.names))
        )

    @property
    def unlabeled(self) -> range:
        """Classes that a method gives pseudo-labels: the novel half; all, where all have labels."""
        return (
            base_novel(len(self.names))[1]
            if self.split == "base-to-novel"
            else range(len(self.names))
        )

    def trained_by(self, sees: Sees) -> range:
        """Classes in the softmax of a method that sees this."""
        from_pseudo_labels = sees.labels and self.has_pseudo_labels
        is_any = sees.novel_class_names or from_pseudo_labels
        return range(len(self.names)) if is_any else self.labeled


@dataclass(frozen=True)
class Images:
    """A source and its readable images.

    Attributes:
        source: gives bytes and labels by index.
        indices: positions in the source that are used.
        skipped: unreadable images and why.
        digests: hash of the bytes at each readable position.
        is_own_split: whether a benchmark set's own rule chose them, its published split missing.
    """

    source: Source
    indices: tuple[int, ...]
    skipped: tuple[BadImage, ...]
    digests: Mapping[int, str]
    is_own_split: bool = False

    @property
    def list_hash(self) -> str:
        """Hash of the images in use, for provenance."""
        return image_list_hash(self.source, self.indices, self.digests)

    def only(self, indices: Sequence[int]) -> Images:
        """The same source with fewer images."""
        return replace(self, indices=tuple(indices))

    def labels(self) -> dict[int, int]:
        """Position in the source -> class index, of the images that have a label."""
        found = {index: self.source.items[index].label for index in self.indices}
        return {index: label for index, label in found.items() if label is not None}

    def without(self, other: Images) -> Images:
        """The images whose contents are not among another's."""
        contents = {other.digests[index] for index in other.indices}
        return self.only([i for i in self.indices if self.digests[i] not in contents])

    def with_those_of(self, other: Images) -> Images:
        """The images in use of both, of one source behind the other."""
        n_own = len(self.source.items)
        return Images(
            Joined(self.source, other.source),
            (*self.indices, *(n_own + i for i in other.indices)),
            (*self.skipped, *other.skipped),
            {**self.digests, **{n_own + i: digest for i, digest in other.digests.items()}},
        )

    def of_classes(self, classes: Sequence[int]) -> Images:
        """The images whose label is one of these classes."""
        wanted = set(classes)
        return self.only([i for i in self.indices if self.source.items[i].label in wanted])


@dataclass(frozen=True)
class MethodChoice:
    """A method as a recipe wants it: its module, its settings, how it is optimized."""

    name: str
    module: ModuleType
    settings: MethodSettings
    optim: OptimSettings


def load_classes(recipe: Recipe) -> Classes:
    """Reads the class list that the recipe names."""
    names = load_class_names(recipe.classes, data=recipe.data)
    return Classes(
        names,
        recipe.classes.template,
        recipe.data.split,
        has_pseudo_labels=recipe.data.pseudo_labels is not None,
    )


def model_spec(recipe: Recipe, role: Role) -> ModelSpec:
    """The recipe's section for a role; a baseline's, with the student's backbone.

    Raises:
        RecipeError: the recipe has no such section.
    """
    if role == "baseline":
        return _baseline_spec(recipe)
    spec = recipe.teacher if role == "teacher" else recipe.student
    if spec is None:
        raise RecipeError(
            f"The recipe {recipe.name} has no {role}.\n  Add a {role} section; `kdedge schema`"
            " shows its keys."
        )
    return spec


def _baseline_spec(recipe: Recipe) -> ModelSpec:
    spec = recipe.baseline
    if spec is None or spec.method is None:
        raise RecipeError(
            f"The recipe {recipe.name} names no baseline.\n  Name its method with --method;"
            " `kdedge methods` lists them."
        )
    if recipe.student is None:
        raise RecipeError(
            f"The recipe {recipe.name} has no student, and a baseline is trained on the student's"
            " backbone.\n  Add a student section; `kdedge schema` shows its keys."
        )
    own = {"method": spec.method, "settings": spec.settings, "optim": spec.optim}
    return recipe.student.model_copy(update=own)


def choose_method(loaded: LoadedRecipe, role: Role) -> MethodChoice:
    """Finds the method of a role and checks its settings; messages have the recipe's lines.

    Raises:
        RecipeError: there is no such method, a setting is wrong, or the recipe gives pseudo-labels
            to a method that chooses them itself.
    """
    spec = model_spec(loaded.recipe, role)
    module = load_method(spec.method)
    try:
        settings = module.Settings(**spec.settings)
    except ValidationError as error:
        raise explain_validation(
            error, model=module.Settings, lines=loaded.lines, prefix=(role, "settings")
        ) from error
    if settings.n_rounds > 0 and loaded.recipe.data.pseudo_labels is not None:
        raise RecipeError(
            f"{spec.method} chooses its pseudo-labels itself, and the recipe has"
            " data.pseudo_labels.\n"
            "  Leave that key out, or train a method on them that learns from labels, such as coop."
        )
    return MethodChoice(
        spec.method, module, settings, resolve_optim(loaded.recipe.optim, spec.optim)
    )


def load_images(
    recipe: Recipe,
    key: Literal["unlabeled", "labeled", "validation", "test"],
    classes: Classes,
    *,
    processes: Processes = ALONE,
) -> Images | None:
    """Opens a source of the recipe and reads every image once; None where there is none.

    Several processes read a part of the source each.

    Raises:
        DataError: more images are unreadable than the recipe accepts, or labels and class names
            differ.
    """
    spec: SourceSpec | None = getattr(recipe.data, key)
    if spec is None:
        return None
    if isinstance(spec, UnlabeledSpec) and spec.per_class is not None:
        return _draw_unlabeled(recipe, spec, spec.per_class, classes, processes)
    source = open_source(
        spec, class_names=classes.names, labeled=key != "unlabeled", data=recipe.data
    )
    images = _readable(source, recipe, key, processes)
    return replace(images, is_own_split=is_own_split(spec, data=recipe.data))


def _draw_unlabeled(
    recipe: Recipe,
    spec: UnlabeledSpec,
    per_class: int,
    classes: Classes,
    processes: Processes,
) -> Images:
    """A number of readable images of every class, whose labels are read for this alone."""
    try:
        source = open_source(spec, class_names=classes.names, labeled=True, data=recipe.data)
    except DataError as error:
        raise DataError(
            f"data.unlabeled.per_class is {per_class}, which needs each image's class for the"
            f" draw:\n{error}\n  Leave per_class out to use all images, whatever they show."
        ) from error
    images = _readable(source, recipe, "unlabeled", processes)
    draws = Draws(spec, shots=per_class, seed=recipe.seed, data=recipe.data)
    drawn = draws.take(spec, source, images.indices, shots=per_class, class_names=classes.names)
    return replace(images, source=WithoutLabels(source), indices=tuple(drawn))


def _readable(source: Source, recipe: Recipe, key: str, processes: Processes) -> Images:
    """A source's readable images; each is read once."""
    own = processes.share(len(source.items))
    with progress(f"reading data.{key}", own.stop - own.start) as advance:
        found = scan(source, rows=own, progress=advance)
    result = put_together(processes.all(found))
    limit = recipe.data.bad_image_limit(len(source.items))
    check_limit(result, limit=limit, what=f"data.{key}")
    if result.bad and processes.is_first:
        log.warning(
            "%d of %d images of data.%s cannot be read and are skipped.",
            len(result.bad),
            len(source.items),
            key,
        )
    digests = dict(zip(result.good, result.digests, strict=True))
    return Images(source, result.good, result.bad, digests)


def require_images(images: Images | None, key: str, why: str) -> Images:
    """Those images, or an error that names the key that is missing."""
    if images is None:
        raise RecipeError(
            f"The recipe has no data.{key}, and {why}.\n  Add it; `kdedge schema` shows how."
        )
    return images


def load_role_backbone(
    recipe: Recipe, role: Role, *, device: torch.device, cache: Path | None
) -> Backbone:
    """Loads the frozen CLIP of a role."""
    spec = model_spec(recipe, role)
    return load_backbone(
        name=spec.backbone,
        weights=spec.weights,
        config=spec.config,
        quick_gelu=spec.quick_gelu,
        device=device,
        cache_folder=cache,
    )


def load_student_backbone(
    recipe: Recipe, choice: MethodChoice, *, device: torch.device, cache: Path | None
) -> AnyBackbone:
    """Loads the student's frozen CLIP, or its image tower alone where that will do.

    It will where the method runs no text tower and the model has none that runs here.
    """
    spec = model_spec(recipe, "student")
    if choice.settings.needs_texts or has_texts(spec.backbone, spec.config):
        return load_role_backbone(recipe, "student", device=device, cache=cache)
    return load_image_backbone(
        name=spec.backbone,
        weights=spec.weights,
        config=spec.config,
        quick_gelu=spec.quick_gelu,
        device=device,
    )


def build_method(
    choice: MethodChoice,
    backbone: AnyBackbone,
    classes: Classes,
    *,
    seed: int,
    teacher: Teacher | None = None,
) -> Method:
    """Builds a method for a class list; its first values are drawn from `seed`."""
    method: Method = choice.module.Method.build(
        backbone,
        classes.names,
        choice.settings,
        template=classes.template,
        train_classes=classes.trained_by(choice.module.SEES),
        teacher=teacher,
        generator=torch.Generator().manual_seed(seed),
    )
    return method


def choose_device(name: str | None) -> torch.device:
    """The device by name; CUDA where there is one and nothing is asked for.

    Of several processes that torchrun started on a machine each has a GPU of its own.

    Raises:
        SetupError: this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"--device {name} is no device.\n  Use cpu, cuda or cuda:0.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            f"--device {name}: PyTorch finds no CUDA device here.\n"
            "  Use --device cpu, or see `kdedge doctor`."
        )
    if device.type not in {"cpu", "cuda"}:
        raise SetupError(f"--device {name}: kdedge trains on cpu and cuda.")
    if device.type == "cuda" and n_local() > 1:
        device = _own_gpu(device)
    # cuDNN's default would run the patch convolution of an fp32 run in TF32.
    torch.backends.cudnn.allow_tf32 = False
    return device


def _own_gpu(device: torch.device) -> torch.device:
    """The GPU of this process among those on this machine.

    Raises:
        SetupError: there are fewer GPUs than processes, or all are told to use one.
    """
    n_gpus = torch.cuda.device_count()
    if device.index is not None or n_local() > n_gpus:
        raise SetupError(
            f"{n_local()} processes run on this machine, each needs a GPU of its own, and there are"
            f" {1 if device.index is not None else n_gpus} to use.\n"
            "  Start fewer with --nproc-per-node, or give --device cuda without a number."
        )
    return torch.device("cuda", local_rank())


def settings_record(choice: MethodChoice) -> dict[str, Any]:
    """The method's name and settings as JSON values, for hashes and provenance."""
    return {"method": choice.name, "settings": choice.settings.model_dump(mode="json")}
