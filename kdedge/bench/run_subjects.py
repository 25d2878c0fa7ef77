"""The rows of a run: its model, its teacher, plain CLIP and the methods it is compared with.

Speed and work depend on the architecture and the protocol alone, so a method that was never trained
here has them too; an accuracy is there only where a run measured it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge._files import read_json
from kdedge.bench.subject import Subject
from kdedge.bench.timing import Call, host_timed
from kdedge.clip.backbone import Backbone
from kdedge.clip.text import TokenizedTexts
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.deploy.trained import TrainedModel, load_trained_model
from kdedge.errors import KdedgeError, RecipeError
from kdedge.evaluation.flops import count_gmacs
from kdedge.methods._protocol import ImageConditioned, Method
from kdedge.methods._supervised import TextPromptMethod
from kdedge.methods.cocoop import Method as CoCoOp
from kdedge.methods.registry import list_methods, load_method
from kdedge.results import EvalResult
from kdedge.speed_results import Accuracy, Inputs, Protocol
from kdedge.training.baseline import with_baseline
from kdedge.training.parts import Classes, build_method, choose_method, load_role_backbone
from kdedge.training.runs import RunFolder, runs_in
from kdedge.training.teach import cache_folder
from kdedge.training.teachers import StoredTeacher, load_teacher

log = logging.getLogger(__name__)

_Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Model:
    """A model as a row wants it.

    Attributes:
        name: the method's, as its file's first line has it.
        protocol: the row's.
        logits: [B, 3, H, W] -> [B, C].
        backbone: under it.
        holds: tensors that it needs.
        gmacs_image, gmacs_call: as `SpeedRow` has them.
    """

    name: str
    protocol: Protocol
    logits: _Logits
    backbone: Backbone
    holds: Sequence[Tensor]
    gmacs_image: float
    gmacs_call: float = 0.0


def run_subjects(
    run: RunFolder, *, root: Path, device: torch.device, against: Sequence[str]
) -> tuple[list[Subject], dict[str, str]]:
    """The rows of a finished run, by PyTorch, and what is missing and why.

    Args:
        run: a student's, a teacher's or a baseline's.
        root: folder of all runs, where the others' accuracies are looked for.
        device: where the models run.
        against: methods on the student's backbone to compare with.

    Raises:
        RecipeError: the run is not finished, or a method is unknown or learns from a teacher.
        DataError: the run's files do not belong together.
    """
    for name in against:
        _check_method(name)
    trained = load_trained_model(run, device=device)
    recipe = trained.loaded.recipe
    rows: list[Subject] = []
    left_out: dict[str, str] = {}

    def add(model: _Model, accuracy: Accuracy | None) -> None:
        rows.append(_subject(recipe.name, model, accuracy, device))

    clip = _zero_shot(trained)
    add(clip, _accuracy(run, "zeroshot"))
    baselines = {} if recipe.student is None else _baselines(root, recipe.name)
    for name in against if recipe.student is not None else ():
        found = baselines.get(name)
        loaded = trained.loaded if found is None else load_recipe(found.recipe)
        accuracy = None if found is None else _accuracy(found, "baseline")
        try:
            models = _baseline(name, loaded, trained, cache=cache_folder(root))
        except KdedgeError as error:
            left_out[name] = str(error).splitlines()[0]
            continue
        for model in models:
            add(model, accuracy)
    if run.kind == "student":
        _add_teacher(run, trained, add, left_out, device=device, cache=cache_folder(root))
    add(_of_run(trained), _accuracy(run, run.kind))
    return rows, left_out


def _check_method(name: str) -> None:
    module = load_method(name)
    if module.Method.needs_teacher:
        able = [known for known in list_methods() if not load_method(known).Method.needs_teacher]
        raise RecipeError(
            f"--against {name}: it learns from a teacher, and is measured by its own run.\n"
            f"  Compare with one of: {', '.join(able)}."
        )


def _title(name: str) -> str:
    """The method's name as its file's first line has it, up to the colon."""
    return (load_method(name).__doc__ or name).partition(":")[0]


def _zero_shot(trained: TrainedModel) -> _Model:
    """Plain CLIP with as many class vectors; their values change nothing here."""
    backbone = trained.backbone
    vectors = _unit_rows(len(trained.class_names), backbone)
    return _with_vectors(_title("zeroshot"), backbone.image_features, vectors, backbone, [])


def _unit_rows(n_classes: int, backbone: Backbone) -> Tensor:
    rows = torch.randn(n_classes, backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    return F.normalize(rows, dim=-1).to(backbone.device)


def _with_vectors(
    name: str,
    features: _Logits,
    vectors: Tensor,
    backbone: Backbone,
    holds: Sequence[Tensor],
) -> _Model:
    """A model that answers with stored class vectors."""
    scale = backbone.scale

    def logits(images: Tensor) -> Tensor:
        return scale * features(images) @ vectors.T

    holds = [*holds, vectors, *backbone.model.visual.parameters()]
    gmacs = count_gmacs(logits, _one_image(backbone))
    return _Model(name, "cached", logits, backbone, holds, gmacs)


def _one_image(backbone: Backbone) -> Tensor:
    size = backbone.preprocess.size_px
    return torch.zeros(1, 3, size, size, device=backbone.device)


def _baseline(
    name: str, loaded: LoadedRecipe, trained: TrainedModel, *, cache: Path
) -> list[_Model]:
    """A method on the student's backbone under both protocols, where they differ."""
    spec = loaded.recipe.baseline
    if spec is not None and spec.method not in (None, name):  # another method's settings
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"baseline": None}))
    loaded = with_baseline(loaded, name)
    if trained.run.kind == "student":
        backbone = trained.backbone
    else:
        backbone = load_role_backbone(
            loaded.recipe, "baseline", device=trained.backbone.device, cache=cache
        )
    classes = replace(trained.own, names=trained.class_names)
    method = build_method(choose_method(loaded, "baseline"), backbone, classes, seed=0)
    method.module.requires_grad_(False).eval()
    title, holds = _title(name), list(method.module.state_dict().values())
    text_tower = _text_tower(backbone)
    if isinstance(method, ImageConditioned):
        return [_image_conditioned(title, method, backbone, [*holds, *text_tower])]
    features = method.forward_features
    cached = _with_vectors(title, features, method.class_vectors(), backbone, holds)
    if not isinstance(method, TextPromptMethod):
        return [cached]
    texts = _at_all_positions(method.texts, backbone)

    def vectors() -> Tensor:
        return method.text_features(texts)

    def logits(images: Tensor) -> Tensor:
        return method.scale * features(images) @ vectors().T

    call = count_gmacs(lambda images: vectors(), _one_image(backbone))
    paper = replace(
        cached,
        protocol="paper",
        logits=logits,
        gmacs_call=call,
        holds=[*holds, *text_tower, *backbone.model.visual.parameters()],
    )
    return [paper, cached]


