"""Field types of recipes and suites: strict models, paths, shard patterns, percentages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
"""Names of recipes and suites; they become folder names."""

HUB = "hf://datasets/"
"""Prefix of the name of a dataset on the Hugging Face Hub."""


def class_key(name: str) -> str:
    """Equal for class names that count as one: case, blanks and underscores do not matter.

    CLIP reads texts in lower case, so such names have equal class vectors.
    """
    return " ".join(name.replace("_", " ").casefold().split())


_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz")


class Strict(BaseModel):
    """A model with strict types that refuses unknown keys and does not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CommandLineText(str):
    """Text from `--set`: relative paths in it start at the current folder.

    The validation context's `override_folder` replaces the current folder.
    """

    __slots__ = ()


@dataclass(frozen=True)
class PathKind:
    """Marks a field as a path, with the kind of file that must exist there before a run."""

    kind: Literal["dataset", "file", "folder", "shards", "table", "weights"]


def _absolute(text: str, info: ValidationInfo) -> str:
    """Expands `~` and puts the recipe's folder in front of a relative path."""
    context = info.context or {}
    folder = context.get("folder")
    path = Path(text).expanduser()
    if isinstance(text, CommandLineText):
        path = Path(context.get("override_folder") or Path.cwd()) / path
    elif folder is not None:
        path = Path(folder) / path
    return str(path)


def _resolve_path(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError("must be a path, got empty text" if not value else "is not a path")
        return Path(_absolute(value, info))
    return value


def _resolve_dataset(value: object, info: ValidationInfo) -> object:
    is_hub_name = isinstance(value, str) and value.startswith(HUB)
    return str(value) if is_hub_name else _resolve_path(value, info)


def _resolve_pattern(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    if "://" in value or value.startswith("pipe:"):
        raise ValueError(
            f'must be a pattern of files on this machine, got "{value}"; training downloads and'
            " runs nothing, so fetch the shards first"
        )
    return _absolute(value, info)


def looks_like_path(weights: str) -> bool:
    """Whether `weights` names a file rather than a pretrained tag."""
    return (
        any(mark in weights for mark in "/\\")
        or weights.startswith((".", "~"))
        or weights.endswith(_WEIGHT_SUFFIXES)
    )


def _resolve_weights(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    return _absolute(value, info) if looks_like_path(value) else str(value)


def plain_values(value: Any) -> Any:
    """Values as a YAML file has them: mappings, lists, and texts for paths and for other texts."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return str(value) if isinstance(value, str | Path) else value


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            f'becomes a folder and may hold up to 100 letters, digits, ".", "_" and "-", not'
            f' beginning with ".", got "{name[:120]}"'
        )
    return str(name)


def check_template(template: str) -> str:
    """Checks a class-name template and returns it.

    Raises:
        ValueError: it does not hold `{}` once, or holds other braces.
    """
    around = template.replace("{}", "", 1)
    if "{}" not in template or "{" in around or "}" in around:
        raise ValueError(
            f'must hold {{}} once and no other braces, where the class name goes, got "{template}";'
            ' for example: "a photo of a {}."'
        )
    return str(template)


def _is_percent(value: object) -> bool:
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    return match is not None and float(match[1]) <= 100


def _check_bad_images(value: str | int) -> str | int:
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"must be at least 0, got {value}")
        return value
    if not _is_percent(value):
        raise ValueError(f'must be a percentage such as "1%" or a count, got "{value}"')
    return str(value)


def _check_percent(value: object) -> str:
    if not _is_percent(value):
        got = f'"{value}"' if isinstance(value, str) else value
        raise ValueError(f'must be a percentage such as "99.5%", at most "100%", got {got}')
    return str(value)


def _check_distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    names = Counter(getattr(value, "name", value) for value in values)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"holds {twice} more than once; each must differ")
    return values


def percent_value(text: str) -> float:
    """Returns the number of a `Percent` text: 99.5 for "99.5%"."""
    return float(text[:-1])


DatasetPlace = Annotated[Path | str, BeforeValidator(_resolve_dataset), PathKind("dataset")]
RecipeFile = Annotated[Path, BeforeValidator(_resolve_path), PathKind("file")]
RecipeFolder = Annotated[Path, BeforeValidator(_resolve_path), PathKind("folder")]
ShardPattern = Annotated[
    str, Field(min_length=1), BeforeValidator(_resolve_pattern), PathKind("shards")
]
TablePattern = Annotated[
    str, Field(min_length=1), BeforeValidator(_resolve_pattern), PathKind("table")
]
Weights = Annotated[
    str, Field(min_length=1), BeforeValidator(_resolve_weights), PathKind("weights")
]
Percent = Annotated[str, BeforeValidator(_check_percent)]
PercentOrCount = Annotated[str | int, AfterValidator(_check_bad_images)]
PlainText = Annotated[str, Field(min_length=1), AfterValidator(str)]
Name = Annotated[str, AfterValidator(_check_name)]
Distinct = AfterValidator(_check_distinct)
"""For a list whose entries, or their names, must differ."""
Template = Annotated[str, AfterValidator(check_template)]
