"""Loads a recipe's images: scans each source once, skips unreadable images, draws few-shot sets."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from kdedge.config.data_spec import LabeledSpec, SourceSpec, UnlabeledSpec, to_count
from kdedge.config.recipe import Recipe
from kdedge.data.benchmark_sets import benchmark_root
from kdedge.data.images import Images, check_limit, read_facts, scanned
from kdedge.data.open import open_source
from kdedge.data.sources import ImageSource, WithoutLabels
from kdedge.data.sources.folder import has_images, left_out_text
from kdedge.data.split import few_shot
from kdedge.distributed import SINGLE_PROCESS
from kdedge.errors import DataError, RecipeError
from kdedge.files import sha256_json
from kdedge.messages import name_some
from kdedge.progress import progress
from kdedge.setup.classes import Classes
from kdedge.setup.workspace import Workspace

log = logging.getLogger(__name__)

DataPart = Literal["unlabeled", "labeled", "validation", "test"]
"""Names of image sources under `data`."""


class RecipeImages:
    """The image sources of a recipe, read for a class list.

    Few-shot draws share one random stream, as in the benchmark's protocol: labeled images first,
    then validation images. Each method starts it anew.

    Args:
        workspace: caches scans; each of its processes reads a part of a source.

    Attributes:
        recipe: names the sources.
        classes: the class list; labels are positions in it.
    """

    def __init__(self, recipe: Recipe, classes: Classes, workspace: Workspace) -> None:
        self.recipe = recipe
        self.classes = classes
        self._workspace = workspace
        self._group = workspace.group

    @property
    def in_one_process(self) -> RecipeImages:
        """The same, for a process that reads alone, such as rank 0 at the end of a run."""
        images = copy.copy(self)
        images._group = SINGLE_PROCESS
        return images

    def load(self, key: DataPart) -> Images | None:
        """Opens a source and scans its images; None if the recipe does not name it.

        Raises:
            DataError: more images are unreadable than the recipe accepts, labels are needed and no
                readable image has one, or labels and class names differ.
        """
        spec: SourceSpec | None = getattr(self.recipe.data, key)
        if spec is None:
            return None
        if isinstance(spec, UnlabeledSpec):
            return self._unlabeled(spec, held_out=False)
        return self._readable(spec, key)

    def held_out(self) -> Images | None:
        """The held-out unlabeled images, without labeled ones unless all are; None without any."""
        spec = self.recipe.data.unlabeled
        if spec is None:
            return None
        held_out = self._unlabeled(spec, held_out=True)
        # Labels of another class list are an error, but then nothing here learns from them
        with contextlib.suppress(DataError):
            labeled = self.load("labeled") if held_out.indices else None
            rest = held_out.without(labeled) if labeled else held_out
            held_out = rest if rest.indices else held_out
        return held_out

    def require(self, key: DataPart, why: str) -> Images:
        """Loads a required source.

        Raises:
            RecipeError: the recipe does not name it; the message contains `why` it is needed.
        """
        self.check_named(key, why)
        images = self.load(key)
        assert images is not None  # the recipe names them
        return images

    def check_named(self, key: DataPart, why: str) -> None:
        """Checks that the recipe names a source, without opening it.

        Raises:
            RecipeError: it does not; the message contains `why` it is needed.
        """
        if getattr(self.recipe.data, key) is None:
            raise RecipeError(
                f"The recipe has no data.{key}, and {why}.\n  Add it; `kdedge schema` shows how."
            )

    def drawn_labeled(self, role: str) -> Images:
        """The labeled images of a role: drawn over all classes, then limited to labeled classes.

        In this order, as in the benchmark, the images of base classes do not depend on the split.

        Raises:
            RecipeError: the recipe has no labeled images.
        """
        images = self.require("labeled", f"a {role} learns from labeled images")
        spec = self.recipe.data.labeled
        assert spec is not None  # `require` ensures it
        return self._few_shot(images, spec, self._stream()).of_classes(self.classes.labeled)

    def drawn_validation(self) -> Images:
        """The labeled images that choose the epoch, or one of two students.

        Both draws come from one random stream, in which the labeled images are drawn first.

        Raises:
            RecipeError: the recipe has no validation images.
        """
        images = self.require("validation", "selection: validation chooses the epoch on it")
        spec = self.recipe.data.validation
        labeled = self.recipe.data.labeled
        assert spec is not None  # `require` ensures it
        stream = self._stream()
        if spec.shots is not None and labeled is not None and labeled.shots is not None:
            self._few_shot(self._readable(labeled, "labeled"), labeled, stream)
        return self._few_shot(images, spec, stream)

    def _stream(self) -> random.Random:
        """The protocol seeds Python's global generator; a separate one gives the same stream."""
        return random.Random(self.recipe.seed)  # noqa: S311

    def _few_shot(self, images: Images, spec: LabeledSpec, stream: random.Random) -> Images:
        """The images that a source's `shots` draws, or all if it has no `shots`."""
        if spec.shots is None:
            return images
        return images.only(draw_shots(spec, images, spec.shots, stream))

    def _unlabeled(self, spec: UnlabeledSpec, *, held_out: bool) -> Images:
        """The unlabeled images for training, or the held-out ones.

        The choice depends on the seed and each image's contents, not on names or positions.
        """
        images = self._readable(spec, "unlabeled")
        if spec.per_class is not None:
            # Draws images of every class; labels are used for this draw only
            drawn = tuple(draw_shots(spec, images, spec.per_class, self._stream()))
            images = replace(images, source=WithoutLabels(images.source), indices=drawn)
        n_held = 0 if spec.hold_out is None else to_count(spec.hold_out, len(images.indices))
        if n_held >= max(1, len(images.indices)):
            raise DataError(
                f"data.unlabeled.hold_out is {spec.hold_out} of {len(images.indices)} images,"
                " which leaves none to train on.\n  Set it lower, or add images."
            )
        if not n_held:
            return images.only(()) if held_out else images
        n_copies = Counter(images.digests[i] for i in images.indices)
        held = set()
        for digest in sorted(n_copies, key=lambda x: sha256_json([self.recipe.seed, x])):
            if n_copies[digest] <= n_held:  # copies of an image stay together
                held.add(digest)
                n_held -= n_copies[digest]
        return images.only([i for i in images.indices if (images.digests[i] in held) == held_out])

    def _readable(self, spec: SourceSpec, key: DataPart) -> Images:
        """The readable images of a source, without test images; scanned once per workspace."""
        data = self.recipe.data
        names = self.classes.names
        labeled = _needs_labels(spec)
        place = spec.model_dump_json(exclude={"shots", "per_class", "hold_out"})
        tested = str(data.test) if key in ("labeled", "unlabeled") else ""
        entry = (key, labeled, place, names, benchmark_root(data.root), data.max_bad_images, tested)

        def read() -> Images:
            images = self._scan(self._open(spec), key)
            if tested:
                images = self._without_test(images, spec, key)
            if self._workspace.group.is_rank0:
                self._warn_of_problems(images, key)
            if not labeled:
                return images
            labels = images.class_labels()
            if not labels:
                raise DataError(
                    f"data.{key} has no readable image with a label:"
                    f" {len(images.source.items)} images, {len(images.skipped)} of them"
                    " unreadable.\n  Add images with labels."
                )
            return images.only(tuple(labels))

        return self._workspace.read_once(entry, read)

    def _open(self, spec: SourceSpec) -> ImageSource:
        data = self.recipe.data
        names = self.classes.names
        labeled = _needs_labels(spec)
        try:
            return open_source(spec, class_names=names, labeled=labeled, data=data)
        except DataError as error:
            if not isinstance(spec, UnlabeledSpec) or not labeled:
                raise
            raise DataError(
                f"data.unlabeled.per_class is {spec.per_class}, and drawing images per class"
                f" needs their labels:\n{error}\n  Remove per_class to use all images without"
                " labels."
            ) from error

    def _without_test(self, images: Images, spec: SourceSpec, key: DataPart) -> Images:
        """The images without test images; warns if there are test images among them.

        A benchmark set keeps images that are also in its test set, since the protocol draws them.
        """
        test_spec = self.recipe.data.test
        is_set = spec.benchmark is not None
        if isinstance(spec, UnlabeledSpec):
            if spec.include_test or (is_set and spec.include_test is None):
                return images
            is_set = False
        if test_spec is None:
            return images
        test = self._readable(test_spec, "test")
        shared = [images.source.items[i].key for i in images.shared_with(test)]
        all_the_same = "set data.unlabeled.include_test to train on them all the same"
        if shared and len(shared) == len(images.indices) and not is_set:
            raise DataError(
                f"All images of data.{key} are in data.test, too, such as {shared[0]}: accuracy on"
                " images that a model has learned says nothing.\n  Name others"
                f"{f'; or {all_the_same}' if key == 'unlabeled' else ''}."
            )
        if shared and self._workspace.group.is_rank0:
            effect = "used all the same" if is_set else "left out"
            remedy = f"\n  Or {all_the_same}." if key == "unlabeled" else ""
            log.warning(
                f"{len(shared)} of {len(images.indices)} images of data.{key} are in data.test,"
                f" too, and are {effect}: {name_some(shared)}.{remedy}"
            )
        return images if is_set else images.without(test)

    def _warn_of_problems(self, images: Images, key: DataPart) -> None:
        """Warns about skipped files and images, contradictory labels and empty classes."""
        left_out = getattr(images.source, "left_out", {})
        if left_out:
            log.log(
                logging.WARNING if has_images(left_out) else logging.INFO,
                f"data.{key}: files that are not read as images are skipped:"
                f" {left_out_text(left_out)}.",
            )
        if key == "unlabeled":
            return
        _warn_of_labels(images, key)
        present = set(images.class_labels().values())
        among = range(len(self.classes.names)) if key == "test" else self.classes.labeled
        absent = [self.classes.names[label] for label in among if label not in present]
        if present and absent:
            effect = "\n  Only the other classes are measured." if key == "test" else ""
            log.warning(
                f"data.{key} has no images of {len(absent)} of {len(among)} classes:"
                f" {name_some(absent)}.{effect}"
            )

    def _scan(self, source: ImageSource, key: DataPart) -> Images:
        """Scans a source; each process scans a part of it."""
        group = self._group
        shard = group.shard(len(source.items))
        with progress(f"reading data.{key}", shard.stop - shard.start, unit="images") as advance:
            part = read_facts(source, rows=shard, progress=advance, cache=self._workspace.scans)
        found = {i: facts for part in group.all_gather(part) for i, facts in part.items()}
        images = scanned(source, found)
        spec = self.recipe.data
        limit = to_count(spec.max_bad_images, len(source.items), math.ceil)
        check_limit(images, limit=limit, what=f"data.{key}", share=spec.max_bad_images)
        skipped = images.skipped
        if skipped and group.is_rank0:
            log.warning(
                f"{len(skipped)} of {len(source.items)} images of data.{key} cannot be read and"
                f" are skipped. The first is {skipped[0].key}: {skipped[0].reason}."
            )
        return images

    def check_has_labeled_classes(self, images: Images, key: DataPart) -> None:
        """Checks that a source has images of labeled classes, which choose epoch or student."""
        if not images.of_classes(self.classes.labeled).indices:
            raise DataError(
                f"data.{key} has no image of a base class, and only base classes may choose the"
                " epoch or the student.\n  Add images of the first half of the class list."
            )


