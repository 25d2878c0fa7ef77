"""Subjects of a run's measurement: its model, teacher, plain CLIP, and methods to compare with.

Speed and work depend only on the architecture and the protocol, so untrained methods are measured,
too; accuracies come from finished runs. Under the paper's protocol a baseline encodes its class
texts with every batch, at all positions of the text encoder. Otherwise its class vectors are
stored.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.benchmarking.timing import LoadedSubject, Subject, TimedCall, host_timed
from kdedge.clip.backbone import Backbone, ImageBackbone
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.errors import KdedgeError, RecipeError
from kdedge.evaluation.flops import count_gmacs
from kdedge.messages import first_line
from kdedge.methods.registry import list_methods, load_method
from kdedge.methods.supervised import TextPromptMethod
from kdedge.records.speed import Accuracy, TimedFrom
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run, warn_of_other_test_images
from kdedge.runs.results import readable_evaluation
from kdedge.setup.method import check_has_class_vectors
from kdedge.setup.role import set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.training.teacher import with_baseline

log = logging.getLogger(__name__)

_Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Scored:
    """A subject and where its accuracy is recorded.

    Attributes:
        subject: the subject, without its accuracy.
        run: the run that has the accuracy; None if no run has it.
        key: the accuracy's key in that run's evaluation.
    """

    subject: Subject
    run: RunFolder | None
    key: str


@dataclass(frozen=True)
class _Gmacs:
    """Work of a model, in GMACs: of each image, and once for each call."""

    per_image: float
    per_call: float


class RunSubjects(NamedTuple):
    """Models to measure next to a run.

    Attributes:
        subjects: the models that can be measured, the run's own last.
        left_out: the label of each other model -> why it cannot be measured.
    """

    subjects: list[Subject]
    left_out: dict[str, str]


def run_subjects(run: RunFolder, workspace: Workspace, *, against: Sequence[str]) -> RunSubjects:
    """Returns the subjects of a finished run in PyTorch, and why other models are left out.

    Args:
        run: run of a student, a teacher or a baseline.
        workspace: its folder of runs has the accuracies of other models.
        against: methods on the student's backbone to compare with.

    Raises:
        RecipeError: the run is not finished or has no class vectors, or a method is unknown or
            learns from a teacher.
        DataError: the run's files do not match.
    """
    for name in against:
        if load_method(name).METHOD.needs_teacher:
            alone = [x for x in list_methods() if not load_method(x).METHOD.needs_teacher]
            raise RecipeError(
                f"{name} learns from a teacher: name its own run instead.\n"
                f"  Or compare with one of: {', '.join(alone)}."
            )
    trained = load_run(run, workspace)
    check_has_class_vectors(trained.setup, "be measured by itself")
    try:
        warn_of_other_test_images(trained, trained.images.load("test"))
    except KdedgeError as error:
        log.warning(
            f"The accuracies of {run.name} were measured on test images that cannot be read now:"
            f" {first_line(error)}"
        )
    rows: list[_Scored] = []
    left_out: dict[str, str] = {}
    if isinstance(trained.backbone, Backbone):
        zero_shot = _zero_shot(trained.backbone, len(trained.class_names))
        rows.append(_Scored(zero_shot, run, "zeroshot"))
    else:
        left_out[_title("zeroshot")] = (
            f"{trained.backbone.name} is an image encoder alone, and reads no class names"
        )
    if trained.recipe.student is not None:
        rows += _baseline_rows(trained, against, left_out)
    if run.role == "student":
        rows += _teacher_rows(run, trained, left_out)
    rows.append(_Scored(_own_subject(trained), run, run.role))
    source = trained.recipe.name
    subjects = [
        replace(row.subject, source=source, accuracy=_accuracy(row.run, row.key)) for row in rows
    ]
    return RunSubjects(subjects, left_out)


def _accuracy(run: RunFolder | None, key: str) -> Accuracy | None:
    result = None if run is None else readable_evaluation(run).get(key)
    return None if run is None or result is None else Accuracy.of_run(result, run.name)


def _teacher_rows(run: RunFolder, trained: RunModel, left_out: dict[str, str]) -> list[_Scored]:
    """The teacher of a student; none if its run or its weights are missing."""
    try:
        folder = run.teacher_folder()
        if folder is None:
            raise RecipeError("the teacher is not a run")
        if folder.role != "teacher":
            raise RecipeError(f"the teacher is a {folder.role}; name its run next to this one")
        teacher = load_run(folder, trained.setup.workspace, names=trained.class_names)
        subject = _own_subject(teacher)
    except KdedgeError as error:
        left_out["teacher"] = first_line(error)
        return []
    if "teacher" in readable_evaluation(run):  # its accuracy on the student's test images
        return [_Scored(subject, run, "teacher")]
    return [_Scored(subject, folder, folder.role)]


def _baseline_rows(
    trained: RunModel, against: Sequence[str], left_out: dict[str, str]
) -> list[_Scored]:
    """The methods to compare with, each with the newest run that has its accuracy."""
    rows: list[_Scored] = []
    known = newest_baselines(trained.setup.workspace.root, trained.recipe.name)
    for name in against:
        run = known.get(name)
        loaded = trained.setup.loaded if run is None else load_recipe(run.recipe)
        try:
            subjects = _baseline_subjects(name, loaded, trained)
        except KdedgeError as error:
            left_out[_title(name)] = first_line(error)
        else:
            rows += [_Scored(subject, run, "baseline") for subject in subjects]
    return rows


def newest_baselines(root: Path, recipe: str) -> dict[str, RunFolder]:
    """The newest finished run of each baseline method, among runs of a recipe's name."""
    finished_at: dict[str, str] = {}
    newest: dict[str, RunFolder] = {}
    for run, record in runs_in(root):
        is_of_recipe = run.role == "baseline" and run.path.parent.name == recipe
        if not is_of_recipe or not record.is_finished:
            continue
        method = str(record.method)
        time = str(record.finished_at)
        if method not in newest or time >= finished_at[method]:
            newest[method] = run
            finished_at[method] = time
    return newest


