"""The interface between the training loop and the methods.

A method's module holds `METHOD`, its `Declaration` (`methods.registry`), its `Settings`, its loss
functions, and `Method`, a subclass of `BaseMethod` or a function that builds one. `METHOD` has what
always holds, and properties of `Settings` have what depends on settings. The training loop knows no
method by name; around it, `zeroshot` and `ridge` are the references for a teacher, and `ridge` is
the student of one pass. A method that needs more than one pass of the loop returns an `OwnTraining`
as `Settings.own_training`.

`METHOD` says what data it learns from, which decides the images of a batch:

* labels only: images of `data.labeled` with their labels;
* unlabeled images only: images of `data.unlabeled`, without labels;
* both: images of `data.unlabeled`, and `Batch.labeled` with images of `data.labeled`;
* any, for a method with an `OwnTraining`, which gives the loop the images of each round.

The classes of a method's softmax, `train_classes`, are all classes if
`data_needs.novel_class_names`, else those with labels.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.architecture import EncoderSizes
from kdedge.clip.backbone import Backbone, ImageBackbone, unit_length
from kdedge.clip.prompts import random_linear
from kdedge.clip.vision import encode_image
from kdedge.config.fields import Strict
from kdedge.data.images import Images
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.loading.batch import Batch
from kdedge.runtime.preprocess import Preprocess

if TYPE_CHECKING:  # training is above the methods
    from kdedge.runs.folder import RunFolder
    from kdedge.training.job import Job

EncoderName = Literal["image", "text"]
Classifier = Literal["own_vectors", "teacher_vectors", "feature_logits", "own_logits"]


class MethodSettings(Strict):
    """Base class of every method's `Settings`: types are strict, unknown keys are errors.

    A method overrides a property by another one, or by a `ClassVar` if its settings do not matter.
    """

    @property
    def classifier(self) -> Classifier:
        """How logits arise from an image.

        * `own_vectors`: cosines of its features with class vectors that the method makes;
        * `teacher_vectors`: cosines with its teacher's, which must have class vectors;
        * `feature_logits`: its features are the logits, and the class vectors are unit vectors. It
          can only teach students without `teacher_vectors`;
        * `own_logits`: the method's function of that name. Such a method can be trained and
          evaluated, but neither exported nor a teacher.
        """
        return "own_vectors"

    @property
    def is_class_specific(self) -> bool:
        """Whether trained tensors belong to single classes; new class names then have none."""
        return self.classifier == "feature_logits"

    @property
    def learns_from_labels(self) -> bool:
        """Whether these settings use labels although `METHOD` declares none.

        `train_classes` are then the classes that have labels.
        """
        return False

    @property
    def needs_text_encoder(self) -> bool:
        """Whether the method runs the text encoder; if not, an `ImageBackbone` is enough."""
        return True

    @property
    def makes_pseudo_labels(self) -> bool:
        """Whether the method labels images itself, so that it cannot use `data.pseudo_labels`."""
        return False

    @property
    def own_training(self) -> OwnTraining | None:
        """The method's own way of training around the loop; None if one pass of the loop is all."""
        return None

    @property
    def layer_counts(self) -> dict[str, tuple[EncoderName, ...]]:
        """Name of each setting that is a number of layers -> encoders that need so many layers."""
        return {}

    def misfits(self, sizes: EncoderSizes) -> dict[str, str]:
        """Settings that do not fit a CLIP: name -> the reason, and on a second line a remedy."""
        return {}


