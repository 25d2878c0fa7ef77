"""A student of real size to measure: ViT-B/16 with 397 classes, in FOLDER/runs/vit-b16/02.

    python benchmarks/vit_b16.py FOLDER

Its backbone is random, and it is trained for a few steps on drawn images: its sizes and times are
those of a real one, its accuracy means nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

RECIPE = """\
name: vit-b16
classes: [{names}]
data:
  unlabeled: {{folder: {images}}}
teacher: {{method: zeroshot, backbone: ViT-B-16, weights: {weights}}}
student: {{method: promptkd, backbone: ViT-B-16, weights: {weights}}}
optim: {{epochs: 1, batch_size: 8, warmup_epochs: 0}}
export: {{calibration_images: 64, parity_images: 64}}
gates: {{agreement: {{fp16: 0%, int8: 0%}}, max_drop: 100}}
"""


def make(folder: Path) -> None:
    """Writes random ViT-B/16 weights in OpenAI's layout, images and a recipe, and distills."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"), quick_gelu=True)
    state: dict[str, Any] = dict(model.state_dict())
    state["logit_scale"] = torch.tensor(100.0).log()
    state |= {
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(state, folder / "vit-b16.pt")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(128):
        small = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC).save(
            folder / "images" / f"{number}.png"
        )
    names = ", ".join(f"place {number}" for number in range(397))
    recipe = folder / "vit-b16.yaml"
    recipe.write_text(
        RECIPE.format(names=names, images=folder / "images", weights=folder / "vit-b16.pt")
    )
    command = [sys.executable, "-m", "kdedge", "distill", str(recipe)]
    subprocess.run([*command, "--runs", str(folder / "runs")], check=True)


def main() -> None:
    """Makes the student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
