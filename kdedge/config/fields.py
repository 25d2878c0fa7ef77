"""Field types of recipes and suites: strict models, paths, shard patterns, percentages."""

from __future__ import annotations

import glob
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from kdedge.files import home_path, printable

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_MAX_NAME_BYTES = 100  # a file system takes 255, and names get endings
NAME_FORM = (
    "letters, digits, dots, underscores and hyphens, without a leading dot, at most"
    f" {_MAX_NAME_BYTES} bytes in UTF-8"
)
"""What `is_name` takes, in words."""

HUB = "hf://datasets/"
"""Prefix of the name of a dataset on the Hugging Face Hub."""


def class_key(name: str) -> str:
    """Returns a key that is equal for names of one class: case, blanks and underscores are ignored.

    CLIP reads texts in lower case, so such names have equal class vectors. macOS may write an
    accented letter of a file name as two characters, which other systems write as one.
    """
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split())


def is_name(text: str) -> bool:
    """Whether a recipe, run or suite may have this name, which becomes a folder's."""
    if text.startswith(".") or not 1 <= len(text.encode(errors="replace")) <= _MAX_NAME_BYTES:
        return False
    # Letters of every script. Marks are parts of letters: macOS may split ü into u and its dots
    return all(
        char.isalnum() or char in "._-" or unicodedata.category(char).startswith("M")
        for char in text
    )


_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


MAX_COUNT = 10**9
"""Largest number of images, of all sorts, that a recipe can ask for."""


class Strict(BaseModel):
    """A model with strict types that refuses unknown keys and does not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class OverrideText(str):
    """Text from `--set`: relative paths in it start at the current folder.

    The validation context's `override_folder` replaces the current folder.
    """

    __slots__ = ()


PathKind = Literal["dataset", "file", "folder", "shards", "table", "weights"]
_PATTERNS = ("shards", "table")


def _resolve(kind: PathKind, value: object, info: ValidationInfo) -> object:
    """Expands `~`, and puts the recipe's folder in front of a relative path.

    With `must_exist` in the validation context, the path has to exist. A list `paths` in it gets
    the path.
    """
    if not isinstance(value, str):
        return value
    is_name_on_hub = kind == "dataset" and value.startswith(HUB)
    if is_name_on_hub or (kind == "weights" and not looks_like_path(value)):
        return str(value)
    if kind in _PATTERNS and ("://" in value or value.startswith("pipe:")):
        raise ValueError(
            f'must be a pattern of files on this machine, got "{value}"; training downloads and'
            " runs nothing, so fetch the shards first"
        )
    if not value or "\0" in value:
        raise ValueError("must be a path, got empty text" if not value else "is not a path")
    if value != printable(value):
        raise ValueError("is not UTF-8; rename the file or folder")
    context = info.context or {}
    folder = context.get("folder") or ""
    if isinstance(value, OverrideText):
        folder = context.get("override_folder") or Path.cwd()
    path: Path = folder / home_path(value)
    if "paths" in context:
        context["paths"].append(path)
    is_range = kind == "shards" and bool(set(value) & set("{:"))
    has_wildcards = kind in _PATTERNS and (is_range or glob.has_magic(value))
    if context.get("must_exist") and not has_wildcards:
        _check_exists(path, kind)
    return path if kind in ("dataset", "file", "folder") else str(path)


def _check_exists(path: Path, kind: PathKind) -> None:
    what = {"dataset": "folder", "folder": "folder", "table": "file or folder"}.get(kind, "file")
    if not path.exists():
        raise ValueError(f"cannot be read: there is no {what} {path}")
    if (what == "file" and path.is_dir()) or (what == "folder" and path.is_file()):
        raise ValueError(f"must be a {what}, and {path} is none")


def looks_like_path(weights: str) -> bool:
    """Whether `weights` names a file rather than a pretrained tag."""
    return (
        any(mark in weights for mark in "/\\")
        or weights.startswith((".", "~"))
        or weights.endswith(_WEIGHT_SUFFIXES)
    )


def plain_values(value: Any) -> Any:
    """Converts values to those of a YAML file: mappings with text keys, lists, text for paths.

    Numbers and arrays of NumPy, and of libraries like it, become plain numbers and lists.
    """
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value) if isinstance(value, str | Path) else value


def _check_name(name: str) -> str:
    if not is_name(name):
        raise ValueError(f'becomes a folder and may hold {NAME_FORM}, got "{name[:120]}"')
    return str(name)


def check_template(template: str) -> str:
    """Checks a class-name template and returns it.

    Raises:
        ValueError: the template does not hold `{}` once, or holds other braces.
    """
    rest = template.replace("{}", "", 1)
    if "{}" not in template or "{" in rest or "}" in rest:
        raise ValueError(
            f'must hold {{}} once and no other braces, where the class name goes, got "{template}";'
            ' for example: "a photo of a {}."'
        )
    return str(template)


def _check_percent(value: object, *, or_count: bool = False) -> str | int:
    if or_count and type(value) is int and 0 <= value <= MAX_COUNT:
        return value
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is None or float(match[1]) > 100:
        got = f'"{value}"' if isinstance(value, str) else value
        also = f", or a count up to {MAX_COUNT:,}" if or_count else ""
        raise ValueError(f'must be a percentage such as "5%", at most "100%"{also}, got {got}')
    return match[0]


def _check_distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    names = Counter(getattr(value, "name", value) for value in values)
    repeated = next((name for name, count in names.items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"holds {repeated} more than once; each must differ")
    return values


def percent_value(text: str) -> float:
    """Returns the number of a `PercentText`: 99.5 for "99.5%"."""
    return float(text[:-1])


def _path(kind: PathKind) -> BeforeValidator:
    return BeforeValidator(partial(_resolve, kind))


DatasetPlace = Annotated[Path | str, _path("dataset")]
RecipeFile = Annotated[Path, _path("file")]
RecipeFolder = Annotated[Path, _path("folder")]
ShardPattern = Annotated[str, _path("shards")]
TablePattern = Annotated[str, _path("table")]
WeightsPlace = Annotated[str, Field(min_length=1), _path("weights")]
PercentText = Annotated[str, BeforeValidator(_check_percent)]
PercentOrCount = Annotated[str | int, BeforeValidator(partial(_check_percent, or_count=True))]
PlainText = Annotated[str, Field(min_length=1), AfterValidator(str)]
Name = Annotated[str, AfterValidator(_check_name)]
Distinct = AfterValidator(_check_distinct)
"""For a list whose entries, or their names, must differ."""
Template = Annotated[str, AfterValidator(check_template)]
