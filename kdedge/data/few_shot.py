"""Chooses the images of a few-shot run: drawn as in CoOp's code, or from a stored list.

CoOp's code keeps each draw in the set's folder. So does kdedge, in the format of CoOp's split
files: `split_fewshot/shot_16-seed_1.json` holds 16 training images per class, at most 4 for
validation, and all test images. Used as the set's split file, it makes CoOp's code train on the
same images without drawing (DATASET.NUM_SHOTS 0). An existing list is used as it is. CoOp's own
lists are pickles with absolute paths and are not read.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdedge.config.recipe import DataSpec, SourceSpec
from kdedge.data.benchmarks import (
    PARTS,
    Split,
    is_there,
    load_benchmark,
    read_split,
)
from kdedge.data.classes import benchmark_root
from kdedge.data.sources import Source
from kdedge.data.split import few_shot
from kdedge.errors import DataError, ResourceError
from kdedge.files import explain_os_error, write_atomic

FOLDER = "split_fewshot"
MOST_VALIDATION_SHOTS = 4
"""CoOp, datasets/oxford_pets.py: min(num_shots, 4)."""

log = logging.getLogger(__name__)


def _say(level: int, message: str) -> None:
    log.log(level, "%s", message)


class Draws:
    """The draws of one run from one random stream: training images, then validation images.

    Attributes:
        has_begun: whether anything was drawn.

    Args:
        spec: the source of the first draw; None without one.
        shots: images per class of that draw; None for all.
        seed: the run's seed.
        data: says where the benchmark sets are.
        say: logs a message of a level.

    Raises:
        DataError: the set's list is not a split file.
    """

    def __init__(
        self,
        spec: SourceSpec | None,
        *,
        shots: int | None,
        seed: int,
        data: DataSpec,
        say: Callable[[int, str], None] = _say,
    ) -> None:
        # The protocol seeds Python's global generator; a separate one gives the same stream.
        self._stream = random.Random(seed)  # noqa: S311
        self._seed, self._say = seed, say
        self.has_begun = False
        self._list = None
        if spec is not None and shots is not None:
            self._list = _find_list(spec, shots=shots, seed=seed, data=data)

    def take(
        self,
        spec: SourceSpec,
        source: Source,
        indices: Sequence[int],
        *,
        shots: int,
        class_names: Sequence[str],
    ) -> list[int]:
        """Draws from a labeled source, or takes the images of a list.

        As in CoOp's code, a benchmark set's draw is from all its images; unreadable ones are then
        left out without changing the others.

        Args:
            spec: the source as the recipe has it.
            source: opened with labels.
            indices: its readable images.
            shots: images per class.
            class_names: the class list; labels are positions in it.

        Returns:
            Positions in the source, class by class.

        Raises:
            DataError: an image has no label, or the list has other images.
        """
        self.has_begun = True
        labels = [item.label for item in source.items]
        is_set = spec.benchmark is not None
        pool: Iterable[int] = range(len(labels)) if is_set else indices
        drawn = few_shot(labels, pool, shots=shots, stream=self._stream)
        if self._list is not None and self._list.is_of(spec, shots):
            listed = self._list.positions(spec.part, source, class_names)
            file = self._list.file
            self._say(logging.INFO, f"Using the images of part {spec.part} that {file} lists.")
            if set(listed) != set(drawn):
                self._say(
                    logging.WARNING,
                    f"{file}: its images of part {spec.part} are not those that seed"
                    f" {self._seed} draws; those of the list are taken.\n"
                    "  Remove it, so that they are drawn anew.",
                )
            drawn = listed
        readable = set(indices)
        return [index for index in drawn if index in readable]


@dataclass(frozen=True)
class _List:
    """The stored list of one draw from a set.

    Attributes:
        file: the list's file.
        benchmark: the set.
        shots: training images per class.
        split: its content.
    """

    file: Path
    benchmark: str
    shots: int
    split: Split

    def is_of(self, spec: SourceSpec, shots: int) -> bool:
        """Whether it is the draw of this many images per class from this source."""
        own = {"train": self.shots, "val": min(self.shots, MOST_VALIDATION_SHOTS)}
        return spec.benchmark == self.benchmark and own.get(spec.part) == shots

    def positions(self, part: str, source: Source, class_names: Sequence[str]) -> list[int]:
        """Returns the positions of its images in a source.

        Raises:
            DataError: an image is missing, or has another class.
        """
        places = {item.key: index for index, item in enumerate(source.items)}
        found = []
        for path, label in self.split.parts[part]:
            index, name = places.get(path), self.split.class_names[label]
            own = None if index is None else source.items[index].label
            if index is None or own is None or class_names[own] != name:
                raise DataError(
                    f"{self.file}: {path}, of class {name}, is not among the set's images of part"
                    f" {part}: the list was drawn from another split.\n"
                    "  Remove it to draw again."
                )
            found.append(index)
        return found


def _find_list(spec: SourceSpec, *, shots: int, seed: int, data: DataSpec) -> _List | None:
    if spec.benchmark is None or spec.part != "train":
        return None
    folder = benchmark_root(data) / load_benchmark(spec.benchmark).folder
    file = list_file(folder, shots=shots, seed=seed)
    if not is_there(file):
        return None
    split = read_split(file, remedy="Remove it to draw the shots again.")
    return _List(file, spec.benchmark, shots, split)


def list_file(folder: Path, *, shots: int, seed: int) -> Path:
    """Returns the path of a draw's list in a set's folder."""
    return folder / FOLDER / f"shot_{shots}-seed_{seed}.json"


def keep_list(spec: SourceSpec, *, shots: int, seed: int, data: DataSpec) -> Path | None:
    """Writes the list of a draw into its set's folder, unless it exists.

    Args:
        spec: the source of the labeled images.
        shots: images per class.
        seed: the run's seed.
        data: says where the benchmark sets are.

    Returns:
        The file. None if the images are not a set's training part, the folder may not be written,
        or the set's parts are not the published ones: the list would be mistaken for one of CoOp's.
    """
    if spec.benchmark is None or spec.part != "train":
        return None
    benchmark, root = load_benchmark(spec.benchmark), benchmark_root(data)
    folder = root / benchmark.folder
    if "train" not in benchmark.n_images:  # a variant of ImageNet trains on its test images
        return None
    file = list_file(folder, shots=shots, seed=seed)
    if file.exists():
        return file
    if not benchmark.has_published_parts(folder):
        return None
    names = benchmark.class_names(root)
    draws = Draws(spec, shots=shots, seed=seed, data=data)
    rows: dict[str, list[list[str | int]]] = {part: [] for part in PARTS}
    parts: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
    for part in parts:
        if part == "val" and part not in benchmark.n_images:
            continue
        source = benchmark.open_source(root, part=part, class_names=names, labeled=True)
        indices: Sequence[int] = range(len(source.items))
        if part != "test":
            n = shots if part == "train" else min(shots, MOST_VALIDATION_SHOTS)
            own = SourceSpec(benchmark=spec.benchmark, part=part)
            indices = draws.take(own, source, indices, shots=n, class_names=names)
        rows[part] = [_row(source.items[i].key, source.items[i].label, names) for i in indices]
    return _write(file, rows)


def _row(path: str, label: int | None, names: Sequence[str]) -> list[str | int]:
    assert label is not None  # the source has labels
    return [path, label, names[label]]


def _write(file: Path, rows: dict[str, list[list[str | int]]]) -> Path | None:
    try:
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode())
    except (OSError, ResourceError) as error:
        reason = explain_os_error(error, file) if isinstance(error, OSError) else error
        what = str(reason).partition("\n")[0]  # nothing has to be done
        log.info("%s\n  The list of shots is not kept; every run draws the same ones again.", what)
        return None
    log.info("The shots are listed in %s.", file)
    return file