def _baseline_subjects(name: str, loaded: LoadedRecipe, trained: RunModel) -> list[Subject]:
    """Subjects of an untrained method on the student's backbone: one per protocol that differs."""
    classes = replace(trained.setup.classes, names=trained.class_names)
    # Raises an error if the method needs a text encoder and the student has none
    workspace = trained.setup.workspace
    setup = set_up_role(with_baseline(loaded, name), "baseline", workspace, classes=classes)
    method = setup.build()
    backbone = setup.load_backbone()
    method.module.requires_grad_(False).eval()
    label = _title(name)
    features = method.forward_features
    tensors: list[Tensor] = [*method.module.parameters(), *backbone.visual.parameters()]
    cached = []
    if setup.settings.classifier != "own_logits":
        subject = _with_vectors(
            label,
            backbone,
            features=features,
            vectors=method.class_vectors(),
            scale=method.scale,
            tensors=tensors,
        )
        cached = [subject]
    if not isinstance(method, TextPromptMethod):
        return cached or [_subject(label, method.own_logits, backbone, tensors)]
    assert isinstance(backbone, Backbone)  # it encodes texts
    model = backbone.model
    parts: list[nn.Module] = [model.transformer, model.token_embedding, model.ln_final]
    encoder: list[Tensor] = [model.positional_embedding, model.text_projection]
    for part in parts:
        encoder += part.parameters()
    # Padded to all positions of the encoder, as in the public code
    missing = backbone.context_length - method.texts.tokens.shape[1]
    texts = replace(method.texts, tokens=F.pad(method.texts.tokens, (0, missing)))
    gmacs = None

    def logits(images: Tensor) -> Tensor:
        return method.class_logits(features(images), texts)

    if cached:
        call = count_gmacs(lambda images: method.text_features(texts), _one_image(backbone))
        gmacs = _Gmacs(per_image=cached[0].gmacs_image or 0.0, per_call=call)
    paper = _subject(label, logits, backbone, [*tensors, *encoder], gmacs, is_paper=True)
    return [paper, *cached]


