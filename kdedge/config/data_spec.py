"""The schema of a recipe's classes and data: names, images, labels, how they are split."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from kdedge.config._fields import (
    DatasetPlace,
    PlainText,
    RecipePath,
    ShardPattern,
    Strict,
    check_bad_images,
    check_template,
)

SOURCES = ("folder", "webdataset", "list", "parquet", "huggingface", "benchmark", "synthetic")
"""The keys of a source that name where it is."""


HUB = "hf://datasets/"
"""Before the name of a dataset on the Hugging Face Hub."""


def _exactly_one(spec: BaseModel, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise ValueError(f"needs exactly one of {', '.join(names)}; got {got}")


class ClassesSpec(Strict):
    """The class names, in the order that labels and stored class vectors follow."""

    file: RecipePath | None = Field(
        None, description="Text file, UTF-8, one class name a line, in label order."
    )
    benchmark: PlainText | None = Field(
        None, description="The class names of a benchmark set, such as sun397."
    )
    synthetic: Literal["shapes"] | None = Field(
        None, description="The class names of the built-in drawings."
    )
    names: tuple[PlainText, ...] | None = Field(
        None,
        strict=False,
        min_length=2,
        description="The class names themselves; `classes: [cat, dog]` is short for this.",
    )
    texts: RecipePath | None = Field(
        None,
        description='JSON file of sentences that describe the classes, {"cat": ["a small animal'
        ' with whiskers."], ...}, for methods that learn from texts: lafter.',
    )
    template: Annotated[str, AfterValidator(check_template)] = Field(
        "a photo of a {}.",
        description="Text around a class name, {} stands for the name. The default is CLIP's own"
        " (arXiv:2103.00020, 3.1.4).",
    )

    @model_validator(mode="after")
    def _check(self) -> ClassesSpec:
        _exactly_one(self, ("file", "benchmark", "synthetic", "names"))
        names = self.names or ()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f'holds "{twice[0]}" more than once; class names must differ')
        return self


class SourceSpec(Strict):
    """Where images come from: exactly one of folder, webdataset, list, parquet and so on."""

    folder: RecipePath | None = Field(
        None,
        description="Folder of images, searched with its subfolders. With labels: one subfolder a"
        " class, named as the class.",
    )
    webdataset: ShardPattern | None = Field(
        None,
        description='Tar shards, as "shards-{000..063}.tar": `jpg` (or png, webp) members, and'
        " `cls` members with the class's position for labels.",
    )
    list: RecipePath | None = Field(
        None, description="CSV file with a header: path, and label (a class name) for labels."
    )
    parquet: ShardPattern | None = Field(
        None,
        description="Parquet files with images as bytes: a file, a folder of them, or a pattern"
        ' such as "train-*.parquet".',
    )
    huggingface: DatasetPlace | None = Field(
        None,
        description="Folder of a Hugging Face dataset, as its save_to_disk writes it; of several"
        " splits, that of one of them. Or hf://datasets/OWNER/NAME, with /CONFIG behind it where"
        " it has several: a dataset on the Hub, which is downloaded once.",
    )
    image_column: PlainText | None = Field(
        None,
        description="Column of images, of parquet and huggingface; the only one there is when left"
        " out.",
    )
    label_column: PlainText | None = Field(
        None,
        description="Column of labels, of parquet and huggingface; label, labels, or the only one"
        " of class labels when left out.",
    )
    benchmark: PlainText | None = Field(None, description="A benchmark set, such as sun397.")
    synthetic: Literal["shapes"] | None = Field(
        None, description="Built-in drawings, made from a seed; nothing is downloaded."
    )
    part: Literal["train", "val", "test"] = Field(
        "train",
        description="Which official part, for benchmark, synthetic and datasets on the Hub only.",
    )

    @model_validator(mode="after")
    def _check(self) -> SourceSpec:
        _exactly_one(self, SOURCES)
        has_parts = self.benchmark or self.synthetic or self.is_on_hub
        if self.part != "train" and not has_parts:
            raise ValueError(
                f"has part: {self.part}, which only benchmark, synthetic and hf:// have; name the"
                " folder, shards, list or table that hold that part"
            )
        is_table = self.parquet is not None or self.huggingface is not None
        if not is_table and (self.image_column or self.label_column):
            raise ValueError("has a column, which only parquet and huggingface have; leave it out")
        return self

    @property
    def is_on_hub(self) -> bool:
        """Whether this is a dataset on the Hugging Face Hub."""
        return str(self.huggingface or "").startswith(HUB)


class LabeledSpec(SourceSpec):
    """A source with labels, of which a number of images a class is used."""

    shots: int | None = Field(
        None,
        ge=1,
        description="Labeled images per class, drawn with the seed; all when left out. 16 in the"
        " published tables (arXiv:2307.06948, 4.1).",
    )


class UnlabeledSpec(SourceSpec):
    """A source whose labels nothing learns from."""

    per_class: int | None = Field(
        None,
        ge=1,
        description="Images per class, drawn with the seed as shots are; all when left out. The"
        " source's labels are read for this draw and for nothing else, so it needs a source that"
        " has them, and images without a class cannot be drawn. 64 in the ablations of PromptKD"
        " (arXiv:2403.02781, tables 4 to 6), 16 to 256 in figure 4.",
    )


class DataSpec(Strict):
    """The images: what is trained on, what is measured on."""

    unlabeled: UnlabeledSpec | None = Field(
        None,
        description="Images the student learns from, which may be the labeled ones: no label is"
        " learned from.",
    )
    labeled: LabeledSpec | None = Field(
        None, description="Labeled images the teacher learns from; also the baselines."
    )
    pseudo_labels: RecipePath | None = Field(
        None,
        description="File of classes for images of data.unlabeled, as `kdedge pseudo-label` writes"
        " it and a person may correct it. Methods that learn from labels learn from these too, as"
        " from labels, and over all classes; without data.labeled from these alone. An image with a"
        " label keeps it.",
    )
    validation: LabeledSpec | None = Field(
        None,
        description="Labeled images for choosing an epoch; needed by selection: validation. Shots"
        " are drawn after those of data.labeled, from the same stream.",
    )
    test: SourceSpec | None = Field(
        None, description="Labeled images that accuracy is measured on."
    )
    split: Literal["all", "base-to-novel"] = Field(
        "all",
        description="all: every class is trained and tested. base-to-novel: labels are read only"
        " for the first half of the classes, and each half is tested by itself"
        " (arXiv:2203.05557, 4.1).",
    )
    max_bad_images: Annotated[str | int, AfterValidator(check_bad_images)] = Field(
        "1%",
        description='Unreadable images a source may have before that is an error: "1%" or a count.'
        " They are skipped and listed in skipped.csv. The default is ours.",
    )
    root: RecipePath | None = Field(
        None,
        description="Folder of the benchmark sets; else the environment variable KDEDGE_DATA, else"
        " ./data.",
    )

    @model_validator(mode="after")
    def _check(self) -> DataSpec:
        if self.pseudo_labels is not None and self.unlabeled is None:
            raise ValueError(
                "has pseudo_labels and no unlabeled: the images that they are of; add them"
            )
        return self

    def bad_image_limit(self, n_images: int) -> int:
        """The number of unreadable images among `n_images` that is still accepted."""
        if isinstance(self.max_bad_images, int):
            return self.max_bad_images
        return math.floor(n_images * float(self.max_bad_images[:-1]) / 100)
