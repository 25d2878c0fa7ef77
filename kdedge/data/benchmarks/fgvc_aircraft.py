"""FGVC-Aircraft: photos of 100 variants of aircraft (Maji et al., arXiv:1306.5151).

The parts are the set's own; labels follow `variants.txt`, names are its lines
(github.com/KaiyangZhou/CoOp, datasets/fgvc_aircraft.py).
"""

from __future__ import annotations

from pathlib import Path

from kdedge.data.benchmarks._annotations import read_lines, unexpected
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import PARTS, Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import mirror

IMAGES = "images"
_NAMES = "variants.txt"
_LISTS = {part: f"images_variant_{part}.txt" for part in PARTS}


def _own_split(folder: Path) -> Split:
    names = read_lines(folder / _NAMES)
    labels = {name: label for label, name in enumerate(names)}
    parts = {}
    for part, file in _LISTS.items():
        rows = []
        for line in read_lines(folder / file):
            image, _, name = line.partition(" ")
            if name not in labels:
                raise unexpected(folder / file, line, f"an image and a line of {_NAMES}")
            rows.append((f"{image}.jpg", labels[name]))
        parts[part] = tuple(rows)
    return Split(tuple(names), parts)


SET = CoopSet(
    name="fgvc_aircraft",
    about=__doc__,
    folder="fgvc_aircraft",
    template="a photo of a {}, a type of aircraft.",
    license="for non-commercial research; the photos belong to their makers (the set's own README)",
    n_classes=100,
    # arXiv:1306.5151; arXiv:2403.02781, table 8
    n_images={"train": 3_334, "val": 3_333, "test": 3_333},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=None,
    # CoOp's DATASETS.md; hash from tensorflow_datasets, url_checksums/fgvc.txt
    downloads=(
        Download(
            name="fgvc-aircraft-2013b.tar.gz",
            urls=(
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            ),
            gives=IMAGES,
            sha256="d5f68b1b81d6d7831eb9d5c5517074176b5dfbce6bcb43dc14ed1c66a87b8d75",
            n_bytes=2_770_575_360,
            unpack="tar",
            top="fgvc-aircraft-2013b/data",
            mirror=mirror("fgvc_aircraft.zip", IMAGES, top="fgvc_aircraft"),  # with its lists
        ),
    ),
    own_split=_own_split,
    own_reads=(_NAMES, *_LISTS.values()),
)
