"""Peak memory of training on a CPU: what `kdedge check` says about a few recipes of real sizes.

Weights are random and images drawn; sizes are real (ViT-L/14 teacher, ViT-B/16 student, 100
classes, float32). Each row is a process of its own. The peak holds both models and the steps of
teacher and student, and PyTorch itself.

    python benchmarks/training_memory.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

TEACHER, STUDENT = "ViT-L-14", "ViT-B-16"
N_CLASSES = 100
ROWS = {
    "as shipped, batch 8": (),
    "batch 4": ("optim.batch_size=4",),
    "zero-shot teacher": ("teacher.method=zeroshot",),
    "tune: full": ("student.settings.tune=full",),
}


def prepare(folder: Path, n_unlabeled: int = 1) -> Path:
    """Writes weights, images (so many unlabeled a class) and a recipe; gives the recipe."""
    names = [f"thing {number}" for number in range(N_CLASSES)]
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        for part in (*(f"cams/{x}" for x in range(n_unlabeled)), f"labeled/{name}"):
            place = folder / part / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(place)
    torch.manual_seed(0)
    for name in (TEACHER, STUDENT):
        config = open_clip.get_model_config(name)
        save_file(open_clip.CLIP(**config).state_dict(), folder / f"{name}.safetensors")
    recipe = {
        "name": "memory",
        "classes": {"names": names},
        "data": {
            "unlabeled": {"folder": "cams"},
            "labeled": {"folder": "labeled", "shots": 1},
        },
        "teacher": {
            "method": "promptsrc",
            "backbone": TEACHER,
            "weights": f"{TEACHER}.safetensors",
            "quick_gelu": True,
        },
        "student": {
            "method": "promptkd",
            "backbone": STUDENT,
            "weights": f"{STUDENT}.safetensors",
            "quick_gelu": True,
            "settings": {"losses": {"kl": {"weight_per_image": 2.5}}},
        },
        "optim": {"batch_size": 8, "epochs": 5},
    }
    file = folder / "memory.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return file


def main(folder: Path) -> None:
    """Prints the table."""
    recipe = prepare(folder)
    for row, settings in ROWS.items():
        flags = [part for one in settings for part in ("--set", one)]
        command = [sys.executable, "-m", "kdedge", "check", str(recipe), *flags]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        lines = [one for one in done.stdout.splitlines() if one.startswith("memory ")]
        print(f"{row:22}", *(lines or [done.stderr]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
