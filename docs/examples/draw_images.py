"""Draw images to try "Your own images" with: the demo's shapes, as files in folders.

Run it with `python draw_images.py FOLDER`. It needs no network and no torch.
"""

import sys
from pathlib import Path

from kdedge.data.sources.synthetic import CLASS_NAMES, open_source

PARTS = {"cams": ("train", 40), "labeled": ("val", 16), "test": ("test", 10)}
"""Folder: part of the demo's set, images of each class."""


def main(folder: str) -> None:
    """Writes `cams`, unlabeled; `labeled` and `test`, one folder a class; and `classes.txt`."""
    names = CLASS_NAMES
    place = Path(folder)
    for name, (part, n) in PARTS.items():
        source = open_source(part=part, labeled=True)
        for number in range(n * len(names)):  # classes alternate
            inside = "" if name == "cams" else names[number % len(names)]
            file = place / name / inside / f"{number:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(source.read(number))
    (place / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
