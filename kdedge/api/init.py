"""Writes a commented recipe for the user's own images."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdedge.api.arguments import check_name, need_training_packages
from kdedge.config.export_spec import ExportSpec, GatesSpec
from kdedge.config.fields import looks_like_path
from kdedge.config.keys import list_keys
from kdedge.config.load import check_paths, load_recipe
from kdedge.config.optim_spec import OptimSettings
from kdedge.config.recipe import Recipe
from kdedge.config.student_sizes import NO_NETWORK, PACKAGED, student_size
from kdedge.config.yaml_file import dump_value
from kdedge.data.classes import check_class_names, read_class_file
from kdedge.data.survey import Survey, survey_sample
from kdedge.errors import RecipeError, explaining_writes
from kdedge.files import home_path, refuse_existing
from kdedge.records.tables import Table, Tabled

TEACHER_CLIP = "ViT-L-14:openai"
STUDENT_CLIP = student_size("base").clip
"""The default CLIPs of a new recipe."""

_ON_HUB = {
    TEACHER_CLIP: "timm/vit_large_patch14_clip_224.openai",
    STUDENT_CLIP: "timm/vit_base_patch16_clip_224.openai",
    student_size("small").clip: "timm/MobileCLIP2-S2-OpenCLIP",
    student_size("nano").clip: "timm/MobileCLIP2-S0-OpenCLIP",
}
"""Their repositories and those of `--size`, as in open_clip, which takes seconds to load."""

_TUNED = {
    "algorithm": "adamw",
    "lr": 4e-5,
    "layer_decay": 0.75,
    "ema_decay": 0.999,
    "crop_scale_min": 0.3,
}
# Section -> the model whose unset keys `--all-keys` writes as comments
_DEFAULTS_OF: dict[str, type[BaseModel]] = {"optim": OptimSettings, "export": ExportSpec}
# Key, or key and value, in a new recipe -> comment that explains it
_WHY = {
    "classes": "say what your camera sees: a top view of a {} on a conveyor belt.",
    "data.unlabeled": "images of the cameras that the student learns from, the more the better",
    "data.unlabeled.hold_out": "not trained on: models are compared on them",
    "data.labeled": "one folder a class",
    "data.test": "one folder a class; nothing is chosen on them",
    "data.max_bad_images": "unreadable images that are skipped, at least one; more are an error",
    "teacher.method=ridge": "solved in seconds from the labels, and says how good it is by"
    " leave-one-out",
    "teacher.method=promptsrc": "prompts, trained on the labels; classes without labels are known"
    " by their names",
    "teacher.method=zeroshot": "no labels: CLIP knows the classes by their names",
    "teacher.settings.text_loss_weight": "usual: 25 and 10 at a logit scale of 100; in proportion"
    " to it",
    "teacher.optim": "usual: 0.005 at a logit scale of 100; the lower the scale, the higher",
    "student.method=ridge": "one pass over the unlabeled images, without epochs",
    "student.settings.labeled_weight": "the labels, next to the teacher's predictions on the"
    " unlabeled images",
    "student.settings.tune": "all weights; prompts: --set student.settings.tune=prompts --set"
    " student.optim=null",
    "student.views": "the teacher's features are stored: another student costs no second pass",
    "student.one_pass_first": "a student without training, in one pass; the better one is kept",
    "student.optim": "for all weights: lr of arXiv:2212.06138 for CLIP's ViT-B/16, by batch_size",
    "logit_adjustment": "corrects CLIP's preference for some classes; or the shares that you know",
    "export.precisions": "add int8 for a GPU or Jetson; export --cpu makes INT8 by itself",
    "gates": "what an exported file must reach against the float32 model, in whole images",
}


@dataclass(frozen=True)
class NewRecipe(Tabled):
    """A recipe that was written; prints what was found and chosen.

    Attributes:
        path: the recipe's file.
        class_names: names of its class list.
        class_file: the file that they were read from; None if they were given as a list.
        surveys: summary of each folder, by its use: images, labeled, test.
        weights_to_fetch: the recipe's CLIPs whose weights are not here, of those that are defaults
            or of a `size`; none if huggingface_hub is missing.
        teacher_method: method of the recipe's teacher, which depends on the labels.
    """

    path: Path
    class_names: tuple[str, ...]
    class_file: Path | None
    surveys: dict[str, Survey]
    weights_to_fetch: tuple[str, ...]
    teacher_method: str

    @property
    def reasons(self) -> list[str]:
        """Lines that explain the choice of the recipe's methods."""
        if self.teacher_method == "ridge":
            return ["ridge for both, as every class has labels: one pass over the images"]
        teacher = "zero-shot CLIP"
        why = "there are no labels"
        if "labeled" in self.surveys:
            absent = self.surveys["labeled"].absent
            teacher = self.teacher_method
            why = f'"{absent[0]}" has no labels'
        return [
            f"{teacher} teaches, as {why}; promptkd learns in epochs, for hours on a CPU.",
            "With labels of every class, one pass over the images is enough.",
        ]

    @property
    def table(self) -> Table:
        """The classes, the images of each folder, the chosen methods, and weights to fetch."""
        place = "the recipe" if self.class_file is None else self.class_file
        facts = {"classes": [f"{len(self.class_names)} in {place}"]}
        facts |= {use: survey.lines() for use, survey in self.surveys.items()}
        facts["method"] = self.reasons
        if self.weights_to_fetch:
            clips = " and ".join(self.weights_to_fetch)
            facts["weights"] = [f"{clips}: kdedge check fetches them.", *NO_NETWORK]
        rows = [
            [subject if number == 0 else "", line]
            for subject, lines in facts.items()
            for number, line in enumerate(lines)
        ]
        return Table("", (), rows, align="l")

    @property
    def notes(self) -> list[str]:
        """The file that was written."""
        return ["", f"Wrote {self.path}"]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "recipe": str(self.path),
            "n_classes": len(self.class_names),
            "weights_to_fetch": list(self.weights_to_fetch),
            **{use: survey.to_dict() for use, survey in self.surveys.items()},
        }


