"""Chooses, writes and reads pseudo-labels: classes that a model predicts for unlabeled images.

A file has one JSON object per line. The first describes its origin, every other one is an image:

    {"format": "kdedge-pseudo-labels-1", "method": "zeroshot", "made_by": "9f3c...",
     "class_list": "51d0...", "image_list": "c2a7..."}
    {"image": "cam1/0007.jpg", "class": "red fox", "confidence": 0.9312}

Images are sorted by class in class-list order, the most confident first. A person may correct
classes and remove lines, so messages name the line and a similar class name. `made_by` is the
model's hash; `class_list` and `image_list` are hashes of the class names and of the images.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from kdedge.config.explain import explain_validation
from kdedge.config.fields import Strict
from kdedge.config.yaml_file import LineMap
from kdedge.data.classes import class_list_hash
from kdedge.data.images import Images
from kdedge.data.sources import LabelIndex
from kdedge.errors import DataError
from kdedge.files import read_text, write_atomic

Probabilities = npt.NDArray[np.float32]
"""[N, C]: the probability of each class, for each image."""


@dataclass(frozen=True)
class PseudoLabel:
    """A class given to an image.

    Attributes:
        row: row of the image in the probabilities, and its number in the pool.
        label: the class, as a position in the class list.
        confidence: the model's probability of it, 0-1.
    """

    row: int
    label: int
    confidence: float


class _Origin(Strict):
    format: Literal["kdedge-pseudo-labels-1"] = "kdedge-pseudo-labels-1"
    method: str
    made_by: str
    class_list: str
    image_list: str


class _ImageLine(Strict):
    image: str
    class_name: str = Field(alias="class")
    confidence: float = Field(ge=0, le=1)


def most_probable(
    probabilities: Probabilities, per_class: int, *, classes: Sequence[int]
) -> list[PseudoLabel]:
    """Chooses for each class its images of highest probability; each image gets one class.

    If several classes claim an image, the class with the highest probability gets it, and the
    others take their next image (a stable matching). Every class gets `per_class` images, even a
    class that is never predicted. At equal probability the earlier class of the class list comes
    first, and among the images of a class the earlier image.

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
    assigned: dict[int, list[PseudoLabel]] = {label: [] for label in sorted(classes)}
    taken: set[int] = set()

    def claims(label: int) -> Iterator[tuple[float, int, int]]:
        """Yields the images that a class claims until it has enough, the most probable first."""
        for image in _ranked(probabilities[:, label], 4 * per_class):
            if len(assigned[label]) == per_class:
                return
            yield -float(probabilities[image, label]), label, image

    for key, label, image in heapq.merge(*map(claims, assigned)):
        if image not in taken:
            taken.add(image)
            assigned[label].append(PseudoLabel(image, label, -key))
    return [pseudo_label for chosen in assigned.values() for pseudo_label in chosen]


def check_enough(n_images: int, per_class: int, *, n_classes: int) -> None:
    """Checks that there are enough images for every class.

    Raises:
        DataError: there are too few images.
    """
    if n_images < per_class * n_classes:
        limit = n_images // n_classes
        raise DataError(
            f"There are {n_images} unlabeled images, but {per_class} for each of {n_classes}"
            f" classes need {per_class * n_classes}.\n"
            "  Add images; labeled ones are not counted"
            f"{f'. Or set per_class to {limit} or less' if limit else ''}."
        )


def _ranked(column: npt.NDArray[np.float32], n_first: int) -> Iterator[int]:
    """Yields images from the most probable on, in a stable order; first sorts only a few."""
    if len(column) <= n_first:
        yield from _descending(column, np.arange(len(column)))
        return
    threshold = np.partition(column, -n_first)[-n_first]
    yield from _descending(column, np.flatnonzero(column >= threshold))
    yield from _descending(column, np.flatnonzero(column < threshold))


def _descending(column: npt.NDArray[np.float32], images: npt.NDArray[np.intp]) -> list[int]:
    order: list[int] = images[np.argsort(-column[images], kind="stable")].tolist()
    return order


