"""Transductive labels of a recipe's unlabeled images: found once, kept on disk, read by position.

    <root>/.cache/transductive/<key>/labels.jsonl         class and confidence of each image
    <root>/.cache/transductive/<key>/labels.json          figures of the labels
    <root>/.cache/transductive/<key>/labels.safetensors   class probabilities [N, C], float16

`key` is a hash of everything that the labels depend on: other images, another teacher or another
setting have a folder of their own. The equations are in `kdedge.data.transductive`. Features come
from stores in <root>/.cache/features, by the teacher and the student's backbone, of images prepared
as in evaluation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdedge.config.recipe import TargetsSpec
from kdedge.data.batch import SoftTargets
from kdedge.data.classes import class_list_hash
from kdedge.data.pseudo_labels import (
    Probabilities,
    PseudoLabel,
    most_confident_predicted,
    most_probable,
)
from kdedge.data.sources import name_some
from kdedge.data.transductive import (
    N_FIRST,
    N_ROUNDS,
    N_SWEEPS,
    Objective,
    Pool,
    transductive_labels,
)
from kdedge.errors import DataError
from kdedge.files import explain_os_error, sha256_json, write_json
from kdedge.progress import rough_duration, working
from kdedge.records import read_record
from kdedge.results import PoolLabelsResult
from kdedge.setup.data import RecipeData
from kdedge.setup.images import Images
from kdedge.setup.role import RoleSetup
from kdedge.training.pseudo_labels.labels import (
    accuracy_percent,
    in_source,
    true_labels,
    warn_of_unpredicted,
    write_for,
)
from kdedge.training.pseudo_labels.pool_features import PoolFeatures, members_of
from kdedge.training.pseudo_labels.probabilities import read_probabilities, write_probabilities
from kdedge.training.teacher_store.fill import StoreFiller
from kdedge.training.teachers import ModelTeacher

log = logging.getLogger(__name__)

_N_SHOWN = 8  # classes in a message


class TransductiveLabels:
    """Labels of a recipe's unlabeled images, by the settings of `student.targets`.

    Attributes:
        path: their folder.
    """

    def __init__(
        self,
        spec: TargetsSpec,
        setup: RoleSetup,
        pool: Images,
        teacher: ModelTeacher,
    ) -> None:
        """Reads which images are labeled; computes nothing.

        Args:
            spec: the settings.
            setup: the student's method, classes and backbone.
            pool: its unlabeled images.
            teacher: the frozen teacher.

        Raises:
            DataError: fewer than two classes have labels.
        """
        self._spec, self._setup, self._pool, self._teacher = spec, setup, pool, teacher
        recipe, labeled = setup.loaded.recipe, None
        if recipe.data.labeled is not None and spec.labeled_weight > 0:
            labeled = RecipeData(recipe, setup.classes, setup.workspace).labeled("student")
        self._members = members_of(pool, labeled)
        self._features = PoolFeatures(spec.features, setup, self._members.images, teacher)
        self.path = setup.workspace.root / ".cache" / "transductive" / self.key[:16]
        self._rows = {position: row for row, position in enumerate(pool.indices)}

    @property
    def fillers(self) -> dict[str, StoreFiller]:
        """Fill the stores of features that the labels are found from, by their model."""
        return self._features.fillers

    @property
    def objective(self) -> Objective:
        """The factors of the objective, with published values if the recipe gives none."""
        spec, prior = self._spec, self._spec.prior_weight
        published = 0.5 if self._members.labels else 1.0
        return Objective(
            n_neighbors=spec.n_neighbors,
            prior_weight=published if prior is None else prior,
            mixture_weight=spec.mixture_weight,
            labeled_weight=spec.labeled_weight,
        )

    @cached_property
    def description(self) -> dict[str, Any]:
        """Everything that the labels depend on, as plain values."""
        return {
            "format": "kdedge-transductive-1",
            "features": self._spec.features,
            **asdict(self.objective),
            "rounds": [N_ROUNDS, N_SWEEPS, N_FIRST],
            "stores": {name: filler.store.key for name, filler in self.fillers.items()},
            "class_vectors": self._teacher.vectors_provenance,
            "class_list": class_list_hash(self._setup.classes.names),
            "image_list": self._pool.list_hash,
            "labeled": sha256_json(sorted(self._members.labels.items())),
        }

    @property
    def key(self) -> str:
        """Hash of the description."""
        return sha256_json(self.description)

    @property
    def targets_key(self) -> str:
        """Hash of what a student learns from them."""
        return sha256_json([self.key, self._spec.combine, self._spec.weight])

    @property
    def _tensors(self) -> Path:
        return self.path / "labels.safetensors"

    def make(self) -> PoolLabelsResult:
        """Finds the labels, or reads them if they are stored; processes share the work.

        Raises:
            ResourceError: the disk is full or the folder is not writable.
            DivergedError: a feature is not finite.
        """
        is_there = self._read() is not None
        for filler in () if is_there else self.fillers.values():
            filler.fill()
        result = self._setup.workspace.group.on_rank0(self._result_of if is_there else self._find)
        n_beside = len(self._members.labels) - result.n_labeled
        beside = f" and {n_beside} labeled ones beside them" if n_beside else ""
        log.info(
            "Transductive labels of %d images, %d of them labeled%s, by %s features: %s.\n"
            "  Images of each class, by the teacher -> by the labels: %s.",
            *(result.n_images, result.n_labeled, beside, self._spec.features, _gain(result)),
            _histogram(result),
        )
        return result

    def _result_of(self) -> PoolLabelsResult:
        remedy = f"Delete {self.path}: the labels are then found again."
        return read_record(PoolLabelsResult, self.path / "labels.json", remedy=remedy)

    def _find(self) -> PoolLabelsResult:
        """Finds the labels from stored features, and writes them."""
        began = time.monotonic()
        with working("finding transductive labels"):
            before, z = self._solve()
        half = z.to(torch.float16).contiguous()  # whose classes are counted, written and learned
        result = self._result(before, half, time.monotonic() - began)
        self._write(half, result)
        log.info("Found in %s: %s", rough_duration(result.seconds), self.path)
        return result

    def _solve(self) -> tuple[Tensor, Tensor]:
        """[N, C] the teacher's probabilities and [N, C] labels of the pool, on the CPU."""
        members, device = self._members, self._setup.device
        log_p = self._log_probabilities()
        z = torch.zeros_like(log_p)
        for position, label in members.labels.items():
            if position in self._rows:
                z[self._rows[position], label] = 1
        if members.unlabeled:
            rows = torch.tensor([self._rows[i] for i in members.unlabeled], device=device)
            features = self._features.side_by_side([*members.unlabeled, *members.labels])
            classes = torch.tensor(list(members.labels.values()), dtype=torch.int64, device=device)
            z[rows] = transductive_labels(Pool(features, log_p[rows], classes), self.objective).z
        return log_p.exp().cpu(), z.cpu()

    def _log_probabilities(self) -> Tensor:
        """[N, C], of the pool's images by the teacher."""
        features = self._features.of("teacher", self._pool.indices)
        return self._teacher.model.teacher_logits(features, ()).log_softmax(dim=1)

    def _result(self, before: Tensor, z: Tensor, seconds: float) -> PoolLabelsResult:
        names, pool = self._setup.classes.names, self._pool
        truth = true_labels(self._setup.loaded.recipe, self._setup.classes, pool)
        old, new = before.argmax(dim=1).tolist(), z.float().argmax(dim=1).tolist()
        unknown = set(self._members.unlabeled)

        def accuracy(predicted: list[int]) -> float | None:
            pairs = zip(pool.indices, predicted, strict=True)
            return accuracy_percent({i: c for i, c in pairs if i in unknown}, truth)

        n_changed = sum(a != b for a, b in zip(old, new, strict=True))
        return PoolLabelsResult(
            n_images=len(new),
            n_labeled=len(new) - len(unknown),
            n_classes=len(names),
            changed_percent=100 * n_changed / len(new),
            before={names[c]: old.count(c) for c in sorted(set(old))},
            after={names[c]: new.count(c) for c in sorted(set(new))},
            accuracy_before_percent=accuracy(old),
            accuracy_percent=accuracy(new),
            seconds=seconds,
            made_from=self.description,
        )

    def _write(self, half: Tensor, result: PoolLabelsResult) -> None:
        """Writes the three files; the labels are complete with the last one."""
        table, classes = _table(half), self._setup.classes
        warn_of_unpredicted(table, classes, among=range(len(classes.names)))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        self._write_lines(most_confident_predicted(table, len(table)), self.path / "labels.jsonl")
        write_json(self.path / "labels.json", result.to_dict())
        write_probabilities(self._tensors, half, self._origin)

    def write(self, path: Path, per_class: int | None) -> list[PseudoLabel]:
        """Writes pseudo-labels of the images, a line each, to read and for `data.pseudo_labels`.

        Args:
            path: the file.
            per_class: number of images per class, the most probable ones; None for every image.

        Returns:
            What was written, by position in the images' source.
        """
        table = _table(self.probabilities)
        if per_class is None:
            chosen = most_confident_predicted(table, len(table))
        else:
            chosen = most_probable(table, per_class, classes=range(table.shape[1]))
        return self._write_lines(chosen, path)

    def write_probabilities(self, path: Path) -> None:
        """Writes the class probabilities [N, C] of all images, float16, with hashes."""
        write_probabilities(path, self.probabilities, self._origin)

    def _write_lines(self, chosen: Sequence[PseudoLabel], path: Path) -> list[PseudoLabel]:
        labels, classes = in_source(chosen, self._pool), self._setup.classes
        method, made_by = "transductive", self.key
        write_for(self._pool, labels, path, classes=classes, method=method, provenance=made_by)
        return labels

    @cached_property
    def _origin(self) -> dict[str, str]:
        class_list = class_list_hash(self._setup.classes.names)
        return {
            "made_by": self.key,
            "class_list": class_list,
            "image_list": self._pool.list_hash,
        }

    def _read(self) -> Tensor | None:
        """[N, C] float16; None unless the file is whole and has these labels."""
        if not self._tensors.exists():
            return None
        shape = (len(self._pool.indices), len(self._setup.classes.names))
        found = read_probabilities(self._tensors, shape, self._origin)
        if isinstance(found, str):
            log.warning("%s is not used, as %s: labels are found again.", self._tensors, found)
            return None
        return found

    @cached_property
    def probabilities(self) -> Tensor:
        """[N, C] float16, in the order of the pool; `make` finds them.

        Raises:
            DataError: they are not stored.
        """
        z = self._read()
        if z is None:
            raise DataError(f"{self._tensors} is missing.\n  Run the command again.")
        return z

    def read(self, positions: Sequence[int]) -> SoftTargets:
        """The targets of some images of the pool, by position in its source."""
        rows = torch.tensor([self._rows[position] for position in positions])
        z = self.probabilities[rows].float()
        return SoftTargets(z, self._spec.combine, self._spec.weight)


def _table(half: Tensor) -> Probabilities:
    table: Probabilities = half.float().numpy()
    return table


def _gain(result: PoolLabelsResult) -> str:
    """The share of changed classes, and of correct labels if known."""
    changed = f"{result.changed_percent:.2f} % have another class than the teacher's"
    if result.accuracy_percent is None:
        return changed
    before, after = result.accuracy_before_percent, result.accuracy_percent
    return f"{changed}; {before:.2f} -> {after:.2f} % of those without a label are correct"


def _histogram(result: PoolLabelsResult) -> str:
    """Classes whose number of images changed most."""
    names = dict.fromkeys([*result.before, *result.after])
    pairs = [(name, result.before.get(name, 0), result.after.get(name, 0)) for name in names]
    pairs.sort(key=lambda one: -abs(one[2] - one[1]))
    shown = ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs[:_N_SHOWN])
    n_more = len(pairs) - _N_SHOWN
    more = f" and {n_more} more classes" if n_more > 0 else ""
    lost = [name for name, old, new in pairs if old and not new]
    without = f"; no image is left of {name_some(lost)}" if lost else ""
    return shown + more + without
