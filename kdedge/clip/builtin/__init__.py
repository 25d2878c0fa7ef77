"""The two tiny built-in CLIPs of the demo.

Their files leave out the token table: training changed none of its 49,408 rows. It is drawn again,
bit for bit, when a model is loaded. `benchmarks/demo_clips/train.py` made the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

BUILTIN_MODELS = ("kdedge-demo-student", "kdedge-demo-teacher")
"""The names of the built-in CLIPs."""

TOKEN_TABLE = "token_embedding.weight"  # noqa: S105 - a tensor's name
"""The tensor that the files leave out."""

_FOLDER = Path(__file__).parent
_TOKEN_TABLE_SEED = 20240304
_TOKEN_STD = 0.02  # CLIP's own initial spread (arXiv:2103.00020, released code)


def builtin_config(name: str) -> dict[str, Any]:
    """Returns the open_clip model config of one of `BUILTIN_MODELS`."""
    config: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return config


def builtin_file(name: str) -> Path:
    """The file of a built-in CLIP's weights, without the token table."""
    return _FOLDER / f"{name}.safetensors"


class BuiltinModel(NamedTuple):
    """A built-in CLIP, for `open_clip.CLIP(**config)` and a strict `load_state_dict`.

    Attributes:
        config: the open_clip model config.
        weights: all weights, in float32.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]


def builtin_model(name: str) -> BuiltinModel:
    """Loads a built-in CLIP."""
    config = builtin_config(name)
    weights = {key: value.float() for key, value in load_file(builtin_file(name)).items()}
    weights[TOKEN_TABLE] = draw_token_table(config)
    return BuiltinModel(config, weights)


def draw_token_table(config: Mapping[str, Any]) -> Tensor:
    """Draws the token table of a built-in CLIP: [vocabulary, D_text], close to N(0, 0.02²).

    An entry is the sum of four 16-bit integers, centered and scaled. The integers of a PCG64 bit
    generator are the same on every platform and in every NumPy version, which NumPy does not
    promise for its normal draws.

    Args:
        config: the model's config, which has the shape.
    """
    text = config["text_cfg"]
    shape = (int(text["vocab_size"]), int(text["width"]))
    words = np.random.PCG64(_TOKEN_TABLE_SEED).random_raw(shape[0] * shape[1])
    sums = sum(
        ((words >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.int32) for i in range(4)
    )
    centered = (sums - 2 * 0xFFFF).astype(np.float32)
    # Four uniform draws on 0..65535 have the variance 4 * 65536^2 / 12.
    scale = np.float32(_TOKEN_STD / (65536 / 3**0.5))
    return torch.from_numpy((centered * scale).reshape(shape))
