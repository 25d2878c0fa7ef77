"""EuroSAT: satellite pictures of 10 kinds of land (Helber et al., arXiv:1709.00029), CoOp's split.

Labels are sorted folder names; CoOp writes most of them out for the texts
(github.com/KaiyangZhou/CoOp, datasets/eurosat.py).
"""

from __future__ import annotations

from pathlib import Path

from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import Split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import google_drive, mirror
from kdedge.data.benchmarks._own_split import class_folders_in_three

IMAGES = "2750"
SPLIT_FILE = "split_zhou_EuroSAT.json"
_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def _own_split(folder: Path) -> Split:
    return class_folders_in_three(folder / IMAGES, _NAMES)


SET = CoopSet(
    name="eurosat",
    about=__doc__,
    folder="eurosat",
    template="a centered satellite photo of {}.",
    license="MIT license (github.com/phelber/EuroSAT); Sentinel data are free to use",
    n_classes=10,
    # arXiv:2403.02781, table 8; val by difference
    n_images={"train": 13_500, "val": 5_400, "test": 8_100},
    image_root=IMAGES,
    images=(IMAGES,),
    split_file=SPLIT_FILE,
    # CoOp's DATASETS.md; the archive's hash from tensorflow_datasets, url_checksums/eurosat.txt
    downloads=(
        Download(
            name="EuroSAT.zip",
            urls=("http://madm.dfki.de/files/sentinel/EuroSAT.zip",),
            gives=IMAGES,
            sha256="8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
            n_bytes=94_280_567,
            unpack="zip",
            mirror=mirror(
                "eurosat.zip",
                IMAGES,
                sha256="cedceda1690cad47bc3b41eb6bf2d0a134ec7413558128409928829f06c74613",
                n_bytes=94_808_536,
            ),
        ),
        Download(
            name=SPLIT_FILE,
            urls=(google_drive("1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),),
            gives=SPLIT_FILE,
            sha256="541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
            n_bytes=3_006_492,
        ),
    ),
    own_split=_own_split,
    own_reads=(IMAGES,),
)
