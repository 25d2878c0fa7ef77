"""Code that methods share: encoding of images, cross-entropy with labels, and bases for it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from kdedge.clip.backbone import Backbone
from kdedge.clip.prompts import prompted_text_features, prompted_texts
from kdedge.clip.text import TokenizedTexts, in_chunks
from kdedge.errors import DataError
from kdedge.loading.batch import Batch
from kdedge.methods.base import BaseMethod, ImageModules, MethodInputs, StepOutput


def encode_images(batch: Batch, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, D]: the image features of all images of a step, with gradients.

    Args:
        batch: holds this rank's shard of the images, if there are several ranks.
        encode: [b, 3, H, W] -> [b, D]; an image's features must not depend on other images.
    """
    images = batch.images
    rows = in_chunks(
        lambda chunk: encode(images[chunk]),
        len(images),
        chunk_size=batch.micro_batch or len(images),
    )
    return batch.group.gather(rows, batch.n_images)


def is_splittable(visual: nn.Module) -> bool:
    """Whether an image encoder in training mode gives an image the same features in any batch.

    Batch norm uses statistics of the whole batch, and dropout differs in a second pass.
    """
    return not any(
        isinstance(layer, _BatchNorm)
        or (isinstance(layer, _DropoutNd) and layer.p > 0)
        or getattr(layer, "drop_prob", None)  # timm's DropPath
        for layer in visual.modules()
    )


def labels_of(batch: Batch) -> Tensor:
    """[B], labels as positions among the training classes.

    Raises:
        DataError: the batch has no labels.
    """
    if batch.labels is None:
        raise DataError("This method learns from labeled images, but the batch has no labels.")
    return batch.labels


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Cross-entropy of logits [B, C] with labels [B]: the mean, or the sum with weights [B]."""
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (weights * F.cross_entropy(logits, labels, reduction="none")).sum()


class SupervisedMethod(BaseMethod):
    """A method on a frozen CLIP whose loss is the cross-entropy of its logits.

    Its file adds the module, the class logits, and its visual prompts if it has any.
    """

    _backbone: Backbone

    @abstractmethod
    def class_logits(self, image_features: Tensor) -> Tensor:
        """[B, D], unit length -> [B, C], float32, over the training classes."""

    def visual_prompts(self) -> Tensor | None:
        """[depth, n_ctx_vision, D_vision], with gradients; None for plain CLIP."""
        return None

    def training_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D], unit length, with gradients if the image side is trained."""
        return self._backbone.image_features(images, self.visual_prompts())

    def training_step(self, batch: Batch) -> StepOutput:
        """Cross-entropy with the labels [B], averaged over images or with the batch's weights."""
        labels = labels_of(batch)
        logits = self.class_logits(encode_images(batch, self.training_features))
        accuracy = 100 * (logits.detach().argmax(dim=-1) == labels).float().mean()
        loss = cross_entropy(logits, labels, batch.weights)
        return StepOutput(loss, {"batch_accuracy_percent": accuracy})

    @torch.no_grad()
    def image_modules(self) -> ImageModules:
        """The image encoder with its visual prompts."""
        return ImageModules(self._backbone.visual, self.visual_prompts())


class TextPromptMethod(SupervisedMethod):
    """A supervised method whose texts, "<context> NAME.", contain learned context.

    Attributes:
        texts: texts of all classes, with placeholders for the context.
    """

    def __init__(self, backbone: Backbone, settings: Any, inputs: MethodInputs) -> None:
        super().__init__(backbone, settings, inputs)
        self.texts = self.class_texts(inputs.class_names)
        self._train_texts = self.class_texts(inputs.train_names)

    def class_texts(self, names: Sequence[str]) -> TokenizedTexts:
        """Tokenizes "<context> NAME." with room for the context."""
        n_ctx = self._settings.n_ctx
        init = self._settings.context_init
        return prompted_texts(
            self._backbone, names, n_ctx=n_ctx, context_init=init, setting="n_ctx"
        )

    def text_features(self, texts: TokenizedTexts) -> Tensor:
        """[C, D], unit length, with gradients; encoded in chunks of classes to save memory.

        Uses the module's `text_prompts`. A method whose texts depend on the image overrides
        `class_logits` instead.
        """
        prompts: Any = self.module.text_prompts
        return prompted_text_features(self._backbone, texts, prompts.context, prompts.deep_context)

    def class_logits(self, image_features: Tensor, texts: TokenizedTexts | None = None) -> Tensor:
        """[B, D], unit length -> [B, C], float32; for the training classes' texts by default."""
        text_features = self.text_features(texts or self._train_texts)
        with torch.autocast(image_features.device.type, enabled=False):
            return self.scale * image_features @ text_features.T

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """[C, D], text features of all classes with the current context."""
        return self.text_features(self.texts)
