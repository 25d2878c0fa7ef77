"""Chooses, writes and reads pseudo-labels: classes that a model predicts for unlabeled images.

A file has one JSON object per line. The first describes its origin, every other one is an image:

    {"format": "kdedge-pseudo-labels-1", "method": "zeroshot", "made_by": "9f3c...",
     "class_list": "51d0...", "image_list": "c2a7..."}
    {"image": "cam1/0007.jpg", "class": "red fox", "confidence": 0.9312}

Images are sorted by class in class-list order, the most confident first. A person may correct
classes and remove lines. The file is therefore parsed here: messages name the line, a similar class
name, or a key that appears twice, which pydantic does not notice. `made_by` is the model's
provenance hash; `class_list` and `image_list` are hashes of the class names and of the images.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.data.classes import class_list_hash
from kdedge.data.sources import LabelIndex
from kdedge.errors import DataError
from kdedge.files import read_text, write_atomic

FORMAT = "kdedge-pseudo-labels-1"
_ORIGIN_KEYS = ("method", "made_by", "class_list", "image_list")
_LINE_KEYS = ("image", "class", "confidence")

Probabilities = npt.NDArray[np.float32]
"""[N, C]: of each image, over all classes."""


@dataclass(frozen=True)
class PseudoLabel:
    """A class given to an image.

    Attributes:
        image: the image's position: its row in the probabilities, or its place in the source.
        label: the class, as a position in the class list.
        confidence: the model's probability of it, 0-1.
    """

    image: int
    label: int
    confidence: float


@dataclass(frozen=True)
class Origin:
    """Provenance of a file of pseudo-labels, in its first line.

    Attributes:
        method: name of the model's method.
        provenance_hash: provenance hash of the model; `made_by` in the file.
        class_list: hash of the class names.
        image_list: hash of the images.
    """

    method: str
    provenance_hash: str
    class_list: str
    image_list: str


def most_probable(
    probabilities: Probabilities, per_class: int, *, classes: Sequence[int]
) -> list[PseudoLabel]:
    """Chooses for each class its images of highest probability; each image gets one class.

    Of several classes that claim an image, the one with the highest probability gets it, and the
    others take their next (a stable matching). Every class gets `per_class` images, even one that
    is never predicted. At equal probability the earlier class in the class list comes first, and
    among a class's images the earlier image.

    Args:
        probabilities: [N, C].
        per_class: images per class, 1 or more.
        classes: classes that get images.

    Returns:
        Class by class in the order of the class list, the most probable image first.

    Raises:
        DataError: there are fewer images than the classes need.
    """
    check_enough(len(probabilities), per_class, n_classes=len(classes))
    ranked = {label: _ranked(probabilities[:, label], 4 * per_class) for label in classes}
    waiting = [_next(probabilities, label, ranked[label]) for label in sorted(classes)]
    heapq.heapify(waiting)
    given: dict[int, list[PseudoLabel]] = {label: [] for label in sorted(classes)}
    taken: set[int] = set()
    while waiting:
        key, label, image = heapq.heappop(waiting)
        if image not in taken:
            taken.add(image)
            given[label].append(PseudoLabel(image, label, -key))
        if len(given[label]) < per_class:
            heapq.heappush(waiting, _next(probabilities, label, ranked[label]))
    return [one for found in given.values() for one in found]


def check_enough(n_images: int, per_class: int, *, n_classes: int) -> None:
    """Checks that there are enough images for every class.

    Raises:
        DataError: there are too few.
    """
    if n_images < per_class * n_classes:
        most = n_images // n_classes
        raise DataError(
            f"There are {n_images} unlabeled images, but {per_class} for each of {n_classes}"
            f" classes need {per_class * n_classes}.\n"
            f"  Add images{f', or set per_class to {most} or less' if most else ''}."
        )


def _next(
    probabilities: Probabilities, label: int, ranked: Iterator[int]
) -> tuple[float, int, int]:
    """A class's next image, ordered so that the smallest is assigned first."""
    image = next(ranked)
    return -float(probabilities[image, label]), label, image


def _ranked(column: npt.NDArray[np.float32], n_first: int) -> Iterator[int]:
    """Images from the most probable on, equal ones in their order; sorts only a few at first."""
    if len(column) <= n_first:
        yield from _sorted(column, np.arange(len(column)))
        return
    threshold = np.partition(column, -n_first)[-n_first]
    yield from _sorted(column, np.flatnonzero(column >= threshold))
    yield from _sorted(column, np.flatnonzero(column < threshold))


def _sorted(column: npt.NDArray[np.float32], images: npt.NDArray[np.intp]) -> list[int]:
    order: list[int] = images[np.argsort(-column[images], kind="stable")].tolist()
    return order


def most_confident_predicted(probabilities: Probabilities, per_class: int) -> list[PseudoLabel]:
    """Chooses, of the images predicted as each class, those with the highest probability.

    A class gets fewer, or no, images if fewer are predicted as it. Each image is predicted as one
    class. At equal probability the class that is earlier in the class list wins, and the earlier
    image comes first.

    Args:
        probabilities: [N, C].
        per_class: largest number of images per class, 1 or more.

    Returns:
        Class by class in the order of the class list, the most probable image first.
    """
    predicted = probabilities.argmax(axis=1)
    found = []
    for label in range(probabilities.shape[1]):
        images = np.flatnonzero(predicted == label)
        order = np.argsort(-probabilities[images, label], kind="stable")
        found += [
            PseudoLabel(image, label, float(probabilities[image, label]))
            for image in images[order][:per_class].tolist()
        ]
    return found