def init(
    name: str,
    *,
    images: str | Path,
    classes: str | Path | Sequence[str],
    labeled: str | Path | None = None,
    test: str | Path | None = None,
    teacher: str | None = None,
    student: str | None = None,
    size: str | None = None,
    all_keys: bool = False,
) -> NewRecipe:
    """Writes `name`.yaml, a commented recipe for your own images, into the current folder.

    It checks the folders first; `check` checks the rest of the recipe. An existing file is never
    overwritten.

    Args:
        name: the recipe's name.
        images: folder of unlabeled images that the student is trained on.
        classes: text file of class names, one per line; or a list of the names, which is written
            into the recipe.
        labeled: labeled images, one subfolder per class; None for zero-shot CLIP as the teacher.
        test: labeled images for measuring accuracy, one subfolder per class.
        teacher: the teacher's CLIP as `MODEL:WEIGHTS`; None for OpenAI's ViT-L-14.
        student: the student's CLIP, for the device; None for the CLIP of `size`.
        size: `nano`, `small` or `base`; None for `base`, OpenAI's ViT-B-16, or for `student`.
        all_keys: write more keys, each with its description.

    Returns:
        The recipe's `path`, the class names, a summary of each folder (`surveys`), and CLIPs whose
        weights are not here (`weights_to_fetch`). It prints the lines of the command.

    Raises:
        RecipeError: the name cannot be used, the file exists, `classes` is neither a file nor a
            list of texts, or a CLIP does not fit.
        DataError: a folder or the class list is missing or wrong.
        SetupError: a CLIP is named and torch is missing.
    """
    name = name.removesuffix(".yaml")
    check_name(name)
    path = Path(f"{name}.yaml")
    refuse_existing(path)
    if student is not None and size is not None:
        raise RecipeError(
            f"A student of size {size} and {student} were asked for.\n  Give only one of them."
        )
    if {teacher, student, size} != {None}:
        need_training_packages("Looking at a CLIP's layers")
    class_file = Path(classes) if isinstance(classes, str | PathLike) else None
    if class_file is not None:
        class_names = read_class_file(home_path(class_file))
    else:
        class_names = _listed_names(classes)
    surveys = {"images": survey_sample(home_path(images), labeled=False)}
    for key, folder in (("labeled", labeled), ("test", test)):
        if folder is not None:
            surveys[key] = survey_sample(home_path(folder), class_names=class_names, labeled=True)
    without_labels = class_names if labeled is None else surveys["labeled"].absent
    values: dict[str, Any] = {
        "name": name,
        "seed": 1,
        "classes": {
            **({"names": list(class_names)} if class_file is None else {"file": str(class_file)}),
            "template": "a photo of a {}.",
        },
        "data": _data_section(images, labeled, test, has_ridge=not without_labels),
    }
    student = student or student_size(size or "base").clip
    teacher = teacher or TEACHER_CLIP
    values |= _models(teacher, student, without_labels, has_labels=labeled is not None)
    values |= {"export": {"precisions": ["fp16"]}, "gates": GatesSpec().model_dump()}
    with explaining_writes(path):
        check_paths(load_recipe(values))
        with path.open("x", encoding="utf-8") as file:
            file.write(_long_text(values) if all_keys else _short_text(values))
    method = values["teacher"]["method"]
    return NewRecipe(path, class_names, class_file, surveys, _to_fetch(values), method)


