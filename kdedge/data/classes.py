"""The class list, whose order fixes labels, class vectors and the base/novel halves.

Sentences that describe the classes come from a JSON file, {class name: [sentences]}.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StrictStr, TypeAdapter, ValidationError

from kdedge.config.data_spec import ClassesSpec, DataSpec
from kdedge.config.fields import class_key
from kdedge.data.benchmark_sets import benchmark_root, load_benchmark_set
from kdedge.data.sources import synthetic
from kdedge.errors import DataError
from kdedge.files import MAX_NAMES_BYTES, read_text, sha256_json
from kdedge.messages import suggestion

_REMEDY = "Name a text file with one class name per line."
_MAX_NAME_CHARACTERS = 200
_FORM = 'Expected {"class name": ["a sentence", ...], ...}, with every class of the class list.'
_NOT_TEXT_LISTS = (".yaml", ".yml", ".json")  # their lines would be read as names


def load_class_names(spec: ClassesSpec, *, data: DataSpec) -> tuple[str, ...]:
    """Returns the class names in order.

    Args:
        spec: a file, a benchmark set, the built-in drawings, or the names themselves.
        data: says where the benchmark sets are.

    Raises:
        DataError: the file or set is missing or malformed, a name appears twice, or there are fewer
            than two names.
        RecipeError: it is a benchmark set, and no installed package has any.
    """
    if spec.file is not None:
        return read_class_file(spec.file)
    if spec.benchmark is not None:
        return load_benchmark_set(spec.benchmark).class_names(benchmark_root(data.root))
    if spec.synthetic is not None:
        return synthetic.CLASS_NAMES
    names = tuple(spec.names or ())
    check_class_names(names, "classes")
    return names


def read_class_file(path: Path) -> tuple[str, ...]:
    """Reads a class list: UTF-8, one name per line.

    Blank lines and blanks around names are ignored. There are no comments: a name may begin with
    `#`.

    Raises:
        DataError: no such file, YAML or JSON, not UTF-8, a name twice or too long, fewer than two
            names.
    """
    if path.suffix.lower() in _NOT_TEXT_LISTS:
        raise DataError(f"{path} is not a class list in plain text.\n  {_REMEDY}")
    # Not str.splitlines, which also splits at characters that a name may contain.
    lines = read_text(path, remedy=_REMEDY, max_bytes=MAX_NAMES_BYTES).split("\n")
    pairs = [(f"line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    _check_names(pairs, str(path))
    return tuple(name for _, name in pairs)


def check_class_names(names: Sequence[str], where: str) -> None:
    """Checks that these are the names of a class list.

    Args:
        names: the names.
        where: the place of the names, at the start of messages.

    Raises:
        DataError: a name twice, not printable or too long, or fewer than two names.
    """
    _check_names([(f"name {i}", name) for i, name in enumerate(names, 1)], where)


def _check_names(pairs: Sequence[tuple[str, str]], where: str) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for place, name in pairs:
        if len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
            raise DataError(
                f"{where}, {place}: {name[:40]!r} is not a class name: expected up to"
                f" {_MAX_NAME_CHARACTERS} printable characters."
            )
        known = seen.setdefault(class_key(name), (place, name))
        if known != (place, name):
            raise DataError(
                f'{where}: "{known[1]}" ({known[0]}) and "{name}" ({place}) are one class name.\n'
                "  Names must differ in more than case, blanks and underscores: CLIP reads both"
                " alike. Remove or rename one."
            )
    if len(pairs) < 2:
        raise DataError(
            f"{where} has {len(pairs)} class name{'' if len(pairs) == 1 else 's'}, expected two or"
            " more.\n  Write one name per line."
        )


def class_list_hash(names: Sequence[str]) -> str:
    """Returns the SHA-256 of the names in order, in hex."""
    return sha256_json(list(names))


def read_class_texts(path: Path, class_names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Returns each class's sentences, in class-list order, with single blanks.

    Args:
        path: a JSON object in UTF-8.
        class_names: the class list; the file's keys must be exactly these names, in any order.

    Raises:
        DataError: the file cannot be read or has another form; a class is unknown, or has no
            sentence.
    """
    text = read_text(path, remedy=_FORM, max_bytes=MAX_NAMES_BYTES)
    try:
        texts = _TEXTS.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ", sentence ".join(str(i + 1 if isinstance(i, int) else i) for i in first["loc"])
        raise DataError(f"{path}: {place or 'it'}: {first['msg']}.\n  {_FORM}") from error
    unknown = next((name for name in texts if name not in class_names), None)
    if unknown is not None:
        remedy = suggestion(unknown, class_names, "Keys must be names of the class list.")
        raise DataError(f'{path}: "{unknown}" is not in the class list.\n  {remedy}')
    missing = [name for name in class_names if name not in texts]
    if missing:
        raise DataError(
            f"{path} has no sentences for {len(missing)} of {len(class_names)} classes, first"
            f' "{missing[0]}".\n  {_FORM}'
        )
    return tuple(tuple(texts[name]) for name in class_names)


def _sentence(text: str) -> str:
    sentence = " ".join(text.split())
    if not sentence or not sentence.isprintable():
        raise ValueError("expected printable text")
    return sentence


_TEXTS = TypeAdapter(
    dict[str, Annotated[list[Annotated[StrictStr, AfterValidator(_sentence)]], Field(min_length=1)]]
)