def write_pseudo_labels(
    path: Path,
    labels: Sequence[PseudoLabel],
    *,
    origin: Origin,
    class_names: Sequence[str],
    keys: Mapping[int, str],
) -> None:
    """Writes a file of pseudo-labels, whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        labels: in the order of the lines.
        origin: their provenance.
        class_names: all C.
        keys: an image's position -> its key.

    Raises:
        ResourceError: the file cannot be written.
    """
    values = zip(_ORIGIN_KEYS, astuple(origin), strict=True)
    lines: list[dict[str, Any]] = [{"format": FORMAT, **dict(values)}]
    for one in labels:
        line = (keys[one.image], class_names[one.label], round(one.confidence, 6))
        lines.append(dict(zip(_LINE_KEYS, line, strict=True)))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(path, text.encode())


def read_pseudo_labels(
    path: Path, *, class_names: Sequence[str], image_list: str, positions: Mapping[str, int]
) -> list[PseudoLabel]:
    """Reads a file of pseudo-labels, which a person may have edited.

    Args:
        path: the file.
        class_names: all C; the file's must be the same, in the same order.
        image_list: hash of the images; the file's must be the same.
        positions: an image's key -> its position.

    Returns:
        The labels in the order of the lines; blank lines are skipped.

    Raises:
        DataError: the file is missing, was made for other classes or images, holds none, or a line
            is wrong; the message has its number.
    """
    lines = list(_read_lines(path))
    origin = _read_origin(path, lines)
    remedy = "  Make it again with `kdedge pseudo-label`, or remove data.pseudo_labels."
    if origin.class_list != class_list_hash(class_names):
        raise DataError(
            f"{path} was made for another class list than this recipe's {len(class_names)}"
            f" names: names or their order differ.\n{remedy}"
        )
    if origin.image_list != image_list:
        raise DataError(
            f"{path} was made for other images than the {len(positions)} of data.unlabeled: some"
            f" were added, removed or changed, or drawn with another seed.\n{remedy}"
        )
    index = LabelIndex(class_names)
    found: dict[int, int] = {}
    labels = []
    for number, values in lines[1:]:
        one = _read_label(f"{path}:{number}", values, index, positions)
        if one.image in found:
            raise DataError(
                f"{path}:{number}: the image {values['image']!r} appears twice, first in line"
                f" {found[one.image]}.\n  Keep the line with the right class."
            )
        found[one.image] = number
        labels.append(one)
    if not labels:
        raise DataError(f"{path} holds no pseudo-label, only its first line.\n{remedy}")
    return labels


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not blank."""
    text = read_text(path, remedy="Name a file that `kdedge pseudo-label` wrote.")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line, object_pairs_hook=_without_repeats)
        except json.JSONDecodeError as error:
            reason = f"{error.msg}, column {error.colno}"
            raise _not_json(path, number, reason) from error
        except (ValueError, RecursionError) as error:
            raise _not_json(path, number, str(error)) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{json.dumps(twice, ensure_ascii=False)} appears twice")
    return values


def _not_json(path: Path, number: int, reason: str) -> DataError:
    return DataError(
        f"{path}:{number}: not a JSON object: {reason}.\n"
        "  Each line must be one. Correct it, or make the file again with `kdedge pseudo-label`."
    )


def _read_origin(path: Path, lines: Sequence[tuple[int, Any]]) -> Origin:
    values = lines[0][1] if lines else None
    if (
        not isinstance(values, dict)
        or values.get("format") != FORMAT
        or set(values) != {"format", *_ORIGIN_KEYS}
        or not all(isinstance(values[key], str) for key in _ORIGIN_KEYS)
    ):
        raise DataError(
            f"{path}:{lines[0][0] if lines else 1}: the first line does not have the origin of"
            f' these pseudo-labels: expected {{"format": "{FORMAT}", ...}}.\n'
            "  Restore that line, or make the file again with `kdedge pseudo-label`."
        )
    return Origin(*(values[key] for key in _ORIGIN_KEYS))


def _read_label(
    where: str, values: Any, index: LabelIndex, positions: Mapping[str, int]
) -> PseudoLabel:
    if not isinstance(values, dict) or set(values) != set(_LINE_KEYS):
        got = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise DataError(
            f"{where}: expected an object with {', '.join(_LINE_KEYS)}, got {got or 'nothing'}.\n"
            "  Correct the line, or remove it."
        )
    image, name, confidence = (values[key] for key in _LINE_KEYS)
    label = index.find(name) if isinstance(name, str) else None
    if label is None:
        near = index.nearest(name) if isinstance(name, str) else ""
        raise DataError(
            f"{where}: {json.dumps(name, ensure_ascii=False)} is not a class name{near}.\n"
            f"  The class list has {len(index.class_names)} names, first"
            f' "{index.class_names[0]}".'
        )
    if not isinstance(image, str) or image not in positions:
        raise DataError(
            f"{where}: data.unlabeled has no image {json.dumps(image, ensure_ascii=False)}.\n"
            "  Use the image names that `kdedge pseudo-label` wrote."
        )
    is_number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
    if not is_number or not 0 <= confidence <= 1:
        raise DataError(
            f"{where}: confidence is {json.dumps(confidence):.60}, expected a number from 0 to 1.\n"
            "  It is only a record; write 1 for a class that you have corrected."
        )
    return PseudoLabel(positions[image], label, float(confidence))