def _zero_shot(backbone: Backbone, n_classes: int) -> Subject:
    """Subject of plain CLIP with random class vectors: their values do not affect speed."""
    rows = torch.randn(n_classes, backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    vectors = F.normalize(rows, dim=-1).to(backbone.device)
    return _with_vectors(
        _title("zeroshot"),
        backbone,
        features=backbone.image_features,
        vectors=vectors,
        scale=backbone.scale,
        tensors=list(backbone.visual.parameters()),
    )


def _own_subject(trained: RunModel) -> Subject:
    """Subject of the run's own model, unfolded."""
    label = _title(trained.setup.method_name)
    if trained.run.role != "baseline":
        label = f"{trained.run.role}, {label}"
    return _with_vectors(
        label,
        trained.backbone,
        features=trained.forward_features,
        vectors=trained.class_vectors(),
        scale=trained.scale,
        tensors=list(trained.method.image_modules().parameters()),
    )


def _title(name: str) -> str:
    """The label of a method in tables."""
    label: str = load_method(name).METHOD.label
    return label


def _with_vectors(
    label: str,
    backbone: ImageBackbone,
    *,
    features: _Logits,
    vectors: Tensor,
    scale: float,
    tensors: Sequence[Tensor],
) -> Subject:
    """Subject of a model with stored class vectors."""

    def logits(images: Tensor) -> Tensor:
        return scale * features(images) @ vectors.T

    return _subject(label, logits, backbone, [*tensors, vectors])


def _one_image(backbone: ImageBackbone) -> Tensor:
    size = backbone.preprocess.size_px
    return torch.zeros(1, 3, size, size, device=backbone.device)


def _subject(
    label: str,
    logits: _Logits,
    backbone: ImageBackbone,
    tensors: Sequence[Tensor],
    gmacs: _Gmacs | None = None,
    *,
    is_paper: bool = False,
) -> Subject:
    """Subject of a model in PyTorch.

    Args:
        label: the method's label.
        logits: [B, 3, H, W] -> [B, C].
        backbone: the model's backbone.
        tensors: parameters that it needs, class vectors among them.
        gmacs: its work; None to count it.
        is_paper: whether the model encodes the class texts with every batch.
    """
    n_parameters = sum(tensor.numel() for tensor in tensors)
    if gmacs is None:
        gmacs = _Gmacs(per_image=count_gmacs(logits, _one_image(backbone)), per_call=0.0)
    return Subject(
        source="",
        model=label,
        protocol="paper" if is_paper else "cached",
        precision="fp32",
        n_parameters=n_parameters,
        n_bytes=None,
        gmacs_image=gmacs.per_image,
        gmacs_call=gmacs.per_call,
        accuracy=None,
        gate=None,
        load=lambda: contextlib.nullcontext(_LoadedTorch(logits, backbone, n_parameters)),
    )


class _LoadedTorch(LoadedSubject):
    """A PyTorch model in memory."""

    def __init__(self, logits: _Logits, backbone: ImageBackbone, n_parameters: int) -> None:
        device = backbone.device
        self.runtime = f"PyTorch {torch.__version__}"
        self.held_bytes = 4 * n_parameters
        self._logits = logits
        self._size_px = backbone.preprocess.size_px
        self._device = device
        if device.type == "cuda":
            self.gpu = device.index or 0
            self.inputs = ("on device", "copied")
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def gpu_bytes(self) -> int:
        """Peak memory of the last calls in bytes, with the weights; only for a model on a GPU."""
        return self.held_bytes + torch.cuda.max_memory_allocated(self._device) - self._before

    def call(self, batch: int, inputs: TimedFrom) -> TimedCall:
        """Returns a call on random normal images; `copied` starts in pinned host memory."""
        shape = (batch, 3, self._size_px, self._size_px)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if inputs == "copied":
            pinned = images.pin_memory()
            return host_timed(lambda: self._run(pinned.to(self._device, non_blocking=True)).cpu())
        on_device = images.to(self._device)
        if self.gpu is not None:
            return _event_timed(lambda: self._run(on_device))
        return host_timed(lambda: self._run(on_device))

    def _run(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self._logits(images)


def _event_timed(work: Callable[[], Any]) -> TimedCall:
    """A call timed by CUDA events around it."""

    def call() -> float:
        began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        return float(began.elapsed_time(ended))

    return call