class OwnTraining(ABC):
    """A method's own way of training: the core calls it in place of the training loop.

    It calls the loop (`training.loop.train.train`) once in each of its rounds, with other images or
    other values, and runs in a single process. `paper/rounds.py` is an example.
    """

    @property
    @abstractmethod
    def n_rounds(self) -> int:
        """How often `train` calls the loop; for estimates of the time."""

    @abstractmethod
    def train(
        self, job: Job, run: RunFolder, *, validate: Callable[[], float] | None
    ) -> dict[str, Any]:
        """Trains `job.method`, which ends with its final weights and in evaluation mode.

        For a resumed run it is called again and continues from what it finds in the run's folder.
        `run.round_folder` gives each round a folder there, in which the loop continues by itself.

        Args:
            job: the job that `prepare` returned.
            run: the run's folder.
            validate: measures the accuracy that selects an epoch; the loop's argument.

        Returns:
            Entries of the run's summary, `runs.provenance.RunSummary`.
        """

    @abstractmethod
    def trial(self, job: Job) -> Job:
        """A job like that of a round, for `kdedge check`, which takes its first steps."""

    def prepare(self, job: Job) -> Job:
        """The job as it is trained; may choose among its images.

        Raises:
            KdedgeError: the job cannot be trained. No run has been made yet.
        """
        return job


@dataclass(frozen=True)
class StepOutput:
    """The result of a training step.

    Attributes:
        loss: scalar with a graph, float32.
        scalars: the loss's terms and other metrics for the log, detached.
    """

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Projector(nn.Module):
    """Maps student features to the teacher's dimension (PromptKD, arXiv:2403.02781, section 3.2).

    Hidden layers (linear, batch norm, ReLU), then a linear layer. The paper's depth is 2; its table
    12 also has depths of 1, a single linear layer, and 3.

    Args:
        student_dim: D_student.
        teacher_dim: D_teacher, also the hidden width.
        generator: on the CPU; draws PyTorch's default for the authors' 1x1 convolutions.
        depth: linear layers, 1 to 3.
    """

    def __init__(
        self, student_dim: int, teacher_dim: int, generator: torch.Generator, *, depth: int = 2
    ) -> None:
        super().__init__()
        self.linear1 = random_linear(student_dim, teacher_dim, generator)
        if depth > 1:
            self.batch_norm = nn.BatchNorm1d(teacher_dim)
            self.linear2 = random_linear(teacher_dim, teacher_dim, generator)
        if depth > 2:
            self.batch_norm2 = nn.BatchNorm1d(teacher_dim)
            self.linear3 = random_linear(teacher_dim, teacher_dim, generator)

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The linear layers in order, from the student's features."""
        return tuple(layer for layer in self.children() if isinstance(layer, nn.Linear))

    @property
    def batch_norms(self) -> tuple[nn.BatchNorm1d, ...]:
        """The batch norms after all linear layers but the last; a ReLU follows each."""
        return tuple(layer for layer in self.children() if isinstance(layer, nn.BatchNorm1d))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D_student] -> [B, D_teacher]."""
        *hidden, last = self.linears
        for linear, norm in zip(hidden, self.batch_norms, strict=True):
            features = F.relu(norm(linear(features)))
        projected: Tensor = last(features)
        return projected


@dataclass(frozen=True)
class ImageModules:
    """The modules through which an image passes to its features on the device.

    Attributes:
        visual: the image encoder, frozen or trained: CLIP's ViT or another.
        visual_prompts: [depth, n_ctx_vision, D_vision], as `clip.vision.encode_image` takes them;
            None for plain CLIP.
        projector: applied to the encoder's output; None if that output is the features.
        merge_tokens: r, as `clip.vision.encode_image` takes it; 0 for plain CLIP.
        has_unit_length: whether features are scaled to unit length before they are compared.
    """

    visual: nn.Module
    visual_prompts: Tensor | None = None
    projector: Projector | None = None
    merge_tokens: int = 0
    has_unit_length: bool = True

    def parameters(self) -> list[Tensor]:
        """The parameters through which an image passes; no buffers, such as running means."""
        found: list[Tensor] = [*self.visual.parameters()]
        if self.visual_prompts is not None:
            found.append(self.visual_prompts)
        return found if self.projector is None else [*found, *self.projector.parameters()]


class Teacher(Protocol):
    """What a student learns from: a frozen model, or a file of probabilities.

    `runs.model.MethodModel` is the one, `training.file_teacher.FileTeacher` the other. Training
    shows it batches as they are prepared for the student; `logits_of` prepares images by itself.
    """

    @property
    def scale(self) -> float:
        """`logit_scale.exp()`."""

    @property
    def vectors_hash(self) -> str:
        """Hash of what class vectors and logits are made from."""

    def class_vectors(self) -> Tensor:
        """[C, D_teacher], float32, in class-list order, no graph; as `BaseMethod.class_vectors`.

        [C, 0] for a file of probabilities; unit vectors if the features are logits.
        """

    def teacher_features(self, images: Tensor, preprocess: Preprocess) -> Tensor:
        """[B, 3, H, W] -> [B, D_teacher], float32, no graph; unit length for class vectors.

        Args:
            images: a batch of the student.
            preprocess: how the batch was prepared.
        """

    def teacher_logits(self, features: Tensor, keys: Sequence[str]) -> Tensor:
        """The teacher's logits for a batch, from its class vectors, its classifier or its file.

        Args:
            features: [B, D_teacher], computed or stored.
            keys: names of the B images.

        Returns:
            [B, C], scaled logits or log-probabilities, float32, no graph.
        """

    def logits_of(self, images: Images, *, what: str) -> Tensor | None:
        """[N, C], float32, on the CPU, in the images' order; None if it lacks some.

        Args:
            images: images without crops or flips, such as those that accuracy is measured on.
            what: name of the work, for progress.
        """


@dataclass(frozen=True)
class MethodInputs:
    """The inputs of a method besides its backbone and its settings.

    Attributes:
        class_names: all C classes, in class-list order.
        template: text pattern with `{}` for frozen texts.
        train_classes: positions in `class_names` of the classes that labels refer to, in label
            order.
        generator: draws the initial values (on the CPU).
        teacher: the teacher of a student that is trained; else None.
        class_vectors: [C, D_teacher], instead of a teacher, of a student that is loaded.
        sentences: sentences about each class in class-list order, from a recipe's `classes.texts`;
            only for a method with `learns_from_texts`.
    """

    class_names: Sequence[str]
    template: str
    train_classes: Sequence[int]
    generator: torch.Generator
    teacher: Teacher | None = None
    class_vectors: Tensor | None = None
    sentences: Sequence[Sequence[str]] | None = None

    @property
    def train_names(self) -> list[str]:
        """Names of the classes that labels refer to."""
        return [self.class_names[index] for index in self.train_classes]

    @property
    def is_student(self) -> bool:
        """Whether there is a teacher, or its class vectors."""
        return self.teacher is not None or self.class_vectors is not None

    def vectors(self) -> Tensor:
        """[C, D_teacher]: the class vectors that were given, or the teacher's."""
        if self.class_vectors is not None:
            return self.class_vectors
        assert self.teacher is not None
        return self.teacher.class_vectors()