def _image_conditioned(
    title: str, method: Method, backbone: Backbone, holds: Sequence[Tensor]
) -> _Model:
    """CoCoOp: its texts depend on the image, so there is nothing to store."""
    assert isinstance(method, CoCoOp)
    texts = _at_all_positions(method.texts, backbone)

    def logits(images: Tensor) -> Tensor:
        return method.logits(images, texts)

    gmacs = count_gmacs(logits, _one_image(backbone))
    holds = [*holds, *backbone.model.visual.parameters()]
    return _Model(title, "paper", logits, backbone, holds, gmacs)


def _at_all_positions(texts: TokenizedTexts, backbone: Backbone) -> TokenizedTexts:
    """Texts as the public code encodes them: padded to every position that the tower has."""
    missing = backbone.context_length - texts.tokens.shape[1]
    return replace(texts, tokens=F.pad(texts.tokens, (0, missing)))


def _text_tower(backbone: Backbone) -> list[Tensor]:
    model = backbone.model
    parts: list[nn.Module] = [model.transformer, model.token_embedding, model.ln_final]
    inside = [parameter for part in parts for parameter in part.parameters()]
    return [*inside, model.positional_embedding, model.text_projection]


def _of_run(trained: TrainedModel) -> _Model:
    """The run's own model, unfused."""
    name = _title(choose_method(trained.loaded, trained.run.kind).name)
    model, vectors = trained.model, trained.vectors.vectors.to(trained.backbone.device)
    path = trained.model.image_path()

    def logits(images: Tensor) -> Tensor:
        return model.scale * model.forward_features(images) @ vectors.T

    holds: list[Tensor] = [vectors, *path.visual.parameters()]
    if path.visual_prompts is not None:
        holds.append(path.visual_prompts)
    if isinstance(path.projector, nn.Module):
        holds += path.projector.state_dict().values()
    gmacs = count_gmacs(logits, _one_image(trained.backbone))
    return _Model(name, "cached", logits, trained.backbone, holds, gmacs)


