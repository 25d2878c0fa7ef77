"""How a model is optimized: the keys of `optim`, each with its meaning, bounds and source.

Published configs are those of the authors' repositories of PromptSRC (arXiv:2307.06948) and
PromptKD (arXiv:2403.02781).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdedge.config._fields import Strict

PrecisionName = Literal["fp32", "bf16", "fp16", "fp16-unscaled"]

_OFFICIAL = "The PromptKD repository's configs of teacher and student"


class OptimSettings(Strict):
    """How the trained tensors are optimized, all values concrete."""

    algorithm: Literal["sgd", "adamw"] = Field(
        "sgd",
        description=f"sgd: with momentum, no Nesterov; adamw: decoupled decay. {_OFFICIAL}: sgd.",
    )
    lr: float = Field(0.005, gt=0, le=10, description=f"Base learning rate. {_OFFICIAL}.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description=f"Of sgd; adamw's first beta. {_OFFICIAL}."
    )
    weight_decay: float = Field(
        5e-4, ge=0, le=10, description=f"On every trained tensor, prompts included. {_OFFICIAL}."
    )
    epochs: int = Field(
        20, ge=1, le=100_000, description=f"Passes over the training images. {_OFFICIAL}."
    )
    batch_size: int = Field(
        8,
        ge=1,
        le=65_536,
        description=f"Images a step; a last smaller batch is dropped. {_OFFICIAL}.",
    )
    labeled_batch_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Labeled images a step, beside batch_size unlabeled ones, for a method that"
        " learns from both. Default: batch_size. An epoch is a pass over the unlabeled images; the"
        " labeled ones come again and again.",
    )
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = Field(
        "auto",
        description="Images that the image tower takes at a time; gradients stay those of the whole"
        " batch, batch norm and all, for a second forward pass of all micro-batches but the last."
        " auto: the whole batch, and half as many whenever memory runs out. Changes results by"
        " rounding only.",
    )
    warmup_epochs: int = Field(
        1, ge=0, le=100_000, description=f"First epochs, at warmup_lr. {_OFFICIAL}."
    )
    warmup_lr: float = Field(
        1e-5,
        ge=0,
        le=10,
        description="Learning rate of the warm-up epochs; with schedule_per: step, what it rises"
        f" from. {_OFFICIAL}.",
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description=f"After the warm-up: cosine over all epochs, or lr kept. {_OFFICIAL}."
    )
    schedule_per: Literal["epoch", "step"] = Field(
        "epoch", description=f"How often the learning rate changes. {_OFFICIAL}: each epoch."
    )
    precision: PrecisionName = Field(
        "fp32",
        description="Of the forward pass; losses and trained tensors stay fp32. fp32 is ours, as it"
        " works on every device. fp16-unscaled: as the public code has it, without loss scaling,"
        " and with linear layers and the first layer's context rounded to fp16 after every step;"
        " for official: true.",
    )
    clip_grad_norm: float | None = Field(
        None,
        gt=0,
        description=f"Largest norm of all gradients together. {_OFFICIAL}: no clipping, as under"
        " official: true whatever a recipe says.",
    )
    crop_scale_min: float = Field(
        0.08,
        gt=0,
        le=1,
        description=f"Smallest area of a random training crop, share of the image. {_OFFICIAL}.",
    )
    flip: bool = Field(
        True,
        description=f"Mirror training images half of the time. {_OFFICIAL}. Off where left and"
        " right mean something.",
    )
    strong_views: bool = Field(
        False,
        description="Beside crop and flip, change colors, turn some images gray and blur all, as"
        f" the strong view of LaFTer's code (arXiv:2305.18287). {_OFFICIAL}: none of it.",
    )
    n_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field(
        "auto",
        description="Processes that read images: a count, or auto (one a CPU core, at most 8). Does"
        " not change any result.",
    )
    checkpoint_every_s: float = Field(
        60.0,
        gt=0,
        description="Seconds between checkpoints within an epoch; one is always written at an"
        " epoch's end. The default is ours.",
    )
    selection: Literal["last", "validation", "test"] = Field(
        "last",
        description="Which tensors are kept. last: the last epoch's, or the average over the epochs"
        " where the method averages. validation: those of the epoch that is most accurate on"
        " data.validation, with the average as one more candidate. test: on data.test, which only"
        " official: true may do.",
    )


class OptimSpec(OptimSettings):
    """Optimization as written in a recipe: `model_fields_set` holds the keys that were given."""


def resolve_optim(shared: OptimSpec, *own: OptimSpec | None) -> OptimSettings:
    """Lays a model's own keys over the shared ones, later over earlier, all over the defaults."""
    given = shared.model_dump(exclude_unset=True)
    for spec in own:
        if spec is not None:
            given |= spec.model_dump(exclude_unset=True)
    return OptimSettings(**given)