def most_confident_predicted(probabilities: Probabilities, per_class: int) -> list[PseudoLabel]:
    """Chooses for each class, among the images predicted as it, the most probable ones.

    A class gets fewer images, or none, if fewer are predicted as it. Each image is predicted as one
    class. At equal probability the class that is earlier in the class list wins, and the earlier
    image comes first.

    Args:
        probabilities: [N, C].
        per_class: largest number of images per class, 1 or more.

    Returns:
        Class by class in the order of the class list, the most probable image first.
    """
    predicted = probabilities.argmax(axis=1)
    chosen = []
    for label in range(probabilities.shape[1]):
        images = _descending(probabilities[:, label], np.flatnonzero(predicted == label))
        chosen += [
            PseudoLabel(image, label, float(probabilities[image, label]))
            for image in images[:per_class]
        ]
    return chosen


def write_pseudo_labels(
    path: Path,
    labels: Sequence[PseudoLabel],
    pool: Images,
    *,
    class_names: Sequence[str],
    method: str,
    made_by: str,
) -> None:
    """Writes a file of pseudo-labels, completely or not at all.

    Args:
        path: the file; an existing one is replaced.
        labels: the pseudo-labels, in the order of the lines.
        pool: the images.
        class_names: all C names.
        method: name of the model's method.
        made_by: hash of the model.

    Raises:
        ResourceError: the file cannot be written.
    """
    class_list = class_list_hash(class_names)
    image_list = pool.list_hash
    origin = _Origin(method=method, made_by=made_by, class_list=class_list, image_list=image_list)
    lines: list[dict[str, Any]] = [origin.model_dump()]
    keys = list(pool.positions)
    for label in labels:
        image = keys[label.row]
        name = class_names[label.label]
        lines.append({"image": image, "class": name, "confidence": round(label.confidence, 6)})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(path, text.encode())


def read_pseudo_labels(path: Path, pool: Images, *, class_names: Sequence[str]) -> dict[int, int]:
    """Reads a file of pseudo-labels, which a person may have edited.

    Args:
        path: the file.
        pool: the images, which must be those that the file was made for.
        class_names: all C names, which must be those that the file was made for, in the same order.

    Returns:
        Position in the pool's source -> class, in the order of the lines; blank lines are skipped.

    Raises:
        DataError: the file is missing, was made for other classes or images, holds no label, or a
            line is wrong; the message has the line's number.
    """
    text = read_text(path, remedy="Name a file that `kdedge pseudo-label` wrote.")
    lines = [(f"{path}:{i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    origin = _parse(_Origin, *(lines[0] if lines else (f"{path}:1", "")))
    remedy = "  Make it again with `kdedge pseudo-label`, or remove data.pseudo_labels."
    if origin.class_list != class_list_hash(class_names):
        raise DataError(
            f"{path} was made for another class list than this recipe's {len(class_names)}"
            f" names: names or their order differ.\n{remedy}"
        )
    if origin.image_list != pool.list_hash:
        raise DataError(
            f"{path} was made for other images than the {len(pool.positions)} of data.unlabeled:"
            f" some were added, removed or changed, or drawn with another seed.\n{remedy}"
        )
    index = LabelIndex(class_names)
    place_of: dict[int, str] = {}
    labels: dict[int, int] = {}
    for where, line in lines[1:]:
        entry = _parse(_ImageLine, where, line)
        image = pool.positions.get(entry.image)
        label = index.find(entry.class_name)
        if label is None:
            raise DataError(
                f'{where}: "{entry.class_name}" is not a class name'
                f"{index.nearest(entry.class_name)}.\n"
                f'  The class list has {len(class_names)} names, first "{class_names[0]}".'
            )
        if image is None:
            raise DataError(
                f'{where}: data.unlabeled has no image "{entry.image}".\n'
                "  Use the image names that `kdedge pseudo-label` wrote."
            )
        if place_of.setdefault(image, where) != where:
            raise DataError(
                f'{where}: the image "{entry.image}" appears twice, first in {place_of[image]}.\n'
                "  Keep the line with the right class."
            )
        labels[image] = label
    if not labels:
        raise DataError(f"{path} holds no pseudo-label, only its first line.\n{remedy}")
    return labels


_Model = TypeVar("_Model", bound=Strict)


def _parse(model: type[_Model], where: str, line: str) -> _Model:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        problem = explain_validation(error, model=model, lines=LineMap(where), what="line")
        raise DataError(
            f"{problem}\n  Correct the line, or make the file again with `kdedge pseudo-label`."
        ) from error