def _listed_names(classes: Any) -> tuple[str, ...]:
    """The class names of a list.

    Raises:
        RecipeError: it is no list, or some of it are no texts.
        DataError: these cannot be class names.
    """
    names = list(classes) if isinstance(classes, Iterable) else [classes]
    for name in names:
        if not isinstance(name, str):
            raise RecipeError(
                "classes takes a text file with one class name per line, or a list of class names"
                f' such as ["cat", "dog"].\n  Got {name!r:.60}, which is no text.'
            )
    check_class_names(names, "classes")
    return tuple(map(str, names))  # plain ones, also of NumPy's texts


def _data_section(
    images: str | Path, labeled: str | Path | None, test: str | Path | None, *, has_ridge: bool
) -> dict[str, Any]:
    data: dict[str, Any] = {"unlabeled": {"folder": str(images)}}
    if labeled is not None:
        data["labeled"] = {"folder": str(labeled)} | ({} if has_ridge else {"shots": 16})
    if test is None or not has_ridge:
        data["unlabeled"]["hold_out"] = "5%"
    if test is not None:
        data["test"] = {"folder": str(test)}
        if Path(test).resolve() in {Path(p).resolve() for p in (images, labeled) if p is not None}:
            raise RecipeError(
                f"{test} is named for training and for test images: accuracy would be of images"
                " that the model has seen.\n  Move a part of each class to a folder of test images."
            )
    return data | {"max_bad_images": "1%"}


def _models(
    teacher: str, student: str, without_labels: Sequence[str], *, has_labels: bool
) -> dict[str, Any]:
    """Teacher and student: solved if every class has labels, else CLIPs, which know the names.

    Raises:
        RecipeError: the teacher has no text encoder, and a class has no labels.
    """
    if not without_labels:
        ridge = _model("ridge", student, {"labeled_weight": 1.0})
        return {"teacher": _model("ridge", teacher, {}), "student": ridge | {"views": 1}}
    if has_labels:
        settings, optim = _promptsrc_for_scale(teacher)
        teacher_model = _model("promptsrc", teacher, settings, without_labels) | optim
    else:
        teacher_model = _model("zeroshot", teacher, {}, without_labels)
    settings = {"tune": "full", "losses": {"kl": {"weight_per_image": 2.5}}}
    return {
        "teacher": teacher_model,
        "student": _model("promptkd", student, settings)
        | {"one_pass_first": True, "optim": _TUNED},
        "logit_adjustment": {"prior": "auto"},
    }


