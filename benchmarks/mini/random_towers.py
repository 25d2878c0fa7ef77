"""Writes random weights of timm's models, for students on a machine without downloads.

python benchmarks/mini/random_towers.py mobilenetv3_small_050 tinynet_e test_vit
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).with_name("towers")


def main() -> None:
    """Writes towers/NAME.safetensors for each name, drawn from seed 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME")
    FOLDER.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        torch.manual_seed(0)
        file = FOLDER / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), file)
        print(f"Wrote {file}")


if __name__ == "__main__":
    main()
