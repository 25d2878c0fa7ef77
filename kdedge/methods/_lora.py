"""Settings of low-rank tuning, `tune: lora`."""

from __future__ import annotations

from pydantic import Field, field_validator

from kdedge.clip.low_rank import Projection
from kdedge.methods.protocol import MethodSettings


class LoraSettings(MethodSettings):
    """W + (alpha / r) B A on chosen layers; defaults from CLIP-LoRA (arXiv:2405.18541)."""

    rank: int = Field(
        2,
        ge=1,
        description="Rank r of each layer's change. The default 2 is from arXiv:2405.18541.",
    )
    alpha: float = Field(
        1.0,
        gt=0,
        le=1e6,
        description="The change is multiplied by alpha / rank (arXiv:2106.09685). The default 1 is"
        " from arXiv:2405.18541. Its code divides by the root of the rank; alpha: 1.414 gives the"
        " same factor at rank 2.",
    )
    projections: list[Projection] = Field(
        ["q", "k", "v"],
        min_length=1,
        description="Layers of a block that are changed: q, k, v and out of the attention; mlp for"
        " both layers of the MLP. The default q, k, v is from arXiv:2405.18541.",
    )
    blocks: list[int] | None = Field(
        None,
        min_length=1,
        description="Blocks of the image encoder that are changed, counted from 0. Default: all"
        " (arXiv:2405.18541).",
    )

    @field_validator("projections", "blocks")
    @classmethod
    def _named_once(cls, value: list[object] | None) -> list[object] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("has one of them twice")
        return value

    @field_validator("blocks")
    @classmethod
    def _from_0(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and min(value) < 0:
            raise ValueError("has a negative number; blocks are counted from 0")
        return value