def _to_fetch(values: dict[str, Any]) -> tuple[str, ...]:
    """CLIPs of a recipe that are not on this machine; see `NewRecipe.weights_to_fetch`."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return ()
    from huggingface_hub import try_to_load_from_cache

    models = [f"{values[r].get('backbone')}:{values[r]['weights']}" for r in ("teacher", "student")]
    files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return tuple(
        model
        for model in models
        if model in _ON_HUB
        and not any(isinstance(try_to_load_from_cache(_ON_HUB[model], f), str) for f in files)
    )


def _promptsrc_for_scale(clip: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """PromptSRC's settings and `optim` for a CLIP whose logit scale s is not the usual 100.

    The gradient of the cross-entropy grows with s, but the gradients of the distances do not.
    Weights times s / 100 keep their ratio, and a learning rate times 100 / s keeps the step length.
    """
    weights = clip.rpartition(":")[2]
    if not (looks_like_path(weights) and home_path(weights).is_file()):
        return {}, {}
    from kdedge.clip.weights import read_weights
    from kdedge.methods import promptsrc

    scale = read_weights(home_path(weights)).state_dict.get("logit_scale")
    share = 1.0 if scale is None else float(scale.exp()) / 100
    if 0.9 < share < 1.1:
        return {}, {}
    defaults = promptsrc.Settings()
    lr = OptimSettings.model_fields["lr"].default
    settings = {
        key: float(f"{getattr(defaults, key) * share:.2g}")
        for key in ("text_loss_weight", "image_loss_weight")
    }
    return settings, {"optim": {"lr": float(f"{lr / share:.2g}")}}


def _short_text(values: dict[str, Any]) -> str:
    """The recipe with one line per key and short comments."""
    lines = ["# `kdedge schema` explains every key. Relative paths start at this file's folder."]
    for key, value in values.items():
        if key in ("data", "teacher", "student", "export"):
            lines += ["", f"{key}:"]
            for inner, item in value.items():
                lines += _line(inner, item, _why(f"{key}.{inner}", item), indent="  ")
        elif key == "classes":
            # Without a text encoder nothing reads the template
            has_text_encoder = not str(values["teacher"].get("backbone")).startswith("timm/")
            lines += ["", *_line(key, value, _why(key, value) if has_text_encoder else None)]
        else:
            lines += _line(key, value, _why(key, value))
    return "\n".join(lines) + "\n"


def _why(key: str, value: Any) -> str | None:
    """The comment on a key: on its value, on the first key below that has one, or on itself."""
    below = [f"{key}.{name}" for name in value] if isinstance(value, dict) else []
    return next((_WHY[name] for name in (f"{key}={value}", *below, key) if name in _WHY), None)


def _line(key: str, value: Any, why: str | None, indent: str = "") -> list[str]:
    """A key and its value in YAML, with a comment after or above it."""
    text = f"{indent}{key}: {dump_value(value)}"
    if why is None:
        return [text]
    return [f"{text:<45}  # {why}"] if len(text) <= 45 else [f"{indent}# {why}", text]


def _long_text(values: dict[str, Any]) -> str:
    """The recipe with each key below its description in the schema."""
    about = {key.name: key.description for key in list_keys(Recipe.model_json_schema())}
    optim = {key: OptimSettings.model_fields[key].default for key in ("lr", "epochs", "batch_size")}
    lines = [
        f"# Recipe {values['name']}. Relative paths start at this file's folder. Lines such as",
        "# `# momentum: 0.9` are defaults; remove the # to change them.",
    ]
    for key, value in {**values, "optim": optim}.items():
        lines += ["", *_comment(about[key], "")]
        if not isinstance(value, dict):
            lines.append(f"{key}: {dump_value(value)}")
            continue
        lines.append(f"{key}:")
        for name, item in value.items():
            lines += _comment(about.get(f"{key}.{name}"), "  ")
            lines.append(f"  {name}: {dump_value(item)}")
        for name, field in _DEFAULTS_OF[key].model_fields.items() if key in _DEFAULTS_OF else ():
            if name not in value and field.default is not None:
                lines += _comment(field.description, "  ")
                lines.append(f"  # {name}: {dump_value(field.default)}")
    return "\n".join(lines) + "\n"


def _model(
    method: str, clip: str, settings: dict[str, Any], named_only: Sequence[str] = ()
) -> dict[str, Any]:
    """The section of a model, with prompt depths that fit its CLIP.

    Args:
        method: its method.
        clip: its network, as `MODEL:WEIGHTS`.
        settings: settings of the method.
        named_only: classes that it has to know by their names.

    Raises:
        RecipeError: there is no such CLIP, it knows no names, or the method does not work with it.
    """
    network = f"{PACKAGED[clip][0]}:package" if clip in PACKAGED else clip
    backbone, colon, weights = network.rpartition(":")
    where = {"config": backbone} if backbone.endswith(".json") else {"backbone": backbone}
    model = {"method": method, **(where if colon else {}), "weights": weights}
    if clip in (TEACHER_CLIP, STUDENT_CLIP):  # without loading open_clip and torch
        return model | ({"settings": settings} if settings else {})
    from kdedge.clip.find import check_weights_file, has_text_encoder
    from kdedge.clip.resolve import BackboneSpec, named_sizes

    config = home_path(backbone) if "config" in model else None
    spec = BackboneSpec(model.get("backbone"), weights, config)
    n_layers = named_sizes(spec).n_layers
    if named_only and not has_text_encoder(spec):
        raise RecipeError(
            f"{clip} is an image encoder alone for kdedge: it learns a class from labeled images,"
            f' not from its name, and "{named_only[0]}" has no labels.\n'
            "  Give labels of each class, or a teacher that knows classes by their names, such as"
            f" {TEACHER_CLIP}."
        )
    if looks_like_path(weights) and home_path(weights).is_file():
        check_weights_file(spec)
    settings = {**_fitting_counts(method, settings, n_layers, clip), **settings}
    return model | ({"settings": settings} if settings else {})


def _fitting_counts(
    method: str, settings: dict[str, Any], n_layers: Mapping[str, int], clip: str
) -> dict[str, int]:
    """Settings of a method that count more layers than a CLIP has -> its number of layers.

    Raises:
        RecipeError: the CLIP has no layers that take a prompt that the settings ask for.
    """
    from kdedge.methods.registry import load_method

    settings_type = load_method(method).Settings
    defaults = settings_type()
    chosen = settings_type.model_validate(settings).layer_counts
    fitting: dict[str, int] = {}
    for setting, encoders in defaults.layer_counts.items():
        if all(encoder in n_layers for encoder in encoders):
            most = min(n_layers[encoder] for encoder in encoders)
            if most < getattr(defaults, setting):
                fitting[setting] = most
        elif setting in chosen:
            raise RecipeError(
                f"{method} trains visual prompts, and {clip} has no layers that take them.\n"
                "  Choose a CLIP with a ViT, such as ViT-B-16:openai. Or write the recipe by hand:"
                " `kdedge schema` explains student.settings.tune."
            )
    return fitting


def _comment(text: str | None, indent: str) -> list[str]:
    """A text as comment lines."""
    mark = f"{indent}# "
    return textwrap.wrap(
        text or "", 96, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False
    )
