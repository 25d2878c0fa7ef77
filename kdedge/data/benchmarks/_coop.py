"""Ten sets in CoOp's layout: nine with its split file, and one in parts of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks._benchmark import (
    Benchmark,
    Download,
    HubArchive,
    google_drive,
    read_lines,
    unexpected,
    unpacked,
)
from kdedge.data.benchmarks._coop_split import (
    PARTS,
    CoopSplit,
    check_path,
    open_part,
    read_split,
)
from kdedge.data.sources import FileSource
from kdedge.errors import DataError


@dataclass(frozen=True)
class CoopSet(Benchmark):
    """One set.

    Attributes:
        image_root: folder, below the set's, that paths in the split file start at; "" for the
            set's.
    """

    image_root: str

    @property
    def lists(self) -> list[str]:
        """Files below its folder that name classes and images: CoOp's split file."""
        return [file.path for file in self.downloads if not file.has_images]

    def class_names(self, root: Path) -> tuple[str, ...]:
        """See `Benchmark.class_names`."""
        return self._read(root, self.lists).class_names

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> FileSource:
        """See `Benchmark.open_source`."""
        split = self._read(root, [file.path for file in self.downloads])
        folder = root / self.folder / self.image_root
        return open_part(folder, split, part=part, class_names=class_names, labeled=labeled)

    def read_split(self, folder: Path) -> CoopSplit:
        """Reads the parts from CoOp's split file in the set's folder.

        Raises:
            DataError: it is not a split file.
        """
        return read_split(folder / self.lists[0], remedy=self._remedy)

    @property
    def _remedy(self) -> str:
        return f"Get the published file: {self.downloads[-1].by_hand}."

    def _read(self, root: Path, needed: Sequence[str]) -> CoopSplit:
        """Reads the parts, and checks that they have the published numbers of images."""
        self.require(root, needed)
        folder = root / self.folder
        split = self.read_split(folder)
        counts = {part: len(rows) for part, rows in split.parts.items()}
        if counts != self.n_images or len(split.class_names) != self.n_classes:
            raise DataError(
                f"{folder / self.lists[0]} has {len(split.class_names)} classes and {counts}"
                f" images, the published split {self.n_classes} and {dict(self.n_images)}.\n"
                f"  {self._remedy}"
            )
        return split


class AircraftSet(CoopSet):
    """FGVC-Aircraft, whose lists are the class names and then, for each part, image and name."""

    def read_split(self, folder: Path) -> CoopSplit:
        """Reads the official parts.

        Raises:
            DataError: a list differs from the published one.
        """
        variants, *lists = self.lists
        names = read_lines(folder / variants)
        labels = {name: label for label, name in enumerate(names)}
        parts = {}
        for part, file in zip(PARTS, lists, strict=True):
            rows = []
            for line in read_lines(folder / file):
                image, _, name = line.partition(" ")
                if name not in labels:
                    raise unexpected(folder / file, line, f"an image and a line of {variants}")
                check_path(f"{image}.jpg", str(folder / file))
                rows.append((f"{image}.jpg", labels[name]))
            parts[part] = tuple(rows)
        return CoopSplit(tuple(names), parts)


def _split_file(name: str, drive_id: str, sha256: str | None = None) -> Download:
    """CoOp's split file, from the address in its DATASETS.md."""
    return Download(name, google_drive(drive_id), sha256)