def _needs_labels(spec: SourceSpec) -> bool:
    return not isinstance(spec, UnlabeledSpec) or spec.per_class is not None


def _warn_of_labels(images: Images, key: DataPart) -> None:
    """Warns about images without a label, and about equal images with different labels."""
    labels = images.class_labels()
    items = images.source.items
    n_images = len(images.indices)
    unlabeled = [items[index].key for index in images.indices if index not in labels]
    if unlabeled:
        log.warning(
            f"data.{key}: {len(unlabeled)} of {n_images} images have no label and are skipped;"
            f" the first is {unlabeled[0]}."
        )
    label_of: dict[str, int] = {}
    contradictory = [
        items[index].key
        for index, label in labels.items()
        if label_of.setdefault(images.digests[index], label) != label
    ]
    if contradictory:
        log.warning(
            f"data.{key}: {len(contradictory)} of {n_images} images are the same as one with"
            f" another label, and are used with both: {name_some(contradictory)}.\n"
            "  Delete the wrong ones."
        )


def draw_shots(spec: SourceSpec, images: Images, shots: int, stream: random.Random) -> list[int]:
    """Draws images of every class; returns their positions, class by class.

    For a benchmark set, images are drawn from all its images, as in CoOp's code. Unreadable ones
    are left out afterwards, so that the other draws do not change.
    """
    labels = [item.label for item in images.source.items]
    pool: Iterable[int] = images.indices if spec.benchmark is None else range(len(labels))
    readable = set(images.indices)
    return [i for i in few_shot(labels, pool, shots=shots, stream=stream) if i in readable]
