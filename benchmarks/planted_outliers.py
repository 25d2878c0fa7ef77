"""Plants outliers in a CLIP's image encoder that change no output, as large CLIPs have them.

In large CLIPs a few channels of the blocks are tens of times larger than the others, in every
token. One scale for all channels then leaves a few levels to the others.

The residual stream itself cannot be scaled exactly: each LayerNorm divides by the deviation over
all channels, so a scaled channel changes the other ones. What is quantized can: the inputs of the
linear layers. In each block, two channels

- of both LayerNorms' outputs are 50 times larger (weight and bias), and the columns of the layers
  that read them 50 times smaller;
- of attention's values are 50 times larger (rows and bias), and the columns of the output
  projection 50 times smaller. Attention averages values channel by channel.

GELU is not homogeneous, so the input of the MLP's second layer has no planted channel.

    python benchmarks/planted_outliers.py WEIGHTS.safetensors PLANTED.safetensors
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

FACTOR, CHANNELS = 50.0, (3, 17)


def plant(state: Mapping[str, Any], *, factor: float = FACTOR) -> dict[str, Any]:
    """A copy of a CLIP's tensors with planted outliers; other outputs differ by rounding alone.

    Args:
        state: tensors by name, as OpenAI and open_clip name them, with or without "visual.".
        factor: how much larger the channels become.
    """
    planted = {key: value.clone() for key, value in state.items()}
    channels = list(CHANNELS)
    for key in state:
        found = re.fullmatch(r"((?:visual\.)?transformer\.resblocks\.\d+\.)ln_1\.weight", key)
        is_text = "visual.proj" in state and not key.startswith("visual.")
        if found is None or is_text:
            continue
        block = found[1]
        for norm in ("ln_1", "ln_2"):
            for part in ("weight", "bias"):
                planted[f"{block}{norm}.{part}"][channels] *= factor
        projection, bias = (planted[f"{block}attn.in_proj_{part}"] for part in ("weight", "bias"))
        projection[:, channels] /= factor
        planted[f"{block}mlp.c_fc.weight"][:, channels] /= factor
        values = [2 * len(projection) // 3 + channel for channel in channels]
        projection[values] *= factor
        bias[values] *= factor
        planted[f"{block}attn.out_proj.weight"][:, channels] /= factor
    return planted


def main() -> None:
    """Writes a CLIP's weights with planted outliers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    save_file(plant(load_file(given.weights)), given.output)
    print(f"Wrote {given.output}")


if __name__ == "__main__":
    main()
