"""PyTorch models for the rows of a run: logits, tensors and operations.

Under the paper's protocol a baseline encodes its class texts with every batch, at all positions of
the text encoder. Otherwise its class vectors are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.benchmarking.timing import Call, host_timed
from kdedge.clip.backbone import Backbone, ImageBackbone
from kdedge.clip.text import TokenizedTexts
from kdedge.evaluation.flops import count_gmacs
from kdedge.methods.cocoop import Method as CoCoOp
from kdedge.methods.protocol import BaseMethod
from kdedge.methods.registry import load_method
from kdedge.methods.supervised import TextPromptMethod
from kdedge.records.speed import TextEncoding, TimedFrom
from kdedge.runs.model import RunModel
from kdedge.setup.role import RoleSetup

_Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TorchModel:
    """A model and the facts of its row.

    Attributes:
        name: the method's label.
        protocol: the row's protocol.
        logits: [B, 3, H, W] -> [B, C].
        backbone: its backbone.
        holds: tensors that it needs.
        gmacs_image, gmacs_call: as in `ModelFacts`.
    """

    name: str
    protocol: TextEncoding
    logits: _Logits
    backbone: ImageBackbone
    holds: Sequence[Tensor]
    gmacs_image: float
    gmacs_call: float = 0.0


def title(name: str) -> str:
    """The label of a method in tables."""
    label: str = load_method(name).METHOD.label
    return label


def zero_shot(backbone: Backbone, n_classes: int) -> TorchModel:
    """Plain CLIP with the same number of class vectors; their values do not matter here."""
    rows = torch.randn(n_classes, backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    vectors = F.normalize(rows, dim=-1).to(backbone.device)
    return _with_vectors(title("zeroshot"), backbone.image_features, vectors, backbone, [])


def _with_vectors(
    name: str,
    features: _Logits,
    vectors: Tensor,
    backbone: Backbone,
    holds: Sequence[Tensor],
) -> TorchModel:
    """A model with stored class vectors."""
    scale = backbone.scale

    def logits(images: Tensor) -> Tensor:
        return scale * features(images) @ vectors.T

    holds = [*holds, vectors, *backbone.visual.parameters()]
    gmacs = count_gmacs(logits, _one_image(backbone))
    return TorchModel(name, "cached", logits, backbone, holds, gmacs)


def _one_image(backbone: ImageBackbone) -> Tensor:
    size = backbone.preprocess.size_px
    return torch.zeros(1, 3, size, size, device=backbone.device)


def baseline_models(setup: RoleSetup, method: BaseMethod) -> list[TorchModel]:
    """A method on the student's backbone, under both protocols if they differ."""
    backbone = setup.load_backbone()
    assert isinstance(backbone, Backbone)  # a baseline encodes texts
    method.module.requires_grad_(False).eval()
    label, holds = title(setup.choice.name), list(method.module.state_dict().values())
    model = backbone.model
    parts: list[nn.Module] = [model.transformer, model.token_embedding, model.ln_final]
    text_tower = [parameter for part in parts for parameter in part.parameters()]
    text_tower += [model.positional_embedding, model.text_projection]
    if isinstance(method, CoCoOp):
        return [_image_conditioned(label, method, backbone, [*holds, *text_tower])]
    if method.why_no_class_vectors:
        gmacs = count_gmacs(method.own_logits, _one_image(backbone))
        holds += backbone.visual.parameters()
        return [TorchModel(label, "cached", method.own_logits, backbone, holds, gmacs)]
    features = method.forward_features
    cached = _with_vectors(label, features, method.class_vectors(), backbone, holds)
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
        holds=[*holds, *text_tower, *backbone.visual.parameters()],
    )
    return [paper, cached]


def _image_conditioned(
    label: str, method: CoCoOp, backbone: Backbone, holds: Sequence[Tensor]
) -> TorchModel:
    """CoCoOp: its texts depend on the image, so no class vectors can be stored."""
    texts = _at_all_positions(method.texts, backbone)

    def logits(images: Tensor) -> Tensor:
        return method.class_logits(method.training_features(images), texts)

    gmacs = count_gmacs(logits, _one_image(backbone))
    holds = [*holds, *backbone.visual.parameters()]
    return TorchModel(label, "paper", logits, backbone, holds, gmacs)


def _at_all_positions(texts: TokenizedTexts, backbone: Backbone) -> TokenizedTexts:
    """Encodes texts like the public code: padded to all positions of the encoder."""
    missing = backbone.context_length - texts.tokens.shape[1]
    return replace(texts, tokens=F.pad(texts.tokens, (0, missing)))


def own_model(trained: RunModel) -> TorchModel:
    """The run's own model, unfused."""
    vectors, path = trained.class_vectors(), trained.method.image_path()
    scale = trained.scale  # a tensor if there is no CLIP: counting would not see its value

    def logits(images: Tensor) -> Tensor:
        return scale * trained.forward_features(images) @ vectors.T

    holds: list[Tensor] = [vectors, *path.visual.parameters()]
    if path.visual_prompts is not None:
        holds.append(path.visual_prompts)
    if isinstance(path.projector, nn.Module):
        holds += path.projector.state_dict().values()
    gmacs = count_gmacs(logits, _one_image(trained.backbone))
    label = title(trained.setup.choice.name)
    return TorchModel(label, "cached", logits, trained.backbone, holds, gmacs)


class LoadedTorch:
    """A PyTorch model; see `benchmarking.timing.LoadedSubject`."""

    def __init__(
        self, logits: _Logits, size_px: int, device: torch.device, n_parameters: int
    ) -> None:
        self.runtime = f"PyTorch {torch.__version__}"
        self.batches: tuple[int, int | None] = (1, None)
        self.held_bytes = 4 * n_parameters
        self.gpu = (device.index or 0) if device.type == "cuda" else None
        self.inputs: tuple[TimedFrom, ...] = (
            ("on device", "copied") if self.gpu is not None else ("on device",)
        )
        self._logits, self._size_px, self._device = logits, size_px, device
        if self.gpu is not None:
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def gpu_bytes(self) -> int:
        """See `LoadedSubject.gpu_bytes`; only for a model on a GPU."""
        return self.held_bytes + torch.cuda.max_memory_allocated(self._device) - self._before

    def call(self, batch: int, inputs: TimedFrom) -> Call:
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


def _event_timed(work: Callable[[], Any]) -> Call:
    """A call timed by CUDA events around it."""

    def call() -> float:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        return float(began.elapsed_time(ended))

    return call