@dataclass(frozen=True)
class ClosedFormData:
    """The training data of a `ClosedFormMethod`, in passes over the images.

    Images are [B, 3, H, W] as evaluation prepares them, in an order that the seed draws.

    Attributes:
        unlabeled: yields a group's shard of a slice of the unlabeled images, with the teacher's
            features [B, D_teacher] and logits [B, C].
        n_held_out: number of unlabeled images, from the first, that are held out to choose
            settings.
        n_standardize: number of unlabeled images, after the held-out ones, that standardize the
            features.
        labeled: yields a slice of the labeled images, with labels [B].
        n_leave_one_out: number of labeled images, from the first, whose leave-one-out predictions
            choose settings; the method learns from all.
        label_counts: [C_labeled], labeled images of each class.
        group: the processes that share the unlabeled images.
        autocast: context for the encoder's forward pass alone: what is solved is not rounded.
    """

    unlabeled: Callable[[slice, ProcessGroup], Iterator[tuple[Tensor, Tensor, Tensor]]]
    n_held_out: int
    n_standardize: int
    labeled: Callable[[slice], Iterator[tuple[Tensor, Tensor]]]
    n_leave_one_out: int
    label_counts: Tensor
    group: ProcessGroup = SINGLE_PROCESS
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def n_labeled(self) -> int:
        """Number of labeled images."""
        return int(self.label_counts.sum())

    def equal_classes(self, labels: Tensor) -> Tensor:
        """[B], float64: weights of images, mean 1, with the same sum for each labeled class."""
        counts = self.label_counts.to(labels.device).double()
        return counts.sum() / (counts > 0).sum() / counts[labels]


