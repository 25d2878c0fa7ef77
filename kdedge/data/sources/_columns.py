"""Which column of a table holds images and which labels, and what their numbers stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.data.sources._labels import name_some
from kdedge.errors import DataError

_LABEL_COLUMNS = ("label", "labels")


@dataclass(frozen=True)
class Columns:
    """What of a table is used.

    Attributes:
        image: the column of images.
        label: that of labels, None where there is none.
        names: what its numbers stand for, None where the table does not say.
    """

    image: str
    label: str | None
    names: tuple[str, ...] | None


def choose_columns(schema: Any, path: Path, *, image: str | None, label: str | None) -> Columns:
    """Finds the columns of images and labels.

    Args:
        schema: pyarrow's.
        path: for messages.
        image: its name; None to find it.
        label: its name; None to find it.

    Raises:
        DataError: a column is not there or of another type, or which one is meant is not clear; or
            a name is not UTF-8.
    """
    try:
        return _choose(schema, path, image, label)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is damaged: the name of a column is not UTF-8.\n  Copy or download it again."
        ) from error


def _choose(schema: Any, path: Path, image: str | None, label: str | None) -> Columns:
    features = _features(schema)
    found = [field.name for field in schema if _holds_images(field.type)]
    marked = [name for name in found if features.get(name, {}).get("_type") == "Image"]
    if image is None:
        image = _only(marked or found, path, schema)
    elif image not in found:
        raise no_column(path, schema, f"column {image} of images", "image_column")
    if label is None:
        classes = [name for name, one in features.items() if one.get("_type") == "ClassLabel"]
        usable = [field.name for field in schema if _holds_labels(field.type)]
        named = [name for name in _LABEL_COLUMNS if name in usable]
        label = next(iter(named or (classes if len(classes) == 1 else [])), None)
    elif label not in schema.names or not _holds_labels(schema.field(label).type):
        raise no_column(path, schema, f"column {label} of names or numbers", "label_column")
    names = features.get(label or "", {}).get("names")
    return Columns(image, label, tuple(map(str, names)) if isinstance(names, list) else None)


def _features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """What `datasets` says of the columns; nothing where it has not written the table."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: one for name, one in features.items() if isinstance(one, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in fields and _holds_images(fields["bytes"])
    return _is_one_of(kind, "is_binary", "is_large_binary", "is_binary_view")


def _holds_labels(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    return _is_one_of(kind, "is_integer", "is_string", "is_large_string", "is_string_view")


def _is_one_of(kind: Any, *names: str) -> bool:
    """Whether one of pyarrow's questions about types is answered with yes; old ones lack some."""
    import pyarrow.types as types

    return any(getattr(types, name)(kind) for name in names if hasattr(types, name))


def _only(names: Sequence[str], path: Path, schema: Any) -> str:
    if not names:
        raise no_column(path, schema, "column of images", "image_column")
    if len(names) > 1:
        raise DataError(
            f"{path} has {len(names)} columns that may hold images: {name_some(names)}.\n"
            "  Name one as image_column."
        )
    return names[0]


def no_column(path: Path, schema: Any, what: str, key: str) -> DataError:
    """Gives the error for a column that a table does not have; `key` is how a recipe names it."""
    has = ", ".join(f"{field.name} ({field.type})" for field in schema)
    are = {
        "image_column": "Images are bytes, or a struct with a field bytes",
        "label_column": "Labels are text or whole numbers",
    }
    return DataError(
        f"{path} has no {what}.\n  It has: {has:.600}.\n  {are[key]}; name the column as {key}."
    )
