"""ImageNet: photos of 1000 classes (ILSVRC 2012; Russakovsky et al., arXiv:1409.0575).

The published tables test on the official validation images, which are the part `test` here; there
is no part `val`. Labels are sorted WordNet ids, files are sorted by path
(github.com/KaiyangZhou/CoOp, datasets/imagenet.py).
"""

from __future__ import annotations

from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._imagenet import CLASS_NAMES_DOWNLOAD, FolderSet

IMAGES = {"train": "images/train", "test": "images/val"}


SET = FolderSet(
    name="imagenet",
    about=__doc__,
    folder="imagenet",
    template="a photo of a {}.",
    license="for non-commercial research and education, after registering at image-net.org",
    n_classes=1000,
    # arXiv:2403.02781, table 8
    n_images={"train": 1_281_167, "test": 50_000},
    images=IMAGES,
    # CoOp's DATASETS.md
    downloads=(
        Download(
            name=IMAGES["train"],
            urls=(),
            gives=IMAGES["train"],
            manual="Register at https://image-net.org, fetch ILSVRC2012_img_train.tar, and unpack"
            " it and the tar file of each class, into a folder named as that.",
        ),
        Download(
            name=IMAGES["test"],
            urls=(),
            gives=IMAGES["test"],
            manual="Register at https://image-net.org, fetch ILSVRC2012_img_val.tar, and sort its"
            " images into class folders as those of the training images.",
        ),
        CLASS_NAMES_DOWNLOAD,
    ),
)
