"""The schema of a recipe's `optim`: each key with its meaning, bounds, default and source.

Defaults follow the authors' repositories of PromptSRC (arXiv:2307.06948) and PromptKD
(arXiv:2403.02781).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdedge.config.fields import Strict
from kdedge.records.evaluation import Selection

TrainingPrecision = Literal["fp32", "bf16", "fp16", "fp16-unscaled"]


class OptimSettings(Strict):
    """Optimization settings; in a recipe, `model_fields_set` holds the keys that were written."""

    algorithm: Literal["sgd", "adamw"] = Field(
        "sgd", description="sgd: momentum without Nesterov. adamw: decoupled weight decay."
    )
    lr: float = Field(0.005, gt=0, le=10, description="Learning rate after warm-up.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd, first beta of adamw.")
    weight_decay: float = Field(
        5e-4, ge=0, le=10, description="Weight decay of every trained tensor, prompts included."
    )
    epochs: int = Field(20, ge=1, le=100_000, description="Passes over the training images.")
    batch_size: int = Field(
        8, ge=1, le=65_536, description="Images per step. A last, smaller batch is dropped."
    )
    labeled_batch_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Labeled images per step besides the unlabeled ones, for a method that learns"
        " from both. Default: batch_size. An epoch is a pass over the unlabeled images.",
    )
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = Field(
        "auto",
        description="Images that the image encoder processes at a time, to save memory, at the cost"
        " of a second forward pass. auto: the full batch, halved whenever memory runs out. Results"
        " change by rounding only.",
    )
    warmup_epochs: int = Field(1, ge=0, le=100_000, description="Epochs of warm-up, at warmup_lr.")
    warmup_lr: float = Field(1e-5, ge=0, le=10, description="Learning rate of the warm-up epochs.")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine",
        description="Learning rate after the warm-up. cosine: decays over all epochs. constant:"
        " stays at lr.",
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Factor between the learning rates of an image encoder's layers; the last one"
        " has lr times this factor (BEiT, arXiv:2106.08254; for CLIP: arXiv:2212.06138). For a"
        " student with tune: full or lora. Default: one learning rate for all layers.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of all trained tensors, which is then"
        " validated and kept. In step t it is at most (1 + t) / (10 + t), as in TensorFlow. Usual"
        " values are 0.99 to 0.9999. Default: no average.",
    )
    precision: TrainingPrecision = Field(
        "fp32",
        description="Precision of the forward pass; losses and trained tensors stay fp32. Default:"
        " fp32, which works on every device. fp16-unscaled is for official: true: no loss scaling,"
        " and what the public code keeps in fp16 is rounded after every step.",
    )
    clip_grad_norm: float | None = Field(
        None,
        gt=0,
        le=1e9,
        description="Largest norm of all gradients together. Default: no clipping. official: true"
        " removes this key.",
    )
    crop_scale_min: float = Field(
        0.08, gt=0, le=1, description="Smallest area of a random training crop, 0-1 of the image."
    )
    flip: bool = Field(
        True,
        description="Flip training images horizontally with probability 0.5. Turn it off if left"
        " and right matter.",
    )
    strong_views: bool = Field(
        False,
        description="Add color jitter, random grayscale and blur to crop and flip: the strong view"
        " of LaFTer's code (arXiv:2305.18287).",
    )
    n_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto",
        description="Processes that read images. auto: one per CPU core but one, at most 8;"
        " none for fewer than 2,000 images.",
    )
    checkpoint_every_s: float = Field(
        60.0,
        gt=0,
        le=1e6,
        description="Seconds between checkpoints; each epoch ends with one, too.",
    )
    selection: Selection = Field(
        "last",
        description="Which epoch's weights are kept. last: the last epoch's, or the average over"
        " epochs if the method averages. validation: the most accurate epoch's on data.validation;"
        " the average over epochs is a candidate too. test: the same on data.test; only with"
        " official: true.",
    )


def resolve_optim(shared: OptimSettings, *model_specs: OptimSettings | None) -> OptimSettings:
    """Merges settings: defaults, then shared keys, then a model's own keys; later ones win."""
    given = shared.model_dump(exclude_unset=True)
    for spec in filter(None, model_specs):
        given |= spec.model_dump(exclude_unset=True)
    return OptimSettings(**given)
