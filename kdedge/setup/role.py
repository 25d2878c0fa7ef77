"""A role's method, classes and backbone, and a check of its sizes, before anything is built."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from kdedge.clip.architecture import EncoderSizes
from kdedge.clip.backbone import ImageBackbone
from kdedge.clip.find import UnbuiltBackbone
from kdedge.clip.resolve import BackboneSpec, named_sizes
from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import ModelSpec, Recipe
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.methods.base import BaseMethod, MethodInputs, Teacher
from kdedge.methods.registry import load_method
from kdedge.records.evaluation import Role
from kdedge.setup.classes import Classes, load_classes
from kdedge.setup.images import RecipeImages
from kdedge.setup.method import MethodChoice, choose_method, model_spec
from kdedge.setup.workspace import Workspace


@dataclass(frozen=True)
class RoleSetup(MethodChoice):
    """One of a recipe's models: its method, and the class list and backbone that it works on.

    Attributes:
        loaded: the recipe.
        classes: the class list.
        backbone: the backbone, identified but not built.
        workspace: the command's workspace, which builds the backbone.
    """

    loaded: LoadedRecipe
    classes: Classes
    backbone: UnbuiltBackbone
    workspace: Workspace

    @property
    def recipe(self) -> Recipe:
        """The recipe's values, without its file and line numbers."""
        return self.loaded.recipe

    @property
    def device(self) -> torch.device:
        """The device of the workspace."""
        return self.workspace.device

    @property
    def train_classes(self) -> range:
        """Classes that may have labels; those that do are the classes of the softmax, if any."""
        needs = self.data_needs
        classes = self.classes
        has_pseudo_labels = needs.labels and classes.has_pseudo_labels
        knows_names = needs.novel_class_names and not self.settings.learns_from_labels
        return range(len(classes.names)) if has_pseudo_labels or knows_names else classes.labeled

    @property
    def images(self) -> RecipeImages:
        """Reads its recipe's images."""
        return RecipeImages(self.recipe, self.classes, self.workspace)

    def with_method(self, name: str, role: Role) -> RoleSetup:
        """The same classes and backbone with another method, in its default settings."""
        module = load_method(name)
        settings = module.Settings()
        return replace(self, role=role, method_name=name, module=module, settings=settings)

    def load_backbone(self) -> ImageBackbone:
        """Builds the backbone, or returns the one that the workspace has built."""
        return self.workspace.load_backbone(self.backbone)

    def build(
        self,
        *,
        train_classes: Sequence[int] | None = None,
        class_vectors: Tensor | None = None,
        teacher: Teacher | None = None,
        sentences: Sequence[Sequence[str]] | None = None,
    ) -> BaseMethod:
        """Builds the method; its initial values are drawn from the recipe's seed.

        Args:
            train_classes: the classes of its softmax; default: those that may have labels.
            class_vectors: [C, D], class vectors of a student; default: its teacher's.
            teacher: teacher of a student that is trained.
            sentences: sentences about each class, for a method that learns from texts.
        """
        inputs = MethodInputs(
            self.classes.names,
            self.classes.template,
            self.train_classes if train_classes is None else train_classes,
            torch.Generator().manual_seed(self.recipe.seed),
            teacher,
            class_vectors,
            sentences,
        )
        built: BaseMethod = self.module.Method(self.load_backbone(), self.settings, inputs)
        return built


def set_up_role(
    loaded: LoadedRecipe, role: Role, workspace: Workspace, *, classes: Classes | None = None
) -> RoleSetup:
    """Reads a recipe's description of a role; identifies its backbone.

    Args:
        loaded: the recipe.
        role: the role to set up.
        workspace: the command's workspace.
        classes: the class list; default: the recipe's.

    Raises:
        RecipeError: the recipe has no such role, or its method or a setting is wrong.
        KdedgeError: class list or backbone cannot be read.
    """
    choice = choose_method(loaded, role)
    classes = load_classes(loaded.recipe) if classes is None else classes
    spec = model_spec(loaded.recipe, role)
    backbone = workspace.identify(
        _backbone_spec(spec), needs_text_encoder=choice.settings.needs_text_encoder
    )
    return RoleSetup(
        **vars(choice), loaded=loaded, classes=classes, backbone=backbone, workspace=workspace
    )


def _backbone_spec(spec: ModelSpec) -> BackboneSpec:
    """The backbone that a recipe's section names."""
    return BackboneSpec(spec.backbone, spec.weights, spec.config, spec.quick_gelu)


def check_sizes(*models: tuple[LoadedRecipe, Role, EncoderSizes | None]) -> None:
    """Refuses settings that do not fit the CLIPs of a recipe; one error names all settings.

    Args:
        models: a recipe, a role in it, and the sizes of the role's backbone; None to derive them
            from model names and configs, without reading weights.

    Raises:
        RecipeError: a setting asks for more layers or tokens than an encoder has.
    """
    problems: list[str] = []
    for loaded, role, backbone_sizes in models:
        spec = model_spec(loaded.recipe, role)
        sizes = backbone_sizes or EncoderSizes()
        if backbone_sizes is None:
            # A wrong file is reported later, by the code that reads it
            with contextlib.suppress(DataError, SetupError):
                sizes = named_sizes(_backbone_spec(spec))
        settings = choose_method(loaded, role).settings
        name = spec.backbone or Path(spec.config or str(spec.weights)).stem
        misfits: list[tuple[str, str]] = []
        for setting, encoders in settings.layer_counts.items():
            for encoder in encoders:
                n_layers = sizes.n_layers.get(encoder, float("inf"))
                if attrgetter(setting)(settings) > n_layers:
                    why = f"the {encoder} encoder of {name} has {n_layers} layers."
                    misfits.append((setting, f"{why}\n  Set it to {n_layers} or less."))
        for setting, why in [*misfits, *settings.misfits(sizes).items()]:
            where = loaded.lines.where((role, "settings", *setting.split(".")))
            value = attrgetter(setting)(settings)
            problems.append(f"{where}: {role}.settings.{setting} is {value}, but {why}")
    if problems:
        raise RecipeError("\n".join(problems))
