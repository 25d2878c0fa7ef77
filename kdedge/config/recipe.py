"""The schema of a recipe: every key with its meaning, unit, bounds, default and its source.

Relative paths resolve against the folder given as `context={"folder": ...}`, the recipe file's;
`~` is expanded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from kdedge.config._fields import (
    PlainText,
    RecipePath,
    Strict,
    Weights,
    check_name,
    plain_values,
)
from kdedge.config._official import write_out
from kdedge.config.data_spec import (
    ClassesSpec,
    DataSpec,
    LabeledSpec,
    SourceSpec,
    UnlabeledSpec,
)
from kdedge.config.export_spec import ExportSpec, GatesSpec
from kdedge.config.optim_spec import OptimSettings, OptimSpec, resolve_optim

__all__ = [
    "BaselineSpec",
    "ClassesSpec",
    "DataSpec",
    "ExportSpec",
    "GatesSpec",
    "LabeledSpec",
    "ModelSpec",
    "OptimSettings",
    "OptimSpec",
    "Recipe",
    "SourceSpec",
    "StudentSpec",
    "TeacherSpec",
    "UnlabeledSpec",
    "resolve_optim",
]


class ModelSpec(Strict):
    """A prompt method on a backbone."""

    method: PlainText = Field(description="Method name; `kdedge methods` lists them.")
    backbone: PlainText | None = Field(
        None,
        description="open_clip model name such as ViT-B-16, or the built-in kdedge-demo-teacher or"
        " kdedge-demo-student. Left out where a file of OpenAI's weights tells the sizes itself. A"
        " promptkd student's may also be one whose text tower does not run here, such as"
        " MobileCLIP-S1, or a model of timm, such as timm/resnet18.a1_in1k, under tune: full.",
    )
    weights: Weights | None = Field(
        None,
        description="open_clip tag such as openai, a weights file (.safetensors, .pt), or builtin;"
        " of a timm model pretrained, or a file.",
    )
    config: RecipePath | None = Field(
        None, description="open_clip model-config JSON of your own; takes the place of backbone."
    )
    quick_gelu: bool | None = Field(
        None,
        description="The activation that the weights were trained with, for a file that does not"
        " say. OpenAI's weights and those trained on from them: true.",
    )
    settings: Annotated[dict[str, Any], AfterValidator(plain_values)] = Field(
        default_factory=dict, description="The method's own settings; `kdedge schema` lists them."
    )
    optim: OptimSpec | None = Field(
        None, description="Keys of optim that differ from the recipe's for this model."
    )

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if self.backbone is not None and self.config is not None:
            raise ValueError("has backbone and config; a model config takes the place of the name")
        is_stored = getattr(self, "run", None) is not None
        if not is_stored and self.backbone is None and self.config is None and self.weights is None:
            raise ValueError("needs backbone, config, or weights that tell the sizes themselves")
        return self


class TeacherSpec(ModelSpec):
    """The large model: learns from few labeled images, then teaches."""

    method: PlainText = Field(
        "promptsrc",
        description="Method name. PromptKD's teacher is promptsrc (arXiv:2403.02781, 4.1).",
    )
    run: RecipePath | None = Field(
        None,
        description="Folder of a finished teacher run to use instead of training one; the teacher's"
        " other keys are then taken from that run.",
    )


class StudentSpec(ModelSpec):
    """The small model: learns the teacher's answers on unlabeled images, then is deployed."""

    method: PlainText = Field("promptkd", description="Method name. promptkd: arXiv:2403.02781.")
    views: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Random crops of each unlabeled image whose teacher features are kept in the"
        " teacher store, and which the epochs go through in turn. 0: the teacher is run in every"
        " step. As many as there are epochs: the crops of 0, and features that differ by float16's"
        " rounding.",
    )
    view_seed: int | None = Field(
        None,
        ge=0,
        le=2**32 - 1,
        description="What the crops and flips of the unlabeled images are drawn from; the recipe's"
        " seed when left out. One number for several seeds lets them share one teacher store.",
    )


class BaselineSpec(Strict):
    """What the student is compared with: a method that learns by itself, without a teacher.

    It is trained on the student's backbone by `kdedge train`.
    """

    method: PlainText | None = Field(
        None, description="Method name; left out where `kdedge train --method` gives it."
    )
    settings: Annotated[dict[str, Any], AfterValidator(plain_values)] = Field(
        default_factory=dict,
        description="The method's own settings; over the teacher's where that is the same method.",
    )
    optim: OptimSpec | None = Field(
        None,
        description="Keys of optim for the baseline. Left out: the teacher's where that is the same"
        " method; else lr, epochs and batch_size as the method's authors published them, and the"
        " recipe's optim for the rest.",
    )


def _names_to_spec(value: object) -> object:
    return {"names": value} if isinstance(value, list | tuple) else value


class Recipe(Strict):
    """One experiment, from images and class names to a student on the device."""

    version: Literal[2] = Field(
        2, description="Version of this schema. Recipes of version 1 are migrated when read."
    )
    name: Annotated[str, AfterValidator(check_name)] = Field(
        description="Letters, digits, dot, underscore, hyphen; runs are kept in runs/<name>.",
    )
    seed: int = Field(
        1,
        ge=0,
        le=2**32 - 1,
        description="All random draws come from it. 1, 2 and 3 in the published tables"
        " (arXiv:2307.06948, 4.1).",
    )
    official: bool = Field(
        False,
        description="Train and choose as PromptKD's public code does, to compare with its figures:"
        " fp16 without loss scaling, losses in fp16, and the student's epoch that is best on test"
        " images (of base classes under base-to-novel). Results are marked. Default, and for every"
        " other use: false.",
    )
    classes: Annotated[ClassesSpec, BeforeValidator(_names_to_spec)] = Field(
        description="The class names: a list, or one of file, benchmark, synthetic."
    )
    data: DataSpec = Field(description="The images.")
    teacher: TeacherSpec | None = Field(None, description="The large model.")
    student: StudentSpec | None = Field(None, description="The small model.")
    baseline: BaselineSpec | None = Field(
        None, description="A method to compare with, on the small model's backbone."
    )
    optim: OptimSpec = Field(
        default_factory=OptimSpec, description="Optimization of both models, unless they say other."
    )
    export: ExportSpec = Field(
        default_factory=ExportSpec, description="What `kdedge export` makes of the student."
    )
    gates: GatesSpec = Field(
        default_factory=GatesSpec,
        description="What an exported file must reach; one that does not is an error.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_the_public_code(cls, values: object) -> object:
        return write_out(values)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.teacher is None and self.student is None:
            raise ValueError("has neither teacher nor student; a recipe needs at least one")
        models = [self.teacher, self.student, self.baseline]
        specs = [self.optim, *(model.optim for model in models if model is not None)]
        if not self.official and any(spec and spec.selection == "test" for spec in specs):
            raise ValueError(
                "has optim.selection: test, and an epoch chosen on test images makes the test"
                " worthless; choose last or validation, or say official: true"
            )
        return self
