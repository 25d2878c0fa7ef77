"""DTD: 47 describable textures (Cimpoi et al., CVPR 2014), in CoOp's split.

CoOp's split is not one of the set's own ten in `labels/`: it is drawn from all images. Labels are
sorted folder names, names are those (github.com/KaiyangZhou/CoOp, datasets/dtd.py).
"""

from __future__ import annotations

from pathlib import Path

from kdedge.data.benchmarks._annotations import folders_in
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import class_folders_in_three

IMAGES = "images"
SPLIT_FILE = "split_zhou_DescribableTextures.json"


def _own_split(folder: Path) -> Split:
    images = folder / IMAGES
    return class_folders_in_three(images, {name: name for name in folders_in(images)})


SET = CoopSet(
    name="dtd",
    about=__doc__,
    folder="dtd",
    template="{} texture.",
    license="for research (www.robots.ox.ac.uk/~vgg/data/dtd)",
    n_classes=47,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 2_820, "val": 1_128, "test": 1_692},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md; the archive's hash from tensorflow_datasets, url_checksums/dtd.txt
    downloads=(
        Download(
            name="dtd-r1.0.1.tar.gz",
            urls=("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",),
            gives=IMAGES,
            sha256="e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            n_bytes=625_239_812,
            unpack="tar",
            top="dtd",
            mirror=mirror(
                "dtd.zip",
                IMAGES,
                sha256="5ba4d3000e60f5541ba15a082033ca0696eee68125e9c28edff3dbe22f04313b",
                n_bytes=626_071_992,
            ),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),),
            gives=SPLIT_FILE,
            sha256="f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
            n_bytes=563_702,
        ),
    ),
    own_split=_own_split,
    own_reads=(IMAGES,),
)