def _add_teacher(
    run: RunFolder,
    trained: TrainedModel,
    add: Callable[[_Model, Accuracy | None], None],
    left_out: dict[str, str],
    *,
    device: torch.device,
    cache: Path,
) -> None:
    """The teacher that taught a student, where its run and its weights are still there."""
    name = run.read_provenance().get("teacher_run")
    try:
        if name is None:
            raise RecipeError("the teacher is no run")
        folder = RunFolder.open(run.path.resolve().parent.parent / str(name))
        classes = Classes(trained.class_names, trained.own.template, trained.own.split)
        teacher = load_teacher(folder, classes, device=device, cache=cache)
    except KdedgeError as error:
        left_out["teacher"] = str(error).splitlines()[0]
        return
    title = f"teacher, {_title(choose_method(load_recipe(folder.recipe), 'teacher').name)}"
    add(_teacher_model(title, teacher), _accuracy(folder, "teacher"))


def _teacher_model(title: str, teacher: StoredTeacher) -> _Model:
    path = teacher.image_path()
    holds = [] if path.visual_prompts is None else [path.visual_prompts]
    vectors = teacher.class_vectors()
    return _with_vectors(title, teacher.forward_features, vectors, teacher.backbone, holds)


def _baselines(root: Path, recipe: str) -> dict[str, RunFolder]:
    """The newest finished run of each baseline of a recipe's name."""
    found = [
        (str(record.get("finished_at")), str(record.get("method")), run)
        for run, record in runs_in(root)
        if run.kind == "baseline"
        and run.path.parent.name == recipe
        and record.get("status") == "finished"
    ]
    return {method: run for _, method, run in sorted(found, key=lambda entry: entry[0])}


def _accuracy(run: RunFolder, key: str) -> Accuracy | None:
    """What a run's evaluation says of one of its models."""
    if not run.evaluation.is_file():
        return None
    try:
        result = EvalResult.from_dict(read_json(run.evaluation)[key])
    except (KdedgeError, KeyError, TypeError) as error:
        log.warning("%s: no accuracy of %s is taken from it (%s).", run.evaluation, key, error)
        return None
    return Accuracy(
        base=result.base,
        novel=result.novel,
        harmonic_mean=result.harmonic_mean,
        all=result.all,
        agreement=None,
        source=run.name,
    )


def _subject(
    source: str, model: _Model, accuracy: Accuracy | None, device: torch.device
) -> Subject:
    sizes = {id(tensor): tensor.numel() for tensor in model.holds}
    n_parameters = sum(sizes.values())

    @contextlib.contextmanager
    def load() -> Iterator[LoadedTorch]:
        yield LoadedTorch(model.logits, model.backbone.preprocess.size_px, device, n_parameters)

    return Subject(
        source=source,
        model=model.name,
        protocol=model.protocol,
        precision="fp32",
        n_parameters=n_parameters,
        n_bytes=None,
        gmacs_image=model.gmacs_image,
        gmacs_call=model.gmacs_call,
        accuracy=accuracy,
        gate=None,
        load=load,
    )


class LoadedTorch:
    """A model of PyTorch; see `bench.subject.Loaded`."""

    def __init__(
        self, logits: _Logits, size_px: int, device: torch.device, n_parameters: int
    ) -> None:
        self.runtime = f"PyTorch {torch.__version__}"
        self.batches: tuple[int, int | None] = (1, None)
        self.held_bytes = 4 * n_parameters
        self.is_gpu = device.type == "cuda"
        self.inputs: tuple[Inputs, ...] = ("on device", "copied") if self.is_gpu else ("on device",)
        self._logits, self._size_px, self._device = logits, size_px, device

    def call(self, batch: int, inputs: Inputs) -> Call:
        """Runs normal random images; on CUDA, from the host's pinned memory where copied."""
        shape = (batch, 3, self._size_px, self._size_px)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if inputs == "copied":
            pinned = images.pin_memory()
            return host_timed(lambda: self._run(pinned.to(self._device, non_blocking=True)).cpu())
        on_device = images.to(self._device)
        if self.is_gpu:
            return _event_timed(lambda: self._run(on_device))
        return host_timed(lambda: self._run(on_device))

    def _run(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self._logits(images)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _event_timed(work: Callable[[], Any]) -> Call:
    """A call timed by CUDA events around it."""

    def call() -> float:
        began, ended = _event(), _event()
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        return float(began.elapsed_time(ended))

    return call
