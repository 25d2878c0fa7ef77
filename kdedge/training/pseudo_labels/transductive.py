"""Transductive labels of a recipe's unlabeled images: found once, kept on disk, read by position.

    <root>/.cache/transductive/<key>/labels.jsonl         class and confidence of each image
    <root>/.cache/transductive/<key>/labels.json          what was found, in figures
    <root>/.cache/transductive/<key>/labels.safetensors   class probabilities [N, C], float16

`key` is a hash of everything that the labels depend on: other images, another teacher or another
setting have a folder of their own. The equations are in `kdedge.data.transductive`. Features come
from stores in <root>/.cache/features of the images as evaluation sees them, of the teacher and of
the student's backbone.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kdedge.clip.backbone import unit_length
from kdedge.clip.tensor_file import encode_tensors
from kdedge.clip.vision import encode_image
from kdedge.config.targets_spec import TargetsSpec
from kdedge.data.classes import class_list_hash
from kdedge.data.pseudo_labels import (
    Probabilities,
    PseudoLabel,
    most_confident_predicted,
    most_probable,
)
from kdedge.data.soft_targets import SoftTargets
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
from kdedge.files import explain_os_error, sha256_json, write_atomic, write_json
from kdedge.progress import rough_duration, working
from kdedge.records import read_record
from kdedge.results import PoolLabelsResult
from kdedge.runs.model import Model
from kdedge.runtime.preprocess import Preprocess
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
from kdedge.training.teacher_store.fill import StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store

log = logging.getLogger(__name__)

FORMAT = "kdedge-transductive-1"
_N_SHOWN = 8  # classes in a message


@dataclass(frozen=True)
class Members:
    """The images that labels are found from.

    Attributes:
        images: the unlabeled images, and behind them labeled ones that are not among them.
        unlabeled: positions in `images` of those whose label is not known.
        labels: position in `images` -> class, of the labeled ones.
    """

    images: Images
    unlabeled: tuple[int, ...]
    labels: dict[int, int]


def members_of(pool: Images, labeled: Images | None) -> Members:
    """Puts unlabeled and labeled images together; those of equal content are one labeled image."""
    if labeled is None:
        return Members(pool, pool.indices, {})
    label_of = {labeled.digests[index]: label for index, label in labeled.labels().items()}
    labels = {i: label_of[pool.digests[i]] for i in pool.shared_with(labeled)}
    unlabeled = tuple(i for i in pool.indices if i not in labels)
    others = labeled.without(pool)
    if not others.indices:
        return Members(pool, unlabeled, labels)
    n_own, of_others = len(pool.source.items), others.labels()
    behind = {n_own + i: of_others[i] for i in others.indices}
    return Members(pool.with_those_of(others), unlabeled, {**labels, **behind})


class _ImageEncoder:
    """A student's image encoder before training."""

    def __init__(self, setup: RoleSetup) -> None:
        self._setup = setup

    @property
    def preprocess(self) -> Preprocess:
        """How its images are prepared."""
        return self._setup.backbone.preprocess

    @property
    def device(self) -> torch.device:
        """Where it takes images."""
        return self._setup.device

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D_student], unit length."""
        return unit_length(encode_image(self._setup.load_backbone().visual, images))


@dataclass(frozen=True)
class TeacherOfPool:
    """Whose probabilities the labels begin with.

    Attributes:
        model: frozen.
        dim: D_teacher.
        features: provenance hash of its image features.
        class_vectors: provenance hash of its class vectors.
    """

    model: Model
    dim: int
    features: str
    class_vectors: str


class TransductiveLabels:
    """Labels of a recipe's unlabeled images, as a setting of its student asks for them.

    Attributes:
        path: their folder.
    """

    def __init__(
        self, spec: TargetsSpec, setup: RoleSetup, pool: Images, teacher: TeacherOfPool
    ) -> None:
        """Reads which images are labeled; computes nothing.

        Args:
            spec: the setting.
            setup: the student.
            pool: its unlabeled images.
            teacher: frozen.

        Raises:
            DataError: fewer than two classes have labels.
        """
        self._spec, self._setup, self._pool, self._teacher = spec, setup, pool, teacher
        recipe, labeled = setup.loaded.recipe, None
        if recipe.data.labeled is not None and spec.labeled_weight > 0:
            labeled = RecipeData(recipe, setup.classes, setup.workspace).labeled("student")
        self._members = members_of(pool, labeled)
        self.path = setup.workspace.root / ".cache" / "transductive" / self.key[:16]
        self._rows = {position: row for row, position in enumerate(pool.indices)}

    @cached_property
    def fillers(self) -> dict[str, StoreFiller]:
        """The stores of features by what they are of; the teacher's gives its probabilities."""
        teacher, setup = self._teacher, self._setup
        found = {"teacher": self._filler(teacher.model, teacher.features, teacher.dim)}
        if self._spec.features != "teacher":
            backbone, encoder = setup.backbone, _ImageEncoder(setup)
            provenance = sha256_json(["image encoder", backbone.identity])
            found["student"] = self._filler(encoder, provenance, backbone.embed_dim)
        return found

    def _filler(self, model: Model | _ImageEncoder, provenance: str, dim: int) -> StoreFiller:
        images, optim = self._members.images, self._setup.choice.optim
        description = describe_store(
            provenance=provenance,
            images=images,
            preprocess=model.preprocess,
            augment=None,
            precision=optim.precision,
        )
        root = self._setup.workspace.root / ".cache" / "features"
        store = TeacherStore(root, description, indices=images.indices, dim=dim, n_views=1)
        return StoreFiller(store, model, images.source, None, optim.precision, optim.n_workers)

    @property
    def objective(self) -> Objective:
        """The factors of the objective, with published values where the recipe has none."""
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
        """All that the labels depend on, as plain values."""
        return {
            "format": FORMAT,
            "features": self._spec.features,
            **asdict(self.objective),
            "rounds": [N_ROUNDS, N_SWEEPS, N_FIRST],
            "stores": {name: filler.store.key for name, filler in self.fillers.items()},
            "class_vectors": self._teacher.class_vectors,
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
        """Finds the labels, or reads those that were found before; processes share the work.

        Raises:
            ResourceError: the disk is full or the folder may not be written.
            DivergedError: a feature is not finite.
        """
        is_there = self._read() is not None
        for filler in () if is_there else self.fillers.values():
            filler.fill()
        result = self._setup.workspace.group.on_rank0(self._result_of if is_there else self._find)
        log.info(
            "Transductive labels of %d images, %d of them labeled, by %s features: %s.\n"
            "  Images by class, the teacher's answers -> the labels: %s.",
            *(result.n_images, result.n_labeled, self._spec.features, _gain(result)),
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
        result = self._result(before, z, time.monotonic() - began)
        self._write(z, result)
        log.info("Found in %s: %s", rough_duration(result.seconds), self.path)
        return result

    def _solve(self) -> tuple[Tensor, Tensor]:
        """[N, C] teacher's probabilities and [N, C] labels, of the pool, on the CPU."""
        members, device = self._members, self._setup.device
        labeled = list(members.labels)
        classes = torch.tensor([members.labels[i] for i in labeled], dtype=torch.int64)
        teacher = self._features("teacher", [*members.unlabeled, *labeled])
        vectors = self._teacher.model.class_vectors().to(device)
        log_p = (self._teacher.model.scale * teacher @ vectors.T).log_softmax(dim=1)
        n_unlabeled = len(members.unlabeled)
        z = log_p[:0]
        if n_unlabeled:
            features = self._side_by_side(teacher, [*members.unlabeled, *labeled])
            pool = Pool(features, log_p[:n_unlabeled], classes.to(device))
            z = transductive_labels(pool, self.objective).z
        one_hot = torch.nn.functional.one_hot(classes, log_p.shape[1]).to(log_p)
        row = {position: i for i, position in enumerate([*members.unlabeled, *labeled])}
        own = [row[position] for position in self._pool.indices]
        return log_p.exp()[own].cpu(), torch.cat([z, one_hot])[own].cpu()

    def _features(self, name: str, positions: Sequence[int]) -> Tensor:
        return self.fillers[name].store.read(positions, 1).to(self._setup.device)

    def _side_by_side(self, teacher: Tensor, positions: Sequence[int]) -> Tensor:
        """The features that the setting names; of both, each has half of every cosine."""
        if self._spec.features == "teacher":
            return teacher
        student = self._features("student", positions)
        if self._spec.features == "student":
            return student
        return torch.cat([teacher, student], dim=1) / 2**0.5

    def _result(self, before: Tensor, z: Tensor, seconds: float) -> PoolLabelsResult:
        names, pool = self._setup.classes.names, self._pool
        truth = true_labels(self._setup.loaded.recipe, self._setup.classes, pool)
        old, new = before.argmax(dim=1).tolist(), z.argmax(dim=1).tolist()
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

    def _write(self, z: Tensor, result: PoolLabelsResult) -> None:
        """Writes the three files; the last one makes the labels whole."""
        half, classes = z.to(torch.float16).contiguous(), self._setup.classes
        table = _table(half)
        warn_of_unpredicted(table, classes, among=range(len(classes.names)))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        self._write_lines(most_confident_predicted(table, len(table)), self.path / "labels.jsonl")
        write_json(self.path / "labels.json", result.to_dict())
        self._write_tensors(half, self._tensors)

    def write(self, path: Path, per_class: int | None) -> list[PseudoLabel]:
        """Writes pseudo-labels of the images, a line each, for a person and `data.pseudo_labels`.

        Args:
            path: the file.
            per_class: images of each class, the most probable ones; None for every image.

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
        self._write_tensors(self.probabilities, path)

    def _write_lines(self, chosen: Sequence[PseudoLabel], path: Path) -> list[PseudoLabel]:
        labels, classes = in_source(chosen, self._pool), self._setup.classes
        method, made_by = "transductive", self.key
        write_for(self._pool, labels, path, classes=classes, method=method, provenance=made_by)
        return labels

    def _write_tensors(self, half: Tensor, path: Path) -> None:
        metadata = {
            "format": FORMAT,
            "made_by": self.key,
            "class_list": class_list_hash(self._setup.classes.names),
            "image_list": self._pool.list_hash,
            "sha256": _sha256(half),
        }
        write_atomic(path, encode_tensors({"class_probabilities": half}, metadata))

    def _read(self) -> Tensor | None:
        """[N, C] float16, where the file is whole and of these labels; None otherwise."""
        if not self._tensors.exists():
            return None
        try:
            with safe_open(self._tensors, framework="pt") as file:
                metadata, z = file.metadata() or {}, file.get_tensor("class_probabilities")
        except (OSError, SafetensorError):
            z, metadata = torch.empty(0), {}
        shape = (len(self._pool.indices), len(self._setup.classes.names))
        is_whole = metadata.get("sha256") == _sha256(z) if z.numel() else False
        if not is_whole or metadata.get("made_by") != self.key or tuple(z.shape) != shape:
            log.warning("%s is damaged: the labels are found again.", self._tensors)
            return None
        return z

    @cached_property
    def probabilities(self) -> Tensor:
        """[N, C] float16, in the order of the pool; found by `make`.

        Raises:
            DataError: they are not there.
        """
        z = self._read()
        if z is None:
            raise DataError(f"{self._tensors} is gone.\n  Run the command again.")
        return z

    def read(self, positions: Sequence[int]) -> SoftTargets:
        """The targets of some images of the pool, by position in its source."""
        rows = torch.tensor([self._rows[position] for position in positions])
        z = self.probabilities[rows].float()
        return SoftTargets(z, self._spec.combine, self._spec.weight)


def _table(half: Tensor) -> Probabilities:
    table: Probabilities = half.float().numpy()
    return table


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


def _gain(result: PoolLabelsResult) -> str:
    """How many classes changed, and how many labels are right where that is known."""
    changed = f"{result.changed_percent:.2f} % have another class than by the teacher"
    if result.accuracy_percent is None:
        return changed
    before, after = result.accuracy_before_percent, result.accuracy_percent
    return f"{changed}; {before:.2f} -> {after:.2f} % of those without a label are right"


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
