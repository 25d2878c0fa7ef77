"""Write a commented recipe for your own images."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdedge.cli._output import json_option, next_line, print_result
from kdedge.config.fields import NAME
from kdedge.config.load import load_recipe
from kdedge.config.recipe import ExportSpec, GatesSpec, OptimSettings, OptimSpec, Recipe
from kdedge.config.yaml_file import dump_value
from kdedge.errors import DataError, RecipeError

_SETTINGS = {
    "losses": "Weight of the distillation loss per image. The PromptKD repository's 1000 is 2.5 per"
    " image on the 397 classes of SUN397. Per image, it does not depend on the number of classes.",
}


@click.command("init")
@click.argument("name")
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of unlabeled images that the student is trained on.",
)
@click.option(
    "--classes",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text file of class names, one a line.",
)
@click.option(
    "--labeled",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Labeled images, one subfolder per class. The teacher is trained on 16 per class.",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Labeled images for measuring accuracy, one subfolder per class.",
)
@json_option
def command(
    name: str, images: Path, classes: Path, labeled: Path | None, test: Path | None, as_json: bool
) -> None:
    """Write NAME.yaml, a commented recipe for your own images.

    An existing file is never overwritten. Without --labeled the teacher is zero-shot CLIP.
    """
    name = name.removesuffix(".yaml")
    path = _new_path(name)
    for folder in (images, labeled, test):
        if folder is not None and not folder.expanduser().is_dir():
            raise DataError(f"There is no folder {folder}.\n  Name a folder that exists.")
    if not classes.expanduser().is_file():
        raise DataError(f"There is no file {classes}.\n  Write your class names to it, one a line.")
    text = recipe_text(name, images=images, classes=classes, labeled=labeled, test=test)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    load_recipe(path)
    text = f"Wrote {path}\n{next_line('check', path)}"
    print_result({"recipe": str(path)}, as_json=as_json, text=text)


def _new_path(name: str) -> Path:
    if not NAME.fullmatch(name):
        raise RecipeError(
            f'"{name}" cannot be a recipe\'s name.\n'
            "  Use letters, digits, dot, underscore and hyphen, at most 100, and no dot in front."
        )
    path = Path(f"{name}.yaml")
    if path.exists() or path.is_symlink():
        raise RecipeError(f"{path} is there already.\n  Choose another name, or move it away.")
    return path


def recipe_text(
    name: str, *, images: Path, classes: Path, labeled: Path | None, test: Path | None
) -> str:
    """Writes a recipe as text, each key below its description in the schema."""
    data: dict[str, Any] = {"unlabeled": {"folder": str(images)}}
    if test is None:  # what is not trained on says how far the student agrees with its teacher
        data["unlabeled"]["hold_out"] = "5%"
    if labeled is not None:
        data["labeled"] = {"folder": str(labeled), "shots": 16}
    if test is not None:
        data["test"] = {"folder": str(test)}
    data |= {"split": "all", "max_bad_images": "1%"}
    optim = {key: OptimSettings.model_fields[key].default for key in ("lr", "epochs", "batch_size")}
    values = {
        "name": name,
        "seed": 1,
        "classes": {"file": str(classes), "template": "a photo of a {}."},
        "data": data,
        "teacher": {
            "method": "promptsrc" if labeled is not None else "zeroshot",
            "backbone": "ViT-L-14",
            "weights": "openai",
        },
        "student": {
            "method": "promptkd",
            "backbone": "ViT-B-16",
            "weights": "openai",
            "settings": {"losses": {"kl": {"weight_per_image": 2.5}}},
        },
        "optim": optim,
        "export": {"precisions": ["fp16"]},
        "gates": GatesSpec().model_dump(),
    }
    head = [
        f"# Recipe {name}. Relative paths start at this file's folder. `kdedge schema` explains",
        "# every key. Lines such as `# momentum: 0.9` are defaults; remove the # to change them.",
    ]
    return "\n".join([*head, *_render(Recipe, values, "")]) + "\n"


def _render(model: type[BaseModel], values: dict[str, Any], indent: str) -> Iterator[str]:
    """Lines of a mapping: keys below their descriptions, some unset keys commented out."""
    for key, field in model.model_fields.items():
        if key in values:
            if not indent:
                yield ""
            yield from _comment(field.description, indent)
            yield from _entry(key, values[key], field, indent)
        elif model in {OptimSpec, ExportSpec} and field.default is not None:
            yield from _comment(field.description, indent)
            yield f"{indent}# {key}: {dump_value(field.default)}"


def _entry(key: str, value: Any, field: FieldInfo, indent: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{indent}{key}: {dump_value(value)}"
        return
    yield f"{indent}{key}:"
    inner = _model_of(field.annotation)
    if inner is not None:
        yield from _render(inner, value, f"{indent}  ")
        return
    for name, item in value.items():
        yield from _comment(_SETTINGS.get(name), f"{indent}  ")
        yield f"{indent}  {name}: {dump_value(item)}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *getattr(annotation, "__args__", ())]
    models = (kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel))
    return next(models, None)


def _comment(text: str | None, indent: str) -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(
        text or "", 96, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False
    )