# Counts are from arXiv:2403.02781, table 8; val by difference; addresses from CoOp's DATASETS.md.
COOP_SETS: tuple[CoopSet, ...] = (
    # 100 of the 102 folders are classes, in byte order, so that names with capitals come first.
    # CoOp leaves out the background and the second folder of faces and renames four
    # (github.com/KaiyangZhou/CoOp, datasets/caltech101.py).
    CoopSet(
        name="caltech101",
        about="Caltech101: pictures of objects (Fei-Fei et al., 2004).",
        folder="caltech-101",
        template="a photo of a {}.",
        license="CC BY 4.0 (data.caltech.edu/records/mzrjq-6wc02)",
        n_classes=100,
        n_images={"train": 4_128, "val": 1_649, "test": 2_465},
        image_root="101_ObjectCategories",
        mirror=HubArchive("caltech-101.zip"),
        downloads=(
            unpacked(
                "101_ObjectCategories",
                "http://www.vision.caltech.edu/Image_Datasets/Caltech101/101_ObjectCategories.tar.gz",
                google_drive("137RyRjvTBkBiIfeYBNZBtViDHQ6_Ewsp"),
            ),
            _split_file("split_zhou_Caltech101.json", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
        ),
    ),
    # Labels are the annotation files' breed ids, in alphabetical order ignoring case. Class names
    # are image file names without the number, in lower case (github.com/KaiyangZhou/CoOp,
    # datasets/oxford_pets.py).
    CoopSet(
        name="oxford_pets",
        about="OxfordPets: 37 breeds of cats and dogs (Parkhi et al., CVPR 2012).",
        folder="oxford_pets",
        template="a photo of a {}, a type of pet.",
        license="CC BY-SA 4.0; the pictures belong to their makers"
        " (www.robots.ox.ac.uk/~vgg/data/pets)",
        n_classes=37,
        n_images={"train": 2_944, "val": 736, "test": 3_669},
        image_root="images",
        mirror=HubArchive("oxford_pets.zip"),
        downloads=(
            unpacked(
                "images",
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz",
            ),
            _split_file("split_zhou_OxfordPets.json", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
        ),
    ),
    # Labels are the development kit's class numbers; a name has the year in front, which the kit
    # has at the end (github.com/KaiyangZhou/CoOp, datasets/stanford_cars.py).
    CoopSet(
        name="stanford_cars",
        about="StanfordCars: 196 models of cars (Krause et al., 3dRR 2013).",
        folder="stanford_cars",
        template="a photo of a {}.",
        license="none stated with the files; see ai.stanford.edu/~jkrause/cars/car_dataset.html",
        n_classes=196,
        n_images={"train": 6_509, "val": 1_635, "test": 8_041},
        image_root="",
        mirror=HubArchive("stanford_cars.zip"),
        downloads=(
            unpacked("cars_train", "http://ai.stanford.edu/~jkrause/car196/cars_train.tgz"),
            unpacked("cars_test", "http://ai.stanford.edu/~jkrause/car196/cars_test.tgz"),
            _split_file("split_zhou_StanfordCars.json", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
        ),
    ),
    # Labels are the set's numbers 1 to 102, less one (github.com/KaiyangZhou/CoOp,
    # datasets/oxford_flowers.py).
    CoopSet(
        name="oxford_flowers",
        about="Flowers102: 102 kinds of flowers (Nilsback and Zisserman, ICVGIP 2008).",
        folder="oxford_flowers",
        template="a photo of a {}, a type of flower.",
        license="none stated; the pictures belong to their makers"
        " (www.robots.ox.ac.uk/~vgg/data/flowers)",
        n_classes=102,
        n_images={"train": 4_093, "val": 1_633, "test": 2_463},
        image_root="jpg",
        mirror=HubArchive("oxford_flowers.zip"),
        downloads=(
            unpacked("jpg", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz"),
            _split_file("split_zhou_OxfordFlowers.json", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
        ),
    ),
    # CoOp's split is not the set's own in `meta/`: it is drawn from all images, so that its test
    # images may be official training images. Labels are sorted folder names, names are those
    # (github.com/KaiyangZhou/CoOp, datasets/food101.py).
    CoopSet(
        name="food101",
        about="Food101: pictures of 101 dishes (Bossard et al., ECCV 2014).",
        folder="food-101",
        template="a photo of {}, a type of food.",
        license="Foodspotting's pictures: beyond scientific fair use, ask their owners",
        n_classes=101,
        n_images={"train": 50_500, "val": 20_200, "test": 30_300},
        image_root="images",
        mirror=HubArchive("food101.zip"),
        downloads=(
            unpacked("images", "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", top="food-101"),
            _split_file("split_zhou_Food101.json", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        ),
    ),
    # The parts are the set's own; labels follow `variants.txt`, names are its lines
    # (github.com/KaiyangZhou/CoOp, datasets/fgvc_aircraft.py).
    AircraftSet(
        name="fgvc_aircraft",
        about="FGVC-Aircraft: photos of 100 variants of aircraft (Maji et al., arXiv:1306.5151).",
        folder="fgvc_aircraft",
        template="a photo of a {}, a type of aircraft.",
        license="for non-commercial research; the photos belong to their makers (the set's own"
        " README)",
        n_classes=100,
        # arXiv:1306.5151; arXiv:2403.02781, table 8
        n_images={"train": 3_334, "val": 3_333, "test": 3_333},
        image_root="images",
        mirror=HubArchive("fgvc_aircraft.zip"),
        downloads=tuple(
            unpacked(
                path,
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                top="fgvc-aircraft-2013b/data",
            )
            for path in (
                *("images", "variants.txt"),
                *(f"images_variant_{part}.txt" for part in PARTS),
            )
        ),
    ),
    # Labels follow the order of the set's `ClassName.txt`; names are its paths without the first
    # letter, read backwards: `/c/church/indoor` is "indoor church" (github.com/KaiyangZhou/CoOp,
    # datasets/sun397.py).
    CoopSet(
        name="sun397",
        about="SUN397: 397 kinds of scenes (Xiao et al., CVPR 2010).",
        folder="sun397",
        template="a photo of a {}.",
        license="for research, under the SUN database's terms"
        " (vision.princeton.edu/projects/2010/SUN)",
        n_classes=397,
        n_images={"train": 15_880, "val": 3_970, "test": 19_850},
        image_root="SUN397",
        mirror=HubArchive(
            "sun397.zip", sha256="ce6dee6685c9f1d592c8297e193dde885aa9c50d008fd998a38ccc57a3dda722"
        ),
        # The official URL is gone (github.com/pytorch/vision/issues/9348).
        downloads=(
            unpacked("SUN397", "https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz"),
            _split_file("split_zhou_SUN397.json", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
        ),
    ),
    # CoOp's split is not one of the set's own ten in `labels/`: it is drawn from all images. Labels
    # are sorted folder names, names are those (github.com/KaiyangZhou/CoOp, datasets/dtd.py).
    CoopSet(
        name="dtd",
        about="DTD: 47 describable textures (Cimpoi et al., CVPR 2014).",
        folder="dtd",
        template="{} texture.",
        license="for research (www.robots.ox.ac.uk/~vgg/data/dtd)",
        n_classes=47,
        n_images={"train": 2_820, "val": 1_128, "test": 1_692},
        image_root="images",
        mirror=HubArchive(
            "dtd.zip", sha256="5ba4d3000e60f5541ba15a082033ca0696eee68125e9c28edff3dbe22f04313b"
        ),
        downloads=(
            unpacked(
                "images",
                "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                top="dtd",
            ),
            _split_file(
                "split_zhou_DescribableTextures.json",
                "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
                "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
            ),
        ),
    ),
    # Labels are sorted folder names; CoOp writes most of them out for the texts
    # (github.com/KaiyangZhou/CoOp, datasets/eurosat.py).
    CoopSet(
        name="eurosat",
        about="EuroSAT: satellite pictures of 10 kinds of land (Helber et al., arXiv:1709.00029).",
        folder="eurosat",
        template="a centered satellite photo of {}.",
        license="MIT license (github.com/phelber/EuroSAT); Sentinel data are free to use",
        n_classes=10,
        n_images={"train": 13_500, "val": 5_400, "test": 8_100},
        image_root="2750",
        mirror=HubArchive(
            "eurosat.zip", sha256="cedceda1690cad47bc3b41eb6bf2d0a134ec7413558128409928829f06c74613"
        ),
        downloads=(
            unpacked("2750", "http://madm.dfki.de/files/sentinel/EuroSAT.zip"),
            _split_file(
                "split_zhou_EuroSAT.json",
                "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
                "541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
            ),
        ),
    ),
    # Labels are the numbers of `classInd.txt`, less one; a name is the action's with an underscore
    # before each capital (github.com/KaiyangZhou/CoOp, datasets/ucf101.py).
    CoopSet(
        name="ucf101",
        about="UCF101: middle frames of videos of 101 actions (Soomro et al., arXiv:1212.0402).",
        folder="ucf101",
        template="a photo of a person doing {}.",
        license="none stated; videos of YouTube (www.crcv.ucf.edu/data/UCF101.php)",
        n_classes=101,
        n_images={"train": 7_639, "val": 1_898, "test": 3_783},
        image_root="UCF-101-midframes",
        mirror=HubArchive("ucf101.zip"),
        downloads=(
            unpacked("UCF-101-midframes", google_drive("10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O")),
            _split_file("split_zhou_UCF101.json", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
        ),
    ),
)