class BaseMethod(ABC):
    """A method: built once, trained by the loop, then used for features and class vectors.

    A method's file adds `class_vectors`, an `__init__` that sets `module`, and `training_step` if
    it is trained by gradients. It overrides other parts if they differ.

    Args:
        backbone: frozen, on its device; an `ImageBackbone` unless `settings.needs_text_encoder`.
        settings: an instance of the method file's `Settings`.
        inputs: classes, template, teacher and generator.

    Attributes:
        module: holds exactly the tensors that training changes: parameters and buffers (batch-norm
            statistics). Checkpoints and run folders keep its state dict. The loop calls
            `module.train()` and `.eval()`.
        half_precision: regular expression of names in `module`: what the paper's code keeps in half
            precision, by default the context of the first text layer.
    """

    module: nn.Module
    half_precision = r"(^|\.)contexts?$"

    def __init__(self, backbone: ImageBackbone, settings: Any, inputs: MethodInputs) -> None:
        self._backbone = backbone
        self._settings = settings
        self._inputs = inputs

    def training_step(self, batch: Batch) -> StepOutput:
        """The loss of one batch; the loop does the backward pass, clipping and the step.

        Called only if there are trainable parameters.
        """
        raise NotImplementedError

    @abstractmethod
    def class_vectors(self) -> Tensor:
        """[C, D], float32, for all classes under the current parameters, no graph.

        Unit length, or shorter if they are averages of unit vectors. [C, 0] if the method has none.
        """

    @property
    def scale(self) -> float:
        """`logit_scale.exp()`; multiplies cosine similarities."""
        assert isinstance(self._backbone, Backbone)  # a method for other backbones overrides this
        return self._backbone.scale

    @property
    def can_split_batches(self) -> bool:
        """Whether an image's features do not depend on the other images of its training step.

        If so, a batch may be encoded in parts (`supervised.encode_images`).
        """
        return True

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter for the optimizer, in a fixed order."""
        return dict(self.module.named_parameters())

    def half_parameters(self) -> list[nn.Parameter]:
        """The trained parameters that the paper's code keeps in half precision."""
        named = self.trainable_parameters().items()
        return [parameter for name, parameter in named if re.search(self.half_precision, name)]

    def averaging_weights(self, n_epochs: int) -> list[float] | None:
        """One weight per epoch for averaging the trained parameters (they sum to 1), or None."""
        return None

    def image_modules(self) -> ImageModules:
        """The modules and settings of `forward_features`; each must describe the other's features.

        A method with a projector, merged tokens or its own encoder overrides both.
        """
        return ImageModules(self._backbone.visual)

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length, float32, no graph; the deployed path."""
        modules = self.image_modules()
        return unit_length(encode_image(modules.visual, images, modules.visual_prompts))

    def own_logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C], scaled, float32, for all classes, no graph.

        Called only if `settings.classifier` is `own_logits`.
        """
        raise NotImplementedError

    def layers_above(self) -> dict[str, int]:
        """Name of a trained parameter -> number of the encoder's layers after it.

        0 for parameters after the last layer. Parameters that are not listed belong to no layer.
        Empty if no layer is trained. `optim.layer_decay` lowers learning rates by this number.
        """
        return {}


class ClosedFormMethod(BaseMethod):
    """A method that `fit` solves; it is not trained by gradients.

    Its module's `Method` is the class, and not a function that chooses one by the settings.
    """

    @abstractmethod
    def fit(self, data: ClosedFormData) -> dict[str, Any]:
        """Sets the method's tensors; returns a record of the settings that it chose.

        The record's entry `summary` is one line of text for the user.

        Raises:
            DivergedError: features of an image are not finite.
        """

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Empty: nothing is trained by gradients."""
        return {}
